//! How many threads may work at the same time, and the memory that they work in. Agents in one process share it, so
//! that three of them take no more of the machine than one.

use std::sync::{Condvar, Mutex, MutexGuard};

use super::walk::BUFFER_LEN;

/// A number of threads that may work at the same time.
#[derive(Debug)]
pub struct Cores {
    count: usize,
    free: Mutex<usize>,
    changed: Condvar,
    /// To use again: touching new pages costs more than hashing them.
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// One of them, until it is dropped.
pub(super) struct Core<'a>(&'a Cores);

impl Cores {
    /// `count` threads, at least one.
    pub fn new(count: usize) -> Self {
        let count = count.max(1);
        Self { count, free: Mutex::new(count), changed: Condvar::new(), buffers: Mutex::default() }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Waits until one is free.
    pub(super) fn take(&self) -> Core<'_> {
        let waited = self.changed.wait_while(self.free(), |free| *free == 0);
        *waited.expect("no thread panics while it holds the lock") -= 1;
        Core(self)
    }

    /// [`BUFFER_LEN`] bytes, whatever they are.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.buffers().pop().unwrap_or_else(|| vec![0; BUFFER_LEN])
    }

    /// Takes a buffer back. A longer one held a huge batch, and goes.
    pub(super) fn recycle(&self, buffer: Vec<u8>) {
        if buffer.len() == BUFFER_LEN {
            self.buffers().push(buffer);
        }
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock().expect("no thread panics while it holds the lock")
    }

    fn free(&self) -> MutexGuard<'_, usize> {
        self.free.lock().expect("no thread panics while it holds the lock")
    }
}

impl Drop for Core<'_> {
    fn drop(&mut self) {
        *self.0.free() += 1;
        self.0.changed.notify_one();
    }
}
