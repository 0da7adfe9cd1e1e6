//! The coordinator: says which revision each group should run, and lets its instances take it batch by
//! batch.

pub mod fleet;
pub mod records;
pub mod rollout;
pub mod store;
pub mod views;
