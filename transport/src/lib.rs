//! How agents, coordinator and operators reach each other: gRPC over mutual TLS, with names that say role and node.
//!
//! What keeps it safe: both ends prove, in every handshake, that the one authority of the fleet has given them a
//! certificate, and the certificate's `segvault://` name says who they are. The coordinator lets an agent speak only for
//! the node in its name; agents and operators talk only to what is named the coordinator, at the host that they wanted.
//! Nothing is resumed from an earlier session, so that a certificate that has expired ends with its last connection.
//! Plain text is for one host: it is refused wherever it would leave the loopback device.

pub mod identity;

pub mod certificate;
pub mod credentials;
mod verify;

mod stream;

pub mod server;

pub mod client;

mod explain;

pub mod authority;

pub use client::connect;
pub use credentials::{Credentials, Reloading, Security, TlsFiles};
pub use explain::explain;
pub use identity::Identity;
pub use server::{Connection, Incoming, Peer, authorize_agent, authorize_operator, listen, peer_of};
