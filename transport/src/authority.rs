//! A small authority: the key that every certificate of a fleet is signed with, and the certificates.
//!
//! It is two files, `ca.pem`, which every host of the fleet gets, and `ca.key`, which none needs. Nothing is ever
//! overwritten: an authority that is made anew by mistake would shut out the whole fleet. Keys are readable by their
//! owner only from the moment they exist, and a certificate is held against its authority, as a peer would, before it
//! is written.
//!
//! Keys are ECDSA on P-256. A certificate is for both directions of TLS; what its owner may do is said by its
//! `segvault://` name alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, DnsName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::certificate::{Certificate, CertificateError, identity_of};
use crate::credentials::{CredentialsError, PROVIDER, read_certificates, read_pem};
use crate::identity::{Identity, IdentityError};

/// The authority's certificate.
pub const CA_CERTIFICATE: &str = "ca.pem";

/// The authority's key.
pub const CA_KEY: &str = "ca.key";

/// Clocks of a fleet differ a little; a certificate is used at once.
const BACKDATED: SignedDuration = SignedDuration::from_mins(5);

/// A hundred years.
const DAYS_MAX: u32 = 36_525;

/// Longest name of an authority: the limit of a common name.
const NAME_LEN_MAX: usize = 64;

/// Why no authority or certificate is made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file is there already.
    #[error("{}: it is there already, and nothing is overwritten\nhint: move it away, or choose another directory", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no authority.
    #[error("{} has no authority: there is no {CA_CERTIFICATE}\nhint: make one with `segvault cert authority`", dir.display())]
    NoAuthority {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The authority's files cannot be read.
    #[error(transparent)]
    Read(#[from] CredentialsError),
    /// The authority's certificate cannot be read.
    #[error("{}: {source}", path.display())]
    Certificate {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: CertificateError,
    },
    /// The authority's time is over.
    #[error(
        "{}: the authority expired on {not_after}\nhint: make a new one, and give its certificate to all hosts",
        path.display()
    )]
    Expired {
        /// Its file.
        path: PathBuf,
        /// When.
        not_after: Timestamp,
    },
    /// The authority's key cannot be used.
    #[error("{}: the key cannot be used: {source}", path.display())]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
    /// What the authority signs is not believed.
    #[error(
        "{}: what it signs is not believed: {source}\n\
         hint: does {CA_KEY} belong to {CA_CERTIFICATE}, and are both as `segvault cert authority` has made them?",
        path.display()
    )]
    NotBelieved {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: webpki::Error,
    },
    /// An identity that cannot stand in a certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The name of an authority that cannot stand in a certificate.
    #[error("{name:?} cannot be the name of an authority: it must have 1 to {NAME_LEN_MAX} characters, printable ones")]
    Name {
        /// What was given.
        name: String,
    },
    /// A host that cannot stand in a certificate.
    #[error("{host:?} is no host name and no IP address")]
    Host {
        /// What was given.
        host: String,
    },
    /// A coordinator without a host.
    #[error("the coordinator's certificate needs the host names that it is reached by\nhint: give them with --host")]
    NoHost,
    /// A time that is too short or too long.
    #[error("{days} days cannot be the time of a certificate: it must be 1 to {DAYS_MAX}")]
    Days {
        /// What was given.
        days: u32,
    },
    /// The system has no randomness for us.
    #[error("draw a serial number: {0}")]
    Random(getrandom::Error),
    /// The certificate cannot be made.
    #[error("make the certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// Until when the certificate is valid.
    pub not_after: Timestamp,
}

/// Makes an authority in `dir`, valid for `days` from `now`: `ca.pem` and `ca.key`.
pub fn create_authority(dir: &Path, name: &str, days: u32, now: Timestamp) -> Result<Issued, AuthorityError> {
    let is_fine = !name.is_empty() && name.len() <= NAME_LEN_MAX && !name.chars().any(char::is_control);
    if !is_fine {
        return Err(AuthorityError::Name { name: name.into() });
    }
    let not_after = end(now, days)?;
    let mut params = params(name, now.saturating_sub(BACKDATED).unwrap_or(now), not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    create_dir(dir)?;
    let (cert, key) = publish(dir, "ca", &certificate.pem(), &key.serialize_pem())?;
    Ok(Issued { cert, key, not_after })
}

/// Issues a certificate for `identity`, to be reached at `hosts`: names and IP addresses. It is valid for `days` from
/// `now`, or as long as the authority in `authority_dir`. Writes `NAME.pem` and `NAME.key` into `out_dir`.
pub fn issue(
    authority_dir: &Path,
    identity: &Identity,
    hosts: &[String],
    days: u32,
    out_dir: &Path,
    now: Timestamp,
) -> Result<Issued, AuthorityError> {
    let authority = Authority::open(authority_dir, now)?;
    let not_after = end(now, days)?.min(authority.certificate.not_after);
    let not_before = now.saturating_sub(BACKDATED).unwrap_or(now).max(authority.certificate.not_before);
    let mut params = params(&common_name(identity), not_before, not_after)?;
    params.subject_alt_names = names(identity, hosts)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority.issuer)?;
    authority.check(certificate.der(), identity, now)?;
    create_dir(out_dir)?;
    let (cert, key) = publish(out_dir, &identity.file_stem(), &certificate.pem(), &key.serialize_pem())?;
    Ok(Issued { cert, key, not_after })
}

/// An authority that can sign.
struct Authority {
    path: PathBuf,
    der: CertificateDer<'static>,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn open(dir: &Path, now: Timestamp) -> Result<Self, AuthorityError> {
        let path = dir.join(CA_CERTIFICATE);
        if !path.exists() {
            return Err(AuthorityError::NoAuthority { dir: dir.into() });
        }
        // There is at least one. What more there may be are authorities of before, for peers that have theirs from them.
        let der = read_certificates(&path)?.swap_remove(0);
        let certificate =
            Certificate::decode(&der).map_err(|source| AuthorityError::Certificate { path: path.clone(), source })?;
        if now > certificate.not_after {
            return Err(AuthorityError::Expired { path, not_after: certificate.not_after });
        }
        let key_path = dir.join(CA_KEY);
        let pem = read_pem(&key_path)?;
        let key = KeyPair::from_pem(&String::from_utf8_lossy(&pem))
            .map_err(|source| AuthorityError::Key { path: key_path, source })?;
        // The issuer's name must be the authority's subject, byte by byte; `check` sees whether it is.
        let name = certificate.common_name.as_deref().unwrap_or_default();
        let issuer = Issuer::new(params(name, certificate.not_before, certificate.not_after)?, key);
        Ok(Self { path, der, certificate, issuer })
    }

    /// Holds a certificate that was just signed against the authority, as each end of a connection will.
    fn check(&self, der: &CertificateDer<'_>, identity: &Identity, now: Timestamp) -> Result<(), AuthorityError> {
        let not_believed = |source| AuthorityError::NotBelieved { path: self.path.clone(), source };
        let anchors = [webpki::anchor_from_trusted_cert(&self.der).map_err(not_believed)?];
        let certificate = EndEntityCert::try_from(der).map_err(not_believed)?;
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        let time = UnixTime::since_unix_epoch(since_epoch(now));
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            certificate.verify_for_usage(algorithms, &anchors, &[], time, usage, None, None).map_err(not_believed)?;
        }
        let read =
            identity_of(der).map_err(|source| AuthorityError::Certificate { path: self.path.clone(), source })?;
        assert_eq!(read, *identity, "the certificate must say what it was made for");
        Ok(())
    }
}

/// A common name is for people, and none of ours is longer than is allowed.
fn common_name(identity: &Identity) -> String {
    match identity {
        Identity::Operator { name } => name.clone(),
        _ => identity.file_stem(),
    }
}

/// All alternative names of a certificate. Their forms are checked, as fields of an identity can be set to anything.
fn names(identity: &Identity, hosts: &[String]) -> Result<Vec<SanType>, AuthorityError> {
    if *identity == Identity::Coordinator && hosts.is_empty() {
        return Err(AuthorityError::NoHost);
    }
    let uri = identity.to_string().parse::<Identity>()?.to_string();
    let host_names = hosts.iter().map(|host| host_name(host));
    std::iter::once(Ok(SanType::URI(uri.try_into()?))).chain(host_names).collect()
}

fn host_name(host: &str) -> Result<SanType, AuthorityError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let bad = || AuthorityError::Host { host: host.into() };
    DnsName::try_from(host).map_err(|_| bad())?;
    Ok(SanType::DnsName(host.try_into().map_err(|_| bad())?))
}

/// What all certificates have.
fn params(name: &str, not_before: Timestamp, not_after: Timestamp) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial_number()?);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(not_before);
    params.not_after = epoch + since_epoch(not_after);
    Ok(params)
}

/// Positive, and never twice the same.
fn serial_number() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(AuthorityError::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn end(now: Timestamp, days: u32) -> Result<Timestamp, AuthorityError> {
    let is_fine = (1..=DAYS_MAX).contains(&days);
    let end = now.checked_add(SignedDuration::from_hours(24 * i64::from(days))).ok().filter(|_| is_fine);
    // Certificates have whole seconds.
    end.and_then(|end| Timestamp::from_second(end.as_second()).ok()).ok_or(AuthorityError::Days { days })
}

fn since_epoch(time: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0))
}

fn create_dir(dir: &Path) -> Result<(), AuthorityError> {
    fs::create_dir_all(dir).map_err(|source| AuthorityError::Write { path: dir.into(), source })
}

/// Writes key and certificate, in this order: a certificate is never there without its key.
fn publish(dir: &Path, stem: &str, certificate: &str, key: &str) -> Result<(PathBuf, PathBuf), AuthorityError> {
    let (cert_path, key_path) = (dir.join(format!("{stem}.pem")), dir.join(format!("{stem}.key")));
    if cert_path.exists() {
        return Err(AuthorityError::Exists { path: cert_path });
    }
    write_new(&key_path, key, 0o600)?;
    if let Err(error) = write_new(&cert_path, certificate, 0o644) {
        // It was made a moment ago, for this certificate alone.
        let _ = fs::remove_file(&key_path);
        return Err(error);
    }
    let sync = File::open(dir).and_then(|dir| dir.sync_all());
    sync.map_err(|source| AuthorityError::Write { path: dir.into(), source })?;
    Ok((cert_path, key_path))
}

/// Writes a file that must not be there, durably. One that cannot be finished is taken away.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(AuthorityError::Exists { path: path.into() });
        }
        Err(source) => return Err(AuthorityError::Write { path: path.into(), source }),
    };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|source| {
        let _ = fs::remove_file(path);
        AuthorityError::Write { path: path.into(), source }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn now() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    fn authority(days: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        create_authority(dir.path(), "fleet", days, now()).unwrap();
        dir
    }

    fn read(path: &Path) -> Certificate {
        Certificate::decode(&read_certificates(path).unwrap()[0]).unwrap()
    }

    fn agent() -> Identity {
        Identity::agent("MkU3OEVBNTcwNTJENDM2Qg", 3).unwrap()
    }

    #[test]
    fn a_certificate_says_who_where_and_how_long() {
        let dir = authority(100);
        let hosts = ["coordinator.example.org".to_owned(), "10.0.0.1".to_owned(), "::1".to_owned()];
        let issued = issue(dir.path(), &Identity::Coordinator, &hosts, 10, dir.path(), now()).unwrap();
        assert_eq!(issued.cert, dir.path().join("coordinator.pem"));
        let certificate = read(&issued.cert);
        assert_eq!((certificate.subject.as_str(), certificate.issuer.as_str()), ("CN=coordinator", "CN=fleet"));
        assert_eq!((certificate.not_before, certificate.not_after), (now() - BACKDATED, now() + DAY * 10));
        assert_eq!(certificate.dns_names, ["coordinator.example.org"]);
        assert_eq!(certificate.ip_addresses.len(), 2);
        assert_eq!(certificate.identity().unwrap(), Identity::Coordinator);
    }

    #[test]
    fn files_are_named_by_whose_they_are() {
        let dir = authority(100);
        let out = dir.path().join("out");
        for (identity, stem) in [(agent(), "agent-3"), (Identity::operator("ann").unwrap(), "operator-ann")] {
            let issued = issue(dir.path(), &identity, &[], 10, &out, now()).unwrap();
            assert_eq!(issued.cert, out.join(format!("{stem}.pem")));
            assert_eq!(issued.key, out.join(format!("{stem}.key")));
            assert_eq!(read(&issued.cert).identity().unwrap(), identity);
        }
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let dir = authority(100);
        let issued = issue(dir.path(), &agent(), &[], 10, dir.path(), now()).unwrap();
        for key in [dir.path().join(CA_KEY), issued.key] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn no_certificate_outlives_or_precedes_its_authority() {
        let dir = authority(100);
        let issued = issue(dir.path(), &agent(), &[], 365, dir.path(), now()).unwrap();
        let (leaf, ca) = (read(&issued.cert), read(&dir.path().join(CA_CERTIFICATE)));
        assert_eq!((leaf.not_before, leaf.not_after), (ca.not_before, ca.not_after));
        assert_eq!(issued.not_after, ca.not_after);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = authority(100);
        let before = fs::read(dir.path().join(CA_KEY)).unwrap();
        assert!(matches!(create_authority(dir.path(), "x", 10, now()), Err(AuthorityError::Exists { .. })));
        fs::remove_file(dir.path().join(CA_CERTIFICATE)).unwrap();
        assert!(matches!(create_authority(dir.path(), "x", 10, now()), Err(AuthorityError::Exists { .. })));
        assert_eq!(fs::read(dir.path().join(CA_KEY)).unwrap(), before);
        let dir = authority(100);
        issue(dir.path(), &agent(), &[], 10, dir.path(), now()).unwrap();
        let again = issue(dir.path(), &agent(), &[], 10, dir.path(), now()).unwrap_err();
        assert!(again.to_string().contains("agent-3.pem: it is there already"), "{again}");
    }

    #[test]
    fn an_authority_that_is_none_is_refused() {
        type Change<'a> = &'a dyn Fn(&Path);
        let cases: [(Change, &str); 5] = [
            (&|dir| fs::remove_file(dir.join(CA_CERTIFICATE)).unwrap(), "has no authority"),
            (&|dir| fs::remove_file(dir.join(CA_KEY)).unwrap(), "ca.key: No such file"),
            (&|dir| fs::write(dir.join(CA_KEY), "x").unwrap(), "ca.key: the key cannot be used"),
            (&|dir| fs::write(dir.join(CA_CERTIFICATE), "x").unwrap(), "ca.pem: there is no certificate in it"),
            (
                &|dir| {
                    let other = authority(100);
                    fs::copy(other.path().join(CA_KEY), dir.join(CA_KEY)).unwrap();
                },
                "ca.pem: what it signs is not believed",
            ),
        ];
        for (change, what) in cases {
            let dir = authority(100);
            change(dir.path());
            let out = tempfile::tempdir().unwrap();
            let error = issue(dir.path(), &agent(), &[], 10, out.path(), now()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "nothing is left of it");
        }
    }

    #[test]
    fn an_authority_does_not_sign_after_its_end() {
        let dir = authority(10);
        let error = issue(dir.path(), &agent(), &[], 10, dir.path(), now() + DAY * 11).unwrap_err().to_string();
        assert!(error.contains("the authority expired on 2026-03-11T12:00:00Z"), "{error}");
    }

    #[test]
    fn what_cannot_stand_in_a_certificate_is_refused() {
        let dir = authority(100);
        let refused = |identity: &Identity, hosts: &[&str], days| {
            let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
            issue(dir.path(), identity, &hosts, days, dir.path(), now()).unwrap_err()
        };
        assert!(matches!(refused(&Identity::Coordinator, &[], 1), AuthorityError::NoHost));
        assert!(matches!(refused(&Identity::Coordinator, &["a b"], 1), AuthorityError::Host { .. }));
        assert!(matches!(refused(&Identity::Coordinator, &["https://a"], 1), AuthorityError::Host { .. }));
        assert!(matches!(refused(&agent(), &[], 0), AuthorityError::Days { .. }));
        assert!(matches!(refused(&agent(), &[], DAYS_MAX + 1), AuthorityError::Days { .. }));
        let slash = Identity::Operator { name: "../x".to_owned() };
        assert!(matches!(refused(&slash, &[], 1), AuthorityError::Identity(_)));
        let name = create_authority(&dir.path().join("x"), "", 1, now());
        assert!(matches!(name, Err(AuthorityError::Name { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing was written");
    }

    #[test]
    fn certificates_differ_in_their_serial_numbers() {
        let numbers: std::collections::HashSet<_> = (0..100).map(|_| serial_number().unwrap().to_bytes()).collect();
        assert_eq!(numbers.len(), 100);
        assert!(numbers.iter().all(|bytes| bytes[0] & 0x80 == 0 && bytes[0] != 0));
    }
}
