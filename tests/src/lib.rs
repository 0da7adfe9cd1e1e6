//! What the tests that need more than one crate share, and the demo: the app that they deploy and the
//! load that they put on it.

pub mod app;
pub mod gateway;
pub mod host;
pub mod load;
pub mod mount;
pub mod origin;
pub mod world;
