//! `segvault restore verify`.

use std::fmt;

use anyhow::Result;
use segvault_agent::restore::verify as verify_node;
use segvault_alignment::restore::Severity;
use segvault_proto::RestoreDeed;
use serde::Serialize;

use super::FindingReport;
use super::prepare::prepare;
use crate::args::RestoreArgs;
use crate::fleet;
use crate::output::{self, Ending};

/// What `restore verify` prints.
#[derive(Serialize)]
struct VerifyReport {
    point: String,
    /// Number of the saved plan that it was held against.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<u64>,
    ok: bool,
    findings: Vec<FindingReport>,
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| finding.fmt(f))?;
        let verdict = if self.ok {
            "is as planned"
        } else {
            "is NOT as planned: do not start a broker on it if none has started yet"
        };
        writeln!(f, "what was written for point {} {verdict}", self.point)
    }
}

/// `segvault restore verify`.
pub fn verify(args: &RestoreArgs, json: bool) -> Result<Ending> {
    if let Some(coordinator) = &args.coordinator {
        return fleet::restore(coordinator, args, RestoreDeed::Verify, json);
    }
    let prepared = prepare(args)?;
    let plan = &prepared.plan;
    let findings: Vec<_> = (0..plan.nodes.len()).flat_map(|node| verify_node(plan, node)).collect();
    let ok = !findings.iter().any(|finding| finding.severity == Severity::Warning);
    let report = VerifyReport {
        point: plan.point.to_string(),
        plan: prepared.saved,
        ok,
        findings: findings.iter().map(FindingReport::from).collect(),
    };
    output::print(&report, json)?;
    Ok(Ending::with_findings(!ok))
}
