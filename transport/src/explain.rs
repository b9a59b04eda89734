//! Failures of connections in words for an operator: one line, its causes after colons, then what to do.
//!
//! What is wrong is deep inside: a call's status wraps an HTTP/2 error, that an I/O error, and that what TLS says. Layers
//! that say nothing of their own are left out, and nothing is said twice.

use std::error::Error;
use std::io;

use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};
use tonic::Status;

const AUTHORITY_HINT: &str = "\nhint: all certificates of a fleet come from one authority; compare the ca files";

/// The failure and its causes on one line; lines that begin with `hint: ` follow where a remedy is known.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut hints) = (String::new(), String::new());
    let mut next = Some(error);
    while let Some(cause) = next {
        let said = say(cause);
        let (what, hint) = said.split_once("\nhint: ").unwrap_or((&said, ""));
        if !what.is_empty() && !text.contains(what) {
            text += if text.is_empty() { "" } else { ": " };
            text += what;
        }
        if !hint.is_empty() && !hints.contains(hint) {
            hints += "\nhint: ";
            hints += hint;
        }
        next = cause.source();
    }
    text + &hints
}

/// What one error of the chain says; empty if it has nothing to add to its causes.
fn say(error: &(dyn Error + 'static)) -> String {
    if let Some(status) = error.downcast_ref::<Status>() {
        return if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    }
    if let Some(tls) = find_tls(error) {
        return tls_reason(tls);
    }
    let is_wrapper = error.is::<tonic::transport::Error>() && error.source().is_some();
    if is_wrapper { String::new() } else { error.to_string() }
}

fn find_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        Some(error) => tls_of(error),
        None => error.downcast_ref(),
    }
}

/// What TLS said, if it was TLS that failed.
pub(crate) fn tls_of(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Why a handshake failed.
pub(crate) fn handshake_reason(error: &io::Error) -> String {
    tls_of(error).map_or_else(|| error.to_string(), tls_reason)
}

pub(crate) fn tls_reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate_reason(error),
        rustls::Error::AlertReceived(alert) => format!("the other side refuses: {}", alert_reason(*alert)),
        rustls::Error::NoCertificatesPresented => "it has no certificate".to_owned(),
        rustls::Error::InvalidMessage(_) => format!("it does not speak TLS ({error})"),
        error => error.to_string(),
    }
}

/// What is wrong with a peer's certificate.
pub(crate) fn certificate_reason(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => "certificate expired".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => format!("certificate expired on {}", date(*not_after)),
        CertificateError::NotValidYet => "certificate is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("certificate is not valid yet, only from {} on\nhint: are both clocks right?", date(*not_before))
        }
        CertificateError::UnknownIssuer => {
            format!("unknown issuer: none of our authorities has signed the certificate{AUTHORITY_HINT}")
        }
        CertificateError::BadSignature => {
            format!("unknown issuer: it has the name of one of our authorities, and another key{AUTHORITY_HINT}")
        }
        CertificateError::Other(reason) => reason.to_string(),
        error => error.to_string(),
    }
}

/// What is wrong with our certificate, by what the other side says. It says no more than this; its log does.
pub(crate) fn alert_reason(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => {
            "certificate expired, or not valid yet\nhint: look with `segvault cert show`, and at both clocks".to_owned()
        }
        AlertDescription::UnknownCA => {
            format!("unknown issuer: none of its authorities has signed the certificate{AUTHORITY_HINT}")
        }
        AlertDescription::DecryptError => {
            format!("unknown issuer: it has the name of one of its authorities, and another key{AUTHORITY_HINT}")
        }
        AlertDescription::CertificateRequired => "it demands a certificate".to_owned(),
        AlertDescription::CertificateUnknown => {
            "certificate without a name that it accepts\nhint: its log says more".to_owned()
        }
        AlertDescription::BadCertificate => "bad certificate\nhint: its log says more".to_owned(),
        alert => format!("{alert:?}\nhint: its log says more"),
    }
}

fn date(time: UnixTime) -> String {
    let timestamp = i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    timestamp.map_or_else(|| format!("second {}", time.as_secs()), |timestamp| timestamp.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outside")]
    struct Outer(#[source] io::Error);

    #[test]
    fn what_tls_says_is_found_inside_and_said_once() {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(86400));
        let expired = CertificateError::ExpiredContext { time, not_after: time };
        let error = Outer(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::from(expired)));
        assert_eq!(explain(&error), "outside: certificate expired on 1970-01-02T00:00:00Z");
    }

    #[test]
    fn hints_come_last() {
        let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        let text = explain(&Outer(io::Error::new(io::ErrorKind::InvalidData, alert)));
        assert!(text.starts_with("outside: the other side refuses: unknown issuer: "), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn a_status_is_its_message_and_its_causes() {
        let mut status = Status::unavailable("");
        assert_eq!(explain(&status), "The service is currently unavailable");
        status = Status::permission_denied("not yours");
        assert_eq!(explain(&status), "not yours");
        let source = io::Error::from(io::ErrorKind::ConnectionRefused);
        status.set_source(Arc::new(Outer(source)));
        assert_eq!(explain(&status), "not yours: outside: connection refused");
    }
}
