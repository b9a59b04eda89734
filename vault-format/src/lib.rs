//! The vault's bytes: ids, object keys, envelopes, packs and manifests, and where a stream is cut. Pure.
//!
//! `docs/vault-format.md` describes the same in words, well enough to write a second reader from.

pub mod ids;
pub mod keys;

pub mod manifest;
pub mod plan;

pub mod check;

pub mod envelope;

pub mod blob;
pub mod pack;

pub mod chunker;
