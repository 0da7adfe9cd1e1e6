//! The agent: keeps one instance on the revision that its group should run.
//!
//! ```text
//!   source ──► machine (PURE: state, event → effects) ──► shell ──► git, dependencies, release,
//!                 ▲                                         │       manager, health
//!                 └──────────── how it ended ───────────────┘
//! ```
//!
//! `machine` and `journal` decide and never act; everything else acts and never decides what a
//! deploy should do next.

pub mod bake;
pub mod bootstrap;
pub mod check;
pub mod config;
pub mod dependencies;
pub mod doctor;
pub mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod git;
pub mod health;
pub mod journal;
pub mod machine;
pub mod manager;
pub mod process;
pub mod release;
pub mod shell;
pub mod shown;
pub mod source;
pub mod status;
pub mod systemd;
pub mod trial;
