//! What a certificate says: whom it is for, who issued it, and how long it is valid.
//!
//! Who a peer is, [`identity_of`] reads with the same parser that verified the peer's chain. [`Certificate`] is for our
//! own files, which a person wants to see or whose end must be known: the verifier tells neither names of issuers nor
//! dates, so these few fields are read here. Nothing is decided about a peer by them.
//!
//! ```text
//! Certificate ::= SEQUENCE { TBS, signature… }
//! TBS ::= SEQUENCE { [0] version, serial, algorithm, issuer, SEQUENCE { not before, not after }, subject, key,
//!                    …, [3] SEQUENCE OF SEQUENCE { oid, critical?, OCTET STRING } }
//! ```

use std::net::IpAddr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::identity::{Identity, IdentityError};

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const NAME_IP: u8 = 0x87;

const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It is no certificate that can be verified.
    #[error("it is no X.509 certificate of version 3: {0}")]
    Verifier(webpki::Error),
    /// A field is not where it has to be.
    #[error("it is no X.509 certificate: {0} cannot be read")]
    Field(&'static str),
    /// It says not who it is for.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Who a certificate speaks for.
pub fn identity_of(der: &CertificateDer<'_>) -> Result<Identity, CertificateError> {
    let certificate = EndEntityCert::try_from(der).map_err(CertificateError::Verifier)?;
    Ok(Identity::from_uris(certificate.valid_uri_names())?)
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is, as `CN=coordinator`.
    pub subject: String,
    /// Who issued it, likewise.
    pub issuer: String,
    /// The subject's common name alone.
    pub common_name: Option<String>,
    /// Since when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// Host names that it is valid for.
    pub dns_names: Vec<String>,
    /// Addresses that it is valid for.
    pub ip_addresses: Vec<IpAddr>,
    /// URIs, ours and others.
    pub uris: Vec<String>,
}

impl Certificate {
    /// Reads a certificate. Nothing is verified.
    pub fn decode(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let parsed = EndEntityCert::try_from(der).map_err(CertificateError::Verifier)?;
        let fields = Fields::decode(der)?;
        Ok(Self {
            subject: name_text(fields.subject),
            issuer: name_text(fields.issuer),
            common_name: attributes(fields.subject).find(|(oid, _)| *oid == COMMON_NAME).map(|(_, value)| value),
            not_before: fields.not_before,
            not_after: fields.not_after,
            dns_names: parsed.valid_dns_names().map(printable).collect(),
            ip_addresses: fields.ip_addresses,
            uris: parsed.valid_uri_names().map(printable).collect(),
        })
    }

    /// Who it speaks for.
    pub fn identity(&self) -> Result<Identity, IdentityError> {
        Identity::from_uris(self.uris.iter().map(String::as_str))
    }
}

/// The fields that the verifier keeps to itself.
struct Fields<'a> {
    issuer: &'a [u8],
    subject: &'a [u8],
    not_before: Timestamp,
    not_after: Timestamp,
    ip_addresses: Vec<IpAddr>,
}

impl<'a> Fields<'a> {
    fn decode(der: &'a [u8]) -> Result<Self, CertificateError> {
        let field = CertificateError::Field;
        let mut certificate = Der(Der(der).expect(SEQUENCE).ok_or(field("the frame"))?);
        let mut tbs = Der(certificate.expect(SEQUENCE).ok_or(field("the signed part"))?);
        tbs.expect(VERSION).ok_or(field("the version"))?;
        tbs.expect(INTEGER).ok_or(field("the serial number"))?;
        tbs.expect(SEQUENCE).ok_or(field("the algorithm"))?;
        let issuer = tbs.expect(SEQUENCE).ok_or(field("the issuer"))?;
        let mut validity = Der(tbs.expect(SEQUENCE).ok_or(field("the validity"))?);
        let not_before = validity.time().ok_or(field("the first day of validity"))?;
        let not_after = validity.time().ok_or(field("the last day of validity"))?;
        let subject = tbs.expect(SEQUENCE).ok_or(field("the subject"))?;
        let ip_addresses = tbs.find(|(tag, _)| *tag == EXTENSIONS).map_or(Vec::new(), |(_, list)| ip_addresses(list));
        Ok(Self { issuer, subject, not_before, not_after, ip_addresses })
    }
}

/// A run of tag-length-value elements. It ends at the first that does not fit.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Iterator for Der<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        // 0x80 and more: so many bytes of length follow. Certificates are far below the 16 MiB of three.
        let (len, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, value))
    }
}

impl<'a> Der<'a> {
    /// The next element, which must have this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, value)| value)
    }

    /// The next element, which must be a time: `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`.
    fn time(&mut self) -> Option<Timestamp> {
        let (tag, text) = self.next()?;
        let text = text.strip_suffix(b"Z")?;
        let (year, rest) = match (tag, text.len()) {
            (UTC_TIME, 12) => {
                let year = number(&text[..2])?;
                (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
            }
            (GENERALIZED_TIME, 14) => (number(&text[..4])?, &text[4..]),
            _ => return None,
        };
        let mut parts = rest.chunks(2).map(|digits| number(digits).and_then(|number| i8::try_from(number).ok()));
        let mut part = || parts.next().flatten();
        let (month, day, hour, minute, second) = (part()?, part()?, part()?, part()?, part()?);
        let time = DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
        TimeZone::UTC.to_timestamp(time).ok()
    }
}

fn number(digits: &[u8]) -> Option<i16> {
    digits.iter().try_fold(0_i16, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(i16::from(digit - b'0')),
        _ => None,
    })
}

/// The IP addresses among the subject alternative names of a certificate's extensions.
fn ip_addresses(extensions: &[u8]) -> Vec<IpAddr> {
    let list = Der(extensions).expect(SEQUENCE).unwrap_or_default();
    let names = Der(list).filter_map(|(_, extension)| {
        let mut extension = Der(extension);
        (extension.expect(OID)? == SUBJECT_ALT_NAME).then_some(())?;
        let value = extension.find(|(tag, _)| *tag == OCTET_STRING)?.1;
        Der(value).expect(SEQUENCE)
    });
    names.flat_map(Der).filter(|(tag, _)| *tag == NAME_IP).filter_map(|(_, octets)| ip_address(octets)).collect()
}

fn ip_address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
    }
}

/// The attributes of a distinguished name, in order.
fn attributes(name: &[u8]) -> impl Iterator<Item = (&[u8], String)> {
    let sets = Der(name).filter(|(tag, _)| *tag == SET).flat_map(|(_, set)| Der(set));
    sets.filter_map(|(_, attribute)| {
        let mut attribute = Der(attribute);
        let oid = attribute.expect(OID)?;
        let (_, value) = attribute.next()?;
        Some((oid, printable(&String::from_utf8_lossy(value))))
    })
}

fn name_text(name: &[u8]) -> String {
    let attributes = attributes(name).map(|(oid, value)| match oid {
        COMMON_NAME => format!("CN={value}"),
        [0x55, 0x04, 0x06] => format!("C={value}"),
        [0x55, 0x04, 0x0a] => format!("O={value}"),
        [0x55, 0x04, 0x0b] => format!("OU={value}"),
        _ => format!("?={value}"),
    });
    attributes.collect::<Vec<_>>().join(", ")
}

/// Names are shown on terminals: no control characters.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, date_time_ymd};

    use super::*;

    fn made(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["a.example".into(), "10.0.0.1".into(), "::1".into()]).unwrap();
        let uri = "segvault://agent/X/3".try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name.push(DnType::CommonName, "three\u{7}");
        params.distinguished_name.push(DnType::OrganizationName, "fleet");
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn what_was_written_is_read() {
        let der = made(|params| {
            params.not_before = date_time_ymd(1999, 12, 31) + Duration::from_secs(86399);
            params.not_after = date_time_ymd(2051, 2, 28);
        });
        let certificate = Certificate::decode(&der).unwrap();
        assert_eq!(certificate.subject, "CN=three\u{fffd}, O=fleet");
        assert_eq!(certificate.issuer, certificate.subject);
        assert_eq!(certificate.common_name.as_deref(), Some("three\u{fffd}"));
        assert_eq!(certificate.not_before.to_string(), "1999-12-31T23:59:59Z");
        assert_eq!(certificate.not_after.to_string(), "2051-02-28T00:00:00Z");
        assert_eq!(certificate.dns_names, ["a.example"]);
        assert_eq!(certificate.ip_addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert_eq!(certificate.uris, ["segvault://agent/X/3"]);
        let identity = Identity::agent("X", 3).unwrap();
        assert_eq!((certificate.identity().unwrap(), identity_of(&der).unwrap()), (identity.clone(), identity));
    }

    #[test]
    fn a_certificate_without_names_has_no_identity() {
        let der = made(|params| params.subject_alt_names.clear());
        assert!(matches!(identity_of(&der), Err(CertificateError::Identity(IdentityError::Missing))));
        let certificate = Certificate::decode(&der).unwrap();
        assert_eq!((certificate.dns_names.len(), certificate.ip_addresses.len(), certificate.uris.len()), (0, 0, 0));
    }

    #[test]
    fn impossible_times_are_no_times() {
        for text in ["991331000000Z", "990230000000Z", "990101250000Z", "99010100000Z", "990101000000", "9x0101000000Z"]
        {
            let der = [&[UTC_TIME, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            assert_eq!(Der(&der).time(), None, "{text}");
        }
    }

    #[test]
    fn a_torn_certificate_is_an_error() {
        let der = made(|_| ());
        for len in 0..der.len() {
            assert!(Certificate::decode(&CertificateDer::from(&der[..len])).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Fields::decode(&bytes);
            let _ = Certificate::decode(&CertificateDer::from(bytes));
        }

        #[test]
        fn a_damaged_certificate_is_read_or_refused(at in 0_usize..300, byte in any::<u8>()) {
            let mut der = made(|_| ()).to_vec();
            if let Some(place) = der.get_mut(at) {
                *place = byte;
            }
            let _ = Fields::decode(&der);
            let _ = Certificate::decode(&CertificateDer::from(der));
        }
    }
}
