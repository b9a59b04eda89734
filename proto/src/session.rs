//! Sessions: messages that survive a cut of the connection.
//!
//! Either side numbers what it sends from 1 on, keeps it until the other side has confirmed it, and sends it again after
//! a reconnection. The other side takes each number once and in order. So a connection may break at any instant and
//! nothing is lost or done twice, as long as both processes live; a session ends when one of them is another process
//! or has waited for longer than the lease.

use std::collections::VecDeque;

/// Messages on their way.
#[derive(Debug)]
pub struct Outbox<T> {
    /// Number of the last message.
    sent: u64,
    /// The last of them, up to `sent`.
    unconfirmed: VecDeque<T>,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self { sent: 0, unconfirmed: VecDeque::new() }
    }
}

impl<T> Outbox<T> {
    /// Takes a message in; returns its number.
    pub fn push(&mut self, message: T) -> u64 {
        self.sent += 1;
        self.unconfirmed.push_back(message);
        self.sent
    }

    /// The other side has everything up to `received`, and wants none of it again.
    pub fn confirm(&mut self, received: u64) {
        let first = self.sent + 1 - self.unconfirmed.len() as u64;
        let confirmed = (received + 1).saturating_sub(first).min(self.unconfirmed.len() as u64);
        self.unconfirmed.drain(..usize::try_from(confirmed).expect("no more than there are"));
    }

    /// What must be sent again, with its numbers.
    pub fn unconfirmed(&self) -> impl Iterator<Item = (u64, &T)> {
        (self.sent + 1 - self.unconfirmed.len() as u64..).zip(&self.unconfirmed)
    }
}

/// What has arrived.
#[derive(Debug, Default)]
pub struct Inbox {
    received: u64,
}

/// A message came before its predecessors: the connection cannot be trusted and must be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {number} came after message {received}")]
pub struct OutOfOrder {
    /// What came.
    pub number: u64,
    /// What had come before.
    pub received: u64,
}

impl Inbox {
    /// Whether a message is new; one that has come before is passed over.
    pub fn accept(&mut self, number: u64) -> Result<bool, OutOfOrder> {
        match number.checked_sub(self.received) {
            Some(1) => {
                self.received = number;
                Ok(true)
            }
            None | Some(0) => Ok(false),
            Some(_) => Err(OutOfOrder { number, received: self.received }),
        }
    }

    /// The last message that has arrived, for the other side.
    pub fn received(&self) -> u64 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_confirmed_is_not_sent_again() {
        let mut outbox = Outbox::default();
        assert_eq!(["a", "b", "c"].map(|message| outbox.push(message)), [1, 2, 3]);
        outbox.confirm(0);
        assert_eq!(outbox.unconfirmed().count(), 3);
        outbox.confirm(2);
        outbox.confirm(1); // An old confirmation that was overtaken.
        assert_eq!(outbox.unconfirmed().collect::<Vec<_>>(), [(3, &"c")]);
        outbox.confirm(99);
        assert_eq!(outbox.unconfirmed().count(), 0);
        assert_eq!(outbox.push("d"), 4);
    }

    #[test]
    fn a_message_without_its_predecessor_is_refused() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.accept(2), Err(OutOfOrder { number: 2, received: 0 }));
        assert_eq!((inbox.accept(1), inbox.accept(1), inbox.received()), (Ok(true), Ok(false), 1));
    }

    proptest! {
        /// Each step: how many messages are written, how many of those on the wire arrive before it breaks, and whether
        /// the confirmation arrives.
        #[test]
        fn every_message_arrives_once_and_in_order_whatever_is_cut(
            steps in proptest::collection::vec((0usize..5, 0usize..8, any::<bool>()), 0..40),
        ) {
            let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
            let (mut written, mut arrived) = (0u32, Vec::new());
            for (writes, arrive, confirms) in steps.into_iter().chain([(0, usize::MAX, true)]) {
                for _ in 0..writes {
                    outbox.push(written);
                    written += 1;
                }
                for (number, message) in outbox.unconfirmed().take(arrive) {
                    if inbox.accept(number).unwrap() {
                        arrived.push(*message);
                    }
                }
                if confirms {
                    outbox.confirm(inbox.received());
                }
            }
            prop_assert_eq!(arrived, (0..written).collect::<Vec<_>>());
            prop_assert_eq!(outbox.unconfirmed().count(), 0);
        }
    }
}
