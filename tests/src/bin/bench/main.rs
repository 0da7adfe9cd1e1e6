//! What `make bench` runs: the figures that the project claims, measured anew beside the script that
//! Towline replaces.
//!
//! The goals are ratios where there is something to compare with; absolute ones hold for a quiet
//! machine only, so the load average is told with them. Nothing is judged but by its goal.
#![allow(clippy::print_stdout, reason = "it is here to be read")]

use std::process::ExitCode;

use towline_tests::contained;

mod deploys;
mod figures;
mod growth;
mod large;
mod observed;
mod peers;
mod table;

fn main() -> ExitCode {
    contained::run("towline-bench-", figures::measure)
}
