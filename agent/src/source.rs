//! Where targets come from: one local file for now, the same JSON document as on the wire.
//!
//! A source tells what it reads and decides nothing: whether a target counts is for the machine.

pub mod file;

use towline_protocol::poll::Word;

/// What a source has to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// This is what this instance is told.
    Word(Word),
    /// There is no word, or none that can be read; why, in one line with what to do next.
    Objection(String),
}
