//! A coordinator as the source: polls, reports and questions for leave, each in a request of its own.
//!
//! ```text
//!   shell ──┬── next ◄──── word, objection ◄──── poll: parked at all times, in a task of its own
//!           ├── tell ────► outbox ─────────────► report: one in flight, kept until acknowledged
//!           ├── ask ─────────────────────────────► question: answered at once, or it is a no
//!           └── goodbye ─────────────────────────► the instance goes
//! ```
//!
//! The number of a message is `run << 32 | count`: the run is in the journal before the first message, so
//! that no number is used twice.

pub(crate) mod call;
mod link;
mod poll;
mod reach;
mod tell;
mod turns;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use reqwest::{Certificate, Client, Url, redirect};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::{Group, Instance, Order};
use towline_protocol::poll::{Permission, Question, VERSION};
use towline_protocol::report::Cause;
use tracing::{info, warn};

use super::{Said, Told};
use crate::config;
use crate::error;
use crate::git::{OriginError, secret_text};
use crate::journal::RUN_SHIFT;
use crate::machine::{Leave, Outcome};
use crate::release::Store;
pub use reach::reach;

use call::Bearer;
use link::{DEADLINE, Link};
use poll::Poller;
use tell::Outbox;

/// How long an idle connection is kept: reports and questions come in bursts.
const IDLE: Duration = Duration::from_secs(60);

/// Why a coordinator cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// Not an address that is asked from here.
    #[error("coordinators: {address:?} {reason}")]
    Address {
        /// The address, without credentials.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The join secret cannot be used.
    #[error("could not use coordinator.join_secret")]
    Secret(#[source] OriginError),
    /// The join secret could not stand in a header.
    #[error("the join secret in {} holds other characters than a secret has", path.display())]
    NoSecret {
        /// The file.
        path: PathBuf,
    },
    /// The certificates could not be read.
    #[error("could not use the certificates in {}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The TLS client could not be made.
    #[error("could not set up the https client")]
    Client(#[source] reqwest::Error),
}

impl CoordinatorError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            CoordinatorError::Address { .. } => {
                Some("use an address such as https://towline.example.com".to_owned())
            }
            CoordinatorError::Secret(source @ OriginError::Exposed { .. }) => source.hint(),
            CoordinatorError::Secret(_) | CoordinatorError::NoSecret { .. } => {
                Some("put what `towline` said of the group's join secret into that file".to_owned())
            }
            CoordinatorError::Certificates { .. } => Some("use PEM certificates".to_owned()),
            CoordinatorError::Client(_) => None,
        }
    }
}

/// Who asks a coordinator.
#[derive(Debug)]
pub struct Own {
    /// Its group.
    pub group: Group,
    /// Its name.
    pub instance: Instance,
    /// This run's number.
    pub run: u64,
    /// Any number that differs between instances.
    pub seed: u64,
    /// Where its token is kept.
    pub store: Store,
}

/// A coordinator, asked and told.
#[derive(Debug)]
pub struct Coordinator {
    link: Arc<Link>,
    said: watch::Receiver<Option<Said>>,
    outbox: Arc<Outbox>,
    /// The poll and the reports; they end with this value.
    tasks: JoinSet<()>,
}

impl Coordinator {
    /// Begins to poll; call it within a tokio runtime. A TLS provider must have been installed.
    ///
    /// # Errors
    ///
    /// See [`CoordinatorError`].
    pub fn start(config: &config::Coordinator, own: Own) -> Result<Self, CoordinatorError> {
        let link = Arc::new(link(config, own)?);
        let (sender, said) = watch::channel(None);
        let outbox = Arc::new(Outbox::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(Poller::new(Arc::clone(&link), Arc::clone(&outbox), sender).run());
        tasks.spawn(tell::run(Arc::clone(&link), Arc::clone(&outbox)));
        Ok(Self { link, said, outbox, tasks })
    }

    /// Waits for the newest of what the coordinator says. Dropping the wait loses nothing.
    pub(super) async fn next(&mut self) -> Said {
        loop {
            if self.said.changed().await.is_err() {
                // The poll never ends while this value lives.
                return std::future::pending().await;
            }
            if let Some(said) = self.said.borrow_and_update().clone() {
                return said;
            }
        }
    }

    /// See [`super::Source::ask`].
    pub(super) fn ask(
        &self,
        order: Order,
        started: Instant,
        stop: CancellationToken,
    ) -> (u64, impl Future<Output = Outcome> + 'static) {
        let link = Arc::clone(&self.link);
        let seq = link.number();
        let question = async move {
            let asked = ask(&link, seq, order, started);
            tokio::select! {
                outcome = asked => outcome,
                () = stop.cancelled() => Outcome::Failed(Cause::Fetch, "stopped".to_owned()),
            }
        };
        (seq, question)
    }

    pub(super) fn tell(&self, told: Told) {
        self.outbox.put(told, || self.link.number());
    }

    pub(super) fn hush(&mut self) {
        self.tasks.abort_all();
    }

    pub(super) async fn goodbye(&self) {
        match self.link.goodbye(self.link.number()).await {
            Ok(()) => info!("said goodbye"),
            Err(error) => warn!(error = error::chain(&error), "could not say goodbye"),
        }
    }
}

/// Says goodbye without polling first, for a command beside the agent.
///
/// The number of that message is that of a run of its own, and so above all that the agent has sent.
///
/// # Errors
///
/// What kept it from arriving, in one line.
pub async fn goodbye(config: &config::Coordinator, own: Own) -> Result<(), String> {
    let seq = own.run.wrapping_shl(RUN_SHIFT);
    let link = link(config, own).map_err(|error| error::chain(&error))?;
    link.goodbye(seq).await.map_err(|error| error::chain(&error))
}

/// Checks what [`Coordinator::start`] would refuse. `is_own`: the secret is the reader's to read.
///
/// # Errors
///
/// See [`CoordinatorError`].
pub fn check(config: &config::Coordinator, is_own: bool) -> Result<(), CoordinatorError> {
    addresses(config)?;
    if is_own {
        secret(config)?;
    }
    client(config).map(drop)
}

fn secret(config: &config::Coordinator) -> Result<Option<Bearer>, CoordinatorError> {
    let Some(path) = &config.join_secret else { return Ok(None) };
    let text = secret_text(path).map_err(CoordinatorError::Secret)?;
    let secret = Bearer::new(&text);
    secret.map(Some).ok_or_else(|| CoordinatorError::NoSecret { path: path.clone() })
}

/// Asks for leave; without an answer in time there is none.
async fn ask(link: &Link, seq: u64, order: Order, started: Instant) -> Outcome {
    let (group, instance) = (link.group.clone(), link.instance.clone());
    let question = Question { version: VERSION, group, instance, seq, order };
    let (sent, at) = (started.elapsed(), link.at());
    let answer: Result<Option<Permission>, _> = link.call(at, "permit", &question, DEADLINE).await;
    match answer {
        Ok(Some(Permission { permit: Some(permit), valid_s, .. })) => {
            info!(generation = order.generation, permit, valid_s, "leave to swap");
            let until = sent + Duration::from_secs(u64::from(valid_s));
            Outcome::Permitted(Leave { until: Some(until) })
        }
        Ok(answer) => {
            let reason = answer.and_then(|answer| answer.reason);
            info!(generation = order.generation, reason, "no leave to swap for now");
            Outcome::Denied
        }
        Err(error) => {
            // The poll that is parked there may not know yet.
            link.leave(at);
            let detail = error::chain(&error);
            warn!(generation = order.generation, error = detail, "asked for leave in vain");
            Outcome::Failed(Cause::Fetch, detail)
        }
    }
}

fn link(config: &config::Coordinator, own: Own) -> Result<Link, CoordinatorError> {
    let Own { group, instance, run, seed, store } = own;
    let stored = match store.read_token() {
        // One that came with an image is another instance's.
        Ok(token) => token.filter(|token| token.instance == instance && token.group == group),
        Err(error) => {
            warn!(error = error::chain(&error), hint = error.hint(), "the token is not used");
            None
        }
    };
    Ok(Link {
        client: client(config)?,
        addresses: addresses(config)?,
        group,
        instance,
        store,
        seed,
        secret: secret(config)?,
        token: watch::Sender::new(stored.and_then(|stored| Bearer::new(&stored.token))),
        seq: AtomicU64::new(run.wrapping_shl(RUN_SHIFT)),
        at: AtomicUsize::new(0),
    })
}

fn client(config: &config::Coordinator) -> Result<Client, CoordinatorError> {
    let mut client = Client::builder()
        .user_agent(concat!("towline-agent/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(config.connect)
        .pool_idle_timeout(IDLE);
    if let Some(path) = &config.ca_file {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
            CoordinatorError::Certificates { path: path.clone(), source }
        };
        let pem = fs::read(path).map_err(|error| failed(error.into()))?;
        let certificates =
            Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.into()))?;
        if certificates.is_empty() {
            return Err(failed("it holds no certificate".into()));
        }
        client = client.tls_certs_only(certificates);
    }
    client.build().map_err(CoordinatorError::Client)
}

fn addresses(config: &config::Coordinator) -> Result<Vec<Url>, CoordinatorError> {
    config.addresses.iter().map(|text| address(text, config.allow_http)).collect()
}

fn address(text: &str, allow_http: bool) -> Result<Url, CoordinatorError> {
    let refuse = |reason| {
        // Whatever stands before an `@` may be a secret.
        let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
        let shown: String = shown.chars().filter(|c| !c.is_control()).take(200).collect();
        Err(CoordinatorError::Address { address: shown, reason })
    };
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return refuse("holds white space or control characters");
    }
    let is_http = text.starts_with("http://");
    if !text.starts_with("https://") && !is_http {
        return refuse("is no https address");
    }
    let Ok(mut url) = Url::parse(text) else { return refuse("is no valid address") };
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("holds a user or a password: the agent has a token of its own");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("has a query or a fragment");
    }
    if is_http && !allow_http && !is_loopback(&url) {
        return refuse(
            "is plain http to another host, which coordinator.allow_http = true would allow",
        );
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
