//! `segvault cert`: certificates for a fleet, and what they say.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use segvault_agent::node::Node;
use segvault_transport::Identity;
use segvault_transport::authority::{self, Issued};
use segvault_transport::certificate::Certificate;
use segvault_transport::credentials::read_certificates;
use serde::Serialize;

use crate::output::{self, Ending};

/// A certificate that ends within this time is a finding.
const SOON: SignedDuration = SignedDuration::from_hours(24 * 30);

/// Certificate verbs.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Make an authority: ca.pem, which every host of the fleet gets, and ca.key, which stays where it is.
    #[command(after_help = "Examples:\n  segvault cert authority --dir ca")]
    Authority(AuthorityArgs),
    /// Issue a certificate and its key, for the coordinator, a node's agent or an operator.
    #[command(after_help = "Each needs its own certificate, its own key and the authority's ca.pem.\n\n\
                            Examples:\n  segvault cert issue --dir ca coordinator --host backup.example.org --host 10.0.0.7\n  \
                            segvault cert issue --dir ca agent --cluster-id MkU3OEVBNTcwNTJENDM2Qg --node-id 3\n  \
                            segvault cert issue --dir ca agent --broker-config /etc/kafka/server.properties\n  \
                            segvault cert issue --dir ca operator --name ann --days 90 --out ann")]
    Issue(IssueArgs),
    /// Show whom a certificate is for and how long it is valid.
    #[command(
        after_help = "Exit codes: 0 valid; 1 it cannot be read; 2 wrong usage; 3 expired, not valid yet, or ending within 30 days.\n\n\
                            Examples:\n  segvault cert show /etc/segvault/agent-3.pem"
    )]
    Show(ShowArgs),
}

/// Options of `cert authority`.
#[derive(Debug, Args)]
pub struct AuthorityArgs {
    /// Where to write it; only who signs certificates should be able to read this directory.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// What the authority is called in the certificates that it issues.
    #[arg(long, value_name = "NAME", default_value = "segvault")]
    pub name: String,
    /// How long it is valid, and at most what it issues.
    #[arg(long, value_name = "N", default_value_t = 3650)]
    pub days: u32,
}

/// Options of `cert issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// Where the authority is.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// How long the certificate is valid, within the time of the authority.
    #[arg(long, value_name = "N", default_value_t = 365, global = true)]
    pub days: u32,
    /// Where to write certificate and key [default: the authority's directory].
    #[arg(long, value_name = "DIR", global = true)]
    pub out: Option<PathBuf>,
    /// Whom for.
    #[command(subcommand)]
    pub whom: Whom,
}

/// Whom a certificate is for.
#[derive(Debug, Subcommand)]
pub enum Whom {
    /// The coordinator.
    Coordinator(CoordinatorArgs),
    /// The agent of a node, or the agents of several.
    Agent(AgentArgs),
    /// An operator.
    Operator(OperatorArgs),
}

/// Options of `cert issue coordinator`.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// A name or IP address that agents and operators reach it by; once for each.
    #[arg(long = "host", value_name = "NAME", required = true)]
    pub hosts: Vec<String>,
}

/// Options of `cert issue agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The Kafka cluster's id.
    #[arg(long, value_name = "ID", requires = "node_id", required_unless_present = "broker_configs")]
    pub cluster_id: Option<String>,
    /// The node's id.
    #[arg(long, value_name = "N", requires = "cluster_id", required_unless_present = "broker_configs")]
    pub node_id: Option<i32>,
    /// Take both from a node's own server.properties and its log dirs; once per node.
    #[arg(long = "broker-config", value_name = "FILE", conflicts_with_all = ["cluster_id", "node_id"])]
    pub broker_configs: Vec<PathBuf>,
}

/// Options of `cert issue operator`.
#[derive(Debug, Args)]
pub struct OperatorArgs {
    /// What the operator is called.
    #[arg(long, value_name = "NAME")]
    pub name: String,
}

/// Options of `cert show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A PEM file with certificates.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// `segvault cert`.
pub fn run(command: &CertCommand, json: bool) -> Result<Ending> {
    match command {
        CertCommand::Authority(args) => create_authority(args, json),
        CertCommand::Issue(args) => issue(args, json),
        CertCommand::Show(args) => show(args, json),
    }
}

/// One pair of files that was written.
#[derive(Serialize)]
struct Written {
    /// Whom the certificate is for; none for an authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    certificate: PathBuf,
    key: PathBuf,
    not_after: String,
}

impl Written {
    fn new(identity: Option<&Identity>, issued: Issued) -> Self {
        let Issued { cert, key, not_after } = issued;
        Self { identity: identity.map(ToString::to_string), certificate: cert, key, not_after: not_after.to_string() }
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        match &self.identity {
            Some(identity) => writeln!(f, "{identity}: {certificate}, {key}, valid until {}", self.not_after),
            None => writeln!(f, "authority: {certificate}, {key}, valid until {}", self.not_after),
        }
    }
}

/// `segvault cert authority`.
pub fn create_authority(args: &AuthorityArgs, json: bool) -> Result<Ending> {
    let issued = authority::create_authority(&args.dir, &args.name, args.days, Timestamp::now())?;
    output::print(&Written::new(None, issued), json)?;
    Ok(Ending::Done)
}

/// What `cert issue` prints.
#[derive(Serialize)]
struct AllWritten {
    issued: Vec<Written>,
}

impl fmt::Display for AllWritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.issued.iter().try_for_each(|written| write!(f, "{written}"))
    }
}

/// `segvault cert issue`.
pub fn issue(args: &IssueArgs, json: bool) -> Result<Ending> {
    let hosts: &[String] = match &args.whom {
        Whom::Coordinator(coordinator) => &coordinator.hosts,
        _ => &[],
    };
    let out = args.out.as_ref().unwrap_or(&args.dir);
    let issue_one = |identity: &Identity| {
        let issued = authority::issue(&args.dir, identity, hosts, args.days, out, Timestamp::now())?;
        Ok(Written::new(Some(identity), issued))
    };
    // All of them are known to be possible before the first is written.
    let issued = identities(&args.whom)?.iter().map(issue_one).collect::<Result<_>>()?;
    output::print(&AllWritten { issued }, json)?;
    Ok(Ending::Done)
}

fn identities(whom: &Whom) -> Result<Vec<Identity>> {
    match whom {
        Whom::Coordinator(_) => Ok(vec![Identity::Coordinator]),
        Whom::Operator(operator) => Ok(vec![Identity::operator(&operator.name)?]),
        Whom::Agent(AgentArgs { cluster_id: Some(cluster_id), node_id: Some(node_id), .. }) => {
            Ok(vec![Identity::agent(cluster_id, *node_id)?])
        }
        Whom::Agent(agent) => agent_identities(&agent.broker_configs),
    }
}

fn agent_identities(broker_configs: &[PathBuf]) -> Result<Vec<Identity>> {
    let mut identities: Vec<Identity> = Vec::new();
    for config in broker_configs {
        let facts = Node::open(config)?.facts;
        let identity =
            Identity::agent(&facts.cluster_id, facts.node_id).with_context(|| config.display().to_string())?;
        // Also one of another cluster: the files would have the same name.
        if identities.iter().any(|other| other.file_stem() == identity.file_stem()) {
            bail!(
                "{}: there is a node {} before it already\nhint: give each node's own server.properties, once, and the \
                 nodes of one cluster at a time",
                config.display(),
                facts.node_id
            );
        }
        identities.push(identity);
    }
    Ok(identities)
}

/// What `cert show` prints.
#[derive(Serialize)]
struct Shown {
    file: PathBuf,
    /// Every certificate is valid, and will be for a while.
    ok: bool,
    certificates: Vec<ShownCertificate>,
}

#[derive(Serialize)]
struct ShownCertificate {
    /// Its `segvault://` name; an authority has none.
    identity: Option<String>,
    subject: String,
    issuer: String,
    dns_names: Vec<String>,
    ip_addresses: Vec<IpAddr>,
    uris: Vec<String>,
    not_before: String,
    not_after: String,
    state: State,
}

/// How a certificate's time stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    NotYetValid,
    Valid,
    EndsSoon,
    Expired,
}

impl State {
    fn at(now: Timestamp, not_before: Timestamp, not_after: Timestamp) -> Self {
        match now.duration_until(not_after) {
            _ if now < not_before => Self::NotYetValid,
            left if left.is_negative() => Self::Expired,
            left if left < SOON => Self::EndsSoon,
            _ => Self::Valid,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotYetValid => "NOT VALID YET",
            Self::Valid => "valid",
            Self::EndsSoon => "ENDS SOON",
            Self::Expired => "EXPIRED",
        })
    }
}

impl ShownCertificate {
    fn new(certificate: Certificate, now: Timestamp) -> Self {
        let identity = certificate.identity().ok().map(|identity| identity.to_string());
        let Certificate { subject, issuer, not_before, not_after, dns_names, ip_addresses, uris, .. } = certificate;
        let state = State::at(now, not_before, not_after);
        let (not_before, not_after) = (not_before.to_string(), not_after.to_string());
        Self { identity, subject, issuer, dns_names, ip_addresses, uris, not_before, not_after, state }
    }

    /// Everything that it is valid for, apart from its identity.
    fn other_names(&self) -> String {
        let uris = self.uris.iter().filter(|uri| Some(*uri) != self.identity.as_ref()).cloned();
        let addresses = self.ip_addresses.iter().map(IpAddr::to_string);
        let names: Vec<_> = self.dns_names.iter().cloned().chain(addresses).chain(uris).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

impl fmt::Display for ShownCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "identity  {}", self.identity.as_deref().unwrap_or("none"))?;
        writeln!(f, "names     {}", self.other_names())?;
        writeln!(f, "subject   {}", self.subject)?;
        writeln!(f, "issuer    {}", self.issuer)?;
        writeln!(f, "validity  {} to {}: {}", self.not_before, self.not_after, self.state)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, certificate) in self.certificates.iter().enumerate() {
            write!(f, "{}{certificate}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// `segvault cert show`.
pub fn show(args: &ShowArgs, json: bool) -> Result<Ending> {
    let shown = examine(&args.file, Timestamp::now())?;
    let ok = shown.ok;
    output::print(&shown, json)?;
    Ok(Ending::with_findings(!ok))
}

fn examine(file: &Path, now: Timestamp) -> Result<Shown> {
    let certificates = read_certificates(file)?
        .iter()
        .map(|der| Ok(ShownCertificate::new(Certificate::decode(der)?, now)))
        .collect::<Result<Vec<_>>>()
        .with_context(|| file.display().to_string())?;
    let ok = certificates.iter().all(|certificate| certificate.state == State::Valid);
    Ok(Shown { file: file.into(), ok, certificates })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: CertCommand,
    }

    fn parse(line: &str) -> Result<CertCommand, clap::Error> {
        Cli::try_parse_from(std::iter::once("cert").chain(line.split_whitespace())).map(|cli| cli.command)
    }

    #[test]
    fn an_agent_is_given_by_its_ids_or_by_its_files() {
        for line in [
            "issue --dir d agent --cluster-id x --node-id 3",
            "issue --dir d agent --broker-config a --broker-config b --days 3 --out o",
            "issue --dir d --days 3 --out o operator --name ann",
            "issue --dir d coordinator --host a --host 10.0.0.1",
        ] {
            parse(line).unwrap();
        }
        for line in [
            "issue --dir d agent",
            "issue --dir d agent --cluster-id x",
            "issue --dir d agent --node-id 3",
            "issue --dir d agent --cluster-id x --node-id 3 --broker-config a",
            "issue --dir d coordinator",
            "issue --dir d operator",
            "issue --dir d",
            "issue agent --cluster-id x --node-id 3",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn days_and_folder_count_wherever_they_are_given() {
        let CertCommand::Issue(args) = parse("issue --dir d operator --name ann --days 3 --out o").unwrap() else {
            panic!("it is issue");
        };
        assert_eq!((args.days, args.out), (3, Some(PathBuf::from("o"))));
    }

    #[test]
    fn the_end_of_a_certificate_is_seen_coming() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let day = |days: i32| start + SignedDuration::from_hours(24) * days;
        let states = [
            (-1, State::NotYetValid),
            (0, State::Valid),
            (70, State::Valid),
            (71, State::EndsSoon),
            (100, State::EndsSoon),
            (101, State::Expired),
        ];
        for (days, state) in states {
            assert_eq!(State::at(day(days), start, day(100)), state, "{days}");
        }
    }

    #[test]
    fn what_is_issued_is_shown() {
        let dir = std::env::temp_dir().join(format!("segvault-cert-{}", std::process::id()));
        let now = Timestamp::now();
        authority::create_authority(&dir, "fleet", 100, now).unwrap();
        let hosts = ["a.example".to_owned(), "10.0.0.1".to_owned()];
        authority::issue(&dir, &Identity::Coordinator, &hosts, 20, &dir, now).unwrap();
        let shown = examine(&dir.join("coordinator.pem"), now).unwrap();
        let authority = examine(&dir.join("ca.pem"), now).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let text = shown.to_string();
        assert!(text.starts_with("identity  segvault://coordinator\nnames     a.example, 10.0.0.1\n"), "{text}");
        assert!(text.contains("issuer    CN=fleet\n") && text.ends_with(": ENDS SOON\n"), "{text}");
        assert!(!shown.ok && authority.ok && authority.to_string().starts_with("identity  none\nnames     none\n"));
    }
}
