//! Looks at the node when the coordinator asks, beside whatever the worker does: nothing is created and nothing locked.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use segvault_proto::{Finding, Severity};
use segvault_transport::explain;
use segvault_vault::Vault;

use crate::doctor::doctor;

/// The vault answers a small question within this time, or something is wrong with it.
const VAULT_DEADLINE: Duration = Duration::from_secs(10);

/// What is looked at.
#[derive(Clone)]
pub(super) struct Examiner {
    /// The node's `server.properties`.
    pub config: PathBuf,
    /// Folder for pins, if one was given.
    pub staging: Option<PathBuf>,
    pub vault: Vault,
    /// One look at a time: each reads every replica's end.
    pub turn: Arc<Mutex<()>>,
}

impl Examiner {
    /// Looks at the node and at the way to the vault. Blocking.
    pub fn examine(&self) -> Vec<Finding> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut findings = doctor(&self.config, self.staging.as_deref());
        findings.push(self.vault());
        findings
    }

    fn vault(&self) -> Finding {
        let asked = async { tokio::time::timeout(VAULT_DEADLINE, self.vault.clusters()).await };
        let failed = |message: String| Finding {
            severity: Severity::Error,
            subject: self.vault.location().to_string(),
            message,
            remedy: "look whether this host reaches the store, and whether its credentials are right".to_owned(),
        };
        match self.vault.wait(asked) {
            Ok(Ok(_)) => Finding {
                severity: Severity::Info,
                subject: self.vault.location().to_string(),
                message: format!("vault {} answers", self.vault.id()),
                remedy: String::new(),
            },
            Ok(Err(error)) => failed(explain(&error)),
            Err(_) => failed(format!("the vault does not answer within {} s", VAULT_DEADLINE.as_secs())),
        }
    }
}
