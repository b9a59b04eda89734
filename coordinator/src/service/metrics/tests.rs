//! A coordinator's pages, asked over loopback.

use std::net::SocketAddr;
use std::path::Path;

use jiff::Timestamp;
use segvault_metrics::test_util::{documented, exposed, get};
use segvault_proto::{LogDirFacts, NodeFacts, rpc};
use segvault_transport::authority::{create_authority, issue};
use segvault_transport::{Identity, Reloading, TlsFiles};
use segvault_vault::Vault;
use segvault_vault_format::ids::PointId;
use segvault_vault_format::manifest::Totals;

use super::super::fleet::{Frames, Introduction, Patience};
use super::super::history::tests::{commit, vault};
use super::*;

/// A coordinator without the rest of the service.
struct Site {
    _folder: tempfile::TempDir,
    vault: Vault,
    showcase: Arc<Showcase>,
    address: SocketAddr,
}

impl Site {
    async fn new(security: Security) -> Self {
        let (folder, vault) = vault().await;
        vault.register_cluster("id", "name").await.unwrap();
        let (metrics, fleet) = (Arc::new(Metrics::new()), Arc::new(Fleet::new(Patience::default())));
        let (histories, timetable) = (Arc::new(Histories::new(vault.clone())), Arc::new(Timetable::default()));
        let showcase = Arc::new(Showcase::new(metrics, fleet, histories, timetable, security));
        let listener = segvault_metrics::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr();
        tokio::spawn(listener.serve(showcase.clone()));
        Self { _folder: folder, vault, showcase, address }
    }

    async fn page(&self, path: &'static str) -> (u16, String) {
        let address = self.address;
        let page = tokio::task::spawn_blocking(move || get(address, path)).await.unwrap().unwrap();
        (page.0, page.2)
    }

    async fn metrics(&self) -> String {
        let (code, page) = self.page("/metrics").await;
        assert_eq!(code, 200);
        page
    }

    /// An agent connects; it hangs up when its frames are dropped.
    fn connect(&self, node_id: i32) -> (u64, Frames) {
        let facts = NodeFacts {
            node_id,
            cluster_id: "id".to_owned(),
            broker: true,
            controller: false,
            log_dirs: ["/data", "/gone"].map(|path| LogDirFacts { path: path.to_owned(), directory_id: None }).into(),
            metadata_log_dir: 0,
            static_voters: None,
            compacts: false,
        };
        let space = vec![rpc::Space { free_bytes: 5, total_bytes: 100 }, rpc::Space::default()];
        let (incarnation, session) = (vec![1; 16], Vec::new());
        let (host, version, vacant) = ("host".into(), "1".into(), false);
        let hello = Introduction { incarnation, session, facts, host, version, space, vacant };
        self.showcase.fleet.sit(hello, [1; 16], Instant::now()).unwrap()
    }
}

fn has(page: &str, sample: &str) -> bool {
    page.lines().any(|line| line == sample)
}

/// Certificates of an agent; it does not matter whose they are.
fn tls(folder: &Path) -> Security {
    let now = Timestamp::now();
    create_authority(folder, "fleet", 30, now).unwrap();
    issue(folder, &Identity::agent("X", 3).unwrap(), &[], 10, folder, now).unwrap();
    let file = |name: &str| folder.join(name);
    let files = TlsFiles { ca: file("ca.pem"), cert: file("agent-3.pem"), key: file("agent-3.key") };
    Security::Tls(Arc::new(Reloading::open(files).unwrap()))
}

/// Everything that can be shown is shown, and the documents say so.
#[tokio::test(flavor = "multi_thread")]
async fn the_documents_name_what_is_exposed() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(tls(folder.path())).await;
    let _line = site.connect(1);
    let manifest = commit(&site.vault, "id", 1_700_000_000_000, true).await;
    site.showcase.histories.refresh_all(Vec::new()).await.unwrap();
    let id = PointId { cluster_id: "id".to_owned(), number: 1 };
    let committed = Committed { id, manifest, totals: Totals::default() };
    site.showcase.metrics.count_committed("name", &committed, Duration::from_secs(1));
    site.showcase.metrics.show_phases("name", PhaseClock::new(Instant::now()).finish(Instant::now()));
    site.showcase.timetable.set("id", Some(1));
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let document = std::fs::read_to_string(document).unwrap();
    let mut expected = documented(&document, "The coordinator's metrics");
    expected.extend(documented(&document, "Metrics of both roles"));
    assert_eq!(exposed(&site.metrics().await), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_was_just_started_shows_the_points_of_the_vault() {
    let site = Site::new(Security::Plain).await;
    let page = site.metrics().await;
    assert!(!page.contains("segvault_point_last"), "it does not know yet: {page}");
    commit(&site.vault, "id", 1_700_000_000_500, false).await;
    commit(&site.vault, "id", 1_700_000_100_000, true).await;
    site.showcase.histories.refresh_all(Vec::new()).await.unwrap();
    let page = site.metrics().await;
    for sample in [
        "segvault_point_last_complete_timestamp_seconds{cluster=\"name\"} 1700000000.5",
        "segvault_point_last_committed_timestamp_seconds{cluster=\"name\"} 1700000100.0",
        "segvault_point_last_level{cluster=\"name\"} 3",
        "segvault_point_last_degraded{cluster=\"name\"} 1",
        "segvault_point_uncovered_partitions{cluster=\"name\"} 1",
        "segvault_point_barrier_seconds{cluster=\"name\"} 0.012",
        "segvault_point_total{cluster=\"name\",outcome=\"complete\"} 0",
        "segvault_agent_connected{cluster=\"name\",node=\"2\"} 0",
    ] {
        assert!(has(&page, sample), "{sample} is not in {page}");
    }
    assert!(!page.contains("segvault_tls"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_a_point_looks_as_if_its_last_one_were_very_old() {
    let site = Site::new(Security::Plain).await;
    site.showcase.histories.refresh_all(Vec::new()).await.unwrap();
    let page = site.metrics().await;
    assert!(has(&page, "segvault_point_last_complete_timestamp_seconds{cluster=\"name\"} 0.0"), "{page}");
    assert!(!page.contains("segvault_point_last_level"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_shown_with_their_log_dirs_and_after_they_are_gone() {
    let site = Site::new(Security::Plain).await;
    site.showcase.histories.refresh_all(Vec::new()).await.unwrap();
    let (connection, _frames) = site.connect(7);
    let page = site.metrics().await;
    assert!(has(&page, "segvault_agent_connected{cluster=\"name\",node=\"7\"} 1"), "{page}");
    assert!(has(&page, "segvault_agent_log_dir_free_bytes{cluster=\"name\",node=\"7\",dir=\"/data\"} 5"), "{page}");
    assert!(has(&page, "segvault_agent_log_dir_size_bytes{cluster=\"name\",node=\"7\",dir=\"/data\"} 100"), "{page}");
    assert!(!page.contains("/gone"), "{page}");
    site.showcase.fleet.hang_up(&("id".to_owned(), 7), connection, "cut");
    let gone = "segvault_agent_connected{cluster=\"name\",node=\"7\"} 0";
    assert!(has(&site.metrics().await, gone));
    let later = Instant::now() + Duration::from_secs(3600);
    site.showcase.fleet.tick(later);
    site.showcase.refresh(later);
    let page = encode(&site.showcase.metrics.registry);
    assert!(has(&page, gone) && !page.contains("/data"), "its seat is given up: {page}");
    let much_later = later + NODE_MEMORY;
    site.showcase.refresh(much_later);
    assert!(!encode(&site.showcase.metrics.registry).contains("segvault_agent_connected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_whether_it_serves() {
    let site = Site::new(Security::Plain).await;
    let _line = site.connect(7);
    let (code, body) = site.page("/health").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, body["status"].as_str(), body["agents_connected"].as_u64()), (200, Some("serving"), Some(1)));
    site.showcase.stop();
    let (code, body) = site.page("/health").await;
    assert!(code == 503 && body.contains("\"status\":\"stopping\""), "{body}");
}

#[test]
fn the_phases_of_the_last_point_replace_those_of_the_one_before() {
    let (metrics, start) = (Metrics::new(), Instant::now());
    let second = |second| start + Duration::from_secs(second);
    let mut clock = PhaseClock::new(start);
    clock.enter(Phase::Preparing, second(1));
    clock.enter(Phase::Marking, second(3));
    clock.enter(Phase::PinningData, second(4));
    // The barrier is raised again.
    clock.enter(Phase::Marking, second(5));
    clock.enter(Phase::Uploading, second(7));
    metrics.show_phases("name", clock.finish(second(17)));
    let page = encode(&metrics.registry);
    for (phase, seconds) in [("gathering", 1), ("preparing", 2), ("marking", 3), ("pinning_data", 1), ("uploading", 10)]
    {
        let sample = format!("segvault_point_phase_seconds{{cluster=\"name\",phase=\"{phase}\"}} {seconds}.0");
        assert!(has(&page, &sample), "{sample} is not in {page}");
    }
    metrics.show_phases("name", PhaseClock::new(start).finish(second(1)));
    let page = encode(&metrics.registry);
    assert_eq!(page.matches("segvault_point_phase_seconds{").count(), 1, "{page}");
}
