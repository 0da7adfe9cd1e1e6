//! Towline's vocabulary: what agents, coordinators, recipes and files on disk say to each other.
//!
//! Values are parsed once, at the edge, and are valid from then on: a [`ids::Revision`] is always a
//! full commit id, a [`recipe::Recipe`] always has a health check. Nothing here reads a clock, a
//! file or a socket.
//!
//! ```text
//!   ids ──► target   what a group should run, and in which order targets count
//!     └───► report   how far an instance has come, and what went wrong
//!           recipe   how a revision is installed, reloaded and probed (`towline.toml`)
//! ```

pub mod ids;
pub mod recipe;
pub mod report;
pub mod target;
