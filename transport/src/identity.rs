//! Who a certificate speaks for: its one `segvault://` name.
//!
//! The name is a URI among the certificate's subject alternative names:
//!
//! ```text
//! segvault://coordinator
//! segvault://agent/CLUSTER_ID/NODE_ID
//! segvault://operator/NAME
//! ```
//!
//! There is one spelling for each identity: a name that would be printed differently is refused, so that no two names
//! mean the same peer. Exactly one such name may be in a certificate; names of other schemes are none of our business.

use std::fmt;
use std::str::FromStr;

const SCHEME: &str = "segvault://";

/// Longest cluster id and operator name. Kafka's cluster ids have 22 characters; a certificate's common name has at most 64.
const PART_LEN_MAX: usize = 64;

/// Who a certificate speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The coordinator of the fleet.
    Coordinator,
    /// The agent of one node.
    Agent {
        /// The Kafka cluster's id.
        cluster_id: String,
        /// The node's id in it.
        node_id: i32,
    },
    /// A person, or what works for one.
    Operator {
        /// What the operator is called.
        name: String,
    },
}

/// Why a name is not a `segvault://` name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No `segvault://` name at all.
    #[error("the certificate has no segvault:// name\nhint: issue it with `segvault cert issue`")]
    Missing,
    /// More than one `segvault://` name.
    #[error("the certificate has several segvault:// names: {first} and {second}\nhint: issue one for each of them")]
    Several {
        /// The first of them.
        first: String,
        /// The second.
        second: String,
    },
    /// A name of an unknown form.
    #[error(
        "{uri:?} is none of segvault://coordinator, segvault://agent/CLUSTER_ID/NODE_ID and segvault://operator/NAME"
    )]
    Malformed {
        /// What was found.
        uri: String,
    },
    /// A cluster id or operator name that cannot stand in a URI.
    #[error(
        "{value:?} cannot be the {what} of a certificate: it must have 1 to {PART_LEN_MAX} characters, \
         letters, digits and -._~@+ only"
    )]
    BadPart {
        /// What it was to be.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// A negative node id.
    #[error("{node_id} cannot be the node id of a certificate: it is negative")]
    BadNodeId {
        /// What was given.
        node_id: i32,
    },
}

/// A certificate that may not do what its owner asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// It would speak for a node that is not its own.
    #[error("the certificate is {}; it cannot speak for node {node_id}{}", .have.owner(), of_other_cluster(.have, .cluster_id))]
    OtherNode {
        /// Whose certificate it is.
        have: Identity,
        /// The cluster that it would speak for.
        cluster_id: String,
        /// The node that it would speak for.
        node_id: i32,
    },
    /// It has the wrong role.
    #[error("the certificate is {}, not {needed}", .have.owner())]
    OtherRole {
        /// Whose certificate it is.
        have: Identity,
        /// Whose it would have to be.
        needed: &'static str,
    },
}

/// The cluster is said where it tells the two nodes apart.
fn of_other_cluster(have: &Identity, wanted: &str) -> String {
    match have {
        Identity::Agent { cluster_id, .. } if cluster_id == wanted => String::new(),
        _ => format!(" of cluster {wanted}"),
    }
}

impl Identity {
    /// The agent of node `node_id` of a cluster; an error if that cannot stand in a name.
    pub fn agent(cluster_id: &str, node_id: i32) -> Result<Self, IdentityError> {
        let cluster_id = part("cluster id", cluster_id)?;
        if node_id < 0 { Err(IdentityError::BadNodeId { node_id }) } else { Ok(Self::Agent { cluster_id, node_id }) }
    }

    /// An operator; an error if `name` cannot stand in a name.
    pub fn operator(name: &str) -> Result<Self, IdentityError> {
        Ok(Self::Operator { name: part("operator name", name)? })
    }

    /// The identity among the URI names of a certificate, which must have exactly one.
    pub fn from_uris<'a>(uris: impl IntoIterator<Item = &'a str>) -> Result<Self, IdentityError> {
        let mut ours = uris.into_iter().filter(|uri| uri.starts_with(SCHEME));
        let first = ours.next().ok_or(IdentityError::Missing)?;
        match ours.next() {
            Some(second) => Err(IdentityError::Several { first: first.into(), second: second.into() }),
            None => first.parse(),
        }
    }

    /// Whether it may take part as the agent of this node.
    pub fn may_attend_as(&self, cluster_id: &str, node_id: i32) -> Result<(), Forbidden> {
        match self {
            Self::Agent { cluster_id: ours, node_id: id } if ours == cluster_id && *id == node_id => Ok(()),
            _ => Err(Forbidden::OtherNode { have: self.clone(), cluster_id: cluster_id.into(), node_id }),
        }
    }

    /// Whether it is an operator's.
    pub fn require_operator(&self) -> Result<(), Forbidden> {
        match self {
            Self::Operator { .. } => Ok(()),
            _ => Err(Forbidden::OtherRole { have: self.clone(), needed: "an operator's" }),
        }
    }

    /// Whether it is the coordinator's.
    pub fn require_coordinator(&self) -> Result<(), Forbidden> {
        match self {
            Self::Coordinator => Ok(()),
            _ => Err(Forbidden::OtherRole { have: self.clone(), needed: "the coordinator's" }),
        }
    }

    /// Whose a thing of this identity is, in a sentence: `agent 3's of cluster X`.
    pub fn owner(&self) -> String {
        match self {
            Self::Coordinator => "the coordinator's".to_owned(),
            Self::Agent { cluster_id, node_id } => format!("agent {node_id}'s of cluster {cluster_id}"),
            Self::Operator { name } => format!("operator {name}'s"),
        }
    }

    /// What its files are called: `coordinator`, `agent-3`, `operator-NAME`.
    pub fn file_stem(&self) -> String {
        match self {
            Self::Coordinator => "coordinator".to_owned(),
            Self::Agent { node_id, .. } => format!("agent-{node_id}"),
            Self::Operator { name } => format!("operator-{name}"),
        }
    }
}

/// Accepts what needs no escape in a URI and no care in a file name.
fn part(what: &'static str, value: &str) -> Result<String, IdentityError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@+".contains(&byte);
    if value.is_empty() || value.len() > PART_LEN_MAX || !value.bytes().all(is_plain) {
        return Err(IdentityError::BadPart { what, value: value.chars().take(PART_LEN_MAX).collect() });
    }
    Ok(value.to_owned())
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => write!(f, "{SCHEME}coordinator"),
            Self::Agent { cluster_id, node_id } => write!(f, "{SCHEME}agent/{cluster_id}/{node_id}"),
            Self::Operator { name } => write!(f, "{SCHEME}operator/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let malformed = || IdentityError::Malformed { uri: uri.chars().take(4 * PART_LEN_MAX).collect() };
        let path = uri.strip_prefix(SCHEME).ok_or_else(malformed)?;
        let parts: Vec<_> = path.splitn(4, '/').collect();
        let identity = match parts[..] {
            ["coordinator"] => Self::Coordinator,
            ["agent", cluster_id, node_id] => Self::agent(cluster_id, node_id.parse().map_err(|_| malformed())?)?,
            ["operator", name] => Self::operator(name)?,
            _ => return Err(malformed()),
        };
        // `+3` and `03` are numbers too; there is to be one spelling.
        if identity.to_string() == uri { Ok(identity) } else { Err(malformed()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(cluster_id: &str, node_id: i32) -> Identity {
        Identity::agent(cluster_id, node_id).unwrap()
    }

    #[test]
    fn every_identity_is_read_back_as_it_was_printed() {
        let cases = [
            (Identity::Coordinator, "segvault://coordinator"),
            (agent("MkU3OEVBNTcwNTJENDM2Qg", 3), "segvault://agent/MkU3OEVBNTcwNTJENDM2Qg/3"),
            (agent("a-b_c.d~", i32::MAX), "segvault://agent/a-b_c.d~/2147483647"),
            (Identity::operator("ann@example.org").unwrap(), "segvault://operator/ann@example.org"),
        ];
        for (identity, uri) in cases {
            assert_eq!(identity.to_string(), uri);
            assert_eq!(uri.parse(), Ok(identity));
        }
    }

    #[test]
    fn other_forms_and_other_spellings_are_refused() {
        let long = format!("segvault://operator/{}", "x".repeat(PART_LEN_MAX + 1));
        let uris = [
            "",
            "segvault://",
            "segvault://coordinator/",
            "segvault://coordinator/x",
            "SEGVAULT://coordinator",
            "segvault:coordinator",
            "spiffe://coordinator",
            "segvault://Coordinator",
            "segvault://agent",
            "segvault://agent/x",
            "segvault://agent/x/",
            "segvault://agent//3",
            "segvault://agent/x/03",
            "segvault://agent/x/+3",
            "segvault://agent/x/-3",
            "segvault://agent/x/3/",
            "segvault://agent/x/3?y",
            "segvault://agent/x/2147483648",
            "segvault://agent/x%2Fy/3",
            "segvault://agent/x y/3",
            "segvault://operator/",
            "segvault://operator/a/b",
            "segvault://operator/ä",
            "segvault://operator/a\0",
            &long,
        ];
        for uri in uris {
            assert!(uri.parse::<Identity>().is_err(), "{uri:?}");
        }
    }

    #[test]
    fn what_cannot_stand_in_a_name_is_refused_when_it_is_made() {
        for value in ["", "a/b", "a b", "ä", &"x".repeat(PART_LEN_MAX + 1)] {
            assert!(matches!(Identity::agent(value, 1), Err(IdentityError::BadPart { .. })), "{value}");
            assert!(matches!(Identity::operator(value), Err(IdentityError::BadPart { .. })), "{value}");
        }
        assert_eq!(Identity::agent("x", -1), Err(IdentityError::BadNodeId { node_id: -1 }));
    }

    #[test]
    fn a_certificate_has_exactly_one_of_our_names() {
        let others = ["https://example.org", "spiffe://example.org/x"];
        assert_eq!(Identity::from_uris(others), Err(IdentityError::Missing));
        assert_eq!(Identity::from_uris(["https://x", "segvault://coordinator"]), Ok(Identity::Coordinator));
        let twice = ["segvault://coordinator", "segvault://coordinator"];
        assert!(matches!(Identity::from_uris(twice), Err(IdentityError::Several { .. })));
        // One that cannot be read counts, too: it is not for us to choose between two.
        let broken = ["segvault://coordinator", "segvault://x"];
        assert!(matches!(Identity::from_uris(broken), Err(IdentityError::Several { .. })));
    }

    #[test]
    fn an_agent_speaks_for_its_own_node_only_and_is_told_why() {
        let three = agent("X", 3);
        assert_eq!(three.may_attend_as("X", 3), Ok(()));
        let cases = [
            (&three, "X", 4, "the certificate is agent 3's of cluster X; it cannot speak for node 4"),
            (&three, "Y", 3, "the certificate is agent 3's of cluster X; it cannot speak for node 3 of cluster Y"),
            (
                &Identity::Coordinator,
                "X",
                3,
                "the certificate is the coordinator's; it cannot speak for node 3 of cluster X",
            ),
        ];
        for (identity, cluster_id, node_id, message) in cases {
            assert_eq!(identity.may_attend_as(cluster_id, node_id).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn roles_are_told_apart() {
        let (agent, operator) = (agent("X", 3), Identity::operator("ann").unwrap());
        assert_eq!(operator.require_operator(), Ok(()));
        assert_eq!(Identity::Coordinator.require_coordinator(), Ok(()));
        let refused = agent.require_operator().unwrap_err().to_string();
        assert_eq!(refused, "the certificate is agent 3's of cluster X, not an operator's");
        let refused = operator.require_coordinator().unwrap_err().to_string();
        assert_eq!(refused, "the certificate is operator ann's, not the coordinator's");
        assert!(Identity::Coordinator.require_operator().is_err());
    }
}
