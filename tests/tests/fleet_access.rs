//! Who may speak to whom in a fleet, and what those are told who may not. The nodes are formatted and stopped: no agent
//! needs a broker to connect.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use segvault_proto::{PROTOCOL_VERSION, rpc};
use segvault_tests::cluster::segvault_binary;
use segvault_tests::segvault::{Ended, Segvault};
use segvault_tests::{Cluster, PATIENCE, Result};
use segvault_transport::Security;

/// A process that dies with this object, and its log.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log says all of `words` in one line.
    fn says(&self, words: &[&str]) {
        let began = Instant::now();
        while !self.log().lines().any(|line| words.iter().all(|word| line.contains(word))) {
            assert!(began.elapsed() < PATIENCE, "{words:?} is not said in {}:\n{}", self.log.display(), self.log());
            sleep(Duration::from_millis(50));
        }
    }
}

/// Three formatted nodes, a vault, an authority with a certificate for everybody.
struct Site {
    cluster: Cluster,
    segvault: Segvault,
    dir: PathBuf,
    address: String,
}

impl Site {
    fn new() -> Self {
        let cluster = Cluster::builder().stopped().unwrap();
        let segvault = Segvault::init(&cluster.scratch().join("vault")).unwrap();
        let dir = cluster.scratch().join("site");
        fs::create_dir_all(&dir).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let site = Self { cluster, segvault, dir, address };
        site.authority("pki");
        site
    }

    /// Makes an authority and certificates of it for all.
    fn authority(&self, name: &str) {
        let dir = self.dir.join(name).display().to_string();
        let issue = |who: &[&str]| {
            self.cert(&[&["issue", "--dir", &dir, "--out", &dir][..], who].concat()).ok().unwrap();
        };
        self.cert(&["authority", "--dir", &dir]).ok().unwrap();
        issue(&["coordinator", "--host", "127.0.0.1"]);
        issue(&["operator", "--name", "ada"]);
        for node in self.cluster.nodes() {
            issue(&["agent", "--broker-config", &self.cluster.properties_file(node).display().to_string()]);
        }
    }

    fn cert(&self, args: &[&str]) -> Ended {
        Command::new(segvault_binary()).arg("cert").args(args).arg("--json").output().unwrap().into()
    }

    /// The flags of a certificate of an authority.
    fn tls(&self, authority: &str, stem: &str) -> [String; 6] {
        let file = |name: String| self.dir.join(authority).join(name).display().to_string();
        let (ca, cert, key) = (file("ca.pem".into()), file(format!("{stem}.pem")), file(format!("{stem}.key")));
        ["--ca".into(), ca, "--cert".into(), cert, "--key".into(), key]
    }

    fn spawn(&self, name: &str, segvault: &Segvault, args: &[&str], tls: &[String]) -> Daemon {
        let log = self.dir.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let mut command = segvault.command(args);
        command.args(tls).arg("-v").stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Daemon { child: command.spawn().unwrap(), log }
    }

    fn coordinator(&self) -> Daemon {
        let args = ["coordinator", "--listen", &self.address];
        let daemon = self.spawn("coordinator", &self.segvault, &args, &self.tls("pki", "coordinator"));
        daemon.says(&["listening"]);
        daemon
    }

    fn agent_at(&self, name: &str, config: &Path, tls: &[String]) -> Daemon {
        let config = config.display().to_string();
        let args = ["agent", "--coordinator", &self.address, "--broker-config", &config];
        self.spawn(name, &self.segvault, &args, tls)
    }

    fn agent(&self, node: i32, tls: &[String]) -> Daemon {
        self.agent_at(&format!("agent-{node}"), &self.cluster.properties_file(node), tls)
    }

    fn status(&self, tls: &[String]) -> Ended {
        Command::new(segvault_binary())
            .args(["status", "--json", "--coordinator", &self.address])
            .args(tls)
            .output()
            .unwrap()
            .into()
    }

    /// A copy of a node's folder, as it would lie on another host.
    fn copy_of(&self, node: i32) -> Result<PathBuf> {
        let (from, to) = (self.cluster.node_dir(node), self.dir.join(format!("copy-of-{node}")));
        Command::new("cp").arg("-r").arg(&from).arg(&to).status()?;
        let properties = to.join("server.properties");
        let text = fs::read_to_string(&properties)?;
        fs::write(&properties, text.replace(&from.display().to_string(), &to.display().to_string()))?;
        Ok(properties)
    }
}

#[test]
fn everybody_speaks_for_himself_only_and_is_told_why() {
    let site = Site::new();
    let coordinator = site.coordinator();
    let operator = site.tls("pki", "operator-ada");

    let first = site.agent(1, &site.tls("pki", "agent-1"));
    first.says(&["connected", &site.address]);
    let status = site.status(&operator).ok().unwrap();
    assert_eq!(status["clusters"][0]["agents"][0]["node_id"], 1, "{status}");

    let claims = site.agent(2, &site.tls("pki", "agent-1"));
    claims.says(&["agent", "1", "cannot speak for node 2"]);
    coordinator.says(&["agent refused", "cannot speak for node 2"]);
    drop(claims);

    let operates = site.agent(2, &operator);
    operates.says(&["not connected", "operator"]);
    drop(operates);

    let refused = site.status(&site.tls("pki", "agent-1"));
    assert!(refused.error().contains("agent 1"), "{refused:?}");

    site.authority("other");
    let stranger = site.agent(2, &site.tls("other", "agent-2"));
    stranger.says(&["not connected"]);
    let refused = site.status(&site.tls("other", "operator-ada"));
    assert!(refused.error().contains("certificate"), "{refused:?}");
    drop(stranger);

    let plain = site.status(&["--plain-text".to_owned()]);
    assert_eq!(plain.code, 1, "{plain:?}");
    let nothing = site.status(&[]);
    assert!(nothing.error().contains("--plain-text"), "{nothing:?}");

    // All of that has disturbed nobody, and whoever is right may still come.
    let second = site.agent(2, &site.tls("pki", "agent-2"));
    second.says(&["connected", &site.address]);
    let status = site.status(&operator).ok().unwrap();
    let agents = status["clusters"][0]["agents"].as_array().unwrap();
    assert!(agents.len() == 2 && agents.iter().all(|agent| agent["connected"] == true), "{status}");
}

#[test]
fn there_is_one_agent_per_node() {
    let site = Site::new();
    let _coordinator = site.coordinator();
    let tls = site.tls("pki", "agent-1");
    let first = site.agent(1, &tls);
    first.says(&["connected", &site.address]);
    // On the same host the staging folder is locked; on another one the coordinator says no.
    let mut here = site.agent_at("again", &site.cluster.properties_file(1), &tls);
    assert_eq!(here.child.wait().unwrap().code(), Some(1));
    assert!(here.log().contains("another"), "{}", here.log());
    let elsewhere = site.agent_at("elsewhere", &site.copy_of(1).unwrap(), &tls);
    elsewhere.says(&["an agent of node 1 is connected already"]);
    let status = site.status(&site.tls("pki", "operator-ada")).ok().unwrap();
    assert_eq!(status["clusters"][0]["agents"].as_array().unwrap().len(), 1, "{status}");
    // Once the first one is gone the other may sit.
    drop(first);
    elsewhere.says(&["connected", &site.address]);
}

#[test]
fn another_vault_and_another_protocol_are_refused_with_both_sides_named() {
    let site = Site::new();
    let _coordinator = site.coordinator();
    let other = Segvault::init(&site.dir.join("vault")).unwrap();
    let config = site.cluster.properties_file(1).display().to_string();
    let args = ["agent", "--coordinator", &site.address, "--broker-config", &config];
    let agent = site.spawn("agent", &other, &args, &site.tls("pki", "agent-1"));
    agent.says(&["another vault"]);
    drop(agent);

    let files = site.tls("pki", "operator-ada");
    let [_, ca, _, cert, _, key] = files.map(PathBuf::from);
    let files = segvault_transport::TlsFiles { ca, cert, key };
    let security = Security::Tls(std::sync::Arc::new(segvault_transport::Reloading::open(files).unwrap()));
    let refused = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let channel = segvault_transport::connect(&site.address, &security).await.unwrap();
        let mut control = rpc::control_client::ControlClient::new(channel);
        let request = rpc::StatusRequest { protocol: PROTOCOL_VERSION + 1, ..Default::default() };
        control.status(request).await.unwrap_err()
    });
    let (theirs, ours) = (format!("protocol {}", PROTOCOL_VERSION + 1), format!("protocol {PROTOCOL_VERSION}"));
    assert!(refused.message().contains(&theirs) && refused.message().contains(&ours), "{refused}");
    assert!(refused.message().contains("hint: "), "{refused}");
}

#[test]
fn plain_text_does_not_leave_the_host() {
    let site = Site::new();
    let args = ["coordinator", "--listen", "0.0.0.0:0", "--plain-text"];
    let mut coordinator = site.spawn("coordinator", &site.segvault, &args, &[]);
    assert_eq!(coordinator.child.wait().unwrap().code(), Some(1));
    assert!(coordinator.log().contains("loopback") && coordinator.log().contains("hint: "), "{}", coordinator.log());
}

#[test]
fn a_renewed_certificate_is_taken_without_a_restart() {
    let site = Site::new();
    let coordinator = site.coordinator();
    // A whole new authority: whoever connects from now on must have a certificate of it.
    site.authority("new");
    for file in ["ca.pem", "coordinator.pem", "coordinator.key"] {
        fs::rename(site.dir.join("new").join(file), site.dir.join("pki").join(file)).unwrap();
        fs::copy(site.dir.join("pki").join(file), site.dir.join("new").join(file)).unwrap();
    }
    let began = Instant::now();
    while site.status(&site.tls("new", "operator-ada")).code != 0 {
        assert!(began.elapsed() < PATIENCE, "{}", coordinator.log());
        sleep(Duration::from_millis(100));
    }
    assert_eq!(site.status(&site.tls("pki", "operator-ada")).code, 1, "the old one is of no use any more");
}
