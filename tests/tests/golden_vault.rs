//! Old vaults stay readable: `tests/data/vault`, written once, is read by the vault crate, by the `segvault` binary, and
//! by a second reader that knows nothing but `docs/vault-format.md`. All must find what `tests/data/vault.json` says.

#[path = "golden_vault/reader.rs"]
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use reader::{Reader, batches};
use segvault_tests::cluster::project_root;
use segvault_tests::segvault::{Segvault, golden_node};
use segvault_vault::{Access, Config, PointState, Vault, VaultLocation};
use segvault_vault_format::manifest::{PartitionEntry, StreamRef};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const CLUSTER: &str = "H0Ga0cX-SzyIFKD_VgMHMg";
const NODES: [i32; 3] = [1, 2, 3];

/// What a restore of point 3 appends where: batches, and transactions that they abort. An offset that was committed
/// beyond the cut, and a transaction that is open at it.
const REPAIRS: &[(&str, usize, usize)] = &[("__consumer_offsets-0", 1, 0), ("payments-1", 1, 1)];

/// Bytes of an entry in a `.txnindex`.
const ABORTED_LEN: usize = 34;

/// What the vault holds, by point number.
type Expected = BTreeMap<u64, Point>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Point {
    /// `complete`, `degraded` or `aborted`.
    state: String,
    level: String,
    closed_only: bool,
    abort_markers: usize,
    /// By name, such as `events-0`; the metadata's are `checkpoint` and `log`.
    streams: BTreeMap<String, Stream>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Stream {
    start: i64,
    end: i64,
    /// Transactions that were aborted below the end.
    aborted: usize,
    /// Records that are not control records.
    records: u32,
    bytes: usize,
    blake3: String,
}

impl Stream {
    fn new(start: i64, end: i64, aborted: usize, bytes: &[u8]) -> Self {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
        let is_control = |batch: &&[u8]| number(&batch[21..23]) & 0x20 != 0;
        let records =
            batches(bytes).iter().filter(|batch| !is_control(batch)).map(|batch| number(&batch[57..61])).sum();
        Self { start, end, aborted, records, bytes: bytes.len(), blake3: blake3::hash(bytes).to_hex().to_string() }
    }
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(data().join("vault.json")).unwrap()).unwrap()
}

fn assert_expected(found: &Expected) {
    assert!(*found == expected(), "not what vault.json says, but:\n{}", serde_json::to_string_pretty(found).unwrap());
}

/// What a committed point's manifest says of it.
fn point(degraded: bool, level: impl std::fmt::Display, closed_only: bool, abort_markers: usize) -> Point {
    let state = if degraded { "degraded" } else { "complete" };
    Point { state: state.into(), level: format!("L{level}"), closed_only, abort_markers, streams: BTreeMap::new() }
}

fn aborted() -> Point {
    Point { state: "aborted".into(), ..Point::default() }
}

#[test]
fn a_reader_written_from_the_document_finds_what_was_written() {
    let reader = Reader::open(data().join("vault"));
    assert_eq!(reader.newest(|number| format!("clusters/{number:06}")), 1);
    let cluster = reader.object("clusters/000001", 2).unwrap();
    assert_eq!((cluster.text(1), cluster.text(2)), (CLUSTER, "golden"));
    let newest = reader.newest(|number| format!("points/{CLUSTER}/{number:016}/intent"));
    assert_expected(&(1..=newest).map(|number| (number, point_by_document(&reader, number))).collect());
    assert_eq!(reader.check_packs(), 101);
}

/// Message, field, type and number of every field in the document's schema.
fn documented_fields() -> BTreeSet<[String; 4]> {
    let text = fs::read_to_string(project_root().join("docs/vault-format.md")).unwrap();
    let schema = text.split("```proto").nth(1).unwrap().split("```").next().unwrap();
    let (mut fields, mut message) = (BTreeSet::new(), "");
    for line in schema.lines() {
        let line = line.split("//").next().unwrap().trim();
        if let Some(name) = line.strip_prefix("message ") {
            message = name.trim_end_matches(" {");
        } else if let Some((field, number)) = line.strip_suffix(';').and_then(|line| line.split_once(" = "))
            && let Some((kind, name)) = field.rsplit_once(' ')
        {
            fields.insert([message, name, kind, number].map(str::to_owned));
        }
    }
    fields
}

/// The same from the messages' source, which says it in `#[prost(int64, tag = "1")] pub name: i64`.
fn coded_fields() -> BTreeSet<[String; 4]> {
    let source = |name| fs::read_to_string(project_root().join("vault-format/src").join(name)).unwrap();
    let text = ["manifest.rs", "plan.rs"].map(source).concat();
    let (mut fields, mut message, mut attribute) = (BTreeSet::new(), "", "");
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("pub struct ") {
            message = name.trim_end_matches(" {");
        } else if let Some(text) = line.strip_prefix("#[prost(") {
            attribute = text;
        } else if let Some((name, rust)) = line.strip_prefix("pub ").and_then(|line| line.split_once(": "))
            && let Some((kind, number)) = std::mem::take(&mut attribute).split_once("tag = \"")
        {
            let scalar = kind.split([',', ' ']).next().unwrap();
            let inner = rust.trim_end_matches([',', '>']).rsplit('<').next().unwrap();
            let repeated = if kind.contains("repeated") { "repeated " } else { "" };
            let kind = format!("{repeated}{}", if scalar == "message" { inner } else { scalar });
            fields.insert([message, name, &kind, number.trim_end_matches("\")]")].map(str::to_owned));
        }
    }
    fields
}

#[test]
fn the_documents_schema_is_that_of_the_code() {
    let (documented, coded) = (documented_fields(), coded_fields());
    assert!(coded.len() > 100, "{coded:?}");
    let differences: Vec<_> = documented.symmetric_difference(&coded).collect();
    assert!(differences.is_empty(), "only in one of both: {differences:#?}");
}

fn point_by_document(reader: &Reader, number: u64) -> Point {
    let Some(manifest) = reader.point(CLUSTER, number) else { return aborted() };
    let mut found =
        point(manifest.number(7) == 1, manifest.number(5), manifest.number(6) == 1, manifest.messages(12).len());
    let metadata = manifest.message(10).unwrap();
    let refs = [("checkpoint", metadata.message(2)), ("log", metadata.message(5))];
    let mut refs: Vec<_> = refs.into_iter().filter_map(|(name, stream)| Some((name.to_owned(), stream?))).collect();
    for partition in manifest.messages(11) {
        refs.push((format!("{}-{}", partition.text(2), partition.number(3)), partition.message(5).unwrap()));
    }
    for (name, reference) in refs {
        let stream = reader.stream(&reference);
        let manifest = &stream.manifest;
        assert_eq!(manifest.text(1), CLUSTER);
        assert!(!name.contains('-') || name == format!("{}-{}", manifest.text(3), manifest.zigzag(4)));
        let aborted = manifest.messages(8).iter().map(|segment| segment.messages(3).len()).sum();
        found.streams.insert(name, Stream::new(manifest.number(5), manifest.number(6), aborted, &stream.bytes));
    }
    found
}

#[test]
fn the_vault_crate_finds_what_was_written() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    let location = VaultLocation::File(data().join("vault"));
    let vault = runtime.block_on(Vault::open(&location, &Config::default(), Access::Read)).unwrap();
    let cluster = runtime.block_on(vault.find_cluster(Some("golden"))).unwrap();
    let mut found = Expected::new();
    for listed in runtime.block_on(vault.list_points(&cluster.id)).unwrap() {
        let PointState::Committed(totals) = listed.state else {
            assert_eq!(listed.state, PointState::Aborted("cancelled by the operator".into()));
            found.insert(listed.id.number, aborted());
            continue;
        };
        let manifest = runtime.block_on(vault.point_manifest(&listed.id)).unwrap();
        assert_eq!(totals.partitions as usize, manifest.partitions.len());
        let mut point = point(totals.degraded, totals.level, totals.closed_only, manifest.abort_markers.len());
        let metadata = manifest.metadata.as_ref().unwrap();
        let refs = [("checkpoint".to_owned(), &metadata.checkpoint), ("log".to_owned(), &metadata.log)];
        let partition = |entry: &'_ PartitionEntry| format!("{}-{}", entry.topic, entry.partition);
        let refs = refs.into_iter().chain(manifest.partitions.iter().map(|entry| (partition(entry), &entry.stream)));
        let refs = refs.filter_map(|(name, stream)| Some((name, stream.as_ref()?)));
        point.streams = refs.map(|(name, stream)| (name, read_stream(&runtime, &vault, stream))).collect();
        found.insert(listed.id.number, point);
    }
    assert_expected(&found);
}

fn read_stream(runtime: &tokio::runtime::Runtime, vault: &Vault, reference: &StreamRef) -> Stream {
    let loaded = runtime.block_on(vault.load_stream(reference)).unwrap();
    let mut chunks = vault.read_chunks(loaded.places);
    let (mut bytes, mut chunk) = (Vec::new(), Vec::new());
    while chunks.next(&mut chunk).unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    let aborted = loaded.stream.segments.iter().map(|segment| segment.aborted.len()).sum();
    Stream::new(loaded.stream.log_start_offset, loaded.stream.end_offset, aborted, &bytes)
}

#[test]
fn the_binary_lists_and_shows_what_was_written() {
    let segvault = Segvault::at(format!("file://{}", data().join("vault").display()));
    let listed = segvault.run(&["snapshot", "list"]).unwrap().ok().unwrap();
    let states: Vec<_> = listed["points"].as_array().unwrap().iter().map(|point| &point["state"]).collect();
    assert_eq!(states, ["complete", "complete", "degraded", "aborted"]);
    for (number, expected) in expected().into_iter().filter(|(_, point)| point.state != "aborted") {
        let shown = segvault.run(&["snapshot", "show", &number.to_string()]).unwrap();
        assert_eq!(shown.code, if expected.state == "degraded" { 3 } else { 0 }, "{}", shown.stderr);
        let shown = shown.json;
        let head = ["state", "level", "closed_only", "abort_markers"].map(|name| shown[name].clone());
        let Point { state, level, closed_only, abort_markers, streams } = expected;
        assert_eq!(head, [json!(state), json!(level), json!(closed_only), json!(abort_markers)]);
        for partition in shown["partitions"].as_array().unwrap() {
            let name = format!("{}-{}", partition["topic"].as_str().unwrap(), partition["partition"]);
            let Stream { start, end, bytes, .. } = streams[&name];
            let cut = ["log_start_offset", "end_offset", "bytes"].map(|field| &partition[field]);
            assert_eq!(cut, [&json!(start), &json!(end), &json!(bytes)], "{name}");
        }
    }
}

/// What point 3 has lost on purpose (it was cut at closed segments) is seen from the vault alone.
#[test]
fn the_level_of_what_was_written_is_proven_and_not_more() {
    let segvault = Segvault::at(format!("file://{}", data().join("vault").display()));
    for (number, expected) in expected().into_iter().filter(|(_, point)| point.state != "aborted") {
        let number = number.to_string();
        let proof = segvault.prove(&number).unwrap();
        assert_eq!((&proof["proven"], &proof["ok"]), (&json!(expected.level), &json!(true)), "{proof}");
        let asked = segvault.run(&["snapshot", "verify", &number, "--level", "L3"]).unwrap();
        let is_l3 = expected.level == "L3";
        assert_eq!((asked.code, &asked.json["ok"]), (if is_l3 { 0 } else { 3 }, &json!(is_l3)), "{asked:?}");
        let flaws = asked.json["flaws"].as_array().unwrap().iter();
        let places: Vec<_> = flaws.map(|flaw| [&flaw["level"], &flaw["place"]]).collect();
        let torn = ["payments-0", "payments-1"].map(|place| [json!("L3"), json!(place)]);
        assert_eq!(places, if is_l3 { Vec::new() } else { torn.iter().map(|[a, b]| [a, b]).collect() }, "{asked:?}");
    }
}

#[test]
fn a_policy_names_the_committed_points_that_it_would_keep() {
    let segvault = Segvault::at(format!("file://{}", data().join("vault").display()));
    let ended = segvault.run(&["snapshot", "retention", "--keep-last", "2", "--keep-daily", "7"]).unwrap();
    let planned = ended.ok().unwrap();
    let committed: Vec<u64> =
        expected().iter().filter(|(_, point)| point.state != "aborted").map(|(number, _)| *number).collect();
    let rows = planned["points"].as_array().unwrap();
    let numbers: Vec<u64> = rows.iter().filter_map(|row| row["number"].as_u64()).collect();
    assert_eq!(numbers, committed, "aborted points are nobody's to keep");
    for (row, is_last) in rows.iter().rev().zip([true, true, false]) {
        let reasons = row["reasons"].as_array().unwrap();
        assert_eq!(reasons.contains(&json!("last")), is_last, "{row}");
        assert_eq!(row["keep"], json!(!reasons.is_empty()), "{row}");
    }
    let kept = rows.iter().filter(|row| row["keep"] == true).count();
    assert_eq!((&planned["kept"], &planned["dropped"]), (&json!(kept), &json!(rows.len() - kept)));
    for (options, said) in [
        (&[][..], "no rule is given"),
        (&["--keep-last", "1", "--time-zone", "Mars/Olympus"], "no time zone that this host knows"),
    ] {
        let ended = segvault.run(&[&["snapshot", "retention"], options].concat()).unwrap();
        assert!(ended.error().contains(said), "{ended:?}");
    }
}

#[test]
fn the_binary_restores_what_was_written() {
    let segvault = Segvault::at(format!("file://{}", data().join("vault").display()));
    for (number, expected) in expected().into_iter().filter(|(_, point)| point.state != "aborted") {
        let dir = tempfile::tempdir().unwrap();
        let configs: Vec<String> = NODES
            .iter()
            .flat_map(|id| golden_node(dir.path(), *id, &dir.path().join(format!("node{id}"))).unwrap())
            .collect();
        let restore = |verb| {
            let args = ["restore", verb, "--point", &number.to_string()].map(str::to_owned);
            let args: Vec<&str> = args.iter().chain(&configs).map(String::as_str).collect();
            segvault.run(&args).unwrap().ok().unwrap()
        };
        assert_eq!(restore("run")["nodes"], Value::from(NODES.to_vec()));
        assert_eq!(restore("verify")["ok"], true);
        let mut repairs = Vec::new();
        for (name, stream) in expected.streams.iter().filter(|(name, _)| name.contains('-')) {
            let replicas = NODES.map(|node| {
                let dir = dir.path().join(format!("node{node}/{name}"));
                (restored(&dir, "log"), restored(&dir, "txnindex").len() / ABORTED_LEN)
            });
            assert!(replicas.iter().all(|replica| *replica == replicas[0]), "{name}");
            let (log, aborted) = &replicas[0];
            let (bytes, more) = log.split_at(stream.bytes);
            assert_eq!(
                Stream::new(stream.start, stream.end, stream.aborted, bytes),
                *stream,
                "{name} of point {number}"
            );
            let repair = (&name[..], batches(more).len(), aborted - stream.aborted);
            repairs.extend((!more.is_empty()).then_some(repair));
        }
        assert_eq!(repairs, if number == 3 { REPAIRS } else { &[] });
    }
}

/// A partition's files of one kind, one after the other.
fn restored(dir: &Path, kind: &str) -> Vec<u8> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == kind)).collect();
    files.sort();
    files.iter().flat_map(|file| fs::read(file).unwrap()).collect()
}
