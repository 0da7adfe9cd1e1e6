//! Towline's vocabulary: what agents, coordinators, recipes and files on disk say to each other.
//!
//! Values are parsed once, at the edge, and are valid from then on: a [`ids::Revision`] is always a
//! full commit id, a [`recipe::Recipe`] always has a health check. Nothing here reads a clock, a
//! file or a socket.
//!
//! ```text
//!   ids, time ─► target    what a group should run, and in which order targets count
//!       │        report    how far an instance has come, and what went wrong
//!       │        poll      what agents and coordinators say to each other
//!       ├──────► policy    how a group takes its rollouts (`web.toml` of `towline group set`)
//!       │        rollout   a rollout, its batches and its state, as they are stored
//!       │        fleet     instances and permits, as they are stored
//!       ├──────► api       what the operator's command and the coordinator say to each other
//!       └──────► recipe    how a revision is installed, reloaded and probed (`towline.toml`)
//! ```

pub mod api;
pub mod fleet;
pub mod ids;
pub mod policy;
pub mod poll;
pub mod recipe;
pub mod report;
pub mod rollout;
pub mod target;
pub mod time;
