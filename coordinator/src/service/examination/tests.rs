use std::sync::Arc;
use std::thread;

use super::super::fleet::tests::{Line, PATIENCE, hello};
use super::*;

fn finding() -> Finding {
    Finding { severity: Severity::Info, subject: "a".to_owned(), message: "b".to_owned(), remedy: String::new() }
}

#[test]
fn where_nobody_looks_nothing_is_said_to_be_well() {
    let fleet = Fleet::new(PATIENCE);
    let refused = examine(&fleet, "cluster", 1, &[]).unwrap_err();
    assert!(refused.message().contains("no agent of cluster cluster is connected"), "{refused}");
    let mut line = Line::sit(&fleet, hello(3, 1, &[]), 1, Instant::now()).unwrap();
    let refused = examine(&fleet, "cluster", 1, &[3, 4]).unwrap_err();
    assert!(refused.message().contains("no agent of the nodes [4]"), "{refused}");
    assert!(line.command().is_none(), "nobody was asked");
}

#[test]
fn who_answers_and_who_does_not_is_told() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let mut lines = [3, 4, 5].map(|node_id| Line::sit(&fleet, hello(node_id, 1, &[]), 1, now).unwrap());
    lines[2].hang_up(&fleet);
    let asking = {
        let fleet = fleet.clone();
        thread::spawn(move || examine(&fleet, "cluster", 1, &[]).unwrap())
    };
    let reports = [Report::Examined(vec![finding()]), Report::Failed { reason: "it broke".to_owned() }];
    for (line, report) in lines.iter_mut().zip(reports) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(matches!(runtime.block_on(line.next_command()), (1, 1, Command::Examine)));
        line.report(&fleet, 1, 1, report, now);
    }
    let found = asking.join().unwrap();
    assert_eq!(found.iter().map(|node| node.node_id).collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(found[0].findings, [rpc::Finding::from(finding())]);
    for (node, message) in found[1..].iter().zip(["it broke", "its agent is not connected"]) {
        assert!(node.findings.len() == 1 && node.findings[0].message.contains(message), "{node:?}");
    }
}
