//! `towline`: the operator's command, a client of the coordinator's API.

#[cfg(test)]
mod init;

fn main() {}
