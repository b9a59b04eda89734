//! Kafka's own `DumpLogSegments` and `segvault inspect --json` agree on the golden files of every version: batches and
//! records of all codecs, indexes, producer snapshots, the metadata log, `__consumer_offsets`, `__share_group_state` (of
//! 4.3.0) and `__transaction_state`.
//!
//! From our JSON the lines are made that Kafka's tool should print, and held against those that it does. Its decoders know
//! the records of its own version at most, so each version's files are read by the tool of that version or a newer one.
//! What `inspect` does not show (secrets, and bytes of clients) is compared by its length, or not at all.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use segvault_tests::{
    Result,
    cluster::{project_root, segvault_binary},
};
use serde_json::{Value, json};

/// Versions of golden files, and the tool that reads them.
const VERSIONS: [(&str, &str); 3] = [("3.9.1", "4.1.1"), ("4.1.1", "4.1.1"), ("4.3.0", "4.3.0")];

#[test]
fn segments_indexes_and_producer_snapshots_are_read_alike() -> Result<()> {
    let dumps = dump(&VERSIONS, &["--print-data-log"], |version| {
        let partitions = children(&golden(version).join("log-dir"));
        let files = partitions.iter().filter(|path| path.is_dir()).flat_map(|dir| children(dir));
        Ok(files.filter(|file| is_segment_file(file)).collect())
    })?;
    let mut seen = BTreeMap::new();
    for (path, lines) in dumps {
        let document = inspect("segment", &path, &["--records"]).or_else(|_| inspect("index", &path, &[]))?;
        let ours = match document["kind"].as_str() {
            Some("segment") => batch_lines(&document["batches"], plain_record),
            _ => items(&document["entries"]).iter().map(entry_line).collect(),
        };
        let kafkas: Vec<_> =
            lines.iter().filter(|line| !is_about_file(line)).map(|line| line.trim_end().to_owned()).collect();
        assert_lines(&path, &ours, &kafkas);
        *seen.entry(document["kind"].to_string()).or_insert(0) += ours.len();
        for batch in items(&document["batches"]) {
            *seen.entry(batch["codec"].to_string()).or_insert(0) += 1;
        }
    }
    for kind in ["segment", "offset-index", "time-index", "transaction-index", "producer-snapshot"] {
        assert!(seen[&format!("{kind:?}")] > 10, "{kind} is hardly there: {seen:?}");
    }
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        assert!(seen.contains_key(&format!("{codec:?}")), "no batch is compressed with {codec}: {seen:?}");
    }
    Ok(())
}

#[test]
fn the_metadata_log_and_its_snapshots_are_read_alike() -> Result<()> {
    let dumps =
        dump(&VERSIONS, &["--cluster-metadata-decoder"], |version| Ok(children(&golden(version).join("metadata"))))?;
    for (path, lines) in dumps {
        let document = inspect("metadata", &path, &["--records"])?;
        let image = &document["image"];
        for line in lines.iter().filter_map(|line| line.strip_prefix("Snapshot end offset: ")) {
            assert_eq!(line.split(',').next(), Some(image["end_offset"].to_string().as_str()), "{}", path.display());
        }
        compare(&path, &document["batches"], &lines, |record, kafkas| {
            let kind = record["type"].as_str().unwrap_or_default();
            // Control records have their name before their content, data records in it.
            let (name, data) = match kafkas.split_once("payload: ") {
                Some((_, payload)) => {
                    let payload: Value = serde_json::from_str(payload)?;
                    assert_eq!(payload["version"], record["version"]);
                    (payload["type"].as_str().unwrap_or_default().to_owned(), payload["data"].clone())
                }
                None => {
                    let (name, data) = kafkas.trim().split_once(' ').ok_or("no content")?;
                    let mut data: Value = serde_json::from_str(data)?;
                    let version = data.as_object_mut().and_then(|data| data.remove("version"));
                    assert_eq!(version.as_ref(), Some(&record["version"]));
                    (name.trim_end_matches(':').to_owned(), data)
                }
            };
            assert_eq!(plain(&name), plain(kind));
            agree(&data, &record["data"])
        })?;
    }
    Ok(())
}

#[test]
fn committed_offsets_and_groups_are_read_alike() -> Result<()> {
    const TYPES: [(&str, &str); 9] = [
        ("OffsetCommit", "1"),
        ("GroupMetadata", "2"),
        ("ConsumerGroupMetadata", "3"),
        ("ConsumerGroupPartitionMetadata", "4"),
        ("ConsumerGroupMemberMetadata", "5"),
        ("ConsumerGroupTargetAssignmentMetadata", "6"),
        ("ConsumerGroupTargetAssignmentMember", "7"),
        ("ConsumerGroupCurrentMemberAssignment", "8"),
        ("ConsumerGroupRegularExpression", "16"),
    ];
    coordinator_log(&VERSIONS, "offsets", "--offsets-decoder", |record, key, payload| {
        let kind = TYPES.iter().find(|(name, _)| record["type"] == *name).ok_or("an unknown type")?;
        assert_eq!(key["type"], kind.1);
        for (field, value) in key["data"].as_object().into_iter().flatten() {
            let ours = field.strip_suffix("Id").unwrap_or(field);
            assert_eq!(&record[ours], value, "{field} of {record}");
        }
        assert_eq!(payload["version"], version(record));
        agree(&payload["data"], &record["value"])
    })
}

#[test]
fn transactional_ids_are_read_alike() -> Result<()> {
    coordinator_log(&VERSIONS, "transactions", "--transaction-log-decoder", |record, key, payload| {
        assert_eq!(key["data"]["transactionalId"], record["transactional_id"]);
        agree(&payload["data"], &record["value"])
    })
}

#[test]
fn states_of_share_groups_are_read_alike() -> Result<()> {
    coordinator_log(&VERSIONS[2..], "shares", "--share-group-state-decoder", |record, key, payload| {
        assert_eq!(key["type"], if record["type"] == "ShareSnapshot" { "0" } else { "1" });
        for (field, ours) in [("groupId", "group"), ("topicId", "topic_id"), ("partition", "partition")] {
            assert_eq!(key["data"][field], record[ours], "{record}");
        }
        assert_eq!(payload["version"], version(record));
        agree(&payload["data"], &record["value"])
    })
}

/// The logs of a coordinator, with what is to hold between one of our records and the key and payload that Kafka shows.
fn coordinator_log(
    versions: &[(&str, &str)],
    folder: &str,
    decoder: &str,
    same: impl Fn(&Value, &Value, &Value) -> Result<()>,
) -> Result<()> {
    let work = tempfile::tempdir()?;
    let dumps = dump(versions, &[decoder], |version| {
        // Named as in a log dir: the tool reads the offset from the name.
        children(&golden(version).join(folder))
            .iter()
            .map(|golden| {
                let partition = golden.file_stem().and_then(|stem| stem.to_str()).ok_or("a name without stem")?;
                let dir = work.path().join(version).join(partition);
                fs::create_dir_all(&dir)?;
                let segment = dir.join("00000000000000000000.log");
                fs::copy(golden, &segment)?;
                Ok(segment)
            })
            .collect()
    })?;
    let mut compared = 0;
    for (path, lines) in dumps {
        let document = inspect(folder, &path, &[])?;
        compare(&path, &document["batches"], &lines, |record, kafkas| {
            if !record["control"].is_null() {
                assert_eq!(kafkas.trim(), control(record));
                return Ok(());
            }
            let (key, payload) =
                kafkas.trim().strip_prefix("key: ").and_then(|rest| rest.split_once(" payload: ")).ok_or("no key")?;
            compared += 1;
            let payload = if payload == "<DELETE>" { json!({}) } else { serde_json::from_str(payload)? };
            same(record, &serde_json::from_str(key)?, &payload)
        })?;
    }
    let least = if folder == "shares" { 3 } else { 50 };
    assert!(compared >= least, "only {compared} records were compared");
    Ok(())
}

// ---------------------------------------------------------------- Kafka's tool and ours

/// Runs Kafka's tool on `files` of some versions: what it printed of each file.
fn dump(
    versions: &[(&str, &str)],
    flags: &[&str],
    files: impl Fn(&str) -> Result<Vec<PathBuf>>,
) -> Result<Vec<(PathBuf, Vec<String>)>> {
    let mut by_tool: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for &(version, tool) in versions {
        let files = files(version)?;
        assert!(!files.is_empty(), "no files of {version}");
        by_tool.entry(tool).or_default().extend(files.iter().map(|file| file.display().to_string()));
    }
    let mut dumps: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for (version, files) in by_tool {
        let printed = run_kafkas_tool(version, flags, &files)?;
        for line in printed.lines() {
            match (line.strip_prefix("Dumping "), dumps.last_mut()) {
                (Some(path), _) => dumps.push((path.into(), Vec::new())),
                (None, Some((_, lines))) => lines.push(line.to_owned()),
                (None, None) => return Err(format!("Kafka's tool began with {line}").into()),
            }
        }
        let count = dumps.iter().filter(|(path, _)| files.contains(&path.display().to_string())).count();
        assert_eq!(count, files.len(), "Kafka's tool did not read all files");
    }
    Ok(dumps)
}

fn run_kafkas_tool(version: &str, flags: &[&str], files: &[String]) -> Result<String> {
    let fetched = Command::new(project_root().join("scripts/kafka")).args(["fetch", version]).output()?;
    if !fetched.status.success() {
        return Err(String::from_utf8_lossy(&fetched.stderr).into());
    }
    let jars = format!("{}/*", String::from_utf8(fetched.stdout)?.trim());
    let class = if version < "4.3" { "kafka.tools.DumpLogSegments" } else { "org.apache.kafka.tools.DumpLogSegments" };
    let mut java = Command::new("java");
    java.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", "-cp", &jars, class]);
    let dumped = java.args(flags).args(["--files", &files.join(",")]).output()?;
    if !dumped.status.success() {
        return Err(format!("{java:?}: {}", String::from_utf8_lossy(&dumped.stderr)).into());
    }
    Ok(String::from_utf8(dumped.stdout)?)
}

/// What `segvault inspect` says of a file, in which it is to find nothing wrong.
fn inspect(kind: &str, path: &Path, flags: &[&str]) -> Result<Value> {
    let ran = Command::new(segvault_binary()).args(["inspect", kind, "--json"]).arg(path).args(flags).output()?;
    if !ran.status.success() {
        return Err(format!("{}: {:?}", path.display(), ran).into());
    }
    Ok(serde_json::from_slice(&ran.stdout)?)
}

// ---------------------------------------------------------------- lines as Kafka prints them

/// Batches, and records of which each has what `rest` says behind what all have.
fn batch_lines(batches: &Value, rest: impl Fn(&Value) -> String) -> Vec<String> {
    let mut lines = Vec::new();
    for batch in items(batches) {
        lines.push(batch_line(batch));
        for record in items(&batch["records"]) {
            lines.push(format!("{}{}", record_start(batch, record), rest(record)));
        }
    }
    lines
}

/// Holds batches and records against lines; what stands behind the start of a record's line is handed to `rest`.
fn compare(
    path: &Path,
    batches: &Value,
    lines: &[String],
    mut rest: impl FnMut(&Value, &str) -> Result<()>,
) -> Result<()> {
    let mut lines = lines.iter().filter(|line| !is_about_file(line));
    for batch in items(batches) {
        assert_eq!(Some(&batch_line(batch)), lines.next(), "{}", path.display());
        for record in items(&batch["records"]) {
            let line = lines.next().ok_or("fewer lines than records")?;
            let start = record_start(batch, record) + " headerKeys: []";
            let found =
                line.strip_prefix(&start).ok_or_else(|| format!("{}: {line}\nis not {start}", path.display()))?;
            rest(record, found).map_err(|error| format!("{}: {line}\n{record}\n{error}", path.display()))?;
        }
    }
    assert_eq!(lines.next(), None, "{}", path.display());
    Ok(())
}

fn batch_line(batch: &Value) -> String {
    let horizon = optional(&batch["delete_horizon_ms"]);
    fill(
        "baseOffset: {base_offset} lastOffset: {last_offset} count: {count} baseSequence: {base_sequence} \
         lastSequence: {last_sequence} producerId: {producer_id} producerEpoch: {producer_epoch} \
         partitionLeaderEpoch: {partition_leader_epoch} isTransactional: {is_transactional} isControl: {is_control} \
         deleteHorizonMs: {horizon} position: {position} {timestamp_type}: {max_timestamp_ms} size: {size} magic: {magic} \
         compresscodec: {codec} crc: {crc} isvalid: {is_valid}",
        batch,
    ).replace("{horizon}", &horizon)
}

fn record_start(batch: &Value, record: &Value) -> String {
    let time = batch["timestamp_type"].as_str().unwrap_or_default();
    fill(
        "| offset: {offset} {time}: {timestamp_ms} keySize: {key_size} valueSize: {value_size} sequence: {sequence}",
        record,
    )
    .replace("{time}", time)
}

/// What a data segment's record has behind its start.
fn plain_record(record: &Value) -> String {
    if !record["control"].is_null() {
        return format!(" headerKeys: [] {}", control(record));
    }
    let names: Vec<_> = items(&record["headers"]).iter().map(|header| text(&header["key"])).collect();
    let part =
        |name: &str, value: &Value| if value.is_null() { String::new() } else { format!(" {name}: {}", text(value)) };
    format!(" headerKeys: [{}]{}{}", names.join(","), part("key", &record["key"]), part("payload", &record["value"]))
}

fn control(record: &Value) -> String {
    fill("endTxnMarker: {control} coordinatorEpoch: {coordinator_epoch}", record)
}

/// An entry of an index or of a producer snapshot.
fn entry_line(entry: &Value) -> String {
    if !entry["last_stable_offset"].is_null() {
        let line = "version: {version} producerId: {producer_id} firstOffset: {first_offset} lastOffset: {last_offset} \
                    lastStableOffset: {last_stable_offset}";
        return fill(line, entry);
    }
    if !entry["position"].is_null() {
        return fill("offset: {offset} position: {position}", entry);
    }
    if entry["producer_id"].is_null() {
        return fill("timestamp: {timestamp_ms} offset: {offset}", entry);
    }
    let line = fill(
        "producerId: {producer_id} producerEpoch: {producer_epoch} coordinatorEpoch: {coordinator_epoch} \
         currentTxnFirstOffset: {first} lastTimestamp: {timestamp_ms}",
        entry,
    )
    .replace("{first}", &optional(&entry["current_txn_first_offset"]));
    // A producer of which nothing but a marker is known has no batch.
    if entry["last_offset"] == -1 {
        return line;
    }
    let first = entry["last_sequence"].as_i64().unwrap_or(0) - entry["offset_delta"].as_i64().unwrap_or(0);
    let batch = "firstSequence: {first} lastSequence: {last_sequence} lastOffset: {last_offset} offsetDelta: {offset_delta} \
                 timestamp: {timestamp_ms}";
    format!("{line} {}", fill(batch, entry).replace("{first}", &first.to_string()))
}

/// Lines that are about the file.
fn is_about_file(line: &str) -> bool {
    line.starts_with("Log starting offset: ")
        || line.starts_with("Snapshot end offset: ")
        || line.ends_with(" is empty.")
}

/// A line with the fields of an object in the places of their names; null is -1.
fn fill(line: &str, object: &Value) -> String {
    let fields = object.as_object().into_iter().flatten();
    fields.fold(line.to_owned(), |line, (name, value)| {
        let value = if value.is_null() { "-1".to_owned() } else { text(value) };
        line.replace(&format!("{{{name}}}"), &value)
    })
}

/// As Java prints an `OptionalLong`.
fn optional(value: &Value) -> String {
    value.as_i64().map_or("OptionalLong.empty".to_owned(), |value| format!("OptionalLong[{value}]"))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn version(record: &Value) -> Value {
    record["version"].as_i64().map_or(Value::Null, |version| version.to_string().into())
}

// ---------------------------------------------------------------- content

/// Whether Kafka's content and ours say the same. Kafka leaves out tagged fields that have their default; we show bytes
/// by their length, which Kafka shows in base64 or decodes.
fn agree(kafkas: &Value, ours: &Value) -> Result<()> {
    let same = match (kafkas, ours) {
        (_, Value::String(hidden)) if hidden == "[hidden]" => true,
        (Value::String(base64), Value::Object(bytes)) => {
            bytes.get("bytes").is_some_and(|len| *len == decoded_len(base64))
        }
        (Value::Object(_), Value::Object(bytes)) if bytes.len() == 1 && bytes.contains_key("bytes") => true,
        (Value::Object(kafkas), Value::Object(ours)) => {
            for (name, value) in kafkas {
                agree(value, ours.get(name).ok_or_else(|| format!("we do not show {name}"))?)?;
            }
            let left_out = ours.iter().filter(|(name, _)| !kafkas.contains_key(*name));
            let not_default: Vec<_> = left_out.filter(|(_, value)| !is_default(value)).collect();
            return if not_default.is_empty() {
                Ok(())
            } else {
                Err(format!("Kafka does not show {not_default:?}").into())
            };
        }
        (Value::Array(kafkas), Value::Array(ours)) if kafkas.len() == ours.len() => {
            return kafkas.iter().zip(ours).try_for_each(|(kafkas, ours)| agree(kafkas, ours));
        }
        (Value::Number(kafkas), Value::Number(ours)) => kafkas.as_f64() == ours.as_f64(),
        (kafkas, ours) => kafkas == ours,
    };
    if same { Ok(()) } else { Err(format!("{kafkas} is not {ours}").into()) }
}

fn is_default(value: &Value) -> bool {
    let zero_id = json!("AAAAAAAAAAAAAAAAAAAAAA");
    [json!(null), json!(0), json!(-1), json!(false), json!(""), json!([]), zero_id].contains(value)
}

fn decoded_len(base64: &str) -> usize {
    base64.trim_end_matches('=').len() * 3 / 4
}

/// A record's name without underscores, case and `Record`: `FEATURE_LEVEL_RECORD` and `FeatureLevelRecord` are the same.
fn plain(name: &str) -> String {
    name.replace('_', "").to_lowercase().trim_end_matches("record").to_owned()
}

// ---------------------------------------------------------------- files

fn golden(version: &str) -> PathBuf {
    project_root().join("kafka-log/tests/data").join(version)
}

/// What is in a folder, in order.
fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths
}

fn is_segment_file(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("log" | "index" | "timeindex" | "txnindex" | "snapshot"))
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn assert_lines(path: &Path, ours: &[String], kafkas: &[String]) {
    for (ours, kafkas) in ours.iter().zip(kafkas) {
        assert_eq!(ours, kafkas, "{}", path.display());
    }
    assert_eq!(ours.len(), kafkas.len(), "{}", path.display());
}
