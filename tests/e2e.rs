//! End to end: the real binaries, git over http and node, on loopback. `deploys`: one instance that follows
//! a file. `rollouts`: a coordinator, the operator's command, and instances that follow it. `hosts`: a host under
//! a real systemd.

mod deploys;
mod hosts;
mod rollouts;
