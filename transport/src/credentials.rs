//! What one end needs to prove who it is and to check the other: the authority's certificate, its own, and its key.
//!
//! Everything that would make every handshake fail is found when the files are loaded, and said with the file's name:
//! a key of another certificate, a certificate without a name, one that has expired. A running process looks at its
//! files again when it makes or takes a connection, so that a renewed certificate needs no restart. Files are replaced
//! one after the other and may not fit for a moment: what cannot be loaded is said once and tried again at the next
//! look, and what was loaded before stays in use.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use serde::Deserialize;

use crate::certificate::{Certificate, CertificateError, identity_of};
use crate::identity::Identity;
use crate::verify::{CoordinatorVerifier, PeerVerifier};

/// Largest PEM file that is read: room for a bundle of hundreds of authorities.
const PEM_LEN_MAX: u64 = 1 << 20;

/// How long what was loaded is used without a look at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Both ends of every connection are ours.
const ALPN: &[u8] = b"h2";

pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// How connections are made and taken.
#[derive(Clone, Debug)]
pub enum Security {
    /// Mutual TLS.
    Tls(Arc<Reloading>),
    /// Plain text, which never leaves this host. Every user of the host may then do everything.
    Plain,
}

impl Security {
    /// Who we are, if we have a certificate.
    pub fn identity(&self) -> Option<Identity> {
        match self {
            Self::Tls(reloading) => Some(reloading.current().identity().clone()),
            Self::Plain => None,
        }
    }

    /// Until when our certificate is valid, if there is one.
    pub fn not_after(&self) -> Option<Timestamp> {
        match self {
            Self::Tls(reloading) => Some(reloading.current().not_after()),
            Self::Plain => None,
        }
    }
}

/// Where certificates and key are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificates of the authorities that peers are believed by.
    pub ca: PathBuf,
    /// Our own certificate, and those between it and the authority, if any.
    pub cert: PathBuf,
    /// Our own key.
    pub key: PathBuf,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is far larger than what should be in it.
    #[error("{}: it is larger than {PEM_LEN_MAX} bytes, which no file of certificates or keys is", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// A file is damaged.
    #[error("{}: it is no PEM file: {source}", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Where.
        source: pem::Error,
    },
    /// A file has no certificate in it.
    #[error("{}: there is no certificate in it\nhint: it must be PEM, with a line BEGIN CERTIFICATE", path.display())]
    NoCertificate {
        /// Which.
        path: PathBuf,
    },
    /// A file has no key in it.
    #[error("{}: there is no private key in it\nhint: it must be PEM, with a line BEGIN PRIVATE KEY", path.display())]
    NoKey {
        /// Which.
        path: PathBuf,
    },
    /// A certificate that cannot be used.
    #[error("{}: {source}", path.display())]
    Certificate {
        /// In which file.
        path: PathBuf,
        /// Why.
        source: CertificateError,
    },
    /// An authority, or a key, that TLS cannot use.
    #[error("{}: {source}", path.display())]
    Unusable {
        /// In which file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The key is of another certificate.
    #[error("{}: the key does not belong to the certificate in {}", key.display(), cert.display())]
    OtherKey {
        /// The key's file.
        key: PathBuf,
        /// The certificate's.
        cert: PathBuf,
    },
    /// The certificate is not valid yet.
    #[error(
        "{}: the certificate is not valid yet, only from {not_before} on\nhint: is this host's clock right?",
        path.display()
    )]
    NotYetValid {
        /// Its file.
        path: PathBuf,
        /// Since when it will be.
        not_before: Timestamp,
    },
    /// The certificate has expired.
    #[error(
        "{}: the certificate expired on {not_after}\nhint: issue a new one with `segvault cert issue`",
        path.display()
    )]
    Expired {
        /// Its file.
        path: PathBuf,
        /// When.
        not_after: Timestamp,
    },
    /// The verifier of peers cannot be made.
    #[error("{}: no peer can be verified by it: {reason}", path.display())]
    Verifier {
        /// The authorities' file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// One end's certificates and key, ready for handshakes.
pub struct Credentials {
    path: PathBuf,
    identity: Identity,
    not_before: Timestamp,
    not_after: Timestamp,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Loads and checks the files. A key that every user of this host can read is warned of.
    pub fn load(files: &TlsFiles) -> Result<Self, CredentialsError> {
        let chain = read_certificates(&files.cert)?;
        let (identity, certificate) =
            describe(&chain[0]).map_err(|source| CredentialsError::Certificate { path: files.cert.clone(), source })?;
        let roots = Arc::new(read_roots(&files.ca)?);
        let key = certified_key(files, chain)?;
        warn_of_open_key(&files.key);
        let (server, client) = configs(roots, key)
            .map_err(|reason| CredentialsError::Verifier { path: files.ca.clone(), reason: reason.to_string() })?;
        let Certificate { not_before, not_after, .. } = certificate;
        let (server, client) = (Arc::new(server), Arc::new(client));
        let credentials = Self { path: files.cert.clone(), identity, not_before, not_after, server, client };
        credentials.check_valid(Timestamp::now())?;
        Ok(credentials)
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The file of our certificate.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Until when our certificate is valid.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether our certificate is valid at `now`.
    pub fn check_valid(&self, now: Timestamp) -> Result<(), CredentialsError> {
        let path = || self.path.clone();
        if now < self.not_before {
            return Err(CredentialsError::NotYetValid { path: path(), not_before: self.not_before });
        }
        if now > self.not_after {
            return Err(CredentialsError::Expired { path: path(), not_after: self.not_after });
        }
        Ok(())
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}

fn describe(der: &CertificateDer<'_>) -> Result<(Identity, Certificate), CertificateError> {
    Ok((identity_of(der)?, Certificate::decode(der)?))
}

/// Configurations for both directions. Sessions are never resumed: every connection proves who its ends are.
fn configs(
    roots: Arc<RootCertStore>,
    key: CertifiedKey,
) -> Result<(ServerConfig, ClientConfig), Box<dyn std::error::Error + Send + Sync>> {
    let versions = [&rustls::version::TLS13];
    let key = Arc::new(SingleCertAndKey::from(key));
    let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&versions)?
        .with_client_cert_verifier(Arc::new(PeerVerifier::new(roots.clone(), PROVIDER.clone())?))
        .with_cert_resolver(key.clone());
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(CoordinatorVerifier::new(roots, PROVIDER.clone())?))
        .with_client_cert_resolver(key);
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    Ok((server, client))
}

/// All certificates of a PEM file: at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let bytes = read_pem(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|source| CredentialsError::Pem { path: path.into(), source })?;
    if certificates.is_empty() {
        return Err(CredentialsError::NoCertificate { path: path.into() });
    }
    Ok(certificates)
}

fn read_roots(path: &Path) -> Result<RootCertStore, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|source| CredentialsError::Unusable { path: path.into(), source })?;
    }
    Ok(roots)
}

fn certified_key(files: &TlsFiles, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, CredentialsError> {
    let path = || files.key.clone();
    let bytes = read_pem(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|source| match source {
        pem::Error::NoItemsFound => CredentialsError::NoKey { path: path() },
        source => CredentialsError::Pem { path: path(), source },
    })?;
    CertifiedKey::from_der(chain, key, &PROVIDER).map_err(|source| match source {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            CredentialsError::OtherKey { key: path(), cert: files.cert.clone() }
        }
        source => CredentialsError::Unusable { path: path(), source },
    })
}

/// The bytes of a PEM file, of bounded length.
pub(crate) fn read_pem(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let io_error = |source| CredentialsError::Io { path: path.into(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(io_error)?.take(PEM_LEN_MAX + 1).read_to_end(&mut bytes).map_err(io_error)?;
    match bytes.len() as u64 > PEM_LEN_MAX {
        true => Err(CredentialsError::TooLarge { path: path.into() }),
        false => Ok(bytes),
    }
}

fn warn_of_open_key(path: &Path) {
    if fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
        tracing::warn!("{}: every user of this host can read this private key; run chmod o-rwx on it", path.display());
    }
}

/// Credentials that are loaded again when their files have changed.
#[derive(Debug)]
pub struct Reloading {
    files: TlsFiles,
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    current: Arc<Credentials>,
    /// The files as they were before `current` was loaded.
    stamps: [Option<Stamp>; 3],
    looked: Instant,
    /// What was last said about files that cannot be loaded.
    warned: Option<String>,
}

/// What changes when a file is replaced or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    len: u64,
    inode: (u64, u64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            len: metadata.len(),
            inode: (metadata.dev(), metadata.ino()),
        })
    }
}

impl TlsFiles {
    fn stamps(&self) -> [Option<Stamp>; 3] {
        [&self.ca, &self.cert, &self.key].map(|path| Stamp::of(path))
    }
}

impl Reloading {
    /// Loads the files.
    pub fn open(files: TlsFiles) -> Result<Self, CredentialsError> {
        Self::looking_every(LOOK_INTERVAL, files)
    }

    /// The same, for who wants to look more or less often.
    pub fn looking_every(interval: Duration, files: TlsFiles) -> Result<Self, CredentialsError> {
        // Before they are read: what is written while they are read is a change.
        let stamps = files.stamps();
        let current = Arc::new(Credentials::load(&files)?);
        let state = Mutex::new(State { current, stamps, looked: Instant::now(), warned: None });
        Ok(Self { files, interval, state })
    }

    /// What a connection that is made now should use.
    pub fn current(&self) -> Arc<Credentials> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= self.interval {
            state.look(&self.files);
        }
        state.current.clone()
    }
}

impl State {
    fn look(&mut self, files: &TlsFiles) {
        self.looked = Instant::now();
        let stamps = files.stamps();
        if stamps == self.stamps {
            return;
        }
        match Credentials::load(files) {
            Ok(credentials) => {
                tracing::info!("loaded {} again: {}", files.cert.display(), credentials.identity);
                *self = Self { current: Arc::new(credentials), stamps, looked: self.looked, warned: None };
            }
            // The stamps stay as they are, so that the next look tries again: time alone can make files usable.
            Err(error) => self.warn(error.to_string()),
        }
    }

    fn warn(&mut self, error: String) {
        if self.warned.as_ref() != Some(&error) {
            tracing::warn!("changed certificates are not used, those loaded before are: {error}");
            self.warned = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use jiff::SignedDuration;

    use super::*;
    use crate::authority::{create_authority, issue};

    /// An authority with the files of an agent, which the test then changes.
    struct Fleet(tempfile::TempDir);

    impl Fleet {
        fn new() -> Self {
            let fleet = Self(tempfile::tempdir().unwrap());
            create_authority(fleet.0.path(), "fleet", 30, Timestamp::now()).unwrap();
            fleet.issue(3, Timestamp::now());
            fleet
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn issue(&self, node_id: i32, now: Timestamp) {
            let agent = Identity::agent("X", node_id).unwrap();
            issue(self.0.path(), &agent, &[], 10, self.0.path(), now).unwrap();
        }

        fn files(&self) -> TlsFiles {
            TlsFiles { ca: self.path("ca.pem"), cert: self.path("agent-3.pem"), key: self.path("agent-3.key") }
        }

        fn replace(&self, from: &str, to: &str) {
            fs::rename(self.path(from), self.path(to)).unwrap();
        }
    }

    #[test]
    fn what_is_loaded_knows_who_it_is() {
        let fleet = Fleet::new();
        let credentials = Credentials::load(&fleet.files()).unwrap();
        assert_eq!(*credentials.identity(), Identity::agent("X", 3).unwrap());
        assert_eq!(format!("{credentials:?}").matches("Agent").count(), 1);
    }

    #[test]
    fn what_cannot_be_loaded_is_named_with_its_file() {
        type Change<'a> = &'a dyn Fn(&Fleet);
        let cases: [(Change, &str, &str); 10] = [
            (&|fleet| fs::remove_file(fleet.path("ca.pem")).unwrap(), "ca.pem", "No such file"),
            (&|fleet| fs::remove_file(fleet.path("agent-3.key")).unwrap(), "agent-3.key", "No such file"),
            (&|fleet| fs::write(fleet.path("agent-3.pem"), "").unwrap(), "agent-3.pem", "no certificate in it"),
            (&|fleet| fs::write(fleet.path("ca.pem"), "x\ny").unwrap(), "ca.pem", "no certificate in it"),
            (&|fleet| fs::write(fleet.path("agent-3.key"), "x").unwrap(), "agent-3.key", "no private key in it"),
            (
                &|fleet| fs::write(fleet.path("agent-3.pem"), "-----BEGIN CERTIFICATE-----\nAA\n").unwrap(),
                "agent-3.pem",
                "no PEM file",
            ),
            (
                &|fleet| {
                    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
                    fs::write(fleet.path("agent-3.pem"), text).unwrap();
                },
                "agent-3.pem",
                "no X.509 certificate",
            ),
            (&|fleet| fleet.replace("ca.key", "agent-3.key"), "agent-3.key", "does not belong to the certificate in"),
            // The authority itself has no segvault:// name.
            (
                &|fleet| {
                    fs::copy(fleet.path("ca.pem"), fleet.path("agent-3.pem")).unwrap();
                    fleet.replace("ca.key", "agent-3.key");
                },
                "agent-3.pem",
                "no segvault:// name",
            ),
            (
                &|fleet| fs::write(fleet.path("ca.pem"), vec![b'x'; PEM_LEN_MAX as usize + 1]).unwrap(),
                "ca.pem",
                "larger than",
            ),
        ];
        for (change, file, what) in cases {
            let fleet = Fleet::new();
            change(&fleet);
            let error = Credentials::load(&fleet.files()).unwrap_err().to_string();
            assert!(error.contains(file) && error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_certificate_is_refused_outside_its_time_with_the_date() {
        let fleet = Fleet::new();
        let credentials = Credentials::load(&fleet.files()).unwrap();
        let day = SignedDuration::from_hours(24);
        let late = credentials.check_valid(Timestamp::now() + day * 11).unwrap_err().to_string();
        assert!(late.contains("agent-3.pem: the certificate expired on 20"), "{late}");
        let early = credentials.check_valid(Timestamp::now() - day).unwrap_err().to_string();
        assert!(early.contains("agent-3.pem: the certificate is not valid yet, only from 20"), "{early}");
    }

    #[test]
    fn an_expired_certificate_is_refused_when_it_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet(dir);
        let past = Timestamp::now() - SignedDuration::from_hours(24 * 20);
        create_authority(fleet.0.path(), "fleet", 30, past).unwrap();
        fleet.issue(3, past);
        assert!(matches!(Credentials::load(&fleet.files()), Err(CredentialsError::Expired { .. })));
    }

    #[test]
    fn files_are_loaded_again_when_they_have_changed_and_fit() {
        let fleet = Fleet::new();
        fleet.issue(4, Timestamp::now());
        let reloading = Reloading::looking_every(Duration::ZERO, fleet.files()).unwrap();
        let first = reloading.current();
        assert!(Arc::ptr_eq(&first, &reloading.current()), "nothing has changed");
        fleet.replace("agent-4.pem", "agent-3.pem");
        assert!(Arc::ptr_eq(&first, &reloading.current()), "the key is not there yet");
        assert!(reloading.state.lock().unwrap().warned.as_ref().unwrap().contains("does not belong"));
        fleet.replace("agent-4.key", "agent-3.key");
        assert_eq!(*reloading.current().identity(), Identity::agent("X", 4).unwrap());
        assert_eq!(reloading.state.lock().unwrap().warned, None);
    }

    #[test]
    fn what_stays_broken_is_said_once_and_what_is_mended_is_loaded() {
        let fleet = Fleet::new();
        let reloading = Reloading::looking_every(Duration::ZERO, fleet.files()).unwrap();
        let first = reloading.current();
        fleet.replace("agent-3.key", "kept.key");
        assert!(Arc::ptr_eq(&first, &reloading.current()));
        let said = |reloading: &Reloading| reloading.state.lock().unwrap().warned.as_ref().map(|text| text.as_ptr());
        let once = said(&reloading);
        assert!(Arc::ptr_eq(&first, &reloading.current()));
        assert!(once.is_some() && once == said(&reloading), "it is the same warning, not another");
        fleet.replace("kept.key", "agent-3.key");
        assert!(!Arc::ptr_eq(&first, &reloading.current()));
    }

    #[test]
    fn files_are_not_looked_at_between_two_looks() {
        let fleet = Fleet::new();
        let reloading = Reloading::looking_every(Duration::from_secs(3600), fleet.files()).unwrap();
        let first = reloading.current();
        fs::remove_file(fleet.path("agent-3.key")).unwrap();
        assert!(Arc::ptr_eq(&first, &reloading.current()));
        assert_eq!(reloading.state.lock().unwrap().warned, None);
    }

    #[test]
    fn a_key_that_others_can_read_is_still_loaded() {
        let fleet = Fleet::new();
        fs::set_permissions(fleet.path("agent-3.key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Credentials::load(&fleet.files()).is_ok());
    }
}
