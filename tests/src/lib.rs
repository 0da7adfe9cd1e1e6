//! What the tests that need more than one crate share, and demo and bench: the app that they deploy
//! and the load that they put on it.

pub mod app;
pub mod cluster;
pub mod contained;
pub mod container;
pub mod fleet;
pub mod gateway;
pub mod host;
pub mod load;
pub mod mount;
pub mod origin;
pub mod random;
pub mod script;
pub mod sshd;
pub mod stage;
#[cfg(target_arch = "x86_64")]
pub mod syscalls;
pub mod wire;
pub mod world;
