//! Agents come, go and come back; time is told, and frames are looked at as they leave.

use segvault_proto::LogDirFacts;
use tokio::sync::mpsc::error::TryRecvError;
use tonic::Code;

use super::*;

pub const PATIENCE: Patience = Patience { heartbeat: Duration::from_secs(1), lease: Duration::from_secs(10) };

fn key(node_id: i32) -> NodeKey {
    ("cluster".to_owned(), node_id)
}

/// What the agent of a node says.
pub fn hello(node_id: i32, incarnation: u8, session: &[u8]) -> Introduction {
    let facts = NodeFacts {
        node_id,
        cluster_id: "cluster".to_owned(),
        broker: true,
        controller: false,
        log_dirs: vec![LogDirFacts { path: "/data".to_owned(), directory_id: None }],
        metadata_log_dir: 0,
        static_voters: None,
        compacts: false,
    };
    Introduction {
        incarnation: vec![incarnation; 16],
        session: session.to_vec(),
        facts,
        host: "host".to_owned(),
        version: "1".to_owned(),
        space: Vec::new(),
        vacant: false,
    }
}

/// An agent's end of a connection.
pub struct Line {
    node_id: i32,
    number: u64,
    frames: Frames,
    session: Vec<u8>,
}

impl Line {
    /// Sits down; the welcome must be the first frame.
    pub fn sit(fleet: &Fleet, hello: Introduction, session: u8, now: Instant) -> Result<Self, Status> {
        let node_id = hello.facts.node_id;
        let (number, mut frames) = fleet.sit(hello, [session; 16], now)?;
        let first = frames.try_recv().unwrap().unwrap();
        let Some(rpc::coordinator_frame::Body::Welcome(welcome)) = first.body else { panic!("{first:?}") };
        Ok(Self { node_id, number, frames, session: welcome.session })
    }

    /// The next command, with its number and run; heartbeats are passed over.
    pub fn command(&mut self) -> Option<(u64, u64, Command)> {
        loop {
            let frame = self.frames.try_recv().ok()?.unwrap();
            if let Some(rpc::coordinator_frame::Body::Command(command)) = frame.body {
                return Some((frame.number, frame.run, command.try_into().unwrap()));
            }
        }
    }

    /// The same, as soon as it is there.
    pub async fn next_command(&mut self) -> (u64, u64, Command) {
        loop {
            let frame = self.frames.recv().await.expect("connected").unwrap();
            if let Some(rpc::coordinator_frame::Body::Command(command)) = frame.body {
                return (frame.number, frame.run, command.try_into().unwrap());
            }
        }
    }

    /// The connection breaks.
    pub fn hang_up(&self, fleet: &Fleet) {
        fleet.hang_up(&key(self.node_id), self.number, "cut");
    }

    fn is_hung_up(&mut self) -> bool {
        loop {
            match self.frames.try_recv() {
                Ok(_) => {}
                Err(error) => return error == TryRecvError::Disconnected,
            }
        }
    }

    fn send(&self, fleet: &Fleet, frame: rpc::AgentFrame, now: Instant) -> Result<(), Status> {
        fleet.receive(&key(self.node_id), self.number, frame, now)
    }

    /// Sends a report.
    pub fn report(&self, fleet: &Fleet, number: u64, run: u64, report: Report, now: Instant) {
        let body = Some(rpc::agent_frame::Body::Report(report.into()));
        self.send(fleet, rpc::AgentFrame { number, run, body, ..Default::default() }, now).unwrap();
    }
}

#[test]
fn commands_and_reports_go_on_where_they_were_after_a_reconnection() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let mut line = Line::sit(&fleet, hello(3, 1, &[]), 1, now).unwrap();
    let (reports, incoming) = mpsc::channel();
    let links = fleet.begin_run("cluster", 5, &reports, |_| true);
    assert!((links[0].send)(Command::Mark) && (links[0].send)(Command::Probe));
    assert!(matches!(line.command(), Some((1, 5, Command::Mark))));
    line.report(&fleet, 1, 5, Report::Marked(Vec::new()), now);
    // The connection breaks: the second command and a third one have not arrived.
    fleet.hang_up(&key(3), line.number, "cut");
    assert!((links[0].send)(Command::PinData), "it waits in the outbox");
    let mut again = Line::sit(&fleet, hello(3, 1, &line.session), 2, now).unwrap();
    assert_eq!(again.session, line.session, "the session is the same");
    let numbers: Vec<_> = std::iter::from_fn(|| again.command()).map(|(number, run, _)| (number, run)).collect();
    assert_eq!(numbers, [(1, 5), (2, 5), (3, 5)], "all that was not confirmed");
    // What had arrived before comes again and is not told twice.
    again.report(&fleet, 1, 5, Report::Marked(Vec::new()), now);
    again.report(&fleet, 2, 5, Report::Probed, now);
    drop((links, reports));
    fleet.end_run("cluster", 5);
    let told: Vec<_> = incoming.iter().collect();
    assert!(matches!(&told[..], [(3, Report::Marked(_)), (3, Report::Probed)]), "{told:?}");
    assert!(line.send(&fleet, rpc::AgentFrame::default(), now).is_err(), "the old connection is of no use any more");
}

#[test]
fn what_is_confirmed_is_not_sent_again() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let line = Line::sit(&fleet, hello(3, 1, &[]), 1, now).unwrap();
    let (reports, _incoming) = mpsc::channel();
    let links = fleet.begin_run("cluster", 5, &reports, |_| true);
    assert!((links[0].send)(Command::Mark) && (links[0].send)(Command::Probe));
    line.send(&fleet, rpc::AgentFrame { received: 1, ..Default::default() }, now).unwrap();
    let mut again = Line::sit(&fleet, hello(3, 1, &line.session), 2, now).unwrap();
    assert!(matches!(again.command(), Some((2, 5, Command::Probe))));
    assert!(again.command().is_none());
}

#[test]
fn a_second_process_is_refused_until_the_first_one_is_gone_and_then_the_run_is_told() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let first = Line::sit(&fleet, hello(3, 1, &[]), 1, now).unwrap();
    let (reports, incoming) = mpsc::channel();
    let links = fleet.begin_run("cluster", 5, &reports, |_| true);
    let refused = Line::sit(&fleet, hello(3, 2, &[]), 2, now).err().unwrap();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("node 3") && refused.message().contains("hint: "), "{refused}");
    assert!(incoming.try_recv().is_err(), "the first one is not disturbed");

    fleet.hang_up(&key(3), first.number, "killed");
    let mut second = Line::sit(&fleet, hello(3, 2, &[]), 2, now).unwrap();
    assert!(matches!(incoming.try_recv(), Ok((3, Report::Failed { .. }))));
    assert!(!(links[0].send)(Command::Mark), "the run's link was to the first one");
    assert!(second.command().is_none());
}

#[test]
fn an_agent_without_its_session_begins_anew_even_while_its_old_connection_seems_alive() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let first = Line::sit(&fleet, hello(3, 1, &[]), 1, now).unwrap();
    let (reports, incoming) = mpsc::channel();
    fleet.begin_run("cluster", 5, &reports, |_| true);
    let second = Line::sit(&fleet, hello(3, 1, &[]), 2, now).unwrap();
    assert_ne!(first.session, second.session);
    assert!(matches!(incoming.try_recv(), Ok((3, Report::Failed { .. }))));
}

#[test]
fn silence_hangs_up_and_a_lease_that_is_over_fails_the_run() {
    let (fleet, begin) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let mut line = Line::sit(&fleet, hello(3, 1, &[]), 1, begin).unwrap();
    let (reports, incoming) = mpsc::channel();
    fleet.begin_run("cluster", 5, &reports, |_| true);
    let at = |seconds| begin + Duration::from_secs(seconds);
    fleet.tick(at(3));
    assert_eq!(fleet.connected("cluster"), [3]);
    fleet.tick(at(4));
    assert!(line.is_hung_up());
    assert_eq!((fleet.connected("cluster").len(), fleet.clusters().len()), (0, 1), "the seat is kept");
    assert!(incoming.try_recv().is_err());
    fleet.tick(at(11));
    assert!(matches!(incoming.try_recv(), Ok((3, Report::Failed { reason })) if reason.contains("11 s")));
    assert!(fleet.clusters().is_empty());
}

#[test]
fn answers_to_another_run_are_passed_over() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let mut line = Line::sit(&fleet, hello(3, 1, &[]), 1, now).unwrap();
    let (reports, first) = mpsc::channel();
    fleet.begin_run("cluster", 5, &reports, |_| true);
    fleet.end_run("cluster", 5);
    assert!(matches!(line.command(), Some((1, 5, Command::Release { committed: false }))), "it may still hold pins");
    let (reports, second) = mpsc::channel();
    fleet.begin_run("cluster", 6, &reports, |_| true);
    line.report(&fleet, 1, 5, Report::Probed, now);
    line.report(&fleet, 2, 6, Report::Released, now);
    assert!(first.try_recv().is_err());
    assert!(matches!(second.try_recv(), Ok((3, Report::Released))));
}

#[test]
fn a_question_is_answered_once_beside_the_run() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let mut line = Line::sit(&fleet, hello(3, 1, &[]), 1, now).unwrap();
    let (reports, of_run) = mpsc::channel();
    let links = fleet.begin_run("cluster", 5, &reports, |_| true);
    assert!((links[0].send)(Command::Mark));
    let (answers, answered) = mpsc::channel();
    assert_eq!(fleet.ask("cluster", 6, &Command::Examine, &answers, |hello| hello.facts.node_id == 4).len(), 0);
    assert!(fleet.ask("cluster", 6, &Command::Examine, &answers, |_| true).contains_key(&3));
    assert!(matches!(line.command(), Some((1, 5, Command::Mark))));
    assert!(matches!(line.command(), Some((2, 6, Command::Examine))));
    line.report(&fleet, 1, 6, Report::Examined(Vec::new()), now);
    line.report(&fleet, 2, 5, Report::Marked(Vec::new()), now);
    line.report(&fleet, 3, 6, Report::Examined(Vec::new()), now);
    assert!(matches!(of_run.try_iter().collect::<Vec<_>>()[..], [(3, Report::Marked(_))]));
    assert!(matches!(answered.try_iter().collect::<Vec<_>>()[..], [(3, Report::Examined(_))]));

    // An agent that is gone fails what it was asked.
    fleet.ask("cluster", 7, &Command::Examine, &answers, |_| true);
    fleet.ask("cluster", 8, &Command::Examine, &answers, |_| true);
    fleet.forget("cluster", 8);
    fleet.hang_up(&key(3), line.number, "cut");
    fleet.tick(now + PATIENCE.lease * 2);
    assert!(matches!(answered.try_iter().collect::<Vec<_>>()[..], [(3, Report::Failed { .. })]));
}

#[test]
fn goodbye_ends_the_seat_at_once() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let line = Line::sit(&fleet, hello(3, 1, &[]), 1, now).unwrap();
    let (reports, incoming) = mpsc::channel();
    fleet.begin_run("cluster", 5, &reports, |_| true);
    let body = Some(rpc::agent_frame::Body::Goodbye(rpc::Goodbye { reason: "stopped".to_owned() }));
    line.send(&fleet, rpc::AgentFrame { body, ..Default::default() }, now).unwrap();
    assert!(matches!(incoming.try_recv(), Ok((3, Report::Failed { reason })) if reason.contains("stopped")));
    assert!(fleet.clusters().is_empty());
}

#[test]
fn a_report_that_is_not_understood_fails_its_agent_only() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let line = Line::sit(&fleet, hello(3, 1, &[]), 1, now).unwrap();
    let (reports, incoming) = mpsc::channel();
    fleet.begin_run("cluster", 5, &reports, |_| true);
    let body = Some(rpc::agent_frame::Body::Report(rpc::Report::default()));
    line.send(&fleet, rpc::AgentFrame { number: 1, run: 5, body, ..Default::default() }, now).unwrap();
    assert!(matches!(incoming.try_recv(), Ok((3, Report::Failed { reason })) if reason.contains("not understood")));
}

#[test]
fn a_message_whose_predecessor_is_missing_ends_the_connection() {
    let (fleet, now) = (Arc::new(Fleet::new(PATIENCE)), Instant::now());
    let line = Line::sit(&fleet, hello(3, 1, &[]), 1, now).unwrap();
    let body = Some(rpc::agent_frame::Body::Report(Report::Probed.into()));
    let refused = line.send(&fleet, rpc::AgentFrame { number: 2, run: 5, body, ..Default::default() }, now);
    assert_eq!(refused.unwrap_err().code(), Code::DataLoss);
}
