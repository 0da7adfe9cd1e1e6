//! The coordinator: says which revision each group should run, and lets its instances take it batch by
//! batch.

pub mod auth;
pub mod store;
