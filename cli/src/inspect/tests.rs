//! What is shown of the golden files of all versions, and of copies of them that were damaged.
//!
//! That the content is right is held against Kafka's own tool in `tests/tests/dump_agreement.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use super::*;

const SEGMENT: &str = "codecs-0/00000000000000000000.log";

fn golden(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kafka-log/tests/data").join(version)
}

/// A copy of the golden log dir of 4.1.1, with its metadata log, that may be damaged.
struct LogDir(PathBuf);

impl LogDir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("segvault-inspect-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = LogDir(std::env::temp_dir().join(name));
        copy(&golden("4.1.1/log-dir"), &dir.0);
        copy(&golden("4.1.1/metadata"), &dir.path("__cluster_metadata-0"));
        let topic_id = "version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAQ";
        fs::write(dir.path("__cluster_metadata-0/partition.metadata"), topic_id).unwrap();
        dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Changes a file's bytes.
    fn damage(&self, name: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        damage(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
    }
}

impl Drop for LogDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

fn show(kind: InspectKind, path: &Path, json: bool) -> Result<(Ending, String), InspectError> {
    let mut out = Vec::new();
    let ending = run_to(&mut out, &InspectArgs { kind, path: path.to_owned(), records: true }, json)?;
    Ok((ending, String::from_utf8(out).unwrap()))
}

/// The document of a file, which must be one whatever is wrong with the file; the text is made as well.
fn document(kind: InspectKind, path: &Path) -> (Ending, Value) {
    let (ending, json) = show(kind, path, true).unwrap();
    let document: Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{}: {e}: {json}", path.display()));
    let (same, text) = show(kind, path, false).unwrap();
    assert_eq!(ending, same);
    assert_eq!(document["faults"] == 0, ending == Ending::Done, "{document}");
    assert!(text.ends_with(&format!("faults: {} notes: {}\n", document["faults"], document["notes"])), "{text}");
    (ending, document)
}

/// The findings of a file: each place and text on one line.
fn findings(kind: InspectKind, path: &Path) -> Vec<String> {
    let (_, document) = document(kind, path);
    let findings = document["findings"].as_array().unwrap();
    let line = |finding: &Value| {
        let file = Path::new(finding["file"].as_str().unwrap()).strip_prefix(path).unwrap_or(Path::new(""));
        let severity = finding["severity"].as_str().unwrap();
        let what = finding["what"].as_str().unwrap();
        format!("{severity} {} {} {}: {what}", file.display(), finding["position"], finding["offset"])
    };
    findings.iter().map(line).collect()
}

/// A file's kind; segments of the metadata log are looked at as such.
fn kind(path: &Path) -> InspectKind {
    let (_, kind) = kind_of_file(name_of(path)).unwrap_or_else(|| panic!("{}", path.display()));
    let topic = path.parent().and_then(|dir| dir.file_name()).and_then(|dir| dir.to_str()).unwrap_or_default();
    match topic {
        "__cluster_metadata-0" | "metadata" if kind == InspectKind::Segment => InspectKind::Metadata,
        "offsets" => InspectKind::Offsets,
        "shares" => InspectKind::Shares,
        "transactions" => InspectKind::Transactions,
        _ => kind,
    }
}

#[test]
fn files_of_real_brokers_have_no_fault() {
    for version in ["3.9.1", "4.1.1", "4.3.0"] {
        for file in files_below(&golden(version)) {
            let (ending, document) = document(kind(&file), &file);
            assert_eq!(ending, Ending::Done, "{}: {document}", file.display());
        }
        let (_, log_dir) = document(InspectKind::LogDir, &golden(version).join("log-dir"));
        assert_eq!((&log_dir["summary"]["partitions"], &log_dir["faults"]), (&5.into(), &0.into()), "{log_dir}");
        let (_, metadata) = document(InspectKind::Metadata, &golden(version).join("metadata"));
        assert_eq!(metadata["image"]["is_complete"], true);
        assert!(metadata["topics"].as_array().unwrap().iter().any(|topic| topic["name"] == "orders"));
    }
}

#[test]
fn the_image_of_a_directory_is_that_of_its_newest_snapshot_and_the_log_behind_it() {
    let dir = LogDir::new();
    let metadata = dir.path("__cluster_metadata-0");
    let newest = document(InspectKind::Metadata, &metadata).1;
    fs::remove_file(metadata.join("00000000000000000096-0000000001.checkpoint")).unwrap();
    let older = document(InspectKind::Metadata, &metadata).1;
    assert_eq!(older["snapshot"], "00000000000000000092-0000000001.checkpoint");
    for part in ["image", "brokers", "topics", "configs", "quotas", "acls", "scram_credentials"] {
        assert_eq!(newest[part], older[part], "{part}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let dir = LogDir::new();
    let snapshot = dir.path("__cluster_metadata-0/00000000000000000096-0000000001.checkpoint");
    let scram = document(InspectKind::Metadata, &snapshot).1["scram_credentials"].to_string();
    assert!(scram.contains("alice") && !scram.contains("salt") && !scram.contains("key"), "{scram}");
    let segment = document(InspectKind::Segment, &dir.path("__cluster_metadata-0/00000000000000000000.log")).1;
    assert!(segment["batches"][1]["records"][0]["value"].is_null(), "{segment}");
}

/// One place where a batch begins, in the middle of the segment.
fn middle(dir: &LogDir) -> usize {
    let (_, document) = document(InspectKind::Segment, &dir.path(SEGMENT));
    document["batches"][3]["position"].as_u64().unwrap() as usize
}

#[test]
fn a_damaged_segment_is_shown_beyond_the_damage() {
    type Damage = fn(&mut Vec<u8>, usize);
    // What is done, batches that are shown of 20, and what is said.
    let cases: [(Damage, usize, &str); 8] = [
        (|bytes, _| bytes.truncate(bytes.len() - 10), 19, "torn tail"),
        (|bytes, _| bytes.extend([0; 100]), 20, "100 bytes: zero tail"),
        (|bytes, _| bytes.extend([7; 100]), 20, "100 bytes: no batch"),
        (|bytes, at| bytes[at + 100] ^= 1, 20, "batch crc is"),
        (|bytes, at| bytes[at + 9] ^= 0x40, 19, "no batch"),
        (|bytes, at| bytes[at + 16] = 9, 19, "unknown batch magic 9"),
        (|bytes, at| bytes[at + 16] = 1, 19, "message sets of magic 1"),
        (|bytes, at| drop(bytes.drain(..at + 5)), 16, "no batch"),
    ];
    for (damage, shown, said) in cases {
        let dir = LogDir::new();
        let at = middle(&dir);
        dir.damage(SEGMENT, |bytes| damage(bytes, at));
        let (ending, document) = document(InspectKind::Segment, &dir.path(SEGMENT));
        let batches = document["batches"].as_array().unwrap().len();
        assert_eq!((batches, ending), (shown, Ending::Findings), "{said}: {:?}", document["findings"]);
        let found = findings(InspectKind::Segment, &dir.path(SEGMENT));
        assert!(found.len() == 1 && found[0].contains(said), "{said}: {found:?}");
        assert_ne!(document["summary"]["damaged_bytes"], 0, "{said}");
    }
}

#[test]
fn batches_out_of_order_are_a_fault() {
    let dir = LogDir::new();
    let at = middle(&dir);
    dir.damage(SEGMENT, |bytes| bytes.rotate_left(at));
    let found = findings(InspectKind::Segment, &dir.path(SEGMENT));
    assert!(found.len() == 1 && found[0].contains("offsets do not rise"), "{found:?}");
}

#[test]
fn damaged_indexes_and_snapshots_are_shown_with_their_faults() {
    type Damage = fn(&mut Vec<u8>);
    const BASE: &str = "txn-0/00000000000000000027";
    const SNAPSHOT: &str = "txn-0/00000000000000000165";
    // The file, what is done, entries that are shown, and what is said in order.
    let cases: [(&str, &str, Damage, usize, &[&str]); 11] = [
        (BASE, "index", |bytes| bytes[15] ^= 1, 5, &["fault  8 null: no batch begins at position"]),
        (BASE, "index", |bytes| bytes.push(1), 5, &["41 bytes are no multiple of the 8"]),
        (BASE, "index", |bytes| bytes[12] = 0x80, 5, &["impossible position"]),
        (BASE, "index", |bytes| bytes.extend([0; 80]), 5, &["note  40 null: 80 zero bytes follow the last entry"]),
        (BASE, "timeindex", |bytes| bytes[7] ^= 1, 5, &["has the greatest timestamp"]),
        (BASE, "timeindex", |bytes| bytes[8..12].fill(0x70), 5, &["no batch with offset"]),
        (BASE, "txnindex", |bytes| drop(bytes.drain(..34)), 7, &["fault  null 27: the transaction of producer 11"]),
        (BASE, "txnindex", |bytes| bytes[25] ^= 1, 8, &["has no entry", "no ABORT marker of producer 11"]),
        (SNAPSHOT, "snapshot", |bytes| bytes[20] ^= 1, 3, &["producer snapshot crc is"]),
        (SNAPSHOT, "snapshot", |bytes| bytes.truncate(110), 2, &["producer snapshot crc is", "cannot hold 3 entries"]),
        (SNAPSHOT, "snapshot", |bytes| bytes[1] = 9, 0, &["unknown producer snapshot version 9"]),
    ];
    for (base, extension, damage, shown, said) in cases {
        let dir = LogDir::new();
        let name = format!("{base}.{extension}");
        dir.damage(&name, damage);
        let (_, document) = document(InspectKind::Index, &dir.path(&name));
        assert_eq!(document["entries"].as_array().unwrap().len(), shown, "{said:?}: {document}");
        let found = findings(InspectKind::Index, &dir.path(&name));
        let is_said = found.iter().zip(said).all(|(found, said)| found.contains(said));
        assert!(found.len() == said.len() && is_said, "{said:?}: {found:?}");
    }
}

#[test]
fn a_checkpoint_that_kafka_refuses_is_shown_line_by_line() {
    for (text, shown, said) in [
        ("0\n3\na 0 1\nb 0 x\nc 0 3\n", 2, "malformed line 4"),
        ("0\n9\na 0 1\n", 1, "says 9 entries and has 1"),
        ("7\n1\na 0 1\n", 1, "unknown checkpoint version 7"),
    ] {
        let dir = LogDir::new();
        let path = dir.path("replication-offset-checkpoint");
        fs::write(&path, text).unwrap();
        let (_, document) = document(InspectKind::Checkpoint, &path);
        assert_eq!(document["entries"].as_array().unwrap().len(), shown, "{text:?}");
        let found = findings(InspectKind::Checkpoint, &path);
        assert!(found.len() == 1 && found[0].contains(said), "{text:?}: {found:?}");
    }
}

#[test]
fn a_damaged_metadata_log_shows_the_image_before_the_damage() {
    let dir = LogDir::new();
    let metadata = dir.path("__cluster_metadata-0");
    for entry in fs::read_dir(&metadata).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|extension| extension == "checkpoint") {
            fs::remove_file(entry).unwrap();
        }
    }
    let log = "__cluster_metadata-0/00000000000000000000.log";
    dir.damage(log, |bytes| bytes[1200] ^= 1);
    let (_, document) = document(InspectKind::Metadata, &metadata);
    assert_eq!(document["image"]["is_complete"], false);
    assert_eq!(document["image"]["end_offset"], 14);
    let found = findings(InspectKind::Metadata, &metadata);
    assert!(found[0].contains("00000000000000000000.log 1166 14: batch crc is"), "{found:?}");
}

#[test]
fn a_snapshot_without_its_end_is_no_whole_one() {
    let dir = LogDir::new();
    let name = "__cluster_metadata-0/00000000000000000055-0000000001.checkpoint";
    dir.damage(name, |bytes| bytes.truncate(bytes.len() - 75));
    let found = findings(InspectKind::Metadata, &dir.path(name));
    assert!(found.len() == 1 && found[0].contains("its footer is missing"), "{found:?}");
}

#[test]
fn a_log_dir_tells_what_a_broker_would_stumble_over() {
    type Damage = fn(&LogDir);
    let cases: [(Damage, &str); 14] = [
        (|dir| fs::remove_file(dir.path("meta.properties")).unwrap(), "fault meta.properties null null: it is missing"),
        (|dir| fs::remove_file(dir.path("txn-0/partition.metadata")).unwrap(), "takes the partition for a stray"),
        (|dir| fs::create_dir(dir.path("lost+found")).unwrap(), "lost+found null null: not one of Kafka's directories"),
        (|dir| fs::write(dir.path("notes.txt"), "").unwrap(), "note notes.txt"),
        (
            |dir| {
                for id in ["0123456789abcdef0123456789abcdef", "1123456789abcdef0123456789abcdef"] {
                    copy(&dir.path("txn-0"), &dir.path(&format!("txn-0.{id}-future")));
                }
            },
            "the same partition as txn-0.0123456789abcdef0123456789abcdef-future",
        ),
        (|dir| fs::write(dir.path("replication-offset-checkpoint"), "0\n1\ntxn 0 x\n").unwrap(), "malformed line 3"),
        (
            |dir| fs::write(dir.path("replication-offset-checkpoint"), "0\n1\ntxn 0 999\n").unwrap(),
            "the high watermark is 999, beyond the log's end 165",
        ),
        (|dir| dir.damage("txn-0/leader-epoch-checkpoint", |bytes| bytes[0] = b'7'), "unknown checkpoint version 7"),
        (
            |dir| dir.damage("txn-0/00000000000000000027.index", |bytes| *bytes.last_mut().unwrap() ^= 1),
            "its last entry points at no batch",
        ),
        (
            |dir| dir.damage("txn-0/00000000000000000027.index", |bytes| bytes.extend([0; 80])),
            "80 zero bytes follow its last entry, and the broker is said to have stopped cleanly",
        ),
        (
            |dir| dir.damage("txn-0/00000000000000000027.log", |bytes| bytes.truncate(bytes.len() - 3)),
            "00000000000000000027.log 23835 null: torn tail",
        ),
        (
            |dir| {
                let name = "txn-0/00000000000000000027.log";
                fs::rename(dir.path(name), dir.path("txn-0/27.log")).unwrap();
            },
            "txn-0/27.log null null: its name is no offset of 20 digits",
        ),
        (
            |dir| {
                copy(&dir.path("txn-0"), &dir.path("txn-1"));
                fs::copy(dir.path("codecs-0/partition.metadata"), dir.path("txn-1/partition.metadata")).unwrap();
            },
            "txn-1 null null: topic id yp01zO8IS7Cw0hrHxsBKAQ, while txn-0 has XsDamB0nSX-To4_uYN7eBA",
        ),
        (
            |dir| fs::remove_file(dir.path("txn-0/00000000000000000027.index")).unwrap(),
            "note txn-0 null null: 1 segments have no .index",
        ),
    ];
    for (damage, said) in cases {
        let dir = LogDir::new();
        damage(&dir);
        let found = findings(InspectKind::LogDir, &dir.0);
        assert!(found.iter().any(|found| found.contains(said)), "{said}: {found:?}");
        assert!(found.len() <= 6, "{said}: {found:?}");
    }
}

#[test]
fn whatever_bytes_are_changed_a_whole_document_comes_out() {
    // xorshift: the same damages in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit.max(1) as u64) as usize
    };
    let dir = LogDir::new();
    copy(&golden("4.1.1/offsets"), &dir.path("offsets"));
    copy(&golden("4.3.0/shares"), &dir.path("shares"));
    copy(&golden("4.1.1/transactions"), &dir.path("transactions"));
    for file in files_below(&dir.0) {
        let bytes = fs::read(&file).unwrap();
        for _ in 0..8 {
            let mut damaged = bytes.clone();
            let at = below(bytes.len());
            match below(4) {
                0 => damaged.truncate(at),
                1 => drop(damaged.splice(at..at, vec![below(256) as u8; below(40)])),
                2 => drop(damaged.drain(at..(at + below(40)).min(bytes.len()))),
                _ if at < damaged.len() => damaged[at] ^= 1 << below(8),
                _ => {}
            }
            fs::write(&file, damaged).unwrap();
            document(kind(&file), &file);
        }
        document(InspectKind::LogDir, &dir.0);
        fs::write(&file, bytes).unwrap();
    }
}

#[test]
fn what_cannot_be_looked_at_is_an_error_with_a_remedy() {
    let dir = LogDir::new();
    fs::write(dir.path("notes.txt"), "").unwrap();
    for (kind, name, said) in [
        (InspectKind::Segment, "no-such-file.log", "cannot open"),
        (InspectKind::Segment, "meta.properties", "hint: use `segvault inspect checkpoint`"),
        (InspectKind::Index, SEGMENT, "hint: use `segvault inspect segment`"),
        (InspectKind::Checkpoint, "codecs-0", "is a directory\nhint: give a file"),
        (InspectKind::LogDir, "notes.txt", "is a file\nhint: give the directory"),
        (InspectKind::Offsets, "txn-0", "of the topic txn, not of __consumer_offsets"),
        (InspectKind::Segment, "__cluster_metadata-0", "hint: use `segvault inspect metadata`"),
        (InspectKind::Metadata, "codecs-0", "of the topic codecs, not of __cluster_metadata"),
    ] {
        let error = show(kind, &dir.path(name), true).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains(name), "{error}");
    }
}

#[test]
fn what_fails_half_way_still_ends_its_document() {
    let dir = LogDir::new();
    fs::create_dir_all(dir.path("__consumer_offsets-0/00000000000000000000.log")).unwrap();
    let found = findings(InspectKind::Offsets, &dir.path("__consumer_offsets-0"));
    assert!(found.len() == 1 && found[0].contains("cannot read"), "{found:?}");
}

#[test]
fn control_characters_in_a_file_do_not_reach_the_terminal() {
    let dir = LogDir::new();
    let path = dir.path("replication-offset-checkpoint");
    fs::write(&path, "0\n1\nti\u{1b}[2Jtle 0 5\n").unwrap();
    let (_, text) = show(InspectKind::Checkpoint, &path, false).unwrap();
    assert!(!text.contains('\u{1b}'), "{text:?}");
}
