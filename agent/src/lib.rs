//! x

pub mod health;
pub mod manager;
pub mod process;
