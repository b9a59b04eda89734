//! `segvault doctor`: what is wrong, before anything is done.

use std::fmt;

use anyhow::Result;
use segvault_agent::doctor::doctor;
use segvault_proto::{Finding, PROTOCOL_VERSION, Severity, rpc};
use segvault_vault::Access;
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::fleet::{control, failed};
use crate::output::{self, Ending};
use crate::vault;

/// What `doctor` prints.
#[derive(Serialize)]
struct Diagnosis {
    /// Nothing worse than a warning.
    ok: bool,
    findings: Vec<FindingReport>,
}

#[derive(Serialize)]
struct FindingReport {
    /// `info`, `warning` or `error`.
    severity: &'static str,
    /// Whose agent has found it, if an agent has.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_id: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    subject: String,
    message: String,
    remedy: String,
}

impl FindingReport {
    fn new(Finding { severity, subject, message, remedy }: Finding, agent: Option<(i32, &str)>) -> Self {
        let severity = match severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let (node_id, host) = agent.map(|(node_id, host)| (node_id, host.to_owned())).unzip();
        Self { severity, node_id, host, subject, message, remedy }
    }
}

impl From<Vec<(Finding, Option<(i32, &str)>)>> for Diagnosis {
    /// The worst first.
    fn from(mut findings: Vec<(Finding, Option<(i32, &str)>)>) -> Self {
        findings.sort_by_key(|(finding, _)| std::cmp::Reverse(finding.severity));
        let ok = !findings.iter().any(|(finding, _)| finding.severity == Severity::Error);
        Self { ok, findings: findings.into_iter().map(|(finding, agent)| FindingReport::new(finding, agent)).collect() }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for FindingReport { severity, node_id, host, subject, message, remedy } in &self.findings {
            let mark = match *severity {
                "error" => "ERROR",
                severity => severity,
            };
            write!(f, "{mark:7}  ")?;
            if let (Some(node_id), Some(host)) = (node_id, host) {
                write!(f, "node {node_id} ({host}): ")?;
            }
            writeln!(f, "{subject}: {message}")?;
            if !remedy.is_empty() {
                writeln!(f, "         hint: {remedy}")?;
            }
        }
        f.write_str(if self.ok { "ready for a capture\n" } else { "a capture would fail, or the broker would\n" })
    }
}

/// `segvault doctor`.
pub fn run(args: &DoctorArgs, json: bool) -> Result<Ending> {
    let diagnosis = match &args.coordinator {
        Some(coordinator) => ask_agents(coordinator, args)?,
        None => look(args),
    };
    output::print(&diagnosis, json)?;
    Ok(Ending::with_findings(!diagnosis.ok))
}

/// Looks at nodes of this host.
fn look(args: &DoctorArgs) -> Diagnosis {
    let mut findings: Vec<Finding> =
        args.broker_configs.iter().flat_map(|config| doctor(config, args.staging.as_deref())).collect();
    if args.vault.vault.is_some() || args.vault.vault_config.is_some() {
        findings.push(examine_vault(args));
    }
    findings.into_iter().map(|finding| (finding, None)).collect::<Vec<_>>().into()
}

/// Has a fleet's agents look.
fn ask_agents(coordinator: &str, args: &DoctorArgs) -> Result<Diagnosis> {
    let request = rpc::ExamineRequest {
        protocol: PROTOCOL_VERSION,
        cluster: args.cluster.clone().unwrap_or_default(),
        nodes: args.only.clone(),
    };
    let reply = vault::runtime()?.block_on(async {
        let mut control = control(coordinator, args.security.clone()).await?;
        control.examine(request).await.map_err(|status| failed(coordinator, &status))
    })?;
    let nodes = reply.into_inner().nodes;
    let mut findings = Vec::new();
    for node in &nodes {
        for finding in &node.findings {
            findings.push((Finding::try_from(finding.clone())?, Some((node.node_id, &node.host[..]))));
        }
    }
    Ok(findings.into())
}

/// Opens the vault for writing, which makes its store prove that create-if-absent has one winner.
fn examine_vault(args: &DoctorArgs) -> Finding {
    let subject = args.vault.vault.clone().unwrap_or_else(|| "vault".to_owned());
    let opened = vault::runtime().and_then(|runtime| {
        let vault = vault::open(&args.vault, Access::Write, &runtime)?;
        Ok((vault.location().to_string(), vault.id()))
    });
    match opened {
        Ok((subject, id)) => Finding {
            severity: Severity::Info,
            subject,
            message: format!("vault {id}, and its store honours create-if-absent"),
            remedy: String::new(),
        },
        Err(error) => {
            Finding { severity: Severity::Error, subject, message: format!("{error:#}"), remedy: String::new() }
        }
    }
}
