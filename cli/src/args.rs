//! What can be said on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cert::CertCommand;
use crate::fleet::{AgentArgs, CancelArgs, CancelRestoreArgs, CoordinatorArgs, SecurityArgs, StatusArgs};
use crate::manual::{CompletionsArgs, ManualArgs};
use crate::snapshot::{RetentionArgs, VerifyArgs};

/// Storage-level snapshots for Apache Kafka fleets.
#[derive(Debug, Parser)]
#[command(
    name = "segvault",
    version,
    about = "Storage-level snapshots for Apache Kafka fleets",
    after_help = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but something is not covered or not as it should be \
                  (a degraded point, findings of doctor or verify).",
    propagate_version = true
)]
pub struct Cli {
    /// Print one JSON document on standard output instead of text.
    #[arg(long, global = true)]
    pub json: bool,

    /// Say more (-v: what is done, -vv: every detail) on standard error.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a vault.
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Take and list restore points.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Write a restore point back into empty log directories.
    #[command(subcommand)]
    Restore(RestoreCommand),
    /// Look into Kafka's files.
    Inspect(InspectArgs),
    /// Check a node (and a vault) before anything is done, or the nodes of a fleet at any time.
    #[command(
        after_help = "Examples:\n  segvault doctor --broker-config /etc/kafka/server.properties --vault s3://backups/kafka\n  \
                            segvault doctor --coordinator coordinator.internal:9640\n  \
                            segvault doctor --coordinator coordinator.internal:9640 --node 3 --json\n\n\
                            Nothing is created or changed; a point under way goes on. Exit codes: 0 a capture would work; \
                            3 something is in its way."
    )]
    Doctor(DoctorArgs),
    /// Serve one node: pin, upload, restore as the coordinator says.
    #[command(after_help = "Examples:\n  segvault agent --config /etc/segvault/agent.toml\n  \
                            segvault agent --broker-config /etc/kafka/server.properties --coordinator coordinator.internal:9640 \\\n      \
                            --vault s3://backups/kafka --ca ca.pem --cert agent-3.pem --key agent-3.key")]
    Agent(AgentArgs),
    /// Drive the restore points of a fleet whose agents connect here.
    #[command(after_help = "Examples:\n  segvault coordinator --config /etc/segvault/coordinator.toml\n  \
                            segvault coordinator --listen 0.0.0.0:9640 --vault s3://backups/kafka \\\n      \
                            --ca ca.pem --cert coordinator.pem --key coordinator.key")]
    Coordinator(CoordinatorArgs),
    /// Make certificates for agents, coordinator and operators, and look at them.
    #[command(subcommand)]
    Cert(CertCommand),
    /// Show who is connected to a coordinator, and what is being done.
    #[command(after_help = "Examples:\n  segvault status --coordinator coordinator.internal:9640 --follow\n  \
                            segvault status --plain-text --json")]
    Status(StatusArgs),
    /// Write the manual pages, for packages.
    #[command(hide = true)]
    Manual(ManualArgs),
    /// Print completions for a shell, for packages.
    #[command(hide = true)]
    Completions(CompletionsArgs),
}

/// Vault verbs.
#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Make a new vault, after a race that proves that the store honours create-if-absent.
    #[command(after_help = "Examples:\n  segvault vault init --vault file:///srv/vault\n  \
                            segvault vault init --vault s3://backups/kafka --endpoint https://s3.internal:9000")]
    Init(VaultArgs),
}

/// Where the vault is. Flags win over the environment, the environment over the file.
#[derive(Debug, Clone, Args)]
pub struct VaultArgs {
    /// file:///path or s3://bucket/prefix.
    #[arg(long, value_name = "URL", env = "SEGVAULT_VAULT")]
    pub vault: Option<String>,
    /// TOML file with vault, endpoint, region, access_key_id, secret_access_key, path_style, allow_http.
    #[arg(long, value_name = "FILE", env = "SEGVAULT_VAULT_CONFIG")]
    pub vault_config: Option<PathBuf>,
    /// S3 endpoint, for stores that are not AWS [environment: AWS_ENDPOINT_URL].
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// S3 region [environment: AWS_REGION].
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
}

impl VaultArgs {
    /// What the command line says and, where it says nothing, a service's own file.
    pub fn or(mut self, vault: Option<String>, vault_config: Option<PathBuf>) -> Self {
        self.vault = self.vault.or(vault);
        self.vault_config = self.vault_config.or(vault_config);
        self
    }
}

/// Restore point verbs.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a restore point: of a cluster whose log directories are on this host, or of a fleet by its coordinator.
    #[command(after_help = "Examples:\n  segvault snapshot create --vault file:///srv/vault \\\n      \
                            --broker-config /etc/kafka/1.properties --broker-config /etc/kafka/2.properties\n  \
                            segvault snapshot create --coordinator coordinator.internal:9640 --cluster orders")]
    Create(CreateArgs),
    /// Give up the restore point that a coordinator is taking, and let all agents go.
    #[command(
        after_help = "Example:\n  segvault snapshot cancel --coordinator coordinator.internal:9640 --reason maintenance"
    )]
    Cancel(CancelArgs),
    /// List restore points, newest last.
    #[command(after_help = "Example:\n  segvault snapshot list --vault s3://backups/kafka --cluster orders")]
    List(ListArgs),
    /// Show a restore point: level, coverage, cut of every partition.
    #[command(after_help = "Examples:\n  segvault snapshot show --vault s3://backups/kafka\n  \
                            segvault snapshot show 17 --partitions --vault s3://backups/kafka --json")]
    Show(ShowArgs),
    /// Show which points a policy would keep; nothing is deleted.
    #[command(
        after_help = "The newest complete point is always kept, and all that came after it. A degraded point stands for its hour \
                            or day only where no complete one does.\n\n\
                            Example:\n  segvault snapshot retention --vault s3://backups/kafka --keep-last 10 --keep-daily 14 --keep-monthly 12"
    )]
    Retention(RetentionArgs),
    /// Read a whole restore point back and prove its level, from the vault alone.
    #[command(
        after_help = "Everything that the point refers to is read and checked; nothing of a cluster is asked, and what took the \
                            point takes no part. What a degraded point does not cover is named and not judged.\n\n\
                            Examples:\n  segvault snapshot verify --vault s3://backups/kafka\n  \
                            segvault snapshot verify 17 --level L3 --vault file:///srv/vault --json\n\n\
                            Exit codes: 0 the level is proven; 1 the vault cannot be asked; 2 wrong usage; 3 it is not proven."
    )]
    Verify(VerifyArgs),
}

/// Options of `snapshot create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// A node's own server.properties; once per node, controllers that stand apart included.
    #[arg(long = "broker-config", value_name = "FILE", required_unless_present = "coordinator")]
    pub broker_configs: Vec<PathBuf>,
    /// The coordinator takes the point, through the agents that are connected to it.
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "SEGVAULT_COORDINATOR",
        conflicts_with_all = ["broker_configs", "staging", "workers"]
    )]
    pub coordinator: Option<String>,
    #[command(flatten)]
    pub security: SecurityArgs,
    /// What to call the cluster [default: the cluster's id, or the name it has in the vault].
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Cut every data partition at the end of its last closed segment.
    #[arg(long)]
    pub closed_only: bool,
    /// Folder for pins, on the log dirs' file system and outside all of them [default: beside each log dir].
    #[arg(long, value_name = "DIR")]
    pub staging: Option<PathBuf>,
    /// Threads that compress and store [default: one per core].
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
}

/// Options of `snapshot list` and `restore plans`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Only this cluster: its name or id.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
}

/// A restore point of a vault, for verbs that look at one.
#[derive(Debug, Args)]
pub struct PointArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// `latest`, its number, or CLUSTER_ID/NUMBER.
    #[arg(value_name = "POINT", default_value = "latest")]
    pub point: String,
    /// The cluster's name or id, where the vault holds several.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
}

/// Options of `snapshot show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub point: PointArgs,
    /// Every partition, not only those that something is to be said about.
    #[arg(long)]
    pub partitions: bool,
}

/// Restore verbs.
#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// Show what a restore would write where, and with --save keep it in the vault; touches no log directory.
    #[command(
        after_help = "A saved plan fixes the point and all nodes with their log directories, so that every host of a fleet \
                            restores the same. It is never changed.\n\n\
                            Examples:\n  segvault restore plan --vault s3://backups/kafka --broker-config /etc/kafka/server.properties\n  \
                            segvault restore plan --save --vault file:///srv/vault --broker-config 1.properties --broker-config 2.properties\n  \
                            segvault restore plan --save --all-nodes --vault s3://backups/kafka --broker-config /etc/kafka/server.properties\n  \
                            segvault restore plan --show 3 --vault s3://backups/kafka"
    )]
    Plan(PlanArgs),
    /// List saved plans, newest last.
    #[command(after_help = "Example:\n  segvault restore plans --vault s3://backups/kafka")]
    Plans(ListArgs),
    /// Write the log directories of the given nodes, or, by a coordinator, of all nodes of a saved plan.
    #[command(after_help = "No controller may start before all controllers of the cluster are restored.\n\n\
                            Examples:\n  segvault restore run --vault s3://backups/kafka --broker-config /etc/kafka/server.properties\n  \
                            segvault restore run --vault file:///srv/vault --point 17 --broker-config 1.properties --dry-run\n  \
                            segvault restore run --vault s3://backups/kafka --plan 3 --broker-config /etc/kafka/server.properties\n  \
                            segvault restore run --coordinator coordinator.internal:9640 --plan 3")]
    Run(RunArgs),
    /// Check what was written against the plan, before brokers are started.
    #[command(
        after_help = "Examples:\n  segvault restore verify --vault s3://backups/kafka --broker-config /etc/kafka/server.properties\n  \
                            segvault restore verify --vault s3://backups/kafka --plan 3 --broker-config /etc/kafka/server.properties\n  \
                            segvault restore verify --coordinator coordinator.internal:9640 --plan 3"
    )]
    Verify(RestoreArgs),
    /// Stop the restore that a coordinator has its agents do; `restore run` goes on where it was.
    #[command(after_help = "Example:\n  segvault restore cancel --coordinator coordinator.internal:9640")]
    Cancel(CancelRestoreArgs),
}

/// Options of `restore plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// A node's own server.properties; once per node, controllers that stand apart included.
    #[arg(long = "broker-config", value_name = "FILE", required_unless_present = "show")]
    pub broker_configs: Vec<PathBuf>,
    /// `latest`, a number, or CLUSTER_ID/NUMBER.
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub point: String,
    /// The cluster's name or id, where the vault holds several.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Nodes for which no file is given, too: with the roles and log dirs that they had when the point was taken.
    #[arg(long)]
    pub all_nodes: bool,
    /// Keep the plan in the vault and print its number, for `restore run --plan`.
    #[arg(long)]
    pub save: bool,
    /// Show a saved plan: its number, or CLUSTER_ID/NUMBER.
    #[arg(long, value_name = "PLAN", conflicts_with_all = ["broker_configs", "point", "all_nodes", "save"])]
    pub show: Option<String>,
}

/// Options of `restore verify` and `restore run`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// A node's own server.properties; once per node, controllers that stand apart included.
    #[arg(long = "broker-config", value_name = "FILE", required_unless_present = "coordinator")]
    pub broker_configs: Vec<PathBuf>,
    /// The coordinator has the agents of the plan's nodes do it.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "broker_configs", requires = "plan")]
    pub coordinator: Option<String>,
    /// With --coordinator: only these nodes of the plan.
    #[arg(long = "node", value_name = "ID", requires = "coordinator")]
    pub only: Vec<i32>,
    #[command(flatten)]
    pub security: SecurityArgs,
    /// `latest`, a number, or CLUSTER_ID/NUMBER.
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub point: String,
    /// Do what a saved plan says for these nodes: its number, or CLUSTER_ID/NUMBER.
    #[arg(long, value_name = "PLAN", conflicts_with = "point")]
    pub plan: Option<String>,
    /// The cluster's name or id, where the vault holds several.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
}

/// Options of `restore run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub restore: RestoreArgs,
    /// Only show the plan, and whether the targets would be accepted.
    #[arg(long)]
    pub dry_run: bool,
    /// Threads that fetch and write [default: one per core].
    #[arg(long, value_name = "N", conflicts_with = "coordinator")]
    pub workers: Option<usize>,
    /// Go on where a transaction turns out not to be whole though the point states L3: such are named as warnings. For
    /// want of another point only.
    #[arg(long, conflicts_with = "coordinator")]
    pub accept_torn: bool,
}

/// Options of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  segvault inspect segment /data/orders-0/00000000000000000000.log --records\n  \
                        segvault inspect index /data/orders-0/00000000000000000000.timeindex\n  \
                        segvault inspect checkpoint /data/replication-offset-checkpoint\n  \
                        segvault inspect metadata /data/__cluster_metadata-0\n  \
                        segvault inspect log-dir /data --json\n\n\
                        Exit codes: 0 nothing is wrong; 1 it cannot be looked at; 2 wrong usage; 3 there are faults (notes do not count).\n\
                        Nothing is changed or locked, and secrets are not shown; a live broker's files may be looked at.")]
pub struct InspectArgs {
    /// What PATH is.
    pub kind: InspectKind,
    /// A file, or a directory for `metadata`, `offsets`, `shares`, `transactions` and `log-dir`.
    pub path: PathBuf,
    /// Segments and the metadata log: show every record, not only batch headers.
    #[arg(long)]
    pub records: bool,
}

/// What can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InspectKind {
    /// A `.log` file: batches, CRCs, control records.
    Segment,
    /// A `.index`, `.timeindex`, `.txnindex` or producer `.snapshot` file.
    Index,
    /// An offset checkpoint, `leader-epoch-checkpoint`, `partition.metadata`, `meta.properties` or `.kafka_cleanshutdown`.
    Checkpoint,
    /// A metadata `.checkpoint`, a metadata segment, or `__cluster_metadata-0`.
    Metadata,
    /// A segment or partition directory of `__consumer_offsets`.
    Offsets,
    /// A segment or partition directory of `__share_group_state`.
    Shares,
    /// A segment or partition directory of `__transaction_state`.
    Transactions,
    /// A whole log dir: partitions, ends, findings.
    LogDir,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A node's own server.properties; once per node, controllers that stand apart included.
    #[arg(long = "broker-config", value_name = "FILE", required_unless_present = "coordinator")]
    pub broker_configs: Vec<PathBuf>,
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Folder for pins, as it would be given to `snapshot create`.
    #[arg(long, value_name = "DIR")]
    pub staging: Option<PathBuf>,
    /// The agents that are connected to this coordinator look, each at its own node and vault and with its own rights.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["broker_configs", "staging"])]
    pub coordinator: Option<String>,
    /// With --coordinator: only these nodes.
    #[arg(long = "node", value_name = "ID", requires = "coordinator")]
    pub only: Vec<i32>,
    /// With --coordinator: the cluster's name or id, where agents of several are connected.
    #[arg(long, value_name = "NAME", requires = "coordinator")]
    pub cluster: Option<String>,
    #[command(flatten)]
    pub security: SecurityArgs,
}
