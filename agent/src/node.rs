//! The node that an agent speaks for: what its `server.properties` says, held against what its log dirs say.
//!
//! Everything that would make a capture of the wrong thing, or of half of it, is found here, before anything else is
//! done, and said with its remedy.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

use segvault_kafka_log::meta_properties::{MetaProperties, MetaPropertiesError, MetaVersion};
use segvault_kafka_log::names::META_PROPERTIES;
use segvault_kafka_log::server_properties::{Quorum, ServerProperties, ServerPropertiesError};
use segvault_proto::{LogDirFacts, NodeFacts};

use crate::capture::read_small;
use crate::restore::RESTORE_MARKER;

const META_HINT: &str = "its broker does not start with it either: put back what was in it (the node's other log dirs and \
                         the cluster's other nodes have the like), or leave the node out";

/// Why a node cannot be spoken for.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file or directory cannot be read.
    #[error("{}: {source}{}", path.display(), as_hint(.hint))]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do; may be empty.
        hint: String,
    },
    /// The configuration cannot be used.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ServerPropertiesError,
    },
    /// A log dir is no directory.
    #[error(
        "log dir {}: there is no such directory\n\
         hint: mount its disk, or take it out of log.dirs in {} as long as the broker runs without it; a node that has \
         lost all of them can be left out",
        path.display(), config.display()
    )]
    NoLogDir {
        /// The log dir.
        path: PathBuf,
        /// The configuration that names it.
        config: PathBuf,
    },
    /// A log dir has no `meta.properties`.
    #[error(
        "log dir {} is not formatted: it has no meta.properties\n\
         hint: check log.dirs in {}; a new node is formatted with kafka-storage.sh format",
        path.display(), config.display()
    )]
    NotFormatted {
        /// The log dir.
        path: PathBuf,
        /// The configuration that names it.
        config: PathBuf,
    },
    /// All log dirs are empty, so that nothing says which cluster the node is of.
    #[error(
        "node {node_id} has no meta.properties in any log dir, and its cluster is not known\n\
         hint: to have it restored, give --cluster-id or a certificate, which names it; check log.dirs in {} otherwise",
        config.display()
    )]
    UnknownCluster {
        /// The node.
        node_id: i32,
        /// The configuration that names the log dirs.
        config: PathBuf,
    },
    /// A restore of the log dir is not finished.
    #[error(
        "log dir {} holds a restore that is under way or was interrupted\n\
         hint: finish it first: segvault restore run goes on where it was",
        path.display()
    )]
    Restoring {
        /// The log dir.
        path: PathBuf,
    },
    /// A `meta.properties` cannot be used.
    #[error("{}: {source}\nhint: {META_HINT}", path.display())]
    Meta {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MetaPropertiesError,
    },
    /// A `meta.properties` that says nothing.
    #[error("{}: it says neither which node nor which cluster it is of\nhint: {META_HINT}", path.display())]
    EmptyMeta {
        /// The file.
        path: PathBuf,
    },
    /// A log dir of a cluster with ZooKeeper.
    #[error("{} is of a cluster with ZooKeeper, which is not supported\nhint: migrate the cluster to KRaft first", path.display())]
    ZooKeeper {
        /// The `meta.properties`.
        path: PathBuf,
    },
    /// A log dir belongs to another node.
    #[error(
        "{} is of node {found}, but {} has node.id={expected}\nhint: the two belong to different nodes; check log.dirs",
        path.display(), config.display()
    )]
    OtherNode {
        /// The `meta.properties`.
        path: PathBuf,
        /// The configuration.
        config: PathBuf,
        /// The id in the log dir.
        found: i32,
        /// The id in the configuration.
        expected: i32,
    },
    /// Log dirs of one node belong to different clusters.
    #[error(
        "{} is of cluster {found}, but {} is of cluster {expected}\nhint: one of the log dirs belongs to another node",
        path.display(), other.display()
    )]
    OtherCluster {
        /// One `meta.properties`.
        path: PathBuf,
        /// Its cluster.
        found: String,
        /// Another log dir's.
        other: PathBuf,
        /// That one's cluster.
        expected: String,
    },
}

fn as_hint(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("\nhint: {hint}") }
}

/// How a node's log dirs were found.
#[derive(Clone, Debug)]
pub enum Found {
    /// Each is of the node.
    Formatted(Node),
    /// They hold no node, or only part of a restore: there is nothing to capture, but it can be restored.
    Vacant(Node),
}

/// A node of a cluster, on this host.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its `server.properties`.
    pub config: PathBuf,
    /// What that file says.
    pub properties: ServerProperties,
    /// What others must know of it.
    pub facts: NodeFacts,
    /// Absolute paths, in the order of `facts.log_dirs`.
    pub log_dirs: Vec<PathBuf>,
}

impl Node {
    /// Reads a node's `server.properties` and the `meta.properties` of its log dirs. The first problem is the error.
    pub fn open(config: &Path) -> Result<Self, NodeError> {
        let (node, problems) = Self::examine(config)?;
        match problems.into_iter().next() {
            None => Ok(node),
            Some(problem) => Err(problem),
        }
    }

    /// Like [`Self::open`], for a node whose log dirs may be empty; then `cluster_id` says which cluster it is of.
    pub fn find(config: &Path, cluster_id: Option<&str>) -> Result<Found, NodeError> {
        let (mut node, problems) = Self::examine(config)?;
        let lacks_meta = |problem: &NodeError| match problem {
            NodeError::NotFormatted { path, .. } => {
                node.facts.cluster_id.is_empty() || path.join(RESTORE_MARKER).exists()
            }
            NodeError::NoLogDir { .. } => node.facts.cluster_id.is_empty(),
            _ => false,
        };
        let is_vacant = problems.iter().all(lacks_meta);
        match problems.into_iter().next() {
            None => Ok(Found::Formatted(node)),
            Some(problem) if !is_vacant => Err(problem),
            Some(_) => {
                if node.facts.cluster_id.is_empty() {
                    let (node_id, config) = (node.facts.node_id, config.into());
                    let known = cluster_id.ok_or(NodeError::UnknownCluster { node_id, config })?;
                    node.facts.cluster_id = known.to_owned();
                }
                Ok(Found::Vacant(node))
            }
        }
    }

    /// Like [`Self::open`], with all problems of its log dirs. What they leave unknown is empty in the node's facts.
    pub(crate) fn examine(config: &Path) -> Result<(Self, Vec<NodeError>), NodeError> {
        let bytes = read_small(config).map_err(|source| io_error(config, source))?;
        let properties =
            ServerProperties::decode(&bytes).map_err(|source| NodeError::Config { path: config.into(), source })?;
        let mut dirs = properties.log_dirs.clone();
        let is_same = |dir: &PathBuf| absolute(dir) == absolute(&properties.metadata_log_dir);
        let metadata_log_dir = dirs.iter().position(is_same).unwrap_or(dirs.len());
        if metadata_log_dir == dirs.len() {
            dirs.push(properties.metadata_log_dir.clone());
        }
        let log_dirs: Vec<_> = dirs.iter().map(|dir| absolute(dir)).collect();
        let mut problems = Vec::new();
        let metas: Vec<_> = log_dirs
            .iter()
            .map(|log_dir| read_meta(log_dir, config, properties.node_id).map_err(|error| problems.push(error)).ok())
            .collect();
        let cluster_id = one_cluster(&log_dirs, &metas, &mut problems);
        let log_dir_facts = dirs.iter().zip(&metas).map(|(dir, meta)| LogDirFacts {
            path: dir.display().to_string(),
            directory_id: meta.as_ref().and_then(|meta| meta.directory_id),
        });
        let static_voters = match &properties.quorum {
            Quorum::Static(voters) => Some(voters.iter().map(|voter| voter.id).collect()),
            Quorum::Dynamic(_) => None,
        };
        let facts = NodeFacts {
            node_id: properties.node_id,
            cluster_id,
            broker: properties.roles.broker,
            controller: properties.roles.controller,
            log_dirs: log_dir_facts.collect(),
            metadata_log_dir,
            static_voters,
            compacts: properties
                .properties()
                .get("log.cleanup.policy")
                .is_some_and(|policy| policy.contains("compact")),
        };
        Ok((Self { config: config.into(), properties, facts, log_dirs }, problems))
    }

    /// Looks whether the log dirs are still the node's, and which ids they have: a service outlives the emptying of a disk
    /// and the upgrade of a broker. One that cannot be read is passed over, as it is by a broker that has other ones.
    pub(crate) fn recheck(&mut self) -> Result<(), NodeError> {
        for (log_dir, facts) in self.log_dirs.iter().zip(&mut self.facts.log_dirs) {
            if log_dir.join(RESTORE_MARKER).exists() {
                return Err(NodeError::Restoring { path: log_dir.clone() });
            }
            let (cluster_id, path) = (&self.facts.cluster_id, log_dir.join(META_PROPERTIES));
            match read_meta(log_dir, &self.config, self.facts.node_id) {
                Ok(meta) => match meta.cluster_id {
                    Some(found) if found != *cluster_id => {
                        let (other, expected) = (self.config.clone(), cluster_id.clone());
                        return Err(NodeError::OtherCluster { path, found, other, expected });
                    }
                    _ => facts.directory_id = meta.directory_id,
                },
                Err(error @ (NodeError::NotFormatted { .. } | NodeError::OtherNode { .. })) => return Err(error),
                Err(error) => tracing::warn!(%error, "log dir is passed over"),
            }
        }
        Ok(())
    }

    /// The log dir with the metadata log.
    pub fn metadata_log_dir(&self) -> &Path {
        &self.log_dirs[self.facts.metadata_log_dir]
    }
}

/// Reads the `meta.properties` of a log dir and holds it against the configuration.
fn read_meta(log_dir: &Path, config: &Path, node_id: i32) -> Result<MetaProperties, NodeError> {
    if !log_dir.is_dir() && !is_denied(log_dir) {
        return Err(NodeError::NoLogDir { path: log_dir.into(), config: config.into() });
    }
    let path = log_dir.join(META_PROPERTIES);
    let bytes = match read_small(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(NodeError::NotFormatted { path: log_dir.into(), config: config.into() });
        }
        Err(source) => return Err(io_error(&path, source)),
    };
    let meta = MetaProperties::decode(&bytes).map_err(|source| NodeError::Meta { path: path.clone(), source })?;
    if meta.version == MetaVersion::V0 && meta.cluster_id.is_none() {
        return Err(match meta.node_id {
            Some(_) => NodeError::ZooKeeper { path },
            None => NodeError::EmptyMeta { path },
        });
    }
    match meta.node_id {
        Some(found) if found != node_id => {
            Err(NodeError::OtherNode { path, config: config.into(), found, expected: node_id })
        }
        _ => Ok(meta),
    }
}

/// The cluster that all log dirs agree on.
fn one_cluster(log_dirs: &[PathBuf], metas: &[Option<MetaProperties>], problems: &mut Vec<NodeError>) -> String {
    let ids = log_dirs.iter().zip(metas).filter_map(|(dir, meta)| Some((dir, meta.as_ref()?.cluster_id.as_ref()?)));
    let mut ids = ids.map(|(dir, id)| (dir.join(META_PROPERTIES), id));
    let Some((other, expected)) = ids.next() else {
        return String::new();
    };
    for (path, found) in ids.filter(|(_, id)| *id != expected) {
        let (other, expected) = (other.clone(), expected.clone());
        problems.push(NodeError::OtherCluster { path, found: found.clone(), other, expected });
    }
    expected.clone()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

fn is_denied(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn io_error(path: &Path, source: io::Error) -> NodeError {
    let hint = match source.kind() {
        io::ErrorKind::PermissionDenied => who_may(path),
        io::ErrorKind::NotFound | io::ErrorKind::IsADirectory => "give the node's own server.properties".to_owned(),
        _ => String::new(),
    };
    NodeError::Io { path: path.into(), source, hint }
}

/// Whose rights would help with `path`: those of the file, or of the nearest directory above that can be seen.
pub(crate) fn who_may(path: &Path) -> String {
    let Some((seen, metadata)) = path.ancestors().find_map(|path| Some((path, fs::metadata(path).ok()?))) else {
        return "run as the broker's user".to_owned();
    };
    let user = user_name(metadata.uid());
    let readable_by_group = metadata.mode() & 0o040 != 0;
    let group = Group::from_gid(Gid::from_raw(metadata.gid())).ok().flatten();
    let group = group.map_or(metadata.gid().to_string(), |group| group.name);
    let also = if readable_by_group { format!(", or as a member of group {group}") } else { String::new() };
    let us = user_name(Uid::effective().as_raw());
    format!("{} belongs to {user} and this runs as {us}: run as {user}{also}, or as root", seen.display())
}

/// The name of a user, or the number if it has none here.
pub(crate) fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or(format!("uid {uid}"), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two log dirs of a node, whose files the test then changes.
    struct Dirs(tempfile::TempDir);

    impl Dirs {
        fn new() -> Self {
            let dirs = Self(tempfile::tempdir().unwrap());
            dirs.meta("a", "version=1\ncluster.id=one\nnode.id=3\ndirectory.id=qn5bEgTnSVWpTTo4rmwlOQ\n");
            dirs.meta("b", "version=1\ncluster.id=one\nnode.id=3\n");
            dirs.config("");
            dirs
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn meta(&self, dir: &str, text: &str) {
            fs::create_dir_all(self.path(dir)).unwrap();
            fs::write(self.path(dir).join(META_PROPERTIES), text).unwrap();
        }

        fn config(&self, more: &str) {
            let (a, b) = (self.path("a"), self.path("b"));
            let text = format!(
                "process.roles=broker,controller\nnode.id=3\nlog.dirs={},{}\ncontroller.quorum.voters=3@localhost:9093\n\
                 controller.listener.names=CONTROLLER\n\
                 listeners=PLAINTEXT://localhost:9092,CONTROLLER://localhost:9093\n{more}",
                a.display(),
                b.display()
            );
            fs::write(self.path("server.properties"), text).unwrap();
        }

        fn open(&self) -> Result<Node, NodeError> {
            Node::open(&self.path("server.properties"))
        }
    }

    #[test]
    fn facts_come_from_both_kinds_of_files() {
        let dirs = Dirs::new();
        let facts = dirs.open().unwrap().facts;
        assert_eq!((facts.node_id, facts.cluster_id.as_str()), (3, "one"));
        assert_eq!((facts.broker, facts.controller, facts.static_voters), (true, true, Some(vec![3])));
        assert_eq!((facts.log_dirs.len(), facts.metadata_log_dir), (2, 0));
        assert!(facts.log_dirs[0].directory_id.is_some() && facts.log_dirs[1].directory_id.is_none());
    }

    #[test]
    fn a_metadata_log_dir_of_its_own_comes_last() {
        let dirs = Dirs::new();
        dirs.config(&format!("metadata.log.dir={}\n", dirs.path("m").display()));
        assert!(matches!(dirs.open(), Err(NodeError::NoLogDir { .. })));
        dirs.meta("m", "version=1\ncluster.id=one\nnode.id=3\n");
        let node = dirs.open().unwrap();
        assert_eq!((node.log_dirs.len(), node.facts.metadata_log_dir), (3, 2));
        dirs.config(&format!("metadata.log.dir={}/\n", dirs.path("b").display()));
        assert_eq!(dirs.open().unwrap().facts.metadata_log_dir, 1);
    }

    #[test]
    fn what_does_not_belong_together_is_named_with_its_remedy() {
        type Change<'a> = &'a dyn Fn(&Dirs);
        let cases: [(Change, &str); 7] = [
            (&|dirs| fs::remove_dir_all(dirs.path("b")).unwrap(), "no such directory"),
            (&|dirs| fs::remove_file(dirs.path("b/meta.properties")).unwrap(), "not formatted"),
            (&|dirs| dirs.meta("b", "version=1\ncluster.id=two\nnode.id=3\n"), "cluster two"),
            (&|dirs| dirs.meta("a", "version=1\ncluster.id=one\nnode.id=4\n"), "node 4"),
            (&|dirs| dirs.meta("a", "version=0\nbroker.id=3\n"), "ZooKeeper"),
            (&|dirs| fs::remove_file(dirs.path("server.properties")).unwrap(), "server.properties"),
            (&|dirs| dirs.config("process.roles=\nzookeeper.connect=localhost\n"), "KRaft"),
        ];
        for (change, part) in cases {
            let dirs = Dirs::new();
            change(&dirs);
            let error = dirs.open().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("hint: "), "{error}");
        }
    }

    #[test]
    fn a_node_without_any_meta_properties_is_vacant() {
        let found = |dirs: &Dirs, cluster_id| Node::find(&dirs.path("server.properties"), cluster_id);
        let dirs = Dirs::new();
        assert!(matches!(found(&dirs, None), Ok(Found::Formatted(node)) if node.facts.cluster_id == "one"));
        fs::remove_file(dirs.path("b/meta.properties")).unwrap();
        assert!(matches!(found(&dirs, Some("one")), Err(NodeError::NotFormatted { .. })), "one log dir was lost");
        // A restore that was killed between the last steps of two log dirs.
        fs::write(dirs.path("b").join(RESTORE_MARKER), "").unwrap();
        assert!(matches!(found(&dirs, None), Ok(Found::Vacant(node)) if node.facts.cluster_id == "one"));
        fs::remove_dir_all(dirs.path("b")).unwrap();
        assert!(matches!(found(&dirs, Some("one")), Err(NodeError::NoLogDir { .. })), "a disk is not mounted");
        fs::remove_file(dirs.path("a/meta.properties")).unwrap();
        assert!(matches!(found(&dirs, Some("one")), Ok(Found::Vacant(node)) if node.facts.cluster_id == "one"));
        let error = found(&dirs, None).unwrap_err().to_string();
        assert!(error.contains("node 3") && error.contains("hint: "), "{error}");
        dirs.meta("a", "version=1\ncluster.id=one\nnode.id=4\n");
        assert!(matches!(found(&dirs, Some("one")), Err(NodeError::OtherNode { .. })));
    }

    #[test]
    fn log_dirs_that_are_not_the_node_s_any_more_are_noticed() {
        let dirs = Dirs::new();
        let mut node = dirs.open().unwrap();
        dirs.meta("b", "version=1\ncluster.id=one\nnode.id=3\ndirectory.id=An5bEgTnSVWpTTo4rmwlOQ\n");
        node.recheck().unwrap();
        assert!(node.facts.log_dirs[1].directory_id.is_some(), "a broker of 3.7 gave it one");
        fs::remove_dir_all(dirs.path("b")).unwrap();
        node.recheck().expect("a lost disk is the survey's matter");
        dirs.meta("b", "version=1\ncluster.id=two\nnode.id=3\n");
        assert!(matches!(node.recheck(), Err(NodeError::OtherCluster { found, .. }) if found == "two"));
        fs::remove_file(dirs.path("b/meta.properties")).unwrap();
        assert!(matches!(node.recheck(), Err(NodeError::NotFormatted { .. })));
        fs::write(dirs.path("b").join(RESTORE_MARKER), "").unwrap();
        assert!(matches!(node.recheck(), Err(NodeError::Restoring { path }) if path == dirs.path("b")));
    }

    #[test]
    fn who_may_names_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        assert!(who_may(&dir.path().join("absent")).contains(&user_name(Uid::effective().as_raw())));
    }
}
