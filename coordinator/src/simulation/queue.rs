//! What will happen, in order of time; of one instant in the order in which it was arranged.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Virtual time in microseconds.
pub type Micros = u64;

/// A thousandth of a second.
pub const MILLISECOND: Micros = 1_000;
/// A second.
pub const SECOND: Micros = 1_000_000;

/// A queue of events.
pub struct Queue<E> {
    heap: BinaryHeap<Entry<E>>,
    arranged: u64,
}

struct Entry<E> {
    at: Micros,
    number: u64,
    event: E,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), arranged: 0 }
    }
}

impl<E> Queue<E> {
    /// Arranges for an event.
    pub fn push(&mut self, at: Micros, event: E) {
        self.arranged += 1;
        self.heap.push(Entry { at, number: self.arranged, event });
    }

    /// The next event and when it happens.
    pub fn pop(&mut self) -> Option<(Micros, E)> {
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The earliest is the greatest, as the heap hands out the greatest.
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}
