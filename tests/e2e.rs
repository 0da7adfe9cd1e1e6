//! End to end: the real agent, git over http and node, on one instance on loopback.

mod deploys;
