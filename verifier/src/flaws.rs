//! What is wrong with a point, by the level that it breaks.

use std::collections::BTreeMap;

/// Flaws of one level that are spelled out; the rest is only counted.
const SPELLED_MAX: u64 = 100;

/// Notes that are kept.
const NOTES_MAX: usize = 100;

/// Something that a level promises and that is not so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The lowest level that promises it, 0 to 3.
    pub level: u8,
    /// The partition, or what else it is about.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

/// What was found, by several threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    spelled: Vec<Flaw>,
    counts: BTreeMap<u8, u64>,
    notes: Vec<String>,
}

impl Flaws {
    /// Something that breaks `level`.
    pub fn add(&mut self, level: u8, place: impl ToString, what: impl Into<String>) {
        let count = self.counts.entry(level).or_default();
        *count += 1;
        if *count <= SPELLED_MAX {
            self.spelled.push(Flaw { level, place: place.to_string(), what: what.into() });
        }
    }

    /// Something that breaks nothing, and that an operator should know.
    pub fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        }
    }

    /// Those of another thread.
    pub fn merge(&mut self, other: Self) {
        for flaw in other.spelled {
            self.add(flaw.level, flaw.place, flaw.what);
        }
        for (level, count) in other.counts {
            // Those that were spelled are counted already.
            let counted = self.counts.entry(level).or_default();
            *counted += count.saturating_sub(SPELLED_MAX);
        }
        other.notes.into_iter().for_each(|note| self.note(note));
    }

    /// The highest level that nothing breaks; `None` if not even L0 holds.
    pub fn proven(&self) -> Option<u8> {
        match self.counts.keys().next() {
            None => Some(crate::LEVEL_MAX),
            Some(broken) => broken.checked_sub(1),
        }
    }

    /// Those that are spelled out, lowest level first; how many there are of each level; and the notes.
    pub fn into_parts(mut self) -> (Vec<Flaw>, BTreeMap<u8, u64>, Vec<String>) {
        self.spelled.sort_by(|a, b| (a.level, &a.place).cmp(&(b.level, &b.place)));
        self.notes.sort();
        (self.spelled, self.counts, self.notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_broken_level_decides_and_nothing_is_uncounted() {
        let mut flaws = Flaws::default();
        assert_eq!(flaws.proven(), Some(3));
        let mut others = Flaws::default();
        (0..150).for_each(|n| others.add(3, n, "open"));
        flaws.add(3, "t-0", "open");
        flaws.merge(others);
        assert_eq!(flaws.proven(), Some(2));
        flaws.add(0, "t-1", "crc");
        assert_eq!(flaws.proven(), None);
        let (spelled, counts, _) = flaws.into_parts();
        assert_eq!((spelled[0].level, counts), (0, BTreeMap::from([(0, 1), (3, 151)])));
    }
}
