//! `segvault restore plan | plans | run | verify`, on the host's own nodes; [`crate::fleet`] has the agents do it.
//!
//! A restore goes by the point and the `server.properties` of the nodes at hand, or by a plan that was saved in the
//! vault before. Either way the same pure function of `segvault_alignment` says what is written; a saved plan only
//! fixes which point it is given and for which nodes, so that all hosts of a fleet give it the same.

mod plan;
mod plans;
mod prepare;
mod run;
mod verify;

use std::fmt;

use segvault_alignment::restore::{Finding, Severity};
use serde::Serialize;

pub use plan::plan;
pub use plans::plans;
pub use prepare::parse_plan;
pub use run::run;
pub use verify::verify;

/// A finding, as all verbs print it.
#[derive(Serialize)]
pub struct FindingReport {
    /// `note` or `warning`.
    pub severity: &'static str,
    pub what: String,
}

impl FindingReport {
    pub fn new(is_warning: bool, what: &str) -> Self {
        Self { severity: if is_warning { "warning" } else { "note" }, what: what.to_owned() }
    }
}

impl From<&Finding> for FindingReport {
    fn from(finding: &Finding) -> Self {
        Self::new(finding.severity == Severity::Warning, &finding.what)
    }
}

impl fmt::Display for FindingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.severity == "warning" { "!" } else { "-" };
        writeln!(f, "  {mark} {}", self.what)
    }
}
