//! Is this directory ours, and of our time? Looked at before the first write of every start; nothing
//! is changed here.
//!
//! Whoever deployed here before may have had the same names for their own things: Capistrano has
//! `releases` and `current`. What stands in the way is refused and never removed; what is shared and
//! logged is the app's, whoever made it.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use towline_protocol::ids::Revision;

use super::{DiskError, MARKER_VERSION, Store, failed, marker_path, seize};

/// What may stand in the directory of the package managers' caches.
const CACHES: &[&str] = &["xdg", "npm", "pip"];

/// The version of a document, before anything else of it is believed.
#[derive(Deserialize)]
pub(super) struct Versioned {
    pub(super) version: u32,
}

/// Is there a marker whose bytes can be read, and are no document? One that the disk does not give is
/// none of these.
pub(super) fn is_broken(marker: &Path) -> bool {
    fs::read(marker).is_ok_and(|text| serde_json::from_slice::<Versioned>(&text).is_err())
}

/// Is this the name of a release?
pub(super) fn is_release(name: &str) -> bool {
    name.parse::<Revision>().is_ok()
}

/// Is this the name of a dependency tree?
pub(super) fn is_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of a tree or of its marker, also of one that was not written to its end.
fn stem(name: &str) -> &str {
    name.strip_suffix(".new").unwrap_or(name).trim_end_matches(".json")
}

impl Store {
    /// Checks that what is here was made by Towline, as far as it would be removed or replaced.
    ///
    /// # Errors
    ///
    /// It was made by another, or by a newer agent.
    pub(crate) fn check_claim(&self) -> Result<(), DiskError> {
        self.check_current()?;
        self.check_markers()?;
        if fs::symlink_metadata(self.state()).is_ok() {
            return Ok(());
        }
        let is_probe = |name: &str| name.starts_with(".writable");
        // Whatever stands in the staging area would be removed.
        only(&self.staging(), |_| false)?;
        only(&self.releases(), |name| is_release(stem(name)) || is_probe(name))?;
        only(&self.dependencies(), |name| is_key(stem(name)) || is_probe(name))?;
        only(&self.package_cache(), |name| CACHES.contains(&name))
    }

    /// Checks that nobody but root can put something else where root will write.
    pub(super) fn check_owner(&self) -> Result<(), DiskError> {
        let own = [self.state(), self.releases(), self.dependencies(), self.staging()];
        let there = own.into_iter().filter(|dir| dir.exists());
        let open = std::iter::once(self.dir().to_owned()).chain(there);
        match open.into_iter().find_map(|dir| seize::writable_by_others(&dir)) {
            Some(path) => Err(DiskError::Writable { path }),
            None => Ok(()),
        }
    }

    /// A marker of a newer agent vouches for a release that would be taken for a leftover here.
    fn check_markers(&self) -> Result<(), DiskError> {
        for (dir, is_own) in
            [(self.releases(), is_release as fn(&str) -> bool), (self.dependencies(), is_key)]
        {
            // What cannot be read is told by whoever needs it.
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if !entry.file_name().to_str().is_some_and(is_own) {
                    continue;
                }
                let path = marker_path(&entry.path());
                let text = fs::read(&path).unwrap_or_default();
                match serde_json::from_slice(&text) {
                    Ok(Versioned { version }) if version > MARKER_VERSION => {
                        return Err(DiskError::Newer { path, version });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Checks that `current` may be replaced: it is absent, or leads to a release, also to one that is
    /// gone.
    ///
    /// # Errors
    ///
    /// It is anything else, which is not the agent's to remove.
    pub fn check_current(&self) -> Result<(), DiskError> {
        let path = self.current();
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("read", &path)(error)),
            Ok(meta) if meta.is_symlink() => {
                let target = fs::read_link(&path).map_err(failed("read", &path))?;
                let name = target.strip_prefix("releases").ok().and_then(Path::to_str);
                if name.is_some_and(is_release) {
                    return Ok(());
                }
                format!("a link to {}", target.display())
            }
            Ok(meta) if meta.is_dir() => "a directory".to_owned(),
            Ok(_) => "a file".to_owned(),
        };
        Err(DiskError::ForeignCurrent { path, found })
    }
}

/// Refuses a directory in which something has another name.
fn only(dir: &Path, is_own: impl Fn(&str) -> bool) -> Result<(), DiskError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("read", dir))?,
    };
    for entry in entries {
        let name = entry.map_err(failed("read", dir))?.file_name();
        if !name.to_str().is_some_and(&is_own) {
            let name = name.to_string_lossy().into_owned();
            return Err(DiskError::Foreign { dir: dir.to_owned(), name });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn what_others_made_ends_the_start_and_is_left_as_it_is() {
        let (revision, key) = ("a".repeat(40), "b".repeat(64));
        let cases = [
            ("an empty releases", "releases", true),
            ("a release", &format!("releases/{revision}"), true),
            ("its marker", &format!("releases/{revision}.json"), true),
            ("its marker, half written", &format!("releases/{revision}.json.new"), true),
            ("a dependency tree", &format!("dependencies/{key}"), true),
            ("what the app shares", "shared/log/x", true),
            ("what it logs", "log/x", true),
            ("other things beside", "repo/x", true),
            ("npm's cache", "cache/npm", true),
            ("Capistrano's release", "releases/20240101120000", false),
            ("a branch", "releases/main", false),
            ("other dependencies", "dependencies/python", false),
            ("another's cache", "cache/views", false),
            ("another's staging area", "staging/web", false),
            ("a hidden file", "releases/.keep", false),
        ];
        for (rule, path, is_ours) in cases {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::new(dir.path());
            let place = dir.path().join(path);
            fs::create_dir_all(&place).unwrap();
            match store.prepare() {
                Ok(()) => assert!(is_ours, "{rule}"),
                Err(error) => {
                    assert!(
                        !is_ours && matches!(error, DiskError::Foreign { .. }),
                        "{rule}: {error}"
                    );
                    assert!(error.hint().unwrap().contains("an empty directory"), "{rule}");
                    assert!(!store.state().exists(), "{rule}: nothing was made");
                }
            }
            assert!(place.exists(), "{rule}");
        }
        // What comes in later is not looked at, and not touched either.
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.prepare().unwrap();
        fs::create_dir(store.releases().join("main")).unwrap();
        store.prepare().unwrap();
    }

    #[test]
    fn root_does_not_write_where_another_user_can_put_a_link() {
        if fs::metadata("/proc/self").is_ok_and(|own| own.uid() != 0) {
            println!("not root: everything is the agent's own, so this is not tried");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.prepare().unwrap();
        for place in [dir.path().to_owned(), store.releases(), store.staging(), store.state()] {
            std::os::unix::fs::chown(&place, Some(65_534), None).unwrap();
            let error = store.prepare().unwrap_err();
            assert!(matches!(&error, DiskError::Writable { .. }), "{}: {error}", place.display());
            assert!(error.hint().unwrap().contains("chown root:root"), "{error}");
            std::os::unix::fs::chown(&place, Some(0), None).unwrap();
        }
        for place in [store.shared(), store.log()] {
            std::os::unix::fs::chown(&place, Some(65_534), None).unwrap();
            store.prepare().unwrap();
        }
    }

    #[test]
    fn a_newer_agents_markers_end_the_start_and_a_broken_one_does_not() {
        let (revision, key) = ("a".repeat(40), "b".repeat(64));
        for tree in [format!("releases/{revision}"), format!("dependencies/{key}")] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::new(dir.path());
            let place = dir.path().join(&tree);
            fs::create_dir_all(&place).unwrap();
            fs::write(marker_path(&place), r#"{"version":99,"what":"is this"}"#).unwrap();
            let outcome = store.prepare();
            assert!(matches!(outcome, Err(DiskError::Newer { version: 99, .. })), "{tree}");
            assert!(!store.state().exists() && place.exists(), "{tree}: nothing was changed");
            fs::write(marker_path(&place), "{").unwrap();
            store.prepare().unwrap();
        }
    }

    #[test]
    fn current_is_absent_or_leads_to_a_release() {
        let release = format!("releases/{}", "a".repeat(40));
        let inner = format!("{release}/public");
        let cases = [
            ("a release that is gone", release.as_str(), true),
            ("Capistrano's release", "releases/20240101120000", false),
            ("into a release", inner.as_str(), false),
            ("another directory", "/srv/app", false),
            ("all releases", "releases", false),
        ];
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        for (rule, target, is_ours) in cases {
            symlink(target, store.current()).unwrap();
            let outcome = store.prepare();
            assert_eq!(outcome.is_ok(), is_ours, "{rule}: {outcome:?}");
            fs::remove_file(store.current()).unwrap();
        }
        fs::create_dir(store.current()).unwrap();
        let error = store.prepare().unwrap_err();
        assert!(error.to_string().contains("is a directory, not a link"), "{error}");
        assert!(error.hint().unwrap().contains("move"), "{error}");
    }
}
