//! The coordinator's end: connections whose peers have proved who they are.
//!
//! ```text
//! listener ── accept ──► one task per handshake, at most 10 s ──► Incoming ──► tonic
//!                               └─ failed: logged with its reason, and gone
//! ```
//!
//! A peer without a certificate of the fleet's authority and a `segvault://` name gets no further than the handshake, so
//! every call knows its [`Peer`]. Which peer may do what is then for the calls to say, with [`authorize_agent`] and
//! [`authorize_operator`].
//!
//! Serve HTTP/2 only, as tonic does by default: clients take the first HTTP/2 frame of the server, which it sends
//! unasked, for the sign that the handshake has succeeded at this end, too.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::codegen::tokio_stream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::certificate::identity_of;
use crate::credentials::{Reloading, Security};
use crate::explain::handshake_reason;
use crate::identity::{Forbidden, Identity};
use crate::stream::{Stream, prepare};

/// How long a peer may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes at a time; further peers wait in the kernel's queue. A fleet has far fewer agents.
const HANDSHAKES_MAX: usize = 1024;

/// Connections that wait for the server to take them; it takes them at once unless it is stopping.
const WAITING_MAX: usize = 16;

/// How long a refused peer may take to read why.
const LINGER: Duration = Duration::from_secs(2);

/// Pause when the process is out of file descriptors or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why nothing is listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Plain text would be visible to others.
    #[error(
        "plain text is for loopback only, and {addr} is reached from other hosts\n\
         hint: make certificates with `segvault cert` and name them in the configuration, or listen on 127.0.0.1"
    )]
    PlainBeyondLoopback {
        /// The address that was asked for.
        addr: SocketAddr,
    },
    /// The address cannot be had.
    #[error("listen on {addr}: {source}")]
    Bind {
        /// Which.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where from.
    pub addr: SocketAddr,
    /// Who, by its certificate; nobody in particular on a plain connection within this host.
    pub identity: Option<Identity>,
}

/// Binds `addr` and takes connections from then on.
pub async fn listen(addr: SocketAddr, security: Security) -> Result<Incoming, ListenError> {
    if matches!(security, Security::Plain) && !addr.ip().is_loopback() {
        return Err(ListenError::PlainBeyondLoopback { addr });
    }
    let bind_error = |source| ListenError::Bind { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(bind_error)?;
    let local_addr = listener.local_addr().map_err(bind_error)?;
    let (ready, connections) = mpsc::channel(WAITING_MAX);
    let accepting = tokio::spawn(accept(listener, security, ready));
    Ok(Incoming { local_addr, connections, accepting })
}

/// Connections whose handshakes have succeeded, for `serve_with_incoming_shutdown`. Dropping it closes the listener.
#[derive(Debug)]
pub struct Incoming {
    local_addr: SocketAddr,
    connections: mpsc::Receiver<Connection>,
    accepting: JoinHandle<()>,
}

impl Incoming {
    /// Where it listens: the port, if any was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl tokio_stream::Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

async fn accept(listener: TcpListener, security: Security, ready: mpsc::Sender<Connection>) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES_MAX => match accepted {
                Ok((stream, addr)) => {
                    handshakes.spawn(hand_over(stream, addr, security.clone(), ready.clone()));
                }
                Err(error) => {
                    tracing::warn!("accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = handshakes.join_next() => log_panic(ended),
        }
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!("a handshake ended with a panic: {error}");
    }
}

/// Makes a connection of what was accepted, or says why not.
async fn hand_over(stream: TcpStream, addr: SocketAddr, security: Security, ready: mpsc::Sender<Connection>) {
    let connected = match security {
        Security::Plain => plain(stream, addr),
        Security::Tls(reloading) => match timeout(HANDSHAKE_TIMEOUT, handshake(stream, addr, &reloading)).await {
            Ok(connected) => connected,
            Err(_) => Err(Refused::Failed(format!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs()))),
        },
    };
    match connected {
        // An error is a server that has stopped.
        Ok(connection) => drop(ready.send(connection).await),
        Err(Refused::Left) => tracing::debug!(peer = %addr, "a peer left before its handshake"),
        Err(Refused::Failed(reason)) => tracing::warn!(peer = %addr, "a connection is refused: {reason}"),
    }
}

/// Why there is no connection.
enum Refused {
    /// The peer went away, as a look at whether the port is open does.
    Left,
    /// Something is wrong.
    Failed(String),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Self::Left,
            _ => Self::Failed(handshake_reason(&error)),
        }
    }
}

fn plain(stream: TcpStream, addr: SocketAddr) -> Result<Connection, Refused> {
    prepare(&stream)?;
    Ok(Connection { stream: Stream::Plain(stream), peer: Peer { addr, identity: None } })
}

async fn handshake(stream: TcpStream, addr: SocketAddr, reloading: &Arc<Reloading>) -> Result<Connection, Refused> {
    prepare(&stream)?;
    let acceptor = TlsAcceptor::from(reloading.current().server());
    let tls = match acceptor.accept(stream).into_fallible().await {
        Ok(tls) => tls,
        Err((error, stream)) => {
            linger(stream).await;
            return Err(error.into());
        }
    };
    let identity = identity_in(tls.get_ref().1.peer_certificates())?;
    let peer = Peer { addr, identity: Some(identity) };
    Ok(Connection { stream: Stream::Tls(Box::new(tls.into())), peer })
}

/// The verifier has seen the name already; here it is read.
fn identity_in(certificates: Option<&[CertificateDer<'_>]>) -> Result<Identity, Refused> {
    let own = certificates.and_then(<[_]>::first).ok_or_else(|| Refused::Failed("it has no certificate".to_owned()))?;
    identity_of(own).map_err(|error| Refused::Failed(error.to_string()))
}

/// Reads away what a refused peer still sends. Closing at once would reset the connection, and the peer might never
/// read why it was refused.
async fn linger(mut stream: TcpStream) {
    let mut sink = [0; 4096];
    let read_away = async {
        let _ = stream.shutdown().await;
        while matches!(stream.read(&mut sink).await, Ok(1..)) {}
    };
    // What is not read by then is lost, which is all that could go wrong.
    let _ = timeout(LINGER, read_away).await;
}

/// A connection of a peer that is known.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    peer: Peer,
}

impl Connection {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Who makes a call. An error if the server does not serve an [`Incoming`].
pub fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("the connection does not know its peer"))
}

/// Lets a peer speak for a node if its certificate is that node's agent's. Plain peers of this host may speak for any.
pub fn authorize_agent(peer: &Peer, cluster_id: &str, node_id: i32) -> Result<(), Status> {
    authorize(peer, |identity| identity.may_attend_as(cluster_id, node_id))
}

/// Lets a peer give orders if its certificate is an operator's. Plain peers of this host may.
pub fn authorize_operator(peer: &Peer) -> Result<(), Status> {
    authorize(peer, Identity::require_operator)
}

fn authorize(peer: &Peer, may: impl FnOnce(&Identity) -> Result<(), Forbidden>) -> Result<(), Status> {
    match &peer.identity {
        Some(identity) => may(identity).map_err(|forbidden| Status::permission_denied(forbidden.to_string())),
        None if peer.addr.ip().is_loopback() => Ok(()),
        None => Err(Status::permission_denied(format!("{} has no certificate", peer.addr))),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn peer(addr: &str, identity: Option<Identity>) -> Peer {
        Peer { addr: addr.parse().unwrap(), identity }
    }

    #[test]
    fn plain_peers_are_trusted_on_loopback_only() {
        let (near, far) = (peer("127.0.0.1:1", None), peer("192.0.2.1:1", None));
        assert!(authorize_agent(&near, "X", 1).is_ok() && authorize_operator(&near).is_ok());
        for refused in [authorize_agent(&far, "X", 1), authorize_operator(&far)] {
            assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
        }
    }

    #[test]
    fn a_name_counts_wherever_its_peer_is() {
        let agent = peer("127.0.0.1:1", Some(Identity::agent("X", 1).unwrap()));
        assert!(authorize_agent(&agent, "X", 1).is_ok());
        let refused = authorize_agent(&agent, "X", 2).unwrap_err();
        assert_eq!(refused.message(), "the certificate is agent 1's of cluster X; it cannot speak for node 2");
        assert_eq!(authorize_operator(&agent).unwrap_err().code(), Code::PermissionDenied);
    }

    #[test]
    fn a_call_of_another_server_has_no_peer() {
        assert_eq!(peer_of(&Request::new(())).unwrap_err().code(), Code::Internal);
    }
}
