//! The user that commands run as, as the system's user database knows it.

use std::path::PathBuf;

use nix::unistd::User;

/// A user of this instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its number.
    pub uid: u32,
    /// Its primary group. Supplementary groups are not taken on.
    pub gid: u32,
    /// Its name.
    pub name: String,
    /// Its home directory; it need not exist.
    pub home: PathBuf,
}

/// Why a user could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// There is no such user.
    #[error("there is no user {name:?} on this instance")]
    Unknown {
        /// The name as configured.
        name: String,
    },
    /// The user database could not be read.
    #[error("could not look up user {name:?}")]
    Lookup {
        /// The name as configured.
        name: String,
        /// What the operating system said.
        source: nix::Error,
    },
}

impl AccountError {
    /// Returns the next thing for an operator to try, or `None` where there is nothing.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            AccountError::Unknown { name } => Some(format!(
                "create it (`useradd --system {name}`), or name another `user` in the agent's config"
            )),
            AccountError::Lookup { .. } => None,
        }
    }
}

impl Account {
    /// Looks a user up by name. Blocks while the user database is read.
    ///
    /// # Errors
    ///
    /// There is no such user, or the database could not be read.
    pub fn lookup(name: &str) -> Result<Account, AccountError> {
        match User::from_name(name) {
            Ok(Some(user)) => Ok(user.into()),
            Ok(None) => Err(AccountError::Unknown { name: name.to_owned() }),
            Err(source) => Err(AccountError::Lookup { name: name.to_owned(), source }),
        }
    }

    /// Returns the user that the agent runs as; one without an entry gets its number for a name.
    #[must_use]
    pub fn own() -> Account {
        let uid = nix::unistd::geteuid();
        match User::from_uid(uid) {
            Ok(Some(user)) => user.into(),
            _ => Account {
                uid: uid.as_raw(),
                gid: nix::unistd::getegid().as_raw(),
                name: uid.to_string(),
                home: PathBuf::from("/"),
            },
        }
    }

    /// Is this the user that the agent runs as?
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.uid == nix::unistd::geteuid().as_raw()
    }
}

impl From<User> for Account {
    fn from(user: User) -> Account {
        Account { uid: user.uid.as_raw(), gid: user.gid.as_raw(), name: user.name, home: user.dir }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_looked_up_by_name() {
        let root = Account::lookup("root").unwrap();
        assert_eq!((root.uid, root.gid, root.name.as_str()), (0, 0, "root"));
        let error = Account::lookup("no-such-user-here").unwrap_err();
        assert!(error.hint().unwrap().contains("useradd --system no-such-user-here"), "{error}");
        assert!(Account::own().is_own());
    }
}
