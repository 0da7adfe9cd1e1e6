//! The engine against a small model of a fleet: rules a row each, scenarios by name, and small fleets by
//! enumeration.

mod agents;
mod batch;
mod bounds;
mod enumeration;
mod gates;
mod groups;
mod operators;
mod permits;
mod plans;
mod restarts;
mod scenarios;
mod told;
mod words;
mod world;
