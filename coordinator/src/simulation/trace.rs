//! What has happened, as a number that is the same if the same has happened, and told if somebody wants to read it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::queue::{Micros, SECOND};

/// What has happened so far.
#[derive(Default)]
pub struct Trace {
    hasher: DefaultHasher,
    tally: BTreeMap<&'static str, u64>,
    events: u64,
    is_told: bool,
}

impl Trace {
    /// Nothing has happened.
    pub fn new(is_told: bool) -> Self {
        Self { is_told, ..Self::default() }
    }

    /// Something happens; `text` is for those who read.
    pub fn note(&mut self, now: Micros, what: &'static str, numbers: [u64; 2], text: impl FnOnce() -> String) {
        (now, what, numbers).hash(&mut self.hasher);
        *self.tally.entry(what).or_default() += 1;
        self.events += 1;
        if self.is_told {
            println!("{:4}.{:06}  {what:12} {}", now / SECOND, now % SECOND, text());
        }
    }

    /// Stands for all that has happened.
    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// How often what has happened.
    pub fn tally(&self) -> &BTreeMap<&'static str, u64> {
        &self.tally
    }

    /// How much has happened.
    pub fn events(&self) -> u64 {
        self.events
    }
}
