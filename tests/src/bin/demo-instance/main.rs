//! What `make demo` runs: an instance through an ordinary day and two bad ones, under load.
#![allow(clippy::print_stdout, reason = "it is here to be read")]

use std::process::ExitCode;

use towline_tests::contained;

mod scenes;

fn main() -> ExitCode {
    contained::run("towline-demo-", scenes::play)
}
