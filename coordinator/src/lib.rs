//! The coordinator: says which revision each group should run, and lets its instances take it batch by
//! batch.
//!
//! ```text
//!   http ──► desk ──► rollout, fleet     PURE: what to decide
//!             │ ▲
//!             ▼ └──── driver             on change, and every second: what is the next step?
//!           store                        keys, bytes, versions
//!             │
//!             └─────► records ──► hub    parked polls: who is woken
//! ```

pub mod auth;
pub mod board;
pub mod config;
pub mod desk;
pub mod driver;
pub mod error;
pub mod failpoint;
pub mod files;
pub mod fleet;
pub mod http;
pub mod hub;
pub mod keys;
pub mod mirror;
pub mod records;
pub mod rollout;
pub mod run;
pub mod server;
pub mod store;
pub mod tls;
pub mod upkeep;
pub mod views;
