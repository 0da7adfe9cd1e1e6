//! `towline`: the operator's command, a client of the coordinator's API.

fn main() {}
