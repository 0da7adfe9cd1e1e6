//! Rollouts over a few instances: the ordinary course, what operators do, who is away, and what breaks.

mod absent;
mod adopted;
mod away;
mod crashes;
mod doors;
mod input;
mod ordinary;
mod steered;
mod stopping;
mod store;
