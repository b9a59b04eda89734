//! Between what is said and what is sent: checked conversions to and from the messages of [`rpc`](crate::rpc).
//!
//! Sending cannot fail. What arrives is refused unless everything holds that the rest of the code relies on, which
//! `proto/point.proto` lists; the error names the field. An agent whose report is refused is as good as lost, and so
//! nothing is refused that damage on a node's disk could bring about: epochs and producer ids pass as they are.
//!
//! What a message costs in memory is bounded by its length on the wire: no length or count in it is believed.

use prost::{DecodeError, Message};
use segvault_kafka_log::ids::Uuid;
use segvault_vault_format::ids::IdError;
use segvault_vault_format::manifest::{ManifestError, StreamRef};

mod command;
mod node;
mod report;
mod sample;

#[cfg(test)]
mod tests;

/// A message that cannot be meant as it arrived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct WireError {
    /// Message and field, as in the `.proto`.
    field: &'static str,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("no body, or one that this version does not know\nhint: run the same version of segvault on all hosts")]
    NoBody,
    #[error("it is missing")]
    Missing,
    #[error("it is empty")]
    Empty,
    #[error("{found} bytes instead of {expected}")]
    Length { found: usize, expected: usize },
    #[error("{value} is less than {min}")]
    TooSmall { value: i64, min: i64 },
    #[error("{0} is greater than this machine can count")]
    TooGreat(u64),
    #[error("{0} does not fit into 16 bits")]
    NotShort(i32),
    #[error("{0} is no value that this version knows")]
    UnknownValue(i32),
    #[error("{index} is not below {len}")]
    NoSuchIndex { index: usize, len: usize },
    #[error("entry {0} does not rise above the one before it")]
    NotRising(usize),
    #[error("{value} is greater than the end at {end}")]
    BeyondEnd { value: i64, end: i64 },
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Undecodable(#[from] DecodeError),
    #[error(transparent)]
    Reference(#[from] ManifestError),
}

impl WireError {
    fn new(field: &'static str, problem: impl Into<Problem>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// All of `items`, which need no check.
fn all<A, B: From<A>>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}

/// Each of `items`, unless one is refused.
fn each<A, B: TryFrom<A, Error = WireError>>(items: Vec<A>) -> Result<Vec<B>, WireError> {
    items.into_iter().map(B::try_from).collect()
}

/// A message that must be there.
fn required<A, B: TryFrom<A, Error = WireError>>(field: &'static str, message: Option<A>) -> Result<B, WireError> {
    message.ok_or_else(|| WireError::new(field, Problem::Missing))?.try_into()
}

/// A message that may be missing.
fn optional<A, B: TryFrom<A, Error = WireError>>(message: Option<A>) -> Result<Option<B>, WireError> {
    message.map(B::try_from).transpose()
}

fn not_empty(field: &'static str, text: String) -> Result<String, WireError> {
    if text.is_empty() { Err(WireError::new(field, Problem::Empty)) } else { Ok(text) }
}

fn at_least<T: Copy + Into<i64>>(min: i64, field: &'static str, value: T) -> Result<T, WireError> {
    match value.into() {
        number if number < min => Err(WireError::new(field, Problem::TooSmall { value: number, min })),
        _ => Ok(value),
    }
}

/// An offset, a partition or a node id.
fn not_negative<T: Copy + Into<i64>>(field: &'static str, value: T) -> Result<T, WireError> {
    at_least(0, field, value)
}

/// A producer epoch; protobuf has no shorter numbers.
fn short(field: &'static str, value: i32) -> Result<i16, WireError> {
    i16::try_from(value).map_err(|_| WireError::new(field, Problem::NotShort(value)))
}

fn from_count(count: usize) -> u64 {
    u64::try_from(count).expect("no machine counts in more than 64 bits")
}

fn to_count(field: &'static str, value: u64) -> Result<usize, WireError> {
    usize::try_from(value).map_err(|_| WireError::new(field, Problem::TooGreat(value)))
}

fn uuid(field: &'static str, bytes: &[u8]) -> Result<Uuid, WireError> {
    let length = |_| WireError::new(field, Problem::Length { found: bytes.len(), expected: 16 });
    bytes.try_into().map(Uuid).map_err(length)
}

fn from_stream(reference: Option<StreamRef>) -> Option<Vec<u8>> {
    reference.map(|reference| reference.encode_to_vec())
}

fn to_stream(field: &'static str, bytes: &[u8]) -> Result<StreamRef, WireError> {
    let reference = StreamRef::decode(bytes).map_err(|error| WireError::new(field, error))?;
    // A point with a reference that makes no sense could not be committed, whoever else took part.
    reference.places().map_err(|error| WireError::new(field, error))?;
    Ok(reference)
}

fn to_optional_stream(field: &'static str, bytes: Option<Vec<u8>>) -> Result<Option<StreamRef>, WireError> {
    bytes.map(|bytes| to_stream(field, &bytes)).transpose()
}
