//! Vaults on S3-compatible servers: what works on one that keeps its promises, and what is said where that is not so.
//! Needs Go and npm (`scripts/stores` says what is missing); the first test needs what the scenarios need.

use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer},
};
use segvault_tests::{
    Cluster, PATIENCE, Result,
    broker_log::examine,
    reader::{Isolation, read},
    segvault::Segvault,
    store::{Store, free_port, vault_at},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 3;
/// Longest that a mistake may take to be noticed.
const NOTICE_MAX: Duration = Duration::from_secs(60);

/// Every record of the topic: its hash by partition and offset.
type Records = BTreeMap<(i32, i64), u64>;

#[test]
fn vault_on_s3_compatible_server_brings_a_cluster_back() {
    let store = Store::versitygw().unwrap();
    let vault = store.vault("kafka/prod");
    assert!(vault.run(&["snapshot", "list"]).unwrap().error().contains("there is no vault"));
    vault.run(&["vault", "init"]).unwrap().ok().unwrap();
    let header = store.objects("").unwrap();
    assert_eq!(header, [Path::new("kafka/prod/vault")], "no probe stays behind");
    assert!(vault.run(&["vault", "init"]).unwrap().error().contains("is a vault already"));

    let cluster = Cluster::builder().brokers(1).start().unwrap();
    cluster.create_topic(TOPIC, PARTITIONS, &[]).unwrap();
    produce(&cluster, 20_000).unwrap(); // So that each log has rolled.
    let before = records(&cluster).unwrap();
    let point = vault.snapshot(&cluster).unwrap();
    assert_eq!(point["state"], "complete", "{point}");
    // Nothing changed but a broker's own notes, so next to nothing is stored again.
    let again = vault.snapshot(&cluster).unwrap();
    let stored = |point: &serde_json::Value| point["stored_bytes"].as_u64().unwrap();
    assert!(stored(&again) * 4 < stored(&point), "{point}\n{again}");
    produce(&cluster, 100).unwrap();

    let listed = vault.run(&["snapshot", "list"]).unwrap().ok().unwrap();
    assert_eq!(listed["points"].as_array().map(Vec::len), Some(2), "{listed}");
    let shown = vault.run(&["snapshot", "show", "2", "--partitions"]).unwrap().ok().unwrap();
    assert_eq!(shown["id"], again["id"], "{shown}");

    cluster.kill9().unwrap();
    cluster.wipe().unwrap();
    assert_store_that_is_gone_leaves_targets_alone(&cluster);
    let (plan, _) = asked(&store, || vault.run_on(&cluster, &cluster.nodes(), &["restore", "plan"]).unwrap());
    assert!(plan.ok().unwrap()["partitions"].as_u64().unwrap() > PARTITIONS as u64);
    let (restored, requests) = asked(&store, || vault.restore(&cluster, "latest"));
    restored.unwrap();
    println!("requests to restore and verify: {requests:?}");
    let reads = requests.keys().all(|operation| ["GetObject", "HeadObject"].contains(&operation.as_str()));
    assert!(reads, "a restore asks for what it knows the key of, and writes nothing: {requests:?}");
    assert!(requests.values().sum::<usize>() < 80, "{requests:?}");

    cluster.start().unwrap();
    assert_eq!(records(&cluster).unwrap(), before);
    assert_eq!(examine(&cluster.broker_log_since_start(1).unwrap(), &BTreeSet::new()), []);
    let lists: Vec<_> = store.requests().unwrap().into_iter().filter(|r| r.operation.contains("List")).collect();
    assert!(lists.is_empty(), "{lists:?}");
}

/// A restore from a store that does not answer fails, and the log dirs stay as empty as they were.
fn assert_store_that_is_gone_leaves_targets_alone(cluster: &Cluster) {
    let gone = vault_at(free_port().unwrap(), "segvault", "kafka/prod");
    let ended = gone.run_on(cluster, &[1], &["restore", "run"]).unwrap();
    assert!(ended.error().contains("cannot be reached"), "{ended:?}");
    for dir in cluster.log_dirs(1).unwrap() {
        let left: Vec<_> = fs::read_dir(dir).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_store_that_ignores_conditions_is_refused() {
    let store = Store::s3rver().unwrap();
    for command in [&["vault", "init"], &["vault", "init"]] {
        let ended = store.vault("kafka").run(command).unwrap();
        assert!(ended.error().contains("racing creates of one key succeeded"), "{ended:?}");
        assert!(ended.error().contains("hint: the store must support create-if-absent"), "{ended:?}");
    }
    assert_eq!(store.objects("kafka").unwrap(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn mistakes_are_named_soon_and_leave_nothing_behind() {
    let store = Store::versitygw().unwrap();
    let vault = store.vault("kafka");
    // It takes connections and never answers.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let table: [(&str, Segvault, &str); 7] = [
        ("nobody listens", vault_at(free_port().unwrap(), "segvault", "kafka"), "cannot be reached"),
        ("nobody answers", vault_at(silent_port, "segvault", "kafka"), "cannot be reached"),
        ("no such host", vault.clone().with("AWS_ENDPOINT_URL", "http://store.invalid:80"), "cannot be reached"),
        ("no bucket", store.vault_without_bucket(), "there is no bucket"),
        ("wrong secret", vault.clone().with("AWS_SECRET_ACCESS_KEY", "hunter2"), "SignatureDoesNotMatch"),
        ("unknown key id", vault.clone().with("AWS_ACCESS_KEY_ID", "nobody"), "check the credentials"),
        ("no TLS", vault.clone().without("AWS_ALLOW_HTTP"), "hint: set allow_http"),
    ];
    for (what, vault, wanted) in table {
        for command in [&["vault", "init"], &["snapshot", "list"]] {
            let began = Instant::now();
            let ended = vault.run(command).unwrap();
            assert!(ended.error().contains(wanted), "{what}: {ended:?}");
            assert!(!ended.error().contains("hunter2"));
            assert!(ended.json["error"].is_string(), "{what}: {ended:?}");
            assert!(began.elapsed() < NOTICE_MAX, "{what}: {command:?} took {:?}", began.elapsed());
        }
    }
    assert_eq!(store.objects("").unwrap(), Vec::<std::path::PathBuf>::new());
}

/// Without credentials a client would ask the cloud's metadata address for those of the machine.
#[test]
fn missing_credentials_are_named_without_asking_anybody() {
    let store = Store::versitygw().unwrap();
    let vault = store.vault("kafka").without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    for (vault, why) in [
        (vault.clone(), "none are set, and those of an AWS machine are nothing to a store that is not AWS's"),
        (vault.without("AWS_ENDPOINT_URL"), "none are set, and AWS_EC2_METADATA_DISABLED forbids"),
    ] {
        let ended = vault.run(&["vault", "init"]).unwrap();
        assert!(ended.error().contains(&format!("no credentials for s3://segvault/kafka: {why}")), "{ended:?}");
        assert!(ended.error().contains("hint: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{ended:?}");
    }
    let half = store.vault("kafka").without("AWS_SECRET_ACCESS_KEY").run(&["vault", "init"]).unwrap();
    assert!(half.error().contains("access_key_id is set (AWS_ACCESS_KEY_ID), but secret_access_key is not"));
    assert!(store.requests().unwrap().is_empty());
}

/// What `work` returns, and how often it made the store do what.
fn asked<T>(store: &Store, work: impl FnOnce() -> T) -> (T, BTreeMap<String, usize>) {
    let before = store.requests().unwrap().len();
    let result = work();
    let mut counts = BTreeMap::new();
    for request in store.requests().unwrap().split_off(before) {
        *counts.entry(request.operation).or_default() += 1;
    }
    (result, counts)
}

/// Sends `count` records of some 200 bytes and waits for their acknowledgements.
fn produce(cluster: &Cluster, count: usize) -> Result<()> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap())
        .set("enable.idempotence", "true")
        .set("batch.size", "8192")
        .create()?;
    for number in 0..count {
        let (key, value) = (format!("order-{number}"), format!("{number:0200}"));
        let record = BaseRecord::to(TOPIC).partition(number as i32 % PARTITIONS).key(&key).payload(&value);
        producer.send(record).map_err(|(error, _)| error)?;
        producer.poll(Duration::ZERO);
    }
    Ok(producer.flush(PATIENCE)?)
}

fn records(cluster: &Cluster) -> Result<Records> {
    let partitions: Vec<_> = (0..PARTITIONS).map(|partition| (TOPIC.to_owned(), partition)).collect();
    let mut records = Records::new();
    read(&cluster.bootstrap(), Isolation::Committed, &partitions, |_, partition, seen| {
        records.insert((partition, seen.offset), seen.hash);
    })?;
    Ok(records)
}
