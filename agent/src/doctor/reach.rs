//! Who can be reached: the origin, the coordinator; and whose clock is right.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Finding;
use crate::bootstrap;
use crate::config::{Config, Coordinator, Source};
use crate::git::Origin;
use crate::release::Store;
use crate::source::coordinator;
use crate::status::seconds_now;

/// How long one answer is waited for.
const WAIT: Duration = Duration::from_secs(20);

/// How far two clocks may be apart, which are told in whole seconds.
const SKEW_S: u64 = 5;

/// From where on certificates and tokens begin to fail.
const SKEW_MAX_S: u64 = 300;

pub(super) async fn examine(config: &Config, store: &Store) -> Vec<Finding> {
    let (mut found, mut dates) = (Vec::new(), Vec::new());
    if is_ssh(&config.git.url) {
        found.push(ssh(&config.environment));
    }
    match bootstrap::origin_of(config) {
        Ok(origin) => {
            let origin = Arc::new(origin);
            found.push(self::origin(config, &origin).await);
            dates.extend(timeout(WAIT, origin.date()).await.ok().flatten());
        }
        Err(error) => {
            let hint = error.hint();
            found.push(Finding::error("origin", &error, hint));
        }
    }
    match &config.source {
        Source::File(path) => found.push(match path.parent().filter(|dir| dir.is_dir()) {
            Some(_) => Finding::ok("source", format!("the file {}", path.display())),
            None => {
                let said = format!("the directory of {} is not there", path.display());
                Finding::fail("source", said, Some("make it; the file may come later".to_owned()))
            }
        }),
        Source::Coordinator(addresses) => {
            coordinators(addresses, store, &mut found, &mut dates).await;
        }
    }
    found.push(clock(&dates, seconds_now()));
    found
}

/// Asks the origin, as a bake would.
async fn origin(config: &Config, origin: &Arc<Origin>) -> Finding {
    let (asked, handle) = (Arc::clone(origin), Handle::current());
    let stop = CancellationToken::new();
    let ended = stop.clone();
    let mut asking = tokio::task::spawn_blocking(move || asked.tip(&handle, &stop));
    let answer = match timeout(WAIT, &mut asking).await {
        Ok(answer) => answer,
        Err(_) => {
            ended.cancel();
            asking.await
        }
    };
    let url = &config.git.url;
    match answer {
        Ok(Ok(Some(tip))) => {
            Finding::ok("origin", format!("{url} answers; the branch is at {tip}"))
        }
        Ok(Ok(None)) => Finding::ok("origin", format!("{url} answers")),
        Ok(Err(error)) => {
            let hint = error.hint();
            Finding::error("origin", &error, hint)
        }
        Err(error) => Finding::error("origin", &error, None),
    }
}

/// Is this an address that git reaches by the `ssh` program?
fn is_ssh(url: &str) -> bool {
    let scp = || {
        url.split_once(':')
            .is_some_and(|(host, rest)| !host.contains('/') && !rest.starts_with("//"))
    };
    url.starts_with("ssh://") || scp()
}

fn ssh(environment: &std::collections::BTreeMap<String, String>) -> Finding {
    let path = environment.get("PATH").map_or("/usr/local/bin:/usr/bin:/bin", String::as_str);
    let program = path.split(':').map(|dir| std::path::Path::new(dir).join("ssh"));
    match program.into_iter().find(|program| program.is_file()) {
        Some(program) => Finding::ok("ssh", program.display().to_string()),
        None => {
            let hint = "install it: apt-get install openssh-client".to_owned();
            Finding::fail("ssh", "there is no program ssh, and git.url needs it", Some(hint))
        }
    }
}

async fn coordinators(
    config: &Coordinator,
    store: &Store,
    found: &mut Vec<Finding>,
    dates: &mut Vec<String>,
) {
    let answers = match coordinator::reach(config, WAIT).await {
        Ok(answers) => answers,
        Err(error) => {
            let hint = error.hint();
            return found.push(Finding::error("coordinator", &error, hint));
        }
    };
    let is_one_well = answers.iter().any(|(_, answer)| answer.is_ok());
    for (address, answer) in answers {
        found.push(match answer {
            Ok(date) => {
                dates.extend(date);
                Finding::ok("coordinator", format!("{address} answers"))
            }
            // Another one answers, and is asked instead.
            Err(said) if is_one_well => {
                let hint =
                    "the other one is asked meanwhile; take it out of `coordinators` if it is gone";
                Finding::warn("coordinator", said, hint)
            }
            Err(said) => {
                let hint =
                    "see whether it runs, and whether this host may reach it: what serves is kept";
                Finding::fail("coordinator", said, Some(hint.to_owned()))
            }
        });
    }
    let has_token = store.state().join("token").exists();
    found.push(match (has_token, &config.join_secret) {
        (true, _) => Finding::ok("token", "this instance has one"),
        (false, Some(_)) => Finding::ok("token", "had at the first contact, by the join secret"),
        (false, None) => {
            let hint = "needed unless the coordinator is on this host without TLS: set coordinator.join_secret";
            Finding::warn("token", "this instance has none, and no join secret", hint)
        }
    });
}

/// Compares this host's clock with the first answer that told the time.
fn clock(dates: &[String], now_s: u64) -> Finding {
    let Some(other_s) = dates.iter().find_map(|date| http_date(date)) else {
        let hint = "nothing need be done: what was reached does not tell the time";
        return Finding::warn("clock", "it could not be compared with another", hint);
    };
    let skew_s = now_s.abs_diff(other_s);
    let word = if now_s > other_s { "ahead" } else { "behind" };
    let said = format!("it is {skew_s} s {word}");
    let hint = "keep it in time: timedatectl set-ntp true";
    match skew_s {
        0..=SKEW_S => Finding::ok("clock", format!("within {SKEW_S} s of who was reached")),
        _ if skew_s <= SKEW_MAX_S => Finding::warn("clock", said, hint),
        _ => Finding::fail("clock", said, Some(hint.to_owned())),
    }
}

/// Reads a date of HTTP, such as `Sun, 06 Nov 1994 08:49:37 GMT`, as seconds since 1970.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.split_once(", ")?;
    let mut parts = rest.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok().filter(|year| (1970..10_000).contains(year))?;
    let time: Vec<u64> = parts.next()?.split(':').map_while(|part| part.parse().ok()).collect();
    let &[hours, minutes, seconds] = time.as_slice() else { return None };
    let is_valid = (1..=31).contains(&day) && hours < 24 && minutes < 60 && seconds <= 60;
    if !is_valid || parts.next() != Some("GMT") {
        return None;
    }
    // Years that begin in March end with the leap day.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    // From the first of March of the year 0 to 1970.
    Some((days - 719_468) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn dates_of_http_are_read() {
        let cases = [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Fri, 01 Mar 2024 00:00:00 GMT", Some(1_709_251_200)),
            ("Wed, 25 Nov 2026 01:53:50 GMT", Some(1_795_571_630)),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ];
        for (text, expected) in cases {
            assert_eq!(http_date(text), expected, "{text}");
        }
    }

    #[test]
    fn a_clock_is_judged_by_how_far_it_is_off() {
        let date = ["no date".to_owned(), "Thu, 01 Jan 1970 01:00:00 GMT".to_owned()];
        let cases = [
            (3600, Level::Ok),
            (3605, Level::Ok),
            (3595, Level::Ok),
            (3606, Level::Warn),
            (3300, Level::Warn),
            (3299, Level::Fail),
            (4000, Level::Fail),
        ];
        for (now_s, level) in cases {
            assert_eq!(clock(&date, now_s).level, level, "{now_s}");
        }
        assert_eq!(clock(&[], 0).level, Level::Warn);
    }

    #[test]
    fn addresses_that_need_ssh_are_known() {
        for url in ["git@host:acme/web.git", "ssh://git@host/web.git", "host:web.git"] {
            assert!(is_ssh(url), "{url}");
        }
        for url in ["https://host/web.git", "http://127.0.0.1:80/web.git", "/srv/a:b"] {
            assert!(!is_ssh(url), "{url}");
        }
    }
}
