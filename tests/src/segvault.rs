//! The `segvault` binary as an operator runs it: a command line in, a JSON document and an exit code out.

use crate::{Cluster, Result, cluster::segvault_binary};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// The binary and a vault.
#[derive(Clone)]
pub struct Segvault {
    vault: String,
    environment: BTreeMap<String, String>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// What it printed, as JSON; null if it printed none.
    pub json: Value,
    /// What it said on standard error.
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    /// The document, if the command succeeded.
    pub fn ok(self) -> Result<Value> {
        match self.code {
            0 => Ok(self.json),
            code => Err(format!("exit code {code}: {}\n{}", self.stderr, self.json).into()),
        }
    }

    /// What it complained of, if it failed.
    pub fn error(&self) -> &str {
        assert_eq!(self.code, 1, "it should have failed: {self:?}");
        &self.stderr
    }
}

impl Segvault {
    /// With the vault at `url`, whether there is one or not.
    pub fn at(url: String) -> Self {
        Self { vault: url, environment: BTreeMap::new() }
    }

    /// With an environment variable.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Without a variable that was given before.
    pub fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Makes a vault at `dir`.
    pub fn init(dir: &Path) -> Result<Self> {
        let segvault = Self::at(format!("file://{}", dir.display()));
        segvault.run(&["vault", "init"])?.ok()?;
        Ok(segvault)
    }

    /// The folder of the vault.
    pub fn vault_dir(&self) -> PathBuf {
        PathBuf::from(self.vault.strip_prefix("file://").expect("it was made with it"))
    }

    /// A command line, ready to run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(segvault_binary());
        command.args(args).args(["--vault", &self.vault, "--json"]).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"AWS_")) {
            command.env_remove(name);
        }
        // Whatever a test forgets: nobody asks a cloud who we are.
        command.env("AWS_EC2_METADATA_DISABLED", "true").envs(&self.environment);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Result<Ended> {
        Ok(self.command(args).output()?.into())
    }

    /// Starts a command, to be killed.
    pub fn spawn(&self, args: &[&str]) -> Result<Child> {
        Ok(self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// Runs a command with a `--broker-config` for each of `nodes`.
    pub fn run_on(&self, cluster: &Cluster, nodes: &[i32], args: &[&str]) -> Result<Ended> {
        let configs = configs(cluster, nodes);
        let args: Vec<&str> = args.iter().copied().chain(configs.iter().map(String::as_str)).collect();
        self.run(&args)
    }

    /// Takes a restore point of all nodes.
    pub fn snapshot(&self, cluster: &Cluster) -> Result<Value> {
        self.run_on(cluster, &cluster.nodes(), &["snapshot", "create"])?.ok()
    }

    /// Has a point proven from the vault alone: the level that it states must hold.
    pub fn prove(&self, point: &str) -> Result<Value> {
        self.run(&["snapshot", "verify", point])?.ok()
    }

    /// Restores a point on all nodes, each by a command of its own as if on its own host, and verifies.
    pub fn restore(&self, cluster: &Cluster, point: &str) -> Result<()> {
        self.restore_by(cluster, ["--point", point])
    }

    /// The same by a plan that is saved before.
    pub fn restore_by_plan(&self, cluster: &Cluster, point: &str) -> Result<()> {
        let saved = self.run_on(cluster, &cluster.nodes(), &["restore", "plan", "--save", "--point", point])?.ok()?;
        self.restore_by(cluster, ["--plan", &saved["plan"].to_string()])
    }

    fn restore_by(&self, cluster: &Cluster, [option, value]: [&str; 2]) -> Result<()> {
        for node in cluster.nodes() {
            self.run_on(cluster, &[node], &["restore", "run", option, value])?.ok()?;
        }
        self.run_on(cluster, &cluster.nodes(), &["restore", "verify", option, value])?.ok()?;
        Ok(())
    }
}

/// `--broker-config FILE` for each node.
pub fn configs(cluster: &Cluster, nodes: &[i32]) -> Vec<String> {
    let file = |node: &i32| cluster.properties_file(*node).display().to_string();
    nodes.iter().flat_map(|node| ["--broker-config".to_owned(), file(node)]).collect()
}

/// Writes a `server.properties` for node `id` of the golden vault's cluster; returns the arguments for it.
pub fn golden_node(dir: &Path, id: i32, log_dir: &Path) -> Result<[String; 2]> {
    let path = dir.join(format!("{id}.properties"));
    let text = format!(
        "process.roles=broker,controller\nnode.id={id}\nlog.dirs={}\ncontroller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:1{id},CONTROLLER://127.0.0.1:2{id}\n\
         controller.quorum.voters=1@127.0.0.1:21,2@127.0.0.1:22,3@127.0.0.1:23\n",
        log_dir.display()
    );
    std::fs::write(&path, text)?;
    Ok(["--broker-config".to_owned(), path.display().to_string()])
}
