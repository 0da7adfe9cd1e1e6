//! Does a coordinator answer, and what is the time there? For `doctor`; no token is sent.

use std::time::Duration;

use tokio::time::timeout;

use super::{CoordinatorError, addresses, client};
use crate::config;
use crate::error;

/// Asks every address; returns each with its answer's `Date`, or with why there is none.
///
/// # Errors
///
/// What host config says cannot be used; see [`CoordinatorError`].
pub async fn reach(
    config: &config::Coordinator,
    wait: Duration,
) -> Result<Vec<(String, Result<Option<String>, String>)>, CoordinatorError> {
    let client = client(config)?;
    let mut answers = Vec::new();
    for base in addresses(config)? {
        let address = base.to_string();
        let mut url = base;
        url.set_path(&format!("{}/healthz", url.path().trim_end_matches('/')));
        let answer = match timeout(wait, client.get(url).send()).await {
            Err(_) => Err(format!("{address} did not answer within {} s", wait.as_secs())),
            Ok(Err(error)) => {
                let said = error::chain(&error.without_url());
                Err(format!("could not reach {address}: {said}"))
            }
            Ok(Ok(answer)) if !answer.status().is_success() => Err(format!(
                "{address} answered {}: it is no coordinator, or not well",
                answer.status()
            )),
            Ok(Ok(answer)) => {
                let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
                Ok(date.map(str::to_owned))
            }
        };
        answers.push((address, answer));
    }
    Ok(answers)
}
