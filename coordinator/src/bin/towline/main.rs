//! `towline`: the operator's command, a client of the coordinator's API.

mod arguments;
mod client;
mod config;
mod exit;

fn main() {}
