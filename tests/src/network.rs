//! Where a fleet's daemons run: as root each agent in a network namespace of its own, with a cable to the coordinators that
//! can be cut, and mutual TLS; otherwise all on the loopback device, in plain text. And a [`Relay`], for cutting off a
//! server that everybody uses.

use crate::{Cluster, Result, cluster::segvault_binary};
use std::{
    fs, io,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::Duration,
};

/// The network of one fleet; its namespaces end with it.
pub struct Network {
    /// Where its coordinators listen.
    ports: [u16; 2],
    namespaces: Option<Namespaces>,
}

/// One of the coordinators that a fleet may have. All but a few tests have the first one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coordinator {
    /// The first.
    First,
    /// The second, alongside.
    Second,
}

/// One namespace per node, each with a cable of its own.
struct Namespaces {
    /// Tells this process's namespaces and subnets from others'.
    number: u32,
    nodes: Vec<i32>,
    /// Authority and certificates.
    pki: PathBuf,
}

impl Network {
    /// Lays the cables, and makes an authority and certificates in `dir`, if this process may.
    pub fn new(cluster: &Cluster, dir: &Path) -> Result<Self> {
        let free = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let ports = [free[0].local_addr()?.port(), free[1].local_addr()?.port()];
        if !may_lay_cables() {
            println!("not root: the fleet runs on the loopback device, and no cable is cut");
            return Ok(Self { ports, namespaces: None });
        }
        let number = std::process::id() % 100_000;
        let namespaces = Namespaces { number, nodes: cluster.nodes(), pki: dir.join("pki") };
        namespaces.lay()?;
        namespaces.certify(cluster)?;
        Ok(Self { ports, namespaces: Some(namespaces) })
    }

    /// Whether cables can be cut.
    pub fn has_cables(&self) -> bool {
        self.namespaces.is_some()
    }

    /// Where a coordinator listens.
    pub fn listen(&self, which: Coordinator) -> String {
        format!("{}:{}", everywhere(), self.ports[which as usize])
    }

    /// Where an operator reaches it.
    pub fn address(&self, which: Coordinator) -> String {
        format!("127.0.0.1:{}", self.ports[which as usize])
    }

    /// Where a node's agent reaches it.
    pub fn address_from(&self, node: i32, which: Coordinator) -> String {
        format!("{}:{}", self.host_from(node), self.ports[which as usize])
    }

    /// The address of this host, as a node reaches it.
    pub fn host_from(&self, node: i32) -> String {
        self.namespaces.as_ref().map_or_else(|| "127.0.0.1".to_owned(), |namespaces| namespaces.address(node, 1))
    }

    /// What `command` runs as on the host of `node`.
    pub fn on_host(&self, node: i32, command: Command) -> Command {
        let Some(namespaces) = &self.namespaces else { return command };
        let mut wrapped = Command::new("ip");
        wrapped.args(["netns", "exec", &namespaces.name(node)]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped
    }

    /// The flags that make connections secure: of `coordinator`, `operator-test`, or the agent of a node.
    pub fn security(&self, who: &str) -> Vec<String> {
        let Some(namespaces) = &self.namespaces else { return vec!["--plain-text".to_owned()] };
        let file = |name: String| namespaces.pki.join(name).display().to_string();
        let (cert, key) = (file(format!("{who}.pem")), file(format!("{who}.key")));
        ["--ca".to_owned(), file("ca.pem".to_owned()), "--cert".to_owned(), cert, "--key".to_owned(), key].into()
    }

    /// Cuts the cable of a node, or mends it: packets vanish, nobody is told.
    pub fn set_cable(&self, node: i32, up: bool) -> Result<()> {
        let namespaces = self.namespaces.as_ref().ok_or("there are no cables")?;
        ip(&["link", "set", &namespaces.name(node), if up { "up" } else { "down" }])
    }
}

impl Namespaces {
    /// Also that of its cable's interface, which may have 15 characters.
    fn name(&self, node: i32) -> String {
        format!("sv{}n{node}", self.number)
    }

    /// A subnet of four addresses for each cable, of 64 for all; end 1 is the coordinator's, 2 the node's.
    fn address(&self, node: i32, end: u32) -> String {
        let index = self.nodes.iter().position(|known| *known == node).map_or(0, |index| index as u32 + 1);
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + 64 * self.number + 4 * index + end).to_string()
    }

    fn lay(&self) -> Result<()> {
        for node in self.nodes.iter().copied() {
            let (name, far) = (self.name(node), format!("{}f", self.name(node)));
            let (near_address, far_address) =
                (format!("{}/30", self.address(node, 1)), format!("{}/30", self.address(node, 2)));
            ip(&["netns", "add", &name])?;
            ip(&["link", "add", &name, "type", "veth", "peer", "name", &far, "netns", &name])?;
            ip(&["addr", "add", &near_address, "dev", &name])?;
            ip(&["link", "set", &name, "up"])?;
            ip(&["-n", &name, "addr", "add", &far_address, "dev", &far])?;
            ip(&["-n", &name, "link", "set", &far, "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    fn certify(&self, cluster: &Cluster) -> Result<()> {
        fs::create_dir_all(&self.pki)?;
        let pki = self.pki.display().to_string();
        let cert = |args: &[&str]| -> Result<()> {
            let mut command = Command::new(segvault_binary());
            let output = command.arg("cert").arg(args[0]).args(["--dir", &pki]).args(&args[1..]).output()?;
            match output.status.success() {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
            }
        };
        cert(&["authority"])?;
        let hosts: Vec<String> = self.nodes.iter().map(|node| self.address(*node, 1)).collect();
        let mut args = vec!["issue", "--out", &pki, "coordinator", "--host", "127.0.0.1"];
        hosts.iter().for_each(|host| args.extend(["--host", host]));
        cert(&args)?;
        cert(&["issue", "--out", &pki, "operator", "--name", "test"])?;
        for node in &self.nodes {
            let config = cluster.properties_file(*node).display().to_string();
            cert(&["issue", "--out", &pki, "agent", "--broker-config", &config])?;
        }
        Ok(())
    }
}

/// Stands between clients, on whichever host, and a server on this host's loopback device. While it is down nobody listens
/// and all connections are broken, as if the server had died; the server itself knows nothing of it.
pub struct Relay {
    port: u16,
    server_port: u16,
    /// Tells the thread that serves to end, while it is up.
    up: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Relay {
    /// A relay to the server at this port.
    pub fn to(server_port: u16) -> Result<Self> {
        let listener = TcpListener::bind((everywhere(), 0))?;
        let mut relay = Self { port: listener.local_addr()?.port(), server_port, up: None };
        relay.serve(listener)?;
        Ok(relay)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks all connections, and takes no new ones.
    pub fn go_down(&mut self) {
        if let Some((stop, thread)) = self.up.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }

    /// Is there again, at the same port.
    pub fn come_up(&mut self) -> Result<()> {
        self.go_down();
        self.serve(TcpListener::bind((everywhere(), self.port))?)
    }

    fn serve(&mut self, listener: TcpListener) -> Result<()> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (server_port, stopped) = (self.server_port, stop.clone());
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // What is wrong with one connection is its client's business.
                    Ok((client, _)) => connections.extend(relay(&client, server_port).ok()),
                    Err(_) => sleep(Duration::from_millis(2)),
                }
            }
            drop(listener);
            for end in connections.iter().flatten() {
                let _ = end.shutdown(Shutdown::Both);
            }
        });
        self.up = Some((stop, thread));
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.go_down();
    }
}

/// Copies what either side says to the other, until one hangs up. Returns both ends.
fn relay(client: &TcpStream, server_port: u16) -> io::Result<[TcpStream; 2]> {
    let server = TcpStream::connect(("127.0.0.1", server_port))?;
    client.set_nonblocking(false)?;
    for (from, to) in [(client, &server), (&server, client)] {
        to.set_nodelay(true)?;
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok([client.try_clone()?, server])
}

/// Whether this process may make network namespaces.
fn may_lay_cables() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// The address to listen on so that all nodes come through.
fn everywhere() -> &'static str {
    if may_lay_cables() { "0.0.0.0" } else { "127.0.0.1" }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for node in &self.nodes {
            // The cable goes with its far end.
            let _ = ip(&["netns", "del", &self.name(*node)]);
            let _ = Command::new("ip").args(["link", "del", &self.name(*node)]).output();
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)).into()),
    }
}
