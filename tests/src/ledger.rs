//! The ledger: what clients were told, in the order in which they were told it.
//!
//! A file of lines, appended with `O_APPEND` by every client thread and process, so a line's position is a monotone
//! sequence number that all of them share. A line is written *after* the acknowledgement arrived. So whatever stands
//! above a mark had been acknowledged when the mark was set; what stands below may have been, and must then be either
//! wholly present or wholly absent.
//!
//! ```text
//! r TOPIC PARTITION OFFSET KEY v|t HASH X|-   a record (t: tombstone) of transaction X is acknowledged; KEY: hash or -
//! b X ID                                      transaction X of a transactional id has begun
//! o X GROUP TOPIC PARTITION OFFSET            an offset was sent to transaction X
//! s X                                         X's commit is about to be asked for
//! c X                                         X's commit is acknowledged
//! a X                                         X's abort is acknowledged
//! g GROUP TOPIC PARTITION OFFSET              a group's committed offset is acknowledged
//! m NAME                                      a mark
//! ```

use crate::Result;
use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Appends to a ledger; cheap to clone, safe to share between threads and processes.
#[derive(Clone, Debug)]
pub struct Ledger {
    file: Arc<File>,
    path: PathBuf,
}

impl Ledger {
    /// Opens a ledger to append to, creating it if it is not there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|e| format!("open {}: {e}", path.display()))?;
        Ok(Self { file: Arc::new(file), path })
    }

    /// Appends whole lines with one system call.
    pub fn append(&self, lines: &str) {
        debug_assert!(lines.ends_with('\n'), "a torn line would merge with another writer's");
        (&*self.file).write_all(lines.as_bytes()).expect("the ledger can be written");
    }

    /// Sets a mark: all that was appended so far had been acknowledged before now.
    pub fn mark(&self, name: &str) {
        self.append(&format!("m {name}\n"));
    }

    /// What has been written so far.
    pub fn history(&self) -> Result<History> {
        History::load(&self.path)
    }
}

/// Position of a line in the ledger: the order of acknowledgements.
pub type Sequence = usize;

/// An acknowledged record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When it was acknowledged.
    pub sequence: Sequence,
    /// Hash of its key, if it has one.
    pub key: Option<u64>,
    /// Is its value null?
    pub tombstone: bool,
    /// [`content_hash`].
    pub hash: u64,
    /// The transaction it belongs to.
    pub transaction: Option<u64>,
}

/// How a transaction ended, as far as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Neither commit nor abort was acknowledged. A commit may be under way or done.
    Unknown,
    /// The client never asked for a commit.
    Open,
    /// The commit was acknowledged then.
    Committed(Sequence),
    /// The abort was acknowledged then.
    Aborted(Sequence),
}

/// A transaction.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// The transactional id.
    pub id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Offsets sent to it: `(group, topic, partition)` to offset.
    pub offsets: BTreeMap<(String, String, i32), i64>,
}

/// A ledger that was read back.
#[derive(Debug, Default)]
pub struct History {
    /// Acknowledged records: topic and partition to offset to record.
    pub records: BTreeMap<(String, i32), BTreeMap<i64, Record>>,
    /// Transactions by number.
    pub transactions: HashMap<u64, Transaction>,
    /// Acknowledged plain commits of groups, in order.
    pub commits: Vec<(Sequence, (String, String, i32), i64)>,
    /// Marks, in order.
    pub marks: Vec<(Sequence, String)>,
    /// Number of lines.
    pub len: Sequence,
}

impl History {
    /// Reads a ledger. A last line without its end (a writer was killed) is left out.
    pub fn load(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| format!("open {}: {e}", path.display()))?;
        let mut history = Self::default();
        let (mut reader, mut line) = (BufReader::new(file), String::new());
        while reader.read_line(&mut line)? > 0 {
            if line.ends_with('\n') {
                let parsed = history.add(&line.split_whitespace().collect::<Vec<_>>());
                parsed
                    .ok_or_else(|| format!("{}: line {} is no ledger line: {line}", path.display(), history.len + 1))?;
                history.len += 1;
            }
            line.clear();
        }
        Ok(history)
    }

    fn add(&mut self, fields: &[&str]) -> Option<()> {
        let sequence = self.len;
        match fields {
            ["r", topic, partition, offset, key, kind, hash, transaction] => {
                let key = if *key == "-" { None } else { Some(u64::from_str_radix(key, 16).ok()?) };
                let transaction = if *transaction == "-" { None } else { Some(transaction.parse().ok()?) };
                let record = Record {
                    sequence,
                    key,
                    tombstone: *kind == "t",
                    hash: u64::from_str_radix(hash, 16).ok()?,
                    transaction,
                };
                let partition = ((*topic).to_owned(), partition.parse().ok()?);
                self.records.entry(partition).or_default().insert(offset.parse().ok()?, record);
            }
            ["b", x, id] => {
                let transaction =
                    Transaction { id: (*id).to_owned(), outcome: Outcome::Open, offsets: BTreeMap::new() };
                self.transactions.insert(x.parse().ok()?, transaction);
            }
            ["o", x, group, topic, partition, offset] => {
                let key = ((*group).to_owned(), (*topic).to_owned(), partition.parse().ok()?);
                self.transactions.get_mut(&x.parse().ok()?)?.offsets.insert(key, offset.parse().ok()?);
            }
            ["s", x] => self.transactions.get_mut(&x.parse().ok()?)?.outcome = Outcome::Unknown,
            ["c", x] => self.transactions.get_mut(&x.parse().ok()?)?.outcome = Outcome::Committed(sequence),
            ["a", x] => self.transactions.get_mut(&x.parse().ok()?)?.outcome = Outcome::Aborted(sequence),
            ["g", group, topic, partition, offset] => {
                let key = ((*group).to_owned(), (*topic).to_owned(), partition.parse().ok()?);
                self.commits.push((sequence, key, offset.parse().ok()?));
            }
            ["m", name] => self.marks.push((sequence, (*name).to_owned())),
            _ => return None,
        }
        Some(())
    }

    /// The last mark; without any, the end: then all that is in the ledger must be found.
    pub fn mark(&self) -> Sequence {
        self.marks.last().map_or(self.len, |(sequence, _)| *sequence)
    }

    /// Number of acknowledged records.
    pub fn record_count(&self) -> usize {
        self.records.values().map(BTreeMap::len).sum()
    }

    /// The greatest offset that each group had been told was committed before `mark`, transactions included.
    pub fn committed_before(&self, mark: Sequence) -> BTreeMap<(String, String, i32), i64> {
        let plain =
            self.commits.iter().filter(|(sequence, ..)| *sequence < mark).map(|(_, key, offset)| (key, *offset));
        let decided = self.transactions.values().filter(|t| matches!(t.outcome, Outcome::Committed(at) if at < mark));
        let sent = decided.flat_map(|t| t.offsets.iter().map(|(key, offset)| (key, *offset)));
        let mut greatest = BTreeMap::new();
        for (key, offset) in plain.chain(sent) {
            let entry = greatest.entry(key.clone()).or_insert(offset);
            *entry = offset.max(*entry);
        }
        greatest
    }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits: the same few lines in Rust and in Java, and no adversary here.
fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Hash of a key alone.
pub fn key_hash(key: &[u8]) -> u64 {
    fnv(FNV_START, key)
}

/// Hash of a record: key, value and the unique `id` header, each after its length (−1 for null) as four bytes.
pub fn content_hash(key: Option<&[u8]>, value: Option<&[u8]>, id: &[u8]) -> u64 {
    [key, value, Some(id)].into_iter().fold(FNV_START, |hash, part| {
        let len = part.map_or(-1, |p| i32::try_from(p.len()).expect("records are small"));
        fnv(fnv(hash, &len.to_be_bytes()), part.unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_above_the_mark_was_acknowledged_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path().join("ledger")).unwrap();
        ledger.append("b 7 id\nr t 0 5 - v 00000000000000ff 7\no 7 g t 0 3\ns 7\nc 7\ng g t 0 2\n");
        ledger.mark("point");
        ledger.append("b 8 id\no 8 g t 0 9\ng g t 0 8\ns 8\n");
        let history = ledger.history().unwrap();
        let key = ("g".to_owned(), "t".to_owned(), 0);
        assert_eq!(history.committed_before(history.mark()), BTreeMap::from([(key, 3)]));
        assert_eq!(history.records[&("t".to_owned(), 0)][&5].hash, 0xff);
        assert_eq!(
            (history.transactions[&7].outcome, history.transactions[&8].outcome),
            (Outcome::Committed(4), Outcome::Unknown)
        );
    }

    #[test]
    fn a_line_torn_by_a_killed_writer_is_left_out_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, "m one\nr t 0 5 - v 0").unwrap();
        assert_eq!(History::load(&path).unwrap().len, 1);
        std::fs::write(&path, "m one\nnonsense\n").unwrap();
        assert!(History::load(&path).unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn hashes_keep_null_empty_and_shifted_fields_apart() {
        let hashes = [
            content_hash(None, Some(b""), b"i"),
            content_hash(Some(b""), Some(b""), b"i"),
            content_hash(Some(b"a"), Some(b"b"), b"i"),
            content_hash(Some(b"ab"), Some(b""), b"i"),
            content_hash(Some(b"ab"), None, b"i"),
        ];
        assert_eq!(std::collections::HashSet::from(hashes).len(), hashes.len());
    }
}
