//! A copy of a store, whole and durable, while it is written to.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::file::{APPLICATION_ID, Access, MODE, beside, connect, io, split, sql, sync_dir};
use crate::store::StoreError;

/// Writes the copy under a name of its own; once it is durable it gets the one that it is to have.
pub(super) fn write(connection: &Connection, from: &Path, to: &Path) -> Result<(), StoreError> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(StoreError::Exists { path: to.to_owned() });
    }
    let (dir, _) = split(to)?;
    let copy = Copy::new(to)?;
    let name = copy.0.to_str().ok_or_else(|| {
        io("write a backup to", to)(std::io::Error::new(ErrorKind::InvalidInput, "it is not UTF-8"))
    })?;
    // What is full, or fails, is most likely where the copy is written.
    connection.execute("VACUUM INTO ?1", (name,)).map_err(|error| match error {
        error if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
            sql("read", from)(error)
        }
        error => sql("write a backup to", to)(error),
    })?;
    File::open(&copy.0).and_then(|file| file.sync_all()).map_err(io("sync", &copy.0))?;
    // Unlike a rename, a link never replaces anything.
    match fs::hard_link(&copy.0, to) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(StoreError::Exists { path: to.to_owned() });
        }
        // A file system without links.
        Err(_) if fs::symlink_metadata(to).is_err() => {
            fs::rename(&copy.0, to).map_err(io("write a backup to", to))?;
        }
        outcome => outcome.map_err(io("write a backup to", to))?,
    }
    drop(copy);
    sync_dir(&dir)
}

/// Copies a store that this process has not open.
pub(super) fn write_of(path: &Path, to: &Path) -> Result<(), StoreError> {
    fs::metadata(path).map_err(io("open", path))?;
    let connection = connect(path, Access::Read)?;
    let id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(sql("read", path))?;
    if id != APPLICATION_ID {
        let found = "an SQLite file of something else";
        return Err(StoreError::Foreign { path: path.to_owned(), found });
    }
    write(&connection, path, to)
}

/// A copy that has not its name yet; removed when dropped.
struct Copy(PathBuf);

impl Copy {
    fn new(to: &Path) -> Result<Self, StoreError> {
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| {
            io("write a backup to", to)(std::io::Error::other(error.to_string()))
        })?;
        let path = beside(to, &format!(".{:08x}.new", u32::from_ne_bytes(random)));
        // SQLite fills an empty file, and leaves its mode as it is.
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path);
        file.map_err(io("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Renamed, it is gone; where it cannot be removed it is only in the way.
        fs::remove_file(&self.0).ok();
    }
}
