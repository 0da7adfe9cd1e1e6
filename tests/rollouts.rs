//! Rollouts over a few instances: the ordinary course, what operators do, who is away, and what breaks.

mod absent;
mod crashes;
mod ordinary;
mod steered;
