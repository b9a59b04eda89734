//! What a node's own `server.properties` says about it (`KafkaConfig`).
//!
//! Only what a snapshot or a restore needs is read and judged; the rest stays to be had by key. Defaults are
//! Kafka's. A value that Kafka would fetch elsewhere (`${provider:...}`) cannot be known here and is refused where
//! it is needed.

use std::{num::ParseIntError, path::PathBuf};

use thiserror::Error;

use crate::{
    properties::{Properties, PropertiesError},
    side_files::{INDEX_INTERVAL_DEFAULT, INDEX_LEN_MAX_DEFAULT},
};

/// Kafka's default of `log.dir`.
const LOG_DIR_DEFAULT: &str = "/tmp/kafka-logs";

/// Why a `server.properties` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ServerPropertiesError {
    /// It is no properties file.
    #[error("{0}\nhint: give the node's own server.properties")]
    Properties(#[from] PropertiesError),
    /// The node belongs to a cluster with ZooKeeper.
    #[error(
        "this broker runs with ZooKeeper (zookeeper.connect is set, process.roles is not), which is not supported\n\
         hint: migrate the cluster to KRaft first"
    )]
    ZooKeeper,
    /// A key that every KRaft node has is not there.
    #[error("{key} is not set\nhint: {hint}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A value that is none.
    #[error("{key}={value} is not valid\nhint: {hint}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// Its value, or the part of it that is wrong.
        value: String,
        /// What to do.
        hint: &'static str,
    },
    /// A value that Kafka fetches from a config provider.
    #[error("{key} comes from a config provider ({value})\nhint: give a copy of the file that has the value itself")]
    Provided {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

/// What a node does in its cluster (`process.roles`). At least one of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// It holds partitions.
    pub broker: bool,
    /// It votes in the metadata quorum, or watches it.
    pub controller: bool,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address; IPv6 without brackets. Empty where all addresses are meant.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A voter of a static quorum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its node id.
    pub id: i32,
    /// Where it listens.
    pub address: HostPort,
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The listener's name, in upper case.
    pub name: String,
    /// Where.
    pub address: HostPort,
}

/// How the voters of the metadata quorum are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// `controller.quorum.voters`: they are listed, and fixed.
    Static(Vec<Voter>),
    /// `controller.quorum.bootstrap.servers`: some are listed, the metadata log knows all.
    Dynamic(Vec<HostPort>),
}

/// A node's `server.properties`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerProperties {
    /// `node.id`, or `broker.id` in older files.
    pub node_id: i32,
    /// `process.roles`.
    pub roles: Roles,
    /// `log.dirs`, or `log.dir`; at least one, none twice.
    pub log_dirs: Vec<PathBuf>,
    /// `metadata.log.dir`, by default the first log dir.
    pub metadata_log_dir: PathBuf,
    /// `controller.quorum.voters` or `controller.quorum.bootstrap.servers`.
    pub quorum: Quorum,
    /// `controller.listener.names`, in upper case.
    pub controller_listener_names: Vec<String>,
    /// `listeners`.
    pub listeners: Vec<Listener>,
    /// `advertised.listeners`; empty if not set, then the listeners are advertised.
    pub advertised_listeners: Vec<Listener>,
    /// `log.index.interval.bytes`: bytes between index entries, unless a topic says otherwise.
    pub index_interval: u32,
    /// `log.index.size.max.bytes`: bytes of an index at most, unless a topic says otherwise.
    pub index_len_max: u32,
    properties: Properties,
}

impl ServerProperties {
    /// Reads a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ServerPropertiesError> {
        let properties = Properties::decode(bytes)?;
        let config = Config { properties: &properties };
        let roles = config.roles()?;
        let log_dirs = config.log_dirs()?;
        Ok(ServerProperties {
            node_id: config.node_id()?,
            roles,
            metadata_log_dir: match config.get("metadata.log.dir")? {
                Some(dir) => dir.into(),
                None => log_dirs[0].clone(),
            },
            log_dirs,
            quorum: config.quorum()?,
            controller_listener_names: config.controller_listener_names(roles)?,
            listeners: config.listeners("listeners")?,
            advertised_listeners: config.listeners("advertised.listeners")?,
            index_interval: config.size("log.index.interval.bytes", INDEX_INTERVAL_DEFAULT)?,
            index_len_max: config.size("log.index.size.max.bytes", INDEX_LEN_MAX_DEFAULT)?,
            properties,
        })
    }

    /// Everything in the file, by key.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }
}

struct Config<'a> {
    properties: &'a Properties,
}

impl<'a> Config<'a> {
    /// The value of a key, trimmed; `None` if it is empty, too, which Kafka takes for unset in all keys used here.
    fn get(&self, key: &'static str) -> Result<Option<&'a str>, ServerPropertiesError> {
        match self.properties.get(key).map(str::trim) {
            None | Some("") => Ok(None),
            Some(value) if value.contains("${") => Err(ServerPropertiesError::Provided { key, value: value.into() }),
            Some(value) => Ok(Some(value)),
        }
    }

    /// The values of a key that lists some, none of them empty.
    fn list(&self, key: &'static str) -> Result<impl Iterator<Item = &'a str>, ServerPropertiesError> {
        let values = self.get(key)?.unwrap_or_default();
        Ok(values.split(',').map(str::trim).filter(|value| !value.is_empty()))
    }

    fn roles(&self) -> Result<Roles, ServerPropertiesError> {
        let key = "process.roles";
        let mut roles = Roles { broker: false, controller: false };
        for role in self.list(key)? {
            match role {
                "broker" => roles.broker = true,
                "controller" => roles.controller = true,
                other => return Err(invalid(key, other, "roles are broker and controller")),
            }
        }
        if roles.broker || roles.controller {
            Ok(roles)
        } else if self.get("zookeeper.connect")?.is_some() {
            Err(ServerPropertiesError::ZooKeeper)
        } else {
            Err(ServerPropertiesError::Missing { key, hint: "give the server.properties of a KRaft node" })
        }
    }

    fn node_id(&self) -> Result<i32, ServerPropertiesError> {
        let read = |key| match self.get(key)? {
            None => Ok(None),
            Some(text) => match text.parse::<i32>() {
                Ok(id) if id >= 0 => Ok(Some(id)),
                _ => Err(invalid(key, text, "node ids are numbers of 0 or more")),
            },
        };
        match (read("node.id")?, read("broker.id")?) {
            (Some(node), Some(broker)) if node != broker => {
                Err(invalid("broker.id", &broker.to_string(), "remove it, or set it to the value of node.id"))
            }
            (Some(id), _) | (None, Some(id)) => Ok(id),
            (None, None) => Err(ServerPropertiesError::Missing { key: "node.id", hint: "set it to the node's id" }),
        }
    }

    fn log_dirs(&self) -> Result<Vec<PathBuf>, ServerPropertiesError> {
        let key = if self.get("log.dirs")?.is_some() { "log.dirs" } else { "log.dir" };
        let mut dirs: Vec<PathBuf> = Vec::new();
        for dir in self.list(key)? {
            // Paths compare by component, so "/a/" and "/a" are the same one.
            if dirs.contains(&dir.into()) {
                return Err(invalid(key, dir, "name each log dir once"));
            }
            dirs.push(dir.into());
        }
        if dirs.is_empty() {
            dirs.push(LOG_DIR_DEFAULT.into());
        }
        Ok(dirs)
    }

    fn quorum(&self) -> Result<Quorum, ServerPropertiesError> {
        let key = "controller.quorum.voters";
        let hint = "voters are listed as id@host:port,id@host:port";
        let voter = |text| parse_voter(text).ok_or_else(|| invalid(key, text, hint));
        let voters: Vec<Voter> = self.list(key)?.map(voter).collect::<Result<_, _>>()?;
        if !voters.is_empty() {
            return Ok(Quorum::Static(voters));
        }
        let bootstrap = "controller.quorum.bootstrap.servers";
        let hint = "controllers are listed as host:port,host:port";
        let server = |text| parse_host_port(text).ok_or_else(|| invalid(bootstrap, text, hint));
        let servers: Vec<HostPort> = self.list(bootstrap)?.map(server).collect::<Result<_, _>>()?;
        if servers.is_empty() {
            let hint = "set it, or controller.quorum.bootstrap.servers, as in the rest of the cluster";
            return Err(ServerPropertiesError::Missing { key, hint });
        }
        Ok(Quorum::Dynamic(servers))
    }

    fn controller_listener_names(&self, roles: Roles) -> Result<Vec<String>, ServerPropertiesError> {
        let key = "controller.listener.names";
        let names: Vec<String> = self.list(key)?.map(str::to_ascii_uppercase).collect();
        if roles.controller && names.is_empty() {
            return Err(ServerPropertiesError::Missing { key, hint: "name the listener of the controller" });
        }
        Ok(names)
    }

    fn listeners(&self, key: &'static str) -> Result<Vec<Listener>, ServerPropertiesError> {
        let hint = "listeners are written NAME://host:port";
        let listener = |text| parse_listener(text).ok_or_else(|| invalid(key, text, hint));
        self.list(key)?.map(listener).collect()
    }

    fn size(&self, key: &'static str, default: u32) -> Result<u32, ServerPropertiesError> {
        let Some(text) = self.get(key)? else {
            return Ok(default);
        };
        let hint = "it is a number of bytes, below 2 GiB";
        let size: Result<u32, ParseIntError> = text.parse();
        size.ok().filter(|size| *size <= i32::MAX as u32).ok_or_else(|| invalid(key, text, hint))
    }
}

fn invalid(key: &'static str, value: &str, hint: &'static str) -> ServerPropertiesError {
    ServerPropertiesError::Invalid { key, value: value.into(), hint }
}

fn parse_voter(text: &str) -> Option<Voter> {
    let (id, address) = text.split_once('@')?;
    let id = id.parse().ok().filter(|id| *id >= 0)?;
    let address = parse_host_port(address).filter(|address| !address.host.is_empty())?;
    Some(Voter { id, address })
}

fn parse_listener(text: &str) -> Option<Listener> {
    let (name, address) = text.split_once("://")?;
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    let named = !name.is_empty() && name.chars().all(legal);
    named.then_some(Listener { name: name.to_ascii_uppercase(), address: parse_host_port(address)? })
}

fn parse_host_port(text: &str) -> Option<HostPort> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(ipv6) => ipv6.strip_suffix(']')?,
        None => host,
    };
    Some(HostPort { host: host.into(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COMBINED: &str = "
        process.roles=broker,controller
        node.id=1
        controller.quorum.voters=1@localhost:9093,2@[::1]:9094
        controller.listener.names=CONTROLLER
        listeners=PLAINTEXT://:9092, controller://127.0.0.1:9093
        log.dirs=/data/a , /data/b
    ";

    fn decode(lines: &str) -> Result<ServerProperties, ServerPropertiesError> {
        ServerProperties::decode(lines.as_bytes())
    }

    fn address(host: &str, port: u16) -> HostPort {
        HostPort { host: host.into(), port }
    }

    #[test]
    fn combined_node_is_read_with_kafka_s_defaults() {
        let server = decode(COMBINED).unwrap();
        assert_eq!((server.node_id, server.roles), (1, Roles { broker: true, controller: true }));
        assert_eq!(server.log_dirs, ["/data/a", "/data/b"].map(PathBuf::from));
        assert_eq!(server.metadata_log_dir, PathBuf::from("/data/a"));
        let voters = [(1, address("localhost", 9093)), (2, address("::1", 9094))];
        assert_eq!(server.quorum, Quorum::Static(voters.map(|(id, address)| Voter { id, address }).into()));
        let listener = |name: &str, address| Listener { name: name.into(), address };
        assert_eq!(
            server.listeners,
            [listener("PLAINTEXT", address("", 9092)), listener("CONTROLLER", address("127.0.0.1", 9093))]
        );
        assert_eq!((server.index_interval, server.index_len_max), (4096, 10_485_760));
        assert!(server.properties().get("listeners").is_some());
    }

    #[test]
    fn broker_of_a_dynamic_quorum_may_leave_nearly_all_out() {
        let server =
            decode("process.roles=broker\nbroker.id=7\ncontroller.quorum.bootstrap.servers=c1:9093\n").unwrap();
        assert_eq!((server.node_id, server.log_dirs.clone()), (7, vec![PathBuf::from("/tmp/kafka-logs")]));
        assert_eq!(server.quorum, Quorum::Dynamic(vec![address("c1", 9093)]));
        let server = decode(&format!("{COMBINED}\nmetadata.log.dir=/meta")).unwrap();
        assert_eq!(server.metadata_log_dir, PathBuf::from("/meta"));
        let server = decode(&format!("{COMBINED}\nlog.dirs=\nlog.dir=/x,/y")).unwrap();
        assert_eq!(server.log_dirs.len(), 2);
    }

    #[test]
    fn zookeeper_is_refused_by_name() {
        let error = decode("broker.id=0\nzookeeper.connect=zk:2181\nlog.dirs=/data\n").unwrap_err();
        assert_eq!(error, ServerPropertiesError::ZooKeeper);
    }

    #[test]
    fn errors_name_the_key() {
        let cases = [
            ("process.roles=", "process.roles"),
            ("process.roles=broker,zookeeper", "process.roles"),
            ("node.id=x", "node.id"),
            ("node.id=", "node.id"),
            ("broker.id=2", "broker.id"),
            ("log.dirs=/a,/a/", "log.dirs"),
            ("log.dirs=${env:DIRS}", "log.dirs"),
            ("controller.quorum.voters=1@host", "controller.quorum.voters"),
            ("controller.quorum.voters=", "controller.quorum.voters"),
            ("controller.listener.names=", "controller.listener.names"),
            ("listeners=PLAINTEXT:9092", "listeners"),
            ("log.index.interval.bytes=-1", "log.index.interval.bytes"),
        ];
        for (line, named) in cases {
            let error = decode(&format!("{COMBINED}\n{line}\n")).unwrap_err();
            let (ServerPropertiesError::Missing { key, .. }
            | ServerPropertiesError::Invalid { key, .. }
            | ServerPropertiesError::Provided { key, .. }) = error
            else {
                panic!("{line}: {error}")
            };
            assert_eq!(key, named, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>, value in "[a-z0-9:@/,\\[\\]]*") {
            let _ = ServerProperties::decode(&bytes);
            for key in ["listeners", "controller.quorum.voters", "log.dirs"] {
                let _ = decode(&format!("{COMBINED}\n{key}={value}"));
            }
        }
    }
}
