//! Real connections between a server and its clients, right names and wrong ones: what matters is what a call says.

use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use segvault_transport::authority::{create_authority, issue};
use segvault_transport::server::ListenError;
use segvault_transport::{
    Identity, Reloading, Security, TlsFiles, authorize_agent, authorize_operator, connect, explain, listen, peer_of,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{self, Uri};
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

const CLUSTER: &str = "MkU3OEVBNTcwNTJENDM2Qg";

/// Nothing here takes long; a test that waits for what never comes ends with this.
const PATIENCE: Duration = Duration::from_secs(30);

// ---------------------------------------------------------------- a service

/// Answers who is asking, and whether that peer may do what it asks for.
#[derive(Clone)]
struct WhoAmI;

impl WhoAmI {
    fn answer(request: &Request<String>) -> Result<String, Status> {
        let peer = peer_of(request)?;
        match request.get_ref().split_once(' ') {
            Some(("attend", node_id)) => authorize_agent(&peer, CLUSTER, node_id.parse().unwrap())?,
            None if request.get_ref() == "operate" => authorize_operator(&peer)?,
            _ => (),
        }
        Ok(peer.identity.map_or("nobody".to_owned(), |identity| identity.to_string()))
    }
}

impl tonic::server::UnaryService<String> for WhoAmI {
    type Response = String;
    type Future = std::future::Ready<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        std::future::ready(Self::answer(&request).map(Response::new))
    }
}

impl Service<http::Request<tonic::body::Body>> for WhoAmI {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
        Box::pin(async move { Ok(grpc.unary(WhoAmI, request).await) })
    }
}

/// A server that runs until it is stopped.
struct Running {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Running {
    async fn start(security: Security) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), security).await
    }

    async fn start_at(addr: SocketAddr, security: Security) -> Self {
        let incoming = listen(addr, security).await.unwrap();
        let addr = incoming.local_addr();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            let stopped = async { stopped.await.unwrap_or(()) };
            Server::builder().serve_with_incoming_shutdown(WhoAmI, incoming, stopped).await.unwrap();
        });
        Self { addr, stop, served }
    }

    fn target(&self) -> String {
        self.addr.to_string()
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap();
    }
}

async fn ask(channel: &Channel, what: &str) -> Result<String, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
    let path = PathAndQuery::from_static("/test.WhoAmI/Ask");
    let codec = ProstCodec::<String, String>::default();
    Ok(grpc.unary(Request::new(what.to_owned()), path, codec).await?.into_inner())
}

/// Connects and makes one call: its answer, or in one text what went wrong on the way.
async fn call(target: &str, security: &Security, what: &str) -> Result<String, String> {
    let called = async {
        let channel = connect(target, security).await.map_err(|error| explain(&error))?;
        ask(&channel, what).await.map_err(|status| explain(&status))
    };
    tokio::time::timeout(PATIENCE, called).await.expect("a call ends")
}

async fn refusal(target: &str, security: &Security, what: &str) -> String {
    call(target, security, what).await.expect_err("the call must be refused")
}

// ---------------------------------------------------------------- certificates

/// An authority, and what it has issued.
struct Fleet(tempfile::TempDir);

impl Fleet {
    fn new() -> Self {
        Self::named("fleet")
    }

    fn named(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        create_authority(dir.path(), name, 30, Timestamp::now()).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Issues a certificate for hosts, in a folder of its own.
    fn issue(&self, identity: &Identity, hosts: &[&str]) -> TlsFiles {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let out = tempfile::tempdir_in(self.0.path()).unwrap().keep();
        let issued = issue(self.0.path(), identity, &hosts, 10, &out, Timestamp::now()).unwrap();
        TlsFiles { ca: self.path("ca.pem"), cert: issued.cert, key: issued.key }
    }

    fn coordinator(&self) -> Security {
        secure(self.issue(&Identity::Coordinator, &["127.0.0.1", "localhost"]))
    }

    fn agent(&self, node_id: i32) -> Security {
        secure(self.issue(&agent(node_id), &[]))
    }

    fn operator(&self) -> Security {
        secure(self.issue(&Identity::operator("ann").unwrap(), &[]))
    }

    /// A client without our rules, that shows a certificate of the authority's which `change` has made wrong.
    fn stranger(&self, change: impl FnOnce(&mut CertificateParams)) -> ClientConfig {
        let ca_key = KeyPair::from_pem(&fs::read_to_string(self.path("ca.key")).unwrap()).unwrap();
        let mut ca = CertificateParams::default();
        ca.distinguished_name = rcgen::DistinguishedName::new();
        ca.distinguished_name.push(rcgen::DnType::CommonName, "fleet");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri("segvault://operator/ann")];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2120, 1, 1);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let builder = self.trusting();
        builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
    }

    fn nobody(&self) -> ClientConfig {
        self.trusting().with_no_client_auth()
    }

    fn trusting(&self) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
    }
}

fn agent(node_id: i32) -> Identity {
    Identity::agent(CLUSTER, node_id).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Looks at its files for every connection.
fn secure(files: TlsFiles) -> Security {
    Security::Tls(Arc::new(Reloading::looking_every(Duration::ZERO, files).unwrap()))
}

/// Puts the files of `new` in the place of those of `old`.
fn replace(old: &TlsFiles, new: &TlsFiles) {
    fs::rename(&new.key, &old.key).unwrap();
    fs::rename(&new.cert, &old.cert).unwrap();
}

/// What the server says to a client that TLS lets through and we do not.
async fn stranger_is_told(fleet: &Fleet, config: ClientConfig) -> String {
    let server = Running::start(fleet.coordinator()).await;
    let (addr, connector) = (server.addr, TlsConnector::from(Arc::new(config)));
    let told = async {
        let tcp = TcpStream::connect(addr).await.unwrap();
        let mut tls = connector.connect(ServerName::from(addr.ip()), tcp).await.unwrap();
        tls.read_u8().await.expect_err("nothing is served").to_string()
    };
    let told = tokio::time::timeout(PATIENCE, told).await.expect("it is told");
    server.stop().await;
    told
}

// ---------------------------------------------------------------- right names

#[tokio::test]
async fn right_names_pass_and_the_server_knows_them() {
    let fleet = Fleet::new();
    let server = Running::start(fleet.coordinator()).await;
    let asked = [
        (fleet.agent(3), "attend 3", format!("segvault://agent/{CLUSTER}/3")),
        (fleet.operator(), "operate", "segvault://operator/ann".to_owned()),
        (fleet.coordinator(), "who", "segvault://coordinator".to_owned()),
    ];
    for (security, what, identity) in asked {
        assert_eq!(call(&server.target(), &security, what).await, Ok(identity));
    }
    let by_name = format!("localhost:{}", server.addr.port());
    assert_eq!(call(&by_name, &fleet.operator(), "operate").await, Ok("segvault://operator/ann".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn plain_text_within_a_host_is_for_nobody_in_particular() {
    let server = Running::start(Security::Plain).await;
    for what in ["who", "attend 3", "operate"] {
        assert_eq!(call(&server.target(), &Security::Plain, what).await, Ok("nobody".to_owned()));
    }
    server.stop().await;
}

// ---------------------------------------------------------------- wrong names

#[tokio::test]
async fn an_agent_cannot_attend_for_another_node() {
    let fleet = Fleet::new();
    let server = Running::start(fleet.coordinator()).await;
    let refused = refusal(&server.target(), &fleet.agent(3), "attend 4").await;
    assert_eq!(refused, format!("the certificate is agent 3's of cluster {CLUSTER}; it cannot speak for node 4"));
    server.stop().await;
}

#[tokio::test]
async fn an_operator_cannot_attend_and_an_agent_cannot_operate() {
    let fleet = Fleet::new();
    let server = Running::start(fleet.coordinator()).await;
    let refused = refusal(&server.target(), &fleet.operator(), "attend 3").await;
    assert!(refused.starts_with("the certificate is operator ann's; it cannot speak for node 3"), "{refused}");
    let refused = refusal(&server.target(), &fleet.agent(3), "operate").await;
    assert_eq!(refused, format!("the certificate is agent 3's of cluster {CLUSTER}, not an operator's"));
    server.stop().await;
}

#[tokio::test]
async fn an_agents_certificate_does_not_make_a_coordinator() {
    let fleet = Fleet::new();
    for identity in [agent(3), Identity::operator("ann").unwrap()] {
        let server = Running::start(secure(fleet.issue(&identity, &["127.0.0.1"]))).await;
        let refused = refusal(&server.target(), &fleet.operator(), "who").await;
        let reason = format!("the certificate is {}, not the coordinator's", identity.owner());
        assert!(refused.contains("is not accepted as the coordinator") && refused.contains(&reason), "{refused}");
        server.stop().await;
    }
}

#[tokio::test]
async fn the_coordinator_must_be_at_the_host_that_was_wanted() {
    let fleet = Fleet::new();
    let elsewhere = secure(fleet.issue(&Identity::Coordinator, &["elsewhere.example", "10.0.0.1"]));
    let server = Running::start(elsewhere).await;
    for target in [server.target(), format!("localhost:{}", server.addr.port())] {
        let refused = refusal(&target, &fleet.operator(), "who").await;
        assert!(
            refused.contains("certificate not valid for name") && refused.contains("elsewhere.example"),
            "{refused}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_at_both_ends() {
    let ours = Fleet::new();
    let server = Running::start(ours.coordinator()).await;
    // By its name, or by its key alone.
    for theirs in [Fleet::named("another fleet"), Fleet::new()] {
        let refused = refusal(&server.target(), &theirs.agent(3), "attend 3").await;
        assert!(refused.contains("is not accepted as the coordinator: unknown issuer"), "{refused}");
        // One that believes us, but has its own certificate from the other authority.
        let own = theirs.issue(&agent(3), &[]);
        let half = secure(TlsFiles { ca: ours.path("ca.pem"), ..own.clone() });
        let refused = refusal(&server.target(), &half, "attend 3").await;
        let named = format!("{} refuses our certificate {}: unknown issuer", server.addr, own.cert.display());
        assert!(refused.starts_with(&named), "{refused}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let fleet = Fleet::new();
    let expired = fleet.stranger(|params| params.not_after = date_time_ymd(2021, 1, 1));
    assert!(stranger_is_told(&fleet, expired).await.contains("CertificateExpired"));
    let early = fleet.stranger(|params| params.not_before = date_time_ymd(2119, 1, 1));
    assert!(stranger_is_told(&fleet, early).await.contains("CertificateExpired"));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let fleet = Fleet::new();
    assert!(stranger_is_told(&fleet, fleet.nobody()).await.contains("CertificateRequired"));
}

#[tokio::test]
async fn a_client_without_exactly_one_name_of_ours_is_refused() {
    let fleet = Fleet::new();
    let names = [
        vec![],
        vec![uri("spiffe://example.org/agent")],
        vec![uri("segvault://agent/x")],
        vec![uri("segvault://operator/ann"), uri("segvault://coordinator")],
    ];
    for names in names {
        let stranger = fleet.stranger(|params| params.subject_alt_names = names);
        assert!(stranger_is_told(&fleet, stranger).await.contains("CertificateUnknown"));
    }
}

#[tokio::test]
async fn a_certificate_for_servers_only_does_not_make_a_client() {
    let fleet = Fleet::new();
    let stranger = fleet.stranger(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(stranger_is_told(&fleet, stranger).await.contains("UnsupportedCertificate"));
}

/// A call over a channel that does not wait for the server's word, as other clients' do not.
#[tokio::test]
async fn what_the_server_refuses_late_reaches_the_caller_in_words() {
    let fleet = Fleet::new();
    let server = Running::start(fleet.coordinator()).await;
    let expired = Arc::new(fleet.stranger(|params| params.not_after = date_time_ymd(2021, 1, 1)));
    let addr = server.addr;
    let connector = service_fn(move |_: Uri| {
        let connector = TlsConnector::from(expired.clone());
        async move {
            let mut tls = connector.connect(ServerName::from(addr.ip()), TcpStream::connect(addr).await?).await?;
            // The alert is there before the channel starts to write.
            tokio::io::AsyncBufReadExt::fill_buf(&mut tls).await?;
            Ok::<_, io::Error>(TokioIo::new(tls))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let error = endpoint.connect_with_connector(connector).await.expect_err("it is refused");
    assert!(explain(&error).contains("the other side refuses: certificate expired"), "{}", explain(&error));
    assert!(error.source().is_some());
    server.stop().await;
}

// ---------------------------------------------------------------- no TLS where it should be, and no server

#[tokio::test]
async fn plain_text_is_refused_beyond_loopback() {
    for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let refused = listen(addr.parse().unwrap(), Security::Plain).await.unwrap_err();
        assert!(matches!(refused, ListenError::PlainBeyondLoopback { .. }), "{refused}");
        assert!(refused.to_string().contains("\nhint: make certificates with `segvault cert`"), "{refused}");
    }
    for target in ["192.0.2.1:7070", "[2001:db8::1]:7070"] {
        let refused = refusal(target, &Security::Plain, "who").await;
        assert!(refused.starts_with("plain text is for loopback only"), "{refused}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_told_from_the_coordinator() {
    let fleet = Fleet::new();
    let server = Running::start(Security::Plain).await;
    let refused = refusal(&server.target(), &fleet.operator(), "who").await;
    assert!(refused.contains("it does not speak TLS"), "{refused}");
    server.stop().await;
}

#[tokio::test]
async fn nobody_there_is_said_as_such() {
    let server = Running::start(Security::Plain).await;
    let target = server.target();
    server.stop().await;
    for security in [Security::Plain, Fleet::new().operator()] {
        let refused = refusal(&target, &security, "who").await;
        assert!(refused.contains(&target) && refused.contains("Connection refused"), "{refused}");
        assert!(refused.contains("\nhint: is the coordinator running"), "{refused}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let server = Running::start(Security::Plain).await;
    let refused = listen(server.addr, Security::Plain).await.unwrap_err().to_string();
    assert!(refused.starts_with(&format!("listen on {}: ", server.addr)), "{refused}");
    server.stop().await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_does_not_keep_others_waiting() {
    let fleet = Fleet::new();
    let server = Running::start(fleet.coordinator()).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(server.addr).await.unwrap());
    }
    assert!(call(&server.target(), &fleet.operator(), "operate").await.is_ok());
    drop(silent);
    server.stop().await;
}

// ---------------------------------------------------------------- certificates that change

#[tokio::test]
async fn new_files_are_for_new_connections_and_old_connections_live() {
    let fleet = Fleet::new();
    let server = Running::start(fleet.coordinator()).await;
    let files = fleet.issue(&agent(3), &[]);
    let security = secure(files.clone());
    let old = connect(&server.target(), &security).await.unwrap();
    assert_eq!(ask(&old, "who").await.unwrap(), agent(3).to_string());
    replace(&files, &fleet.issue(&agent(4), &[]));
    assert_eq!(call(&server.target(), &security, "who").await, Ok(agent(4).to_string()));
    assert_eq!(ask(&old, "who").await.unwrap(), agent(3).to_string());
    server.stop().await;
}

#[tokio::test]
async fn a_server_changes_its_authority_without_a_restart() {
    let (before, after) = (Fleet::new(), Fleet::new());
    let files = before.issue(&Identity::Coordinator, &["127.0.0.1"]);
    let server = Running::start(secure(files.clone())).await;
    let old = connect(&server.target(), &before.operator()).await.unwrap();
    fs::copy(after.path("ca.pem"), before.path("ca.pem")).unwrap();
    replace(&files, &after.issue(&Identity::Coordinator, &["127.0.0.1"]));
    assert!(call(&server.target(), &after.operator(), "operate").await.is_ok());
    assert!(ask(&old, "operate").await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn a_broken_replacement_leaves_the_old_files_in_use() {
    let fleet = Fleet::new();
    let (server_files, client_files) =
        (fleet.issue(&Identity::Coordinator, &["127.0.0.1"]), fleet.issue(&agent(3), &[]));
    let (ours, theirs) = (secure(server_files.clone()), secure(client_files.clone()));
    let server = Running::start(ours).await;
    let breaks: [fn(&Path); 3] = [
        |path| fs::write(path, "no certificate").unwrap(),
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap(),
    ];
    for damage in breaks {
        damage(&server_files.cert);
        damage(&client_files.cert);
        assert_eq!(call(&server.target(), &theirs, "who").await, Ok(agent(3).to_string()));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_channel_connects_again_and_says_why_while_it_cannot() {
    let fleet = Fleet::new();
    let (files, coordinator) = (fleet.issue(&agent(3), &[]), fleet.coordinator());
    let server = Running::start(coordinator.clone()).await;
    let (addr, security) = (server.addr, secure(files.clone()));
    let channel = connect(&server.target(), &security).await.unwrap();
    assert_eq!(ask(&channel, "who").await.unwrap(), agent(3).to_string());
    server.stop().await;
    until(|| async { ask(&channel, "who").await.is_err_and(|status| explain(&status).contains("Connection refused")) })
        .await;
    replace(&files, &fleet.issue(&agent(4), &[]));
    let server = Running::start_at(addr, coordinator).await;
    until(|| async { ask(&channel, "who").await.is_ok_and(|who| who == agent(4).to_string()) }).await;
    server.stop().await;
}

/// Tries again until it is so.
async fn until<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    let tries = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.expect("it becomes so");
}
