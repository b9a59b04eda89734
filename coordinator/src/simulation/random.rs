//! Chance, all of it from one seed.

use std::ops::Range;

/// SplitMix64: small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Another seed is another course of events.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(end);
        u64::try_from(product >> 64).expect("the upper half of 128 bits")
    }

    /// A number of a range that is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// An index into something of `len` items.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a length")
    }

    /// True so often of a thousand.
    pub fn per_mille(&mut self, often: u64) -> bool {
        often > 0 && self.below(1000) < often
    }

    /// True every other time.
    pub fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// A number of a range, small ones as often as great ones: each power of two has the same chance.
    pub fn scale(&mut self, range: Range<u64>) -> u64 {
        let doublings = (range.end / range.start.max(1)).max(1).ilog2() + 1;
        let top = range.start << self.below(u64::from(doublings));
        self.within(top..(top * 2).min(range.end).max(top + 1))
    }

    /// Something between half of a duration and one and a half of it.
    pub fn about(&mut self, micros: u64) -> u64 {
        micros / 2 + self.below(micros + 1)
    }
}
