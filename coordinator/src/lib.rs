//! Drives a restore point through its phases.
//!
//! [`point`] is the pure state machine: events in, actions out. [`drive`] performs the actions against agents and a
//! vault, and feeds back what happens. [`service`] is the daemon: agents and operators reach it over the network, and
//! [`schedule`] says when it begins points by itself.

pub mod drive;
pub mod point;
pub mod schedule;
pub mod service;

#[cfg(test)]
mod simulation;
