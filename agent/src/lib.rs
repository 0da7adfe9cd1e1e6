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

pub mod config;
pub mod dependencies;
pub mod error;
pub mod git;
pub mod journal;
pub mod machine;
pub mod process;
pub mod release;
pub mod source;
