//! What the agent tells the manager that started it: sd_notify(3), a datagram to a socket.
//!
//! - READY once it is settled what `current` is: only then do units start that are ordered after us.
//! - WATCHDOG while the shell's loop goes round, and by nothing else.
//! - STATUS in a line for `systemctl status`, STOPPING at the end.
//!
//! Where no such manager is there, all of it does nothing. A message that cannot be sent is lost: the
//! next one says what counts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The variable that names the socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// How often the manager wants to hear of us, in microseconds; and of which process.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "WATCHDOG_PID");

/// The longest line of status.
const STATUS_CHARS_MAX: usize = 200;

/// The way to the manager that started the agent.
#[derive(Debug, Default)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    is_ready: Cell<bool>,
    status: RefCell<String>,
}

impl Notify {
    /// Reads the variables that the manager has set for the process `pid`.
    ///
    /// # Errors
    ///
    /// The socket cannot be used; the manager would wait for ever.
    pub fn new(variables: &BTreeMap<String, String>, pid: u32) -> io::Result<Self> {
        let Some(name) = variables.get(SOCKET).filter(|name| !name.is_empty()) else {
            return Ok(Self::default());
        };
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let (every, whose) = WATCHDOG;
        let is_ours = variables.get(whose).is_none_or(|whose| *whose == pid.to_string());
        let every = variables.get(every).filter(|_| is_ours).and_then(|every| every.parse().ok());
        let watchdog = every.filter(|every| *every > 0).map(Duration::from_micros);
        Ok(Self { to: Some((socket, address)), watchdog, ..Self::default() })
    }

    /// How often the watchdog is to be fed: twice in its time.
    #[must_use]
    pub fn feeds_every(&self) -> Option<Duration> {
        self.watchdog.map(|every| every / 2)
    }

    /// Says that the loop goes round.
    pub fn feed(&self) {
        self.send("WATCHDOG=1");
    }

    /// Says, once, that whoever waits for the agent may begin.
    pub fn ready(&self) {
        if !self.is_ready.replace(true) {
            self.send("READY=1");
        }
    }

    /// Says in one line how it is.
    pub fn status(&self, line: &str) {
        let line = crate::shown::short_line(line, STATUS_CHARS_MAX);
        if *self.status.borrow() != line {
            self.send(&format!("STATUS={line}"));
            self.status.replace(line);
        }
    }

    /// Says that the agent ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.to {
            drop(socket.send_to_addr(text.as_bytes(), address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_manager_hears_what_it_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let entries = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "3000000")];
        let notify = Notify::new(&variables(&entries), 7).unwrap();
        assert_eq!(notify.feeds_every(), Some(Duration::from_millis(1500)));
        notify.ready();
        notify.ready();
        notify.status("serves 4f2c\nREADY=1");
        notify.status("serves 4f2c\nREADY=1");
        notify.feed();
        let mut heard = Vec::new();
        let mut buffer = [0; 256];
        while let Ok(length) = manager.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        assert_eq!(heard.len(), 3, "{heard:?}");
        assert_eq!((heard[0].as_str(), heard[2].as_str()), ("READY=1", "WATCHDOG=1"));
        assert!(heard[1].starts_with("STATUS=") && !heard[1].contains('\n'), "{heard:?}");
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        let notify = Notify::new(&variables(&[]), 7).unwrap();
        notify.ready();
        assert_eq!(notify.feeds_every(), None);
        let foreign = [("NOTIFY_SOCKET", "@x"), ("WATCHDOG_USEC", "9"), ("WATCHDOG_PID", "8")];
        assert_eq!(Notify::new(&variables(&foreign), 7).unwrap().feeds_every(), None);
        let endless = "/x".repeat(200);
        let odd = variables(&[("NOTIFY_SOCKET", &endless)]);
        assert!(Notify::new(&odd, 7).is_err(), "a path that no socket has");
    }
}
