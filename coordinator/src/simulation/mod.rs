//! Coordinators and agents in a world where everything fails that may: seeded, in virtual time, hundreds of schedules a
//! second.
//!
//! Real are the state machine of a point ([`crate::point`]), what drives it ([`crate::drive::take`]), the seats
//! ([`crate::service::fleet`]), and the sessions' bookkeeping (`segvault_proto::session`) with the messages as they are
//! on the wire. Modelled are the agents and their side of a session, which live in a crate that this one does not know,
//! the vault over its store, Kafka's logs, and what carries frames from one to the other.
//!
//! A schedule is drawn from its seed ([`faults`]): processes are killed, stopped and paused, connections break with
//! frames under way, requests fail or lose their answers, two coordinators go on side by side. Then nothing fails any
//! more, and one more point is taken. Throughout, it must hold that
//!
//! - no point has two outcomes, and none is committed once a later one has begun;
//! - all that a committed point refers to was durable before, and was pinned for it, in the order of the barrier;
//! - what was acknowledged when it began is in it, or said not to be;
//! - nobody is given up who answers in time, and no run waits for ever;
//! - pins end with the point that they are for, and the last point is complete.
//!
//! `scripts/simulate` runs many schedules; `SEGVAULT_SEED` tells what happens in one.

mod agent;
mod board;
mod cluster;
mod faults;
mod host;
mod mutation;
mod queue;
mod random;
mod run;
mod session;
mod store;
mod tests;
mod trace;
mod vault;
mod world;
