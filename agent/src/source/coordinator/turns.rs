//! Whose turn it is: several addresses, one after the other, with a growing, spread pause once all of
//! them have failed.

use std::time::Duration;

/// The pause after all addresses have failed for the first time; it doubles.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause. A fleet of a thousand then asks a coordinator that is back some fifty times a second.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Which address to use, and when.
#[derive(Debug)]
pub(super) struct Turns {
    addresses: usize,
    at: usize,
    /// Failures in a row.
    failures: usize,
    random: u64,
}

impl Turns {
    /// `seed`: any number that differs between instances.
    pub(super) fn new(addresses: usize, seed: u64) -> Self {
        Self { addresses: addresses.max(1), at: 0, failures: 0, random: seed }
    }

    /// Returns the index of the address whose turn it is.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Have all addresses failed since the last success?
    pub(super) fn are_over(&self) -> bool {
        self.failures >= self.addresses
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Goes on to the next address; returns how long to wait before it is used.
    pub(super) fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.at = (self.at + 1) % self.addresses;
        if !self.failures.is_multiple_of(self.addresses) {
            return Duration::ZERO;
        }
        let rounds = u32::try_from(self.failures / self.addresses - 1).unwrap_or(u32::MAX);
        let whole = (PAUSE * 2u32.pow(rounds.min(8))).min(PAUSE_MAX);
        // From half of it to all of it: a fleet that lost its coordinator must not come back at once.
        self.spread(whole)
    }

    /// Returns from half of a pause to all of it.
    pub(super) fn spread(&mut self, whole: Duration) -> Duration {
        whole * (512 + self.draw()) / 1024
    }

    /// `SplitMix64`, of which ten bits are enough.
    fn draw(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((z ^ (z >> 31)) % 513).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_turn_before_there_is_a_pause() {
        let mut turns = Turns::new(3, 7);
        assert_eq!((turns.failed(), turns.at()), (Duration::ZERO, 1));
        assert_eq!((turns.failed(), turns.at()), (Duration::ZERO, 2));
        assert!(!turns.are_over());
        assert!(turns.failed() > Duration::ZERO && turns.at() == 0 && turns.are_over());
        turns.succeeded();
        assert_eq!((turns.failed(), turns.at()), (Duration::ZERO, 1), "what works is kept");
    }

    #[test]
    fn pauses_grow_to_a_bound_and_are_spread() {
        let mut spread = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut turns = Turns::new(1, seed);
            for round in 0..40u32 {
                let whole = Duration::from_secs(1 << round.min(5)).min(PAUSE_MAX);
                let pause = turns.failed();
                assert!(pause >= whole / 2 && pause <= whole, "{round}: {pause:?} of {whole:?}");
            }
            spread.insert(turns.failed());
        }
        assert!(spread.len() > 50, "a fleet does not come back at once: {}", spread.len());
    }
}
