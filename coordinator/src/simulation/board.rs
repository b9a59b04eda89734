//! What a run of a coordinator and the world around it share: the time, and what the run has asked for.
//!
//! A run is straight-line asynchronous code ([`crate::drive::take`]). It is polled whenever something may have happened
//! for it, and says here what it waits for.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use super::queue::Micros;
use super::store::{Answer, Ask};

/// Which process of which coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Index.
    pub coordinator: usize,
    /// Counts its processes.
    pub life: u64,
}

/// Where an answer is laid.
pub type Slot = Rc<RefCell<Option<Answer>>>;

/// What a run waits for.
pub enum Wish {
    /// To be polled at this time.
    Wake(Owner, Micros),
    /// A request to the store.
    Ask(Owner, Ask, Slot),
}

/// What is shared.
#[derive(Default)]
pub struct Board {
    /// What time it is.
    pub now: Micros,
    /// What the world has not taken up yet.
    pub wishes: Vec<Wish>,
    /// Points that have sent a command.
    pub begun: Vec<u64>,
    /// What must not be.
    pub complaints: Vec<String>,
}

/// The board, for one run.
#[derive(Clone)]
pub struct Handle {
    board: Rc<RefCell<Board>>,
    owner: Owner,
}

impl Handle {
    /// For a run of `owner`.
    pub fn new(board: Rc<RefCell<Board>>, owner: Owner) -> Self {
        Self { board, owner }
    }

    /// What time it is.
    pub fn now(&self) -> Micros {
        self.board.borrow().now
    }

    /// A point has sent a command.
    pub fn begun(&self, number: u64) {
        self.board.borrow_mut().begun.push(number);
    }

    /// Something must not be.
    pub fn complain(&self, complaint: String) {
        self.board.borrow_mut().complaints.push(complaint);
    }

    /// To be polled at `at`.
    pub fn wake(&self, at: Micros) {
        self.board.borrow_mut().wishes.push(Wish::Wake(self.owner, at));
    }

    /// Waits until `at`.
    pub async fn sleep_until(&self, at: Micros) {
        self.wake(at);
        poll_fn(|_| if self.now() >= at { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Asks the store. Once asked, it may come true even if nobody waits for the answer any more.
    pub async fn ask(&self, ask: Ask) -> Answer {
        let slot = Slot::default();
        self.board.borrow_mut().wishes.push(Wish::Ask(self.owner, ask, slot.clone()));
        poll_fn(|_| match slot.take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }
}
