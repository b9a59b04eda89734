//! Agents are told to restore, and answer as they please.

use std::time::Instant;

use segvault_proto::{Restored, Restoring};
use segvault_vault_format::plan::PlannedNode;
use tempfile::TempDir;
use tonic::Code;

use super::super::fleet::Fleet;
use super::super::fleet::tests::{Line, PATIENCE, hello};
use super::super::history::Histories;
use super::super::history::tests::vault;
use super::super::metrics::Metrics;
use super::*;

/// A coordinator without a network, and two agents.
struct Site {
    _folder: TempDir,
    fleet: Arc<Fleet>,
    runs: Arc<Runs>,
    lines: [Line; 2],
}

impl Site {
    async fn new() -> Self {
        let (folder, vault) = vault().await;
        let fleet = Arc::new(Fleet::new(PATIENCE));
        let (histories, metrics) = (Arc::new(Histories::new(vault.clone())), Arc::new(Metrics::new()));
        let deadline = Duration::from_secs(1);
        let runs = Arc::new(Runs::new(vault, fleet.clone(), "test".to_owned(), deadline, histories, metrics));
        let lines = [1, 2].map(|node| Line::sit(&fleet, hello(node, 1, &[]), 1, Instant::now()).unwrap());
        Self { _folder: folder, fleet, runs, lines }
    }

    async fn begin(&self, nodes: &[i32]) -> Result<watch::Receiver<rpc::RestoreStatus>, Status> {
        let node = |node_id| PlannedNode { node_id, ..PlannedNode::default() };
        let nodes_of_plan = [1, 2].map(node).to_vec();
        let plan =
            Plan { cluster_id: "cluster".to_owned(), number: 7, point: 3, nodes: nodes_of_plan, ..Plan::default() };
        self.runs.begin_restore(plan, RestoreDeed::Run, nodes).await
    }

    /// The next command that a node is sent, and the run that it is of.
    async fn command(&mut self, index: usize) -> (u64, Command) {
        let (_, run, command) = self.lines[index].next_command().await;
        (run, command)
    }

    fn report(&self, index: usize, number: u64, run: u64, report: Report) {
        self.lines[index].report(&self.fleet, number, run, report, Instant::now());
    }
}

fn states(status: &rpc::RestoreStatus) -> Vec<(i32, Option<State>)> {
    status.nodes.iter().map(|node| (node.node_id, node.state.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_ends_as_its_agent_says_and_the_others_go_on() {
    let mut site = Site::new().await;
    let mut statuses = site.begin(&[]).await.unwrap();
    let (run, command) = site.command(0).await;
    let expected = PlanId { cluster_id: "cluster".to_owned(), number: 7 };
    assert!(matches!(command, Command::Restore { plan, deed: RestoreDeed::Run } if plan == expected));
    assert!(matches!(site.command(1).await.1, Command::Restore { .. }));

    let refused = [site.runs.begin("cluster", false).err(), site.begin(&[]).await.err()];
    for status in refused.map(Option::unwrap) {
        assert_eq!(status.code(), Code::AlreadyExists);
        assert!(status.message().contains("by plan 7") && status.message().contains("hint: "), "{status}");
    }

    let half = Restoring { partitions: 1, partitions_total: 2, bytes: 10, bytes_total: 20 };
    site.report(0, 1, run, Report::Restoring(half));
    site.report(1, 1, run, failed("its disk is full"));
    // What comes after the end of a node is not the coordinator's matter.
    site.report(1, 2, run, Report::Released);
    let failed = Some(State::Failed(rpc::report::Failed { reason: "its disk is full".to_owned() }));
    let expected = vec![(1, Some(State::Restoring(half.into()))), (2, failed.clone())];
    let status = statuses.wait_for(|status| states(status) == expected).await.unwrap().clone();
    assert!(!is_over(&status) && site.runs.restore_status("cluster") == Some(status));
    let all = Restored { partitions: 2, ..Restored::default() };
    site.report(0, 2, run, Report::Restored(all.clone()));
    let end = statuses.wait_for(is_over).await.unwrap().clone();
    assert_eq!(states(&end), [(1, Some(State::Restored(all.into()))), (2, failed)]);
    assert_eq!((end.plan, end.point), (7, 3));
    for index in [0, 1] {
        assert!(matches!(site.command(index).await.1, Command::Release { committed: false }));
    }
    site.begin(&[2]).await.expect("it can be run again");
    assert!(matches!(site.command(1).await.1, Command::Restore { .. }));
    assert!(site.lines[0].command().is_none(), "node 1 was not asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_restore_ends_when_every_agent_has_stopped() {
    let mut site = Site::new().await;
    assert_eq!(site.runs.cancel_restore("cluster").err().unwrap().code(), Code::FailedPrecondition);
    let mut statuses = site.begin(&[]).await.unwrap();
    let (run, _) = site.command(0).await;
    site.command(1).await;
    site.report(0, 1, run, Report::Restored(Restored::default()));
    site.runs.cancel_restore("cluster").unwrap();
    for index in [0, 1] {
        assert!(matches!(site.command(index).await.1, Command::Release { .. }));
    }
    assert!(!is_over(&statuses.borrow()), "node 2 may still be writing");
    site.report(1, 1, run, failed("stopped"));
    let end = statuses.wait_for(is_over).await.unwrap().clone();
    assert!(matches!(states(&end)[..], [(1, Some(State::Restored(_))), (2, Some(State::Failed(_)))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_the_plan_lacks_and_agents_that_die_are_named() {
    let mut site = Site::new().await;
    let refused = site.begin(&[2, 5]).await.err().unwrap();
    assert!(refused.message().contains("node 5 is not in plan cluster/7"), "{refused}");
    let mut statuses = site.begin(&[]).await.unwrap();
    let (run, _) = site.command(1).await;
    site.report(1, 1, run, Report::Restored(Restored::default()));
    site.command(0).await;
    site.fleet.dismiss();
    let end = statuses.wait_for(is_over).await.unwrap().clone();
    assert!(
        matches!(&states(&end)[..], [(1, Some(State::Failed(it))), (2, _)] if it.reason.contains("gone")),
        "{end:?}"
    );
}
