//! `towline-coordinator`: reads arguments and environment, prints, and exits. Everything else is in the
//! library.

fn main() {}
