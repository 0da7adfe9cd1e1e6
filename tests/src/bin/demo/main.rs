//! What `make demo` runs: a fleet of six through a release, a bad one, and two bad days, under load.
#![allow(clippy::print_stdout, reason = "it is here to be read")]

use std::process::ExitCode;

use towline_tests::contained;

mod scenes;

fn main() -> ExitCode {
    contained::run("towline-demo-", scenes::play)
}
