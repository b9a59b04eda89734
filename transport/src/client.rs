//! The end of agents and operators: a channel to what has proved to be the coordinator.
//!
//! A connection counts as made when the coordinator has accepted us, too. In TLS 1.3 a client is through with its
//! handshake before the server has looked at its certificate; a refusal would only show at some later call, without its
//! reason. So the first bytes of the server are awaited: its HTTP/2 settings, which it sends unasked as soon as its own
//! handshake is done, or the alert that says why not.
//!
//! The channel connects again by itself when a connection has ended. Each time the host is looked up and the
//! certificates are looked at anew, and everything is checked as the first time.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::pki_types::ServerName;
use tokio::io::AsyncBufReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::credentials::{Credentials, CredentialsError, Security};
use crate::explain::{alert_reason, certificate_reason, tls_of, tls_reason};
use crate::stream::{Stream, prepare};

/// For everything from looking the host up to the coordinator's first bytes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A coordinator that has not answered a ping for so long is gone, and calls end with an error.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The target cannot be read.
    #[error("{target:?} is not HOST:PORT\nhint: give for example coordinator.example.org:7070 or [2001:db8::1]:7070")]
    Target {
        /// What was given.
        target: String,
    },
    /// Plain text would leave this host.
    #[error(
        "plain text is for loopback only, and {target} is {address}\n\
         hint: make certificates with `segvault cert` and name them in the configuration"
    )]
    PlainBeyondLoopback {
        /// Whom we wanted.
        target: String,
        /// One of its addresses.
        address: SocketAddr,
    },
    /// Our own files cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The host is unknown.
    #[error("look up {target}: {source}")]
    LookUp {
        /// Whom we wanted.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// Nothing can be reached there.
    #[error("connect to {target}: {source}{}", listening_hint(.source))]
    Tcp {
        /// Whom we wanted.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("connect to {target}: no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout {
        /// Whom we wanted.
        target: String,
    },
    /// It is not who we wanted.
    #[error("{target} is not accepted as the coordinator: {reason}")]
    Untrusted {
        /// Whom we wanted.
        target: String,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// It does not want us.
    #[error("{target} refuses our certificate {}: {reason}", path.display())]
    Refused {
        /// Whom we wanted.
        target: String,
        /// The file of our certificate.
        path: PathBuf,
        /// What it says of it.
        reason: String,
    },
    /// The handshake fails for another reason.
    #[error("handshake with {target}: {reason}")]
    Handshake {
        /// Whom we wanted.
        target: String,
        /// Why.
        reason: String,
    },
    /// TLS works, but HTTP/2 does not.
    #[error("speak HTTP/2 with {target}")]
    Http2 {
        /// Whom we wanted.
        target: String,
        /// Why.
        source: tonic::transport::Error,
    },
}

fn listening_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "\nhint: is the coordinator running, and does it listen on that address?",
        _ => "",
    }
}

/// Connects to the coordinator at `target`, which is `host:port`, and says why that cannot be done.
pub async fn connect(target: &str, security: &Security) -> Result<Channel, ConnectError> {
    let (target, security): (Target, _) = (target.parse()?, security.clone());
    let endpoint = endpoint(&target)?;
    // The first connection is made here, so that its error comes as it is and not wrapped by the channel's layers.
    let mut first = Some(dial(&target, &security).await?);
    let failed = |source| ConnectError::Http2 { target: target.text.clone(), source };
    let again = target.clone();
    let connector = service_fn(move |_: Uri| {
        let (made, target, security) = (first.take(), again.clone(), security.clone());
        async move {
            match made {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => dial(&target, &security).await.map(TokioIo::new),
            }
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(failed)
}

/// The scheme is for tonic only: TLS is made by us, below it, and so is the end of an attempt that takes too long.
fn endpoint(target: &Target) -> Result<Endpoint, ConnectError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", target.text)).map_err(|_| target.malformed())?;
    Ok(endpoint.http2_keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT).keep_alive_while_idle(true))
}

/// Whom to connect to.
#[derive(Clone, Debug)]
struct Target {
    text: String,
    host: String,
    port: u16,
    /// The host, as it must be among the names of the coordinator's certificate.
    name: ServerName<'static>,
}

impl FromStr for Target {
    type Err = ConnectError;

    fn from_str(text: &str) -> Result<Self, ConnectError> {
        let read = || {
            let (host, port) = text.rsplit_once(':')?;
            let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                Some(address) => address.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
                // An IPv6 address without its brackets cannot be told from one with a port.
                None => Some(host).filter(|host| !host.contains(':'))?.to_owned(),
            };
            let port = port.parse().ok().filter(|port| *port != 0)?;
            let name = ServerName::try_from(host.clone()).ok()?;
            Some(Self { text: text.to_owned(), host, port, name })
        };
        read().ok_or_else(|| ConnectError::Target { target: text.to_owned() })
    }
}

impl Target {
    fn malformed(&self) -> ConnectError {
        ConnectError::Target { target: self.text.clone() }
    }

    /// Sorts what went wrong in a handshake by whose certificate it was about.
    fn handshake_error(&self, error: io::Error, own: &Path) -> ConnectError {
        let target = self.text.clone();
        match tls_of(&error) {
            Some(rustls::Error::InvalidCertificate(error)) => {
                ConnectError::Untrusted { target, reason: certificate_reason(error) }
            }
            Some(rustls::Error::AlertReceived(alert)) => {
                ConnectError::Refused { target, path: own.into(), reason: alert_reason(*alert) }
            }
            Some(error) => ConnectError::Handshake { target, reason: tls_reason(error) },
            None => ConnectError::Handshake { target, reason: error.to_string() },
        }
    }
}

async fn dial(target: &Target, security: &Security) -> Result<Stream, ConnectError> {
    let dialled = timeout(CONNECT_TIMEOUT, async {
        match security {
            Security::Plain => dial_plain(target).await,
            Security::Tls(reloading) => dial_tls(target, &reloading.current()).await,
        }
    });
    dialled.await.unwrap_or_else(|_| Err(ConnectError::Timeout { target: target.text.clone() }))
}

async fn dial_plain(target: &Target) -> Result<Stream, ConnectError> {
    let addresses = look_up(target).await?;
    match addresses.iter().find(|address| !address.ip().is_loopback()) {
        Some(address) => Err(ConnectError::PlainBeyondLoopback { target: target.text.clone(), address: *address }),
        None => Ok(Stream::Plain(dial_tcp(target, &addresses).await?)),
    }
}

async fn dial_tls(target: &Target, credentials: &Credentials) -> Result<Stream, ConnectError> {
    // The other side would refuse it, too, but could not say when it expired.
    credentials.check_valid(Timestamp::now())?;
    let tcp = dial_tcp(target, &look_up(target).await?).await?;
    let failed = |error| target.handshake_error(error, credentials.path());
    let mut tls = TlsConnector::from(credentials.client()).connect(target.name.clone(), tcp).await.map_err(failed)?;
    // See above: what is read here stays in the buffer.
    if tls.fill_buf().await.map_err(failed)?.is_empty() {
        return Err(failed(io::Error::from(io::ErrorKind::UnexpectedEof)));
    }
    Ok(Stream::Tls(Box::new(tls.into())))
}

async fn look_up(target: &Target) -> Result<Vec<SocketAddr>, ConnectError> {
    match lookup_host((target.host.as_str(), target.port)).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(source) => Err(ConnectError::LookUp { target: target.text.clone(), source }),
    }
}

/// Tries the addresses in order, each for its share of the time.
async fn dial_tcp(target: &Target, addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
    let share = CONNECT_TIMEOUT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        let connected = timeout(share, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                prepare(&stream).map_err(|source| ConnectError::Tcp { target: target.text.clone(), source })?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(ConnectError::Tcp { target: target.text.clone(), source: failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_hosts_with_ports() {
        let cases = [
            ("localhost:7070", "localhost"),
            ("coordinator.example.org:1", "coordinator.example.org"),
            ("127.0.0.1:65535", "127.0.0.1"),
            ("[::1]:7070", "::1"),
        ];
        for (text, host) in cases {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.host.as_str(), target.name.to_str().as_ref()), (host, host));
            assert!(endpoint(&target).is_ok());
        }
    }

    #[test]
    fn other_targets_are_refused_with_an_example() {
        for text in [
            "",
            "localhost",
            ":7070",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "::1:7070",
            "http://a:1",
            "a b:1",
            "[localhost]:1",
            "[::1]",
            "a/b:1",
            "user@host:1",
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("is not HOST:PORT\nhint: "), "{text}: {error}");
        }
    }
}
