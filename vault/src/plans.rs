//! Plans of restores: keeping one, finding one.
//!
//! Like intents they are numbered densely from 1, created if absent, never changed and never deleted. A plan decides
//! nothing: whoever follows it holds its root against the outcome of its point.

use futures::stream::{self, StreamExt, TryStreamExt};
use segvault_vault_format::ids::PlanId;
use segvault_vault_format::keys::{Key, check_cluster_id};
use segvault_vault_format::plan::Plan;

use crate::error::VaultError;
use crate::points::READS_AT_ONCE;
use crate::{Vault, random};

impl Vault {
    /// Keeps `plan` under the next free number of its cluster, and returns it with this number. Whatever number and
    /// nonce it has are replaced.
    pub async fn save_plan(&self, plan: Plan) -> Result<Plan, VaultError> {
        check_cluster_id(&plan.cluster_id)?;
        let mut plan = Plan { nonce: random::<16>()?.to_vec(), ..plan };
        plan.number = self.newest_plan(&plan.cluster_id).await?;
        loop {
            plan.number += 1;
            plan.check()?;
            let key = Key::Plan(PlanId { cluster_id: plan.cluster_id.clone(), number: plan.number });
            // Somebody else may be faster: then his is there, and the next number is tried.
            if self.create(&key, &plan).await? == plan {
                return Ok(plan);
            }
        }
    }

    /// Number of the newest plan of a cluster; 0 if there is none.
    pub async fn newest_plan(&self, cluster_id: &str) -> Result<u64, VaultError> {
        self.newest(|number| Key::Plan(PlanId { cluster_id: cluster_id.to_owned(), number })).await
    }

    /// A plan, checked; [`VaultError::NoPlan`] if there is none.
    pub async fn plan(&self, id: &PlanId) -> Result<Plan, VaultError> {
        let key = Key::Plan(id.clone());
        let missing = || VaultError::NoPlan { location: self.location().clone(), plan: id.clone() };
        let plan: Plan = self.load(&key).await?.ok_or_else(missing)?;
        if (&plan.cluster_id, plan.number) != (&id.cluster_id, id.number) {
            return Err(VaultError::corrupt(self.location(), &key, "it is another plan, or that of another cluster"));
        }
        plan.check().map_err(|error| VaultError::corrupt(self.location(), &key, error))?;
        Ok(plan)
    }

    /// All plans of a cluster, oldest first.
    pub async fn list_plans(&self, cluster_id: &str) -> Result<Vec<Plan>, VaultError> {
        let newest = self.newest_plan(cluster_id).await?;
        let load = |number| async move { self.plan(&PlanId { cluster_id: cluster_id.to_owned(), number }).await };
        stream::iter(1..=newest).map(load).buffered(READS_AT_ONCE).try_collect().await
    }
}
