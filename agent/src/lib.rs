//! Pins, reads, uploads and puts back the log directories of one node.

pub mod node;

pub mod agent;
mod capture;
pub mod doctor;
mod metadata_copy;
pub mod pinned;
mod sample;
pub mod staging;
#[cfg(test)]
mod testing;

pub mod cache;
mod journal;
pub mod upload;

pub mod restore;

pub mod service;
