//! An agent's pages, asked over loopback.

use std::net::SocketAddr;
use std::path::Path;

use segvault_metrics::test_util::{documented, exposed, get};
use segvault_proto::StoredMetadata;
use segvault_transport::authority::{create_authority, issue};
use segvault_transport::{Identity, Reloading, TlsFiles};

use super::*;

fn facts() -> NodeFacts {
    NodeFacts {
        node_id: 3,
        cluster_id: "id".to_owned(),
        broker: true,
        controller: false,
        log_dirs: Vec::new(),
        metadata_log_dir: 0,
        static_voters: None,
        compacts: false,
    }
}

async fn served(security: Security) -> (SocketAddr, Arc<Metrics>) {
    let metrics = Metrics::new(&facts(), Tally::default(), security);
    let listener = segvault_metrics::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr();
    tokio::spawn(listener.serve(metrics.clone()));
    (address, metrics)
}

async fn page(address: SocketAddr, path: &'static str) -> String {
    let (code, _, page) = tokio::task::spawn_blocking(move || get(address, path)).await.unwrap().unwrap();
    assert_eq!(code, 200);
    page
}

#[tokio::test]
async fn the_documents_name_what_is_exposed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, now) = (folder.path(), jiff::Timestamp::now());
    create_authority(path, "fleet", 30, now).unwrap();
    issue(path, &Identity::agent("id", 3).unwrap(), &[], 10, path, now).unwrap();
    let files = TlsFiles { ca: path.join("ca.pem"), cert: path.join("agent-3.pem"), key: path.join("agent-3.key") };
    let (address, metrics) = served(Security::Tls(Arc::new(Reloading::open(files).unwrap()))).await;
    metrics.count_command(&Command::Mark);
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let document = std::fs::read_to_string(document).unwrap();
    let mut expected = documented(&document, "The agent's metrics");
    expected.extend(documented(&document, "Metrics of both roles"));
    assert_eq!(exposed(&page(address, "/metrics").await), expected);
}

#[tokio::test]
async fn what_goes_by_is_counted() {
    let (address, metrics) = served(Security::Plain).await;
    let _held = [metrics.tally.hold(1000), metrics.tally.hold(24)];
    for command in [Command::Mark, Command::Probe, Command::Mark, Command::Release { committed: true }] {
        metrics.count_command(&command);
    }
    metrics.count_report(&Report::Probed);
    metrics.count_report(&Report::Failed { reason: "for the test".to_owned() });
    let stored = StoredMetadata { read_bytes: 100, stored_bytes: 10, ..StoredMetadata::default() };
    metrics.count_report(&Report::MetadataStored(stored));
    let page = page(address, "/metrics").await;
    for sample in [
        "segvault_agent_commands_total{command=\"mark\"} 2",
        "segvault_agent_commands_total{command=\"probe\"} 1",
        "segvault_agent_commands_total{command=\"release\"} 1",
        "segvault_agent_failures_total 1",
        "segvault_agent_read_bytes_total 100",
        "segvault_agent_stored_bytes_total 10",
        "segvault_agent_skipped_bytes_total 0",
        "segvault_agent_pinned_files 2",
        "segvault_agent_pinned_bytes 1024",
        "segvault_agent_connected_to_coordinator 0",
        &format!("segvault_agent_up_info{{version=\"{}\",cluster=\"id\",node=\"3\"}} 1", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(page.lines().any(|line| line == sample), "{sample} is not in {page}");
    }
}

#[tokio::test]
async fn an_agent_without_a_coordinator_is_healthy_and_says_why_it_has_none() {
    let (address, metrics) = served(Security::Plain).await;
    let health = async || serde_json::from_str::<serde_json::Value>(&page(address, "/health").await).unwrap();
    assert_eq!(health().await["status"], "searching");
    metrics.stands(&Standing::Searching("c:1: refused".to_owned()));
    assert_eq!(health().await["why"], "c:1: refused");
    metrics.stands(&Standing::Connected("c:1".to_owned()));
    let connected = health().await;
    assert_eq!((&connected["status"], &connected["coordinator"]), (&"connected".into(), &"c:1".into()));
    assert_eq!((&connected["cluster"], &connected["node"]), (&"id".into(), &3.into()));
    assert!(page(address, "/metrics").await.contains("\nsegvault_agent_connected_to_coordinator 1\n"));
}
