//! Reads a pid file, which anyone with the app's rights may have made into anything.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use super::FindError;

/// The largest pid file that is read.
const SIZE_BYTES_MAX: usize = 64;

/// The largest pid that any Linux gives out (`PID_MAX_LIMIT`), for when `pid_max` cannot be read.
const PID_MAX: i32 = 4 * 1024 * 1024;

/// What a pid file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    pub(super) pid: i32,
    /// How long ago it was written.
    pub(super) age: Duration,
}

/// What a text says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Pid(i32),
    Bad(&'static str),
}

/// Reads a pid; white space around it is allowed.
pub(crate) fn parse(text: &str) -> Reading {
    let text = text.trim();
    if text.is_empty() {
        return Reading::Bad("it is empty");
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Reading::Bad("it is not a decimal number");
    }
    match text.parse::<i32>() {
        Ok(0 | 1) => Reading::Bad("it must be greater than 1"),
        Ok(pid) if pid <= pid_max() => Reading::Pid(pid),
        _ => Reading::Bad("it is greater than any pid here"),
    }
}

fn pid_max() -> i32 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(PID_MAX)
}

/// Reads the pid file; `None` where there is none.
///
/// - `account`: the app's user. The file must be its, root's or the agent's.
pub(super) fn read(path: &Path, account: Option<u32>) -> Result<Option<PidFile>, FindError> {
    let failed = |source| FindError::PidFile { path: path.to_owned(), source };
    let refused = |reason: String| FindError::NotPidFile { path: path.to_owned(), reason };
    // Looked at before it is opened: opening a device can have effects.
    let own = nix::unistd::geteuid().as_raw();
    // The recipe names the file, and what is read of it may be shown: so nothing is read that the app's user
    // could not read as well, such as a secret of root's.
    let is_withheld = |found: &fs::Metadata| {
        account.is_some_and(|account| found.uid() != account) && found.mode() & 0o004 == 0
    };
    let withheld = || refused("it is not for the app's user to read".to_owned());
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && is_withheld(&found) => return Err(withheld()),
        Ok(found) if found.is_file() => {}
        Ok(found) => return Err(refused(kind(found.file_type()).to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    }
    // And opened in a way that neither follows a link nor waits, since it may be another by now.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(refused(kind(found.file_type()).to_owned()));
    }
    if is_withheld(&found) {
        return Err(withheld());
    }
    if ![0, own, account.unwrap_or(own)].contains(&found.uid()) {
        return Err(refused(format!("it belongs to uid {}, not to the app's user", found.uid())));
    }
    // Where links to the files of others may be made, the app's user could have one of root's read out.
    if found.nlink() > 1 && found.uid() != account.unwrap_or(own) {
        return Err(refused("it has a second name, and belongs to another user".to_owned()));
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(SIZE_BYTES_MAX).unwrap_or(u64::MAX) + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let reading = match bytes.len() {
        0..=SIZE_BYTES_MAX => parse(&text),
        _ => Reading::Bad("it is longer than 64 bytes"),
    };
    match reading {
        Reading::Pid(pid) => Ok(Some(PidFile { pid, age: age(&found) })),
        Reading::Bad(reason) => Err(FindError::Text {
            from: format!("the pid file {}", path.display()),
            text: shown(&text),
            reason,
        }),
    }
}

/// What a pid file holds, where that may be shown: it might be another file, and hold a secret.
fn shown(text: &str) -> String {
    let is_number = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_whitespace() || byte == b'-';
    match text.len() {
        length if !text.bytes().all(is_number) => format!("{length} bytes that are no number"),
        _ => format!("{text:?}"),
    }
}

fn kind(found: fs::FileType) -> &'static str {
    if found.is_symlink() {
        "it is a symbolic link"
    } else if found.is_dir() {
        "it is a directory"
    } else if found.is_fifo() {
        "it is a FIFO"
    } else {
        "it is not a regular file"
    }
}

/// Returns how long ago the file was written; nothing for one from the future.
fn age(found: &fs::Metadata) -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let since = |seconds: i64, nanoseconds: i64| {
        let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        seconds + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
    };
    let now = since(now.tv_sec, now.tv_nsec);
    now.saturating_sub(since(found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_a_decimal_above_one() {
        let cases = [
            ("a pid", "71", Some(71)),
            ("a newline at the end", "71\n", Some(71)),
            ("white space around", " \t71 \r\n", Some(71)),
            ("empty", "", None),
            ("a blank line", "\n", None),
            ("zero is everyone in the group", "0", None),
            ("one is init", "1", None),
            ("padded one", "0001", None),
            ("negative is a group", "-71", None),
            ("a sign", "+71", None),
            ("hexadecimal", "0x47", None),
            ("two lines", "71\n72", None),
            ("a word", "puma", None),
            ("digits of another alphabet", "٧١", None),
            ("more than any pid", "4194305", None),
            ("more than a number holds", "99999999999999999999", None),
        ];
        for (rule, text, expected) in cases {
            let expected = expected.map(Reading::Pid);
            match parse(text) {
                Reading::Bad(_) => assert_eq!(expected, None, "{rule}"),
                pid @ Reading::Pid(_) => assert_eq!(expected, Some(pid), "{rule}"),
            }
        }
    }

    #[test]
    fn what_is_no_plain_file_is_refused_unopened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("good"), "71\n").unwrap();
        fs::write(path("long"), "7".repeat(65)).unwrap();
        fs::write(path("bytes"), [0xff, 0x1b, b'[']).unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::create_dir(path("dir")).unwrap();
        std::os::unix::fs::symlink(path("good"), path("link")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();

        assert_eq!(read(&path("good"), None).unwrap().unwrap().pid, 71);
        assert_eq!(read(&path("none"), None).unwrap(), None);
        let cases = [
            ("dir", "a directory"),
            ("link", "a symbolic link"),
            ("fifo", "a FIFO"),
            ("long", "longer than 64"),
            ("bytes", "bytes that are no number"),
            ("empty", r#"holds "", which is no pid: it is empty"#),
        ];
        for (name, part) in cases {
            // What might be anything is not shown.
            let error = read(&path(name), None).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
            assert!(error.contains(name), "the path is shown: {error}");
        }
        let device = read(Path::new("/dev/null"), None).unwrap_err().to_string();
        assert!(device.contains("not a regular file"), "{device}");
    }

    #[test]
    fn a_pid_file_of_another_user_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            println!("not root: a file cannot be given to another user, so this is not tried");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.pid");
        fs::write(&path, "71").unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        assert!(read(&path, Some(65_534)).is_ok(), "the app's user");
        let error = read(&path, Some(7)).unwrap_err().to_string();
        assert!(error.contains("belongs to uid 65534"), "{error}");
        assert!(read(&path, None).is_err(), "without an account, the agent's own");
        // Where links to the files of others may be made, this is how one of root's would be read out.
        let (secret, named) = (dir.path().join("secret"), dir.path().join("named.pid"));
        fs::write(&secret, "root's own").unwrap();
        fs::hard_link(&secret, &named).unwrap();
        let error = read(&named, Some(65_534)).unwrap_err().to_string();
        assert!(error.contains("a second name") && !error.contains("own"), "{error}");
        // And a recipe may name any path: what its user could not read is not read for it.
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        fs::remove_file(&named).unwrap();
        let error = read(&secret, Some(65_534)).unwrap_err().to_string();
        assert!(error.contains("not for the app's user to read"), "{error}");
        let environment = read(Path::new("/proc/self/environ"), Some(65_534)).unwrap_err();
        assert!(environment.to_string().contains("not for the app's user"), "{environment}");
    }
}
