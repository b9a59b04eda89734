//! `segvault inspect`: looks into Kafka's files, of a live broker or a dead one, and changes nothing.
//!
//! Whatever their size, files are read in blocks and printed as they are read, as text or as one JSON document
//! (`docs/inspect.md`). Damage is no failure: it is reported as a [`Finding`] with its place, the rest is shown as far as
//! it can be, and the process ends with exit code 3. Only what cannot be looked at at all (missing, not readable,
//! another kind of file than asked for) is an error. Nothing is locked, and secrets are not shown.

mod checkpoint;
mod index;
mod json;
mod log_dir;
mod metadata;
mod offsets;
mod records;
mod report;
mod scan;
mod segment;
mod shares;
#[cfg(test)]
mod tests;
mod transactions;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use segvault_kafka_log::names::{self, CLUSTER_METADATA_TOPIC, LogDirEntry, SegmentFileKind};
use thiserror::Error;

use crate::{
    args::{InspectArgs, InspectKind},
    output::Ending,
};
use report::{Finding, Report};

/// Most bytes of a file that has to be read as a whole. The greatest ones are producer snapshots, 46 bytes per producer.
const WHOLE_LEN_MAX: u64 = 256 << 20;

/// Why a file cannot be inspected at all.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "named after what they hold")]
pub enum InspectError {
    /// It cannot be opened.
    #[error("cannot open {}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    /// It cannot be read.
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It became shorter, or something else, while it was read.
    #[error("{} changed while it was read\nhint: try again, or copy it first", .path.display())]
    Changed { path: PathBuf },
    /// It is something else than was asked for.
    #[error("{} is {what}\nhint: {hint}", .path.display())]
    WrongKind { path: PathBuf, what: String, hint: String },
    /// It is longer than such a file ever is.
    #[error("{} has {len} bytes, more than the {WHOLE_LEN_MAX} that such a file may have here", .path.display())]
    TooLong { path: PathBuf, len: u64 },
    /// What was found cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

/// Prints what is asked for on standard output.
pub fn run(args: &InspectArgs, json: bool) -> Result<Ending, InspectError> {
    run_to(&mut BufWriter::new(io::stdout().lock()), args, json)
}

fn run_to(out: &mut dyn Write, args: &InspectArgs, json: bool) -> Result<Ending, InspectError> {
    let mut report = Report::new(out, json);
    let inspected = inspect(args, &mut report);
    let inspected = match inspected {
        // The document that was begun must end, too.
        Err(error) if report.has_begun() && !matches!(error, InspectError::Output(_)) => {
            report.abandon(Finding::fault(&args.path, chain(&error))).map_err(InspectError::from)
        }
        other => other,
    };
    let ending = report.ending();
    match inspected.and_then(|()| Ok(out.flush()?)) {
        // Whoever reads our output has seen enough.
        Err(InspectError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ending),
        other => other.map(|()| ending),
    }
}

fn inspect(args: &InspectArgs, report: &mut Report<'_>) -> Result<(), InspectError> {
    let path = &args.path;
    check_kind(path, args.kind)?;
    match args.kind {
        InspectKind::Segment => segment::inspect(path, args.records, report),
        InspectKind::Index => index::inspect(path, report),
        InspectKind::Checkpoint => checkpoint::inspect(path, report),
        InspectKind::Metadata => metadata::inspect(path, args.records, report),
        InspectKind::Offsets => offsets::inspect(path, report),
        InspectKind::Shares => shares::inspect(path, report),
        InspectKind::Transactions => transactions::inspect(path, report),
        InspectKind::LogDir => log_dir::inspect(path, report),
    }
}

/// Refuses what is evidently something else, and says what to do instead.
fn check_kind(path: &Path, kind: InspectKind) -> Result<(), InspectError> {
    let meta = fs::metadata(path).map_err(|source| InspectError::Open { path: path.to_owned(), source })?;
    let wrong =
        |what: &str, hint: String| Err(InspectError::WrongKind { path: path.to_owned(), what: what.to_owned(), hint });
    let (is_dir, wants_dir) = (meta.is_dir(), kind == InspectKind::LogDir);
    let found = if is_dir { kind_of_dir(path) } else { kind_of_file(name_of(path)) };
    match found {
        // A segment may be looked at as any of these.
        Some((_, InspectKind::Segment)) if topic_of(kind).is_some() => {}
        Some((what, found)) if found != kind => {
            return wrong(what, format!("use `segvault inspect {}`", name_of_kind(found)));
        }
        None if is_dir && !wants_dir && topic_of(kind).is_none() => {
            return wrong("a directory", "give a file, such as one of its segments".to_owned());
        }
        _ if !is_dir && wants_dir => return wrong("a file", "give the directory that it is in".to_owned()),
        _ => {}
    }
    let dir = if is_dir { Some(path) } else { path.parent() };
    match (topic_of(kind), dir.and_then(topic_of_dir)) {
        (Some(expected), Some(topic)) if topic != expected => wrong(
            &format!("of the topic {topic}, not of {expected}"),
            "use `segvault inspect segment` for its segments".to_owned(),
        ),
        _ => Ok(()),
    }
}

fn name_of_kind(kind: InspectKind) -> &'static str {
    match kind {
        InspectKind::Segment => "segment",
        InspectKind::Index => "index",
        InspectKind::Checkpoint => "checkpoint",
        InspectKind::Metadata => "metadata",
        InspectKind::Offsets => "offsets",
        InspectKind::Shares => "shares",
        InspectKind::Transactions => "transactions",
        InspectKind::LogDir => "log-dir",
    }
}

/// The topic whose partitions a kind is about, if there is one.
fn topic_of(kind: InspectKind) -> Option<&'static str> {
    match kind {
        InspectKind::Metadata => Some(CLUSTER_METADATA_TOPIC),
        InspectKind::Offsets => Some(offsets::TOPIC),
        InspectKind::Shares => Some(shares::TOPIC),
        InspectKind::Transactions => Some(transactions::TOPIC),
        _ => None,
    }
}

/// The topic that a directory belongs to, to judge by its name.
fn topic_of_dir(dir: &Path) -> Option<String> {
    use LogDirEntry::*;
    let absolute = std::path::absolute(dir).ok()?;
    match LogDirEntry::parse(name_of(&absolute)) {
        Partition(tp) | Deleted(tp) | Future(tp) | Stray(tp) => Some(tp.topic),
        ClusterMetadata => Some(CLUSTER_METADATA_TOPIC.to_owned()),
        RemoteLogIndexCache | Foreign => None,
    }
}

/// What a directory is by its name and content, and how to look at it; `None` for a partition of another topic, and for
/// whatever else it may be.
fn kind_of_dir(path: &Path) -> Option<(&'static str, InspectKind)> {
    match topic_of_dir(path).as_deref() {
        Some(CLUSTER_METADATA_TOPIC) => Some(("the metadata log", InspectKind::Metadata)),
        Some(offsets::TOPIC) => Some(("a partition of __consumer_offsets", InspectKind::Offsets)),
        Some(shares::TOPIC) => Some(("a partition of __share_group_state", InspectKind::Shares)),
        Some(transactions::TOPIC) => Some(("a partition of __transaction_state", InspectKind::Transactions)),
        Some(_) => None,
        None => path.join(names::META_PROPERTIES).exists().then_some(("a log dir", InspectKind::LogDir)),
    }
}

/// What a file is by its name, and how to look at it; `None` if the name does not say.
fn kind_of_file(name: &str) -> Option<(&'static str, InspectKind)> {
    if checkpoint::is_checkpoint(name) {
        return Some(("a checkpoint or a properties file", InspectKind::Checkpoint));
    }
    if name.ends_with(".checkpoint") {
        return Some(("a metadata snapshot", InspectKind::Metadata));
    }
    Some(match segment_kind(name)? {
        SegmentFileKind::Log => ("a segment", InspectKind::Segment),
        SegmentFileKind::OffsetIndex => ("an offset index", InspectKind::Index),
        SegmentFileKind::TimeIndex => ("a time index", InspectKind::Index),
        SegmentFileKind::TxnIndex => ("a transaction index", InspectKind::Index),
        SegmentFileKind::Snapshot => ("a producer snapshot", InspectKind::Index),
    })
}

/// Which file of a segment a name's ending stands for, in any state and whatever stands before it.
fn segment_kind(name: &str) -> Option<SegmentFileKind> {
    let live = [".deleted", ".cleaned", ".swap"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    let (_, extension) = live.rsplit_once('.')?;
    SegmentFileKind::ALL.into_iter().find(|kind| kind.extension() == extension)
}

/// The last part of a path; empty if it has none, or none that is text.
fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// A name in a directory.
struct Entry {
    name: String,
    is_dir: bool,
    /// Bytes of a file.
    len: u64,
}

/// What is in a directory, by name. What vanishes meanwhile is left out.
fn entries(dir: &Path) -> Result<Vec<Entry>, InspectError> {
    let error = |source| InspectError::Read { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        let meta = match entry.metadata() {
            Ok(meta) => meta,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(error(source)),
        };
        found.push(Entry {
            name: entry.file_name().to_string_lossy().into_owned(),
            is_dir: meta.is_dir(),
            len: meta.len(),
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Opens a file; its length is that of now.
fn open(path: &Path) -> Result<(File, u64), InspectError> {
    let file = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    match file {
        Ok((len, file)) => Ok((file, len)),
        Err(source) => Err(InspectError::Open { path: path.to_owned(), source }),
    }
}

/// Reads a small file.
fn read_whole(path: &Path) -> Result<Vec<u8>, InspectError> {
    let (file, len) = open(path)?;
    if len > WHOLE_LEN_MAX {
        return Err(InspectError::TooLong { path: path.to_owned(), len });
    }
    let mut bytes = Vec::new();
    let read = file.take(WHOLE_LEN_MAX).read_to_end(&mut bytes);
    read.map_err(|source| InspectError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// Reads a file that may be missing.
fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, InspectError> {
    if_there(read_whole(path))
}

/// `None` for a file that is not there.
fn if_there<T>(result: Result<T, InspectError>) -> Result<Option<T>, InspectError> {
    match result {
        Err(InspectError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Why bytes that were there when a file was opened cannot be read.
fn read_error(path: &Path, source: io::Error) -> InspectError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::UnexpectedEof => InspectError::Changed { path },
        _ => InspectError::Read { path, source },
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(|cause| cause.to_string().replace('\n', "; ")).collect::<Vec<_>>().join(": ")
}
