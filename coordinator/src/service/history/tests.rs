//! Against a vault in a folder.

use segvault_vault::{Config, VaultLocation};
use segvault_vault_format::manifest::{
    BlobRef, LogDirEntry, MetadataEntry, NodeEntry, PartitionEntry, StreamRef, Totals,
};

use super::*;

/// A vault of its own, gone with the folder.
pub(in crate::service) async fn vault() -> (tempfile::TempDir, Vault) {
    let folder = tempfile::tempdir().unwrap();
    let location: VaultLocation = format!("file://{}", folder.path().join("vault").display()).parse().unwrap();
    let vault = Vault::init(&location, &Config::default(), 1).await.unwrap();
    (folder, vault)
}

/// Takes a point that began at `began_ms`, with a partition that is not covered if it is degraded.
pub(in crate::service) async fn commit(vault: &Vault, cluster: &str, began_ms: i64, degraded: bool) -> PointManifest {
    let id = vault.begin_point(cluster, 0, "test", began_ms).await.unwrap();
    let log_dirs = vec![LogDirEntry { path: "/data".to_owned(), directory_id: Vec::new() }];
    let node = |node_id| NodeEntry { node_id, broker: true, log_dirs: log_dirs.clone(), ..NodeEntry::default() };
    // Nobody looks at what it refers to.
    let blob = BlobRef { id: vec![1; 32], pack: vec![2; 16], offset: 40, stored_len: 50, raw_len: 100, codec: 1 };
    let log = StreamRef { manifest: Some(blob.clone()), index: Some(blob) };
    let uncovered = PartitionEntry {
        topic_id: vec![1; 16],
        topic: "topic".to_owned(),
        source_node: -1,
        max_epoch: -1,
        uncovered: "nobody has it".to_owned(),
        ..PartitionEntry::default()
    };
    let manifest = PointManifest {
        cluster_id: cluster.to_owned(),
        number: id.number,
        began_ms,
        finished_ms: began_ms + 1000,
        level: 3,
        degraded,
        nodes: vec![node(1), node(2)],
        metadata: Some(MetadataEntry { log: Some(log), ..MetadataEntry::default() }),
        partitions: if degraded { vec![uncovered] } else { Vec::new() },
        max_producer_id: -1,
        barrier_us: 12_000,
        ..PointManifest::default()
    };
    let totals = Totals { began_ms, finished_ms: began_ms + 1000, level: 3, degraded, ..Totals::default() };
    vault.commit_point(&manifest, totals).await.unwrap();
    manifest
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_and_the_newest_complete_point_are_found_again() {
    let (_folder, vault) = vault().await;
    vault.register_cluster("id", "name").await.unwrap();
    commit(&vault, "id", 10, false).await;
    commit(&vault, "id", 20, true).await;
    let given_up = vault.begin_point("id", 0, "test", 30).await.unwrap();
    vault.abort_point(&given_up, "for the test").await.unwrap();
    let histories = Histories::new(vault.clone());
    assert_eq!((histories.of("id"), histories.name("id")), (None, "id".to_owned()));
    histories.refresh_all(vec!["other".to_owned()]).await.unwrap();
    let history = histories.of("id").unwrap();
    let last = history.last.unwrap();
    assert_eq!((last.number, last.began_ms, last.degraded, last.uncovered), (2, 20, true, 1));
    assert_eq!((history.complete_ms, last.nodes), (Some(10), vec![1, 2]));
    assert_eq!(histories.of("other"), Some(History::default()), "asked, and there is none");
    assert_eq!((histories.name("id"), histories.clusters()), ("name".to_owned(), vec!["id".into(), "other".into()]));
    // Another process takes one.
    commit(&vault, "id", 40, false).await;
    let history = histories.refresh("id").await.unwrap();
    assert_eq!((history.last.unwrap().began_ms, history.complete_ms), (40, Some(40)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecided_point_is_looked_at_again() {
    let (_folder, vault) = vault().await;
    vault.register_cluster("id", "name").await.unwrap();
    commit(&vault, "id", 10, false).await;
    let undecided = vault.begin_point("id", 0, "test", 20).await.unwrap();
    commit(&vault, "id", 30, true).await;
    let histories = Histories::new(vault.clone());
    let history = histories.refresh("id").await.unwrap();
    assert_eq!((history.settled, history.complete_ms), (1, Some(10)));
    vault.abort_point(&undecided, "for the test").await.unwrap();
    let history = histories.refresh("id").await.unwrap();
    assert_eq!((history.settled, history.complete_ms, history.last.unwrap().began_ms), (3, Some(10), 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_just_committed_is_not_forgotten_by_an_older_look() {
    let (_folder, vault) = vault().await;
    vault.register_cluster("id", "name").await.unwrap();
    let histories = Histories::new(vault.clone());
    let older = histories.look("id", &History::default()).await.unwrap();
    let manifest = commit(&vault, "id", 50, false).await;
    histories.add(&manifest);
    histories.lock().histories.get_mut("id").unwrap().merge(older);
    let history = histories.of("id").unwrap();
    assert_eq!((history.last.unwrap().number, history.complete_ms), (1, Some(50)));
}
