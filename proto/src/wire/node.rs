//! What an agent knows of its node.

use segvault_vault_format::keys::check_cluster_id;

use super::{Problem, WireError, all, each, from_count, not_negative, to_count, uuid};
use crate::rpc;
use crate::rpc::node_facts::StaticVoters;
use crate::{LogDirFacts, NodeFacts};

impl From<&NodeFacts> for rpc::NodeFacts {
    fn from(facts: &NodeFacts) -> Self {
        facts.clone().into()
    }
}

impl From<NodeFacts> for rpc::NodeFacts {
    fn from(facts: NodeFacts) -> Self {
        Self {
            node_id: facts.node_id,
            cluster_id: facts.cluster_id,
            broker: facts.broker,
            controller: facts.controller,
            log_dirs: all(facts.log_dirs),
            metadata_log_dir: from_count(facts.metadata_log_dir),
            static_voters: facts.static_voters.map(|node_ids| StaticVoters { node_ids }),
            compacts: facts.compacts,
        }
    }
}

impl TryFrom<rpc::NodeFacts> for NodeFacts {
    type Error = WireError;

    fn try_from(facts: rpc::NodeFacts) -> Result<Self, WireError> {
        check_cluster_id(&facts.cluster_id).map_err(|error| WireError::new("NodeFacts.cluster_id", error))?;
        Ok(Self {
            node_id: not_negative("NodeFacts.node_id", facts.node_id)?,
            cluster_id: facts.cluster_id,
            broker: facts.broker,
            controller: facts.controller,
            metadata_log_dir: index("NodeFacts.metadata_log_dir", facts.metadata_log_dir, facts.log_dirs.len())?,
            log_dirs: each(facts.log_dirs)?,
            static_voters: facts.static_voters.map(voters).transpose()?,
            compacts: facts.compacts,
        })
    }
}

fn index(field: &'static str, value: u64, len: usize) -> Result<usize, WireError> {
    match to_count(field, value)? {
        index if index < len => Ok(index),
        index => Err(WireError::new(field, Problem::NoSuchIndex { index, len })),
    }
}

fn voters(voters: StaticVoters) -> Result<Vec<i32>, WireError> {
    voters.node_ids.into_iter().map(|id| not_negative("NodeFacts.StaticVoters.node_ids", id)).collect()
}

impl From<LogDirFacts> for rpc::LogDirFacts {
    fn from(LogDirFacts { path, directory_id }: LogDirFacts) -> Self {
        Self { path, directory_id: directory_id.map(|id| id.0.to_vec()) }
    }
}

impl TryFrom<rpc::LogDirFacts> for LogDirFacts {
    type Error = WireError;

    fn try_from(rpc::LogDirFacts { path, directory_id }: rpc::LogDirFacts) -> Result<Self, WireError> {
        let directory_id = directory_id.map(|id| uuid("LogDirFacts.directory_id", &id)).transpose()?;
        Ok(Self { path, directory_id })
    }
}
