//! Plans of restores that are kept in the vault: what goes where, read by operators before and by all hosts while a
//! fleet is restored (the schema is in `docs/vault-format.md`).
//!
//! A plan names its point by number *and* root, and the checkpoint of the metadata by its hash. So hosts that follow
//! the same plan restore the same bytes, or find out before they touch anything.
//!
//! The nodes with their log dirs are what a restore goes by. Replicas, bytes, sources, what is left out and findings
//! are for people: a restore works them out anew from the point.
//!
//! The messages are wire structs: [`Plan::check`] says whether the values make sense, and whoever reads one from a
//! vault calls it first.

use std::collections::BTreeSet;

use prost::Message;

use crate::envelope::Object;
use crate::ids::BlobId;
use crate::keys::check_cluster_id;
use crate::manifest::ManifestError;

/// Longest `made_by` accepted, in bytes. It is a line of a listing.
pub const MADE_BY_LEN_MAX: usize = 256;

/// A plan of a restore.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Plan {
    /// Kafka's cluster id.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// The plan's number.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// Number of the point that is restored, of the same cluster.
    #[prost(uint64, tag = "3")]
    pub point: u64,
    /// BLAKE3 of the point's encoded manifest, as in its outcome.
    #[prost(bytes = "vec", tag = "4")]
    pub root: Vec<u8>,
    /// When it was made, milliseconds since 1970. For people; no decision rests on it.
    #[prost(int64, tag = "5")]
    pub made_ms: i64,
    /// Program and process, for people.
    #[prost(string, tag = "6")]
    pub made_by: String,
    /// 16 random bytes: whoever reads back a plan after an unclear answer knows by them whether it is its own.
    #[prost(bytes = "vec", tag = "7")]
    pub nonce: Vec<u8>,
    /// File name of the metadata checkpoint that every controller gets.
    #[prost(string, tag = "8")]
    pub checkpoint: String,
    /// BLAKE3 of that file.
    #[prost(bytes = "vec", tag = "9")]
    pub checkpoint_sum: Vec<u8>,
    /// The nodes to restore, by rising id.
    #[prost(message, repeated, tag = "10")]
    pub nodes: Vec<PlannedNode>,
    /// Partitions with a replica on one of the nodes.
    #[prost(uint64, tag = "11")]
    pub partitions: u64,
    /// Partitions that are not restored, or not to all of their replicas, by topic name and partition.
    #[prost(message, repeated, tag = "12")]
    pub left_out: Vec<LeftOut>,
    /// What an operator should know, as found when the plan was made.
    #[prost(message, repeated, tag = "13")]
    pub findings: Vec<PlanFinding>,
}

/// A node that is restored, as its `server.properties` must say.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PlannedNode {
    /// `node.id`.
    #[prost(int32, tag = "1")]
    pub node_id: i32,
    /// Has the broker role.
    #[prost(bool, tag = "2")]
    pub broker: bool,
    /// Has the controller role.
    #[prost(bool, tag = "3")]
    pub controller: bool,
    /// `log.dirs` in their order, then the metadata log dir if it stands apart.
    #[prost(message, repeated, tag = "4")]
    pub log_dirs: Vec<PlannedLogDir>,
    /// How many of `log_dirs` are `log.dirs`.
    #[prost(uint32, tag = "5")]
    pub data_dirs: u32,
    /// Index into `log_dirs` of the metadata log dir.
    #[prost(uint32, tag = "6")]
    pub metadata_log_dir: u32,
    /// Ids in `controller.quorum.voters`; empty if it is not set.
    #[prost(int32, repeated, tag = "7")]
    pub static_voters: Vec<i32>,
    /// `log.index.interval.bytes`.
    #[prost(uint32, tag = "8")]
    pub index_interval: u32,
    /// `log.index.size.max.bytes`.
    #[prost(uint32, tag = "9")]
    pub index_len_max: u32,
}

/// A log dir of a [`PlannedNode`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PlannedLogDir {
    /// As `server.properties` names it.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Replicas that go there.
    #[prost(uint64, tag = "2")]
    pub replicas: u64,
    /// Bytes of their logs.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
    /// Whose replicas they were captured from, by rising node; they add up to `replicas` and `bytes`.
    #[prost(message, repeated, tag = "4")]
    pub sources: Vec<PlannedSource>,
}

/// What a log dir gets of one source.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PlannedSource {
    /// The node; -1 for replicas that get an empty log.
    #[prost(sint32, tag = "1")]
    pub node_id: i32,
    /// Replicas.
    #[prost(uint64, tag = "2")]
    pub replicas: u64,
    /// Bytes of their logs.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
}

/// A partition that is not restored, or not to all of its replicas.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LeftOut {
    /// Topic name.
    #[prost(string, tag = "1")]
    pub topic: String,
    /// Partition.
    #[prost(int32, tag = "2")]
    pub partition: i32,
    /// Why none of its bytes are restored, on no node; empty if they are.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// Nodes that have a replica of it and are not in the plan, rising.
    #[prost(int32, repeated, tag = "4")]
    pub nodes: Vec<i32>,
}

/// What an operator should know.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PlanFinding {
    /// Asks for a decision before a broker starts.
    #[prost(bool, tag = "1")]
    pub warning: bool,
    /// What is the matter.
    #[prost(string, tag = "2")]
    pub what: String,
}

impl Plan {
    /// Says whether the parts fit together, and whether it is short enough for an object.
    pub fn check(&self) -> Result<(), ManifestError> {
        let fail = |why: String| Err(ManifestError::new(format!("plan {}/{}", self.cluster_id, self.number), why));
        if let Err(error) = check_cluster_id(&self.cluster_id) {
            return fail(error.to_string());
        }
        if self.number == 0 || self.point == 0 || self.made_by.len() > MADE_BY_LEN_MAX {
            return fail("impossible number, point or maker".into());
        }
        if self.nonce.len() != 16 || self.checkpoint.is_empty() {
            return fail("impossible nonce or checkpoint".into());
        }
        if let Some(error) = [&self.root, &self.checkpoint_sum].iter().find_map(|sum| BlobId::from_slice(sum).err()) {
            return fail(error.to_string());
        }
        if self.nodes.is_empty() || !self.nodes.is_sorted_by(|a, b| a.node_id < b.node_id) {
            return fail("its nodes do not rise".into());
        }
        for node in &self.nodes {
            node.check().or_else(|why| fail(format!("node {}: {why}", node.node_id)))?;
        }
        let place = |entry: &LeftOut| (entry.topic.clone(), entry.partition);
        if !self.left_out.is_sorted_by(|a, b| place(a) < place(b)) {
            return fail("the partitions that are left out do not rise".into());
        }
        if let Some(entry) = self.left_out.iter().find(|entry| !entry.makes_sense()) {
            return fail(format!("impossible entry for {}-{}, which is left out", entry.topic, entry.partition));
        }
        match self.encoded_len() {
            len if len > Self::LEN_MAX as usize => {
                fail(format!("it is too long: {len} bytes, {} at most", Self::LEN_MAX))
            }
            _ => Ok(()),
        }
    }

    /// The root of the point, once the plan was checked.
    ///
    /// # Panics
    /// If [`Plan::check`] would fail.
    pub fn root_id(&self) -> BlobId {
        BlobId::from_slice(&self.root).expect("a checked plan")
    }

    /// Bytes of logs to write, all replicas on all nodes.
    pub fn bytes(&self) -> u64 {
        self.nodes.iter().flat_map(|node| &node.log_dirs).map(|dir| dir.bytes).fold(0, u64::saturating_add)
    }
}

impl PlannedNode {
    fn check(&self) -> Result<(), String> {
        if self.node_id < 0 || !(self.broker || self.controller) {
            return Err("impossible id, or no role".into());
        }
        let (dirs, data, metadata) = (self.log_dirs.len(), self.data_dirs as usize, self.metadata_log_dir as usize);
        // All are log.dirs, or all but the last, which is the metadata log dir.
        let sound = dirs == data && metadata < dirs || dirs == data + 1 && metadata == data;
        if data == 0 || !sound {
            return Err(format!("{dirs} log dirs, {data} of them log.dirs, cannot have metadata in {metadata}"));
        }
        let paths: BTreeSet<_> = self.log_dirs.iter().map(|dir| &dir.path).collect();
        if paths.len() < dirs || paths.iter().any(|path| path.is_empty()) {
            return Err("a log dir has no name, or that of another".into());
        }
        match self.log_dirs.iter().find(|dir| !dir.adds_up()) {
            Some(dir) => Err(format!("the sources of {} do not rise, or do not add up", dir.path)),
            None => Ok(()),
        }
    }
}

impl PlannedLogDir {
    fn adds_up(&self) -> bool {
        let sum = |count: fn(&PlannedSource) -> u64| self.sources.iter().map(count).try_fold(0, u64::checked_add);
        self.sources.is_sorted_by(|a, b| a.node_id < b.node_id)
            && sum(|source| source.replicas) == Some(self.replicas)
            && sum(|source| source.bytes) == Some(self.bytes)
    }
}

impl LeftOut {
    fn makes_sense(&self) -> bool {
        !self.topic.is_empty()
            && self.partition >= 0
            && !(self.reason.is_empty() && self.nodes.is_empty())
            && self.nodes.is_sorted_by(|a, b| a < b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope;
    use crate::ids::VaultId;

    fn log_dir(path: &str) -> PlannedLogDir {
        let source = |node_id, bytes| PlannedSource { node_id, replicas: 1, bytes };
        PlannedLogDir { path: path.into(), replicas: 2, bytes: 70, sources: vec![source(-1, 0), source(2, 70)] }
    }

    fn node(node_id: i32) -> PlannedNode {
        PlannedNode {
            node_id,
            broker: true,
            controller: true,
            log_dirs: vec![log_dir("/a"), log_dir("/b"), PlannedLogDir { path: "/m".into(), ..Default::default() }],
            data_dirs: 2,
            metadata_log_dir: 2,
            static_voters: vec![3, 1],
            index_interval: 4096,
            index_len_max: 1 << 20,
        }
    }

    fn plan() -> Plan {
        let left_out = |topic: &str, reason: &str, nodes: &[i32]| LeftOut {
            topic: topic.into(),
            partition: 0,
            reason: reason.into(),
            nodes: nodes.to_vec(),
        };
        Plan {
            cluster_id: "c".into(),
            number: 1,
            point: 7,
            root: vec![1; 32],
            made_by: "a test".into(),
            nonce: vec![2; 16],
            checkpoint: "00000000000000000009-0000000001.checkpoint".into(),
            checkpoint_sum: vec![3; 32],
            nodes: vec![node(1), node(3)],
            partitions: 4,
            left_out: vec![left_out("a", "every replica is down", &[]), left_out("b", "", &[2, 4])],
            findings: vec![PlanFinding { warning: true, what: "something".into() }],
            ..Plan::default()
        }
    }

    #[test]
    fn a_sound_plan_passes_and_each_defect_is_named() {
        assert_eq!(plan().check(), Ok(()));
        assert_eq!((plan().bytes(), plan().root_id()), (280, BlobId([1; 32])));
        type Defect = fn(&mut Plan);
        let table: [(Defect, &str); 21] = [
            (|p| p.cluster_id.clear(), "cluster id"),
            (|p| p.number = 0, "number"),
            (|p| p.point = 0, "point"),
            (|p| p.made_by = "x".repeat(257), "maker"),
            (|p| p.nonce.truncate(15), "nonce"),
            (|p| p.checkpoint.clear(), "checkpoint"),
            (|p| p.root.truncate(31), "blob id"),
            (|p| p.checkpoint_sum.push(0), "blob id"),
            (|p| p.nodes.clear(), "nodes"),
            (|p| p.nodes[1].node_id = 1, "nodes do not rise"),
            (|p| p.nodes[0].node_id = -1, "node -1"),
            (|p| (p.nodes[1].broker, p.nodes[1].controller) = (false, false), "no role"),
            (|p| p.nodes[1].metadata_log_dir = 3, "metadata in 3"),
            (|p| p.nodes[1].metadata_log_dir = 0, "metadata in 0"),
            (|p| p.nodes[1].data_dirs = 0, "0 of them log.dirs"),
            (|p| p.nodes[1].log_dirs[1].path = "/a".into(), "that of another"),
            (|p| p.nodes[1].log_dirs[1].bytes = 71, "sources of /b"),
            (|p| p.nodes[1].log_dirs[0].sources[1].replicas = u64::MAX, "sources of /a"),
            (|p| p.left_out.swap(0, 1), "left out do not rise"),
            (|p| p.left_out[0].reason.clear(), "a-0"),
            (|p| p.left_out[1].nodes = vec![4, 2], "b-0"),
        ];
        for (defect, expected) in table {
            let mut bad = plan();
            defect(&mut bad);
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should say {expected}");
        }
    }

    #[test]
    fn a_plan_is_an_object_of_its_own_kind() {
        let bytes = envelope::encode(VaultId([7; 16]), &plan());
        assert_eq!(bytes[8], 6);
        assert_eq!(envelope::decode::<Plan>(None, &bytes).unwrap().message, plan());
        assert!(envelope::decode::<crate::manifest::Outcome>(None, &bytes).is_err());
    }
}
