//! Where a vault is: a folder or a bucket with a prefix.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Text that does not say where a vault is. Never repeats what may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// No text.
    #[error("the vault's URL is empty\nhint: file:///path or s3://bucket/prefix")]
    Empty,
    /// A scheme that is not supported.
    #[error("vaults on {0}:// are not supported yet\nhint: file:///path or s3://bucket/prefix")]
    Scheme(String),
    /// A user or password in the URL.
    #[error(
        "the vault's URL must not hold credentials\n\
         hint: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or put them into the configuration file"
    )]
    Credentials,
    /// `file://` with something other than an absolute path.
    #[error("file:// must be followed by an absolute path\nhint: as in file:///var/lib/vault")]
    FilePath,
    /// No bucket, or one that cannot be.
    #[error("{0:?} is not the name of a bucket\nhint: s3://bucket/prefix, or file:///path")]
    Bucket(String),
    /// A prefix that cannot be part of object keys.
    #[error("{0:?} cannot be a prefix of object keys\nhint: s3://bucket/prefix, in plain characters")]
    Prefix(String),
    /// The current directory is needed, and unknown.
    #[error("{0} is not an absolute path, and the current directory is unknown\nhint: file:///path")]
    NoCurrentDir(String),
}

/// Where a vault is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VaultLocation {
    /// A folder on a local file system, absolute.
    File(PathBuf),
    /// A bucket of an S3-compatible store, and a prefix without slashes at its ends; empty for the whole bucket.
    S3 {
        /// Bucket.
        bucket: String,
        /// Prefix of all keys.
        prefix: String,
    },
}

impl FromStr for VaultLocation {
    type Err = LocationError;

    /// `file:///path` (taken as it is, nothing is decoded), `s3://bucket/prefix`, or a plain path.
    fn from_str(text: &str) -> Result<Self, LocationError> {
        match text.split_once("://") {
            _ if text.is_empty() => Err(LocationError::Empty),
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(PathBuf::from(path))),
            Some(("file", _)) => Err(LocationError::FilePath),
            Some(("s3", rest)) => s3(rest),
            Some((scheme, _)) => Err(LocationError::Scheme(scheme.to_owned())),
            None => std::path::absolute(Path::new(text))
                .map(Self::File)
                .map_err(|_| LocationError::NoCurrentDir(text.to_owned())),
        }
    }
}

fn s3(rest: &str) -> Result<VaultLocation, LocationError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') || bucket.contains(':') {
        return Err(LocationError::Credentials);
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !(3..=255).contains(&bucket.len()) || !bucket.bytes().all(legal) {
        return Err(LocationError::Bucket(bucket.to_owned()));
    }
    let prefix = prefix.trim_matches('/');
    // The store would escape other characters, and another client would then not find the keys.
    if object_store::path::Path::parse(prefix).is_err() || prefix.contains(['?', '#', '%']) {
        return Err(LocationError::Prefix(prefix.to_owned()));
    }
    Ok(VaultLocation::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

impl fmt::Display for VaultLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, prefix: &str) -> VaultLocation {
        VaultLocation::S3 { bucket: bucket.into(), prefix: prefix.into() }
    }

    #[test]
    fn locations_parse_and_print() {
        let table = [
            ("file:///var/lib/vault", VaultLocation::File("/var/lib/vault".into()), "file:///var/lib/vault"),
            ("/var/lib/my vault", VaultLocation::File("/var/lib/my vault".into()), "file:///var/lib/my vault"),
            ("s3://backups", s3("backups", ""), "s3://backups"),
            ("s3://backups/", s3("backups", ""), "s3://backups"),
            ("s3://backups/kafka/prod/", s3("backups", "kafka/prod"), "s3://backups/kafka/prod"),
        ];
        for (text, location, printed) in table {
            assert_eq!(text.parse(), Ok(location.clone()));
            assert_eq!(location.to_string(), printed);
        }
        let relative: VaultLocation = "some/where".parse().unwrap();
        assert!(matches!(relative, VaultLocation::File(path) if path.is_absolute()));
    }

    #[test]
    fn what_is_not_supported_is_said_and_passwords_are_not() {
        for text in ["", "gs://bucket/x", "file://host/x", "s3://", "s3:///x", "s3://b ucket", "s3://bucket/a//b"] {
            assert!(text.parse::<VaultLocation>().is_err(), "{text}");
        }
        let error = "s3://AKIA:hunter2@bucket/x".parse::<VaultLocation>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
