//! What can go wrong with a vault, by what to do about it.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::sync::Arc;

use object_store::client::{HttpError, HttpErrorKind};
use segvault_vault_format::ids::{IdError, PlanId, PointId, VaultId};
use segvault_vault_format::keys::Key;
use segvault_vault_format::manifest::{ManifestError, Outcome};

use crate::config::ConfigError;
use crate::location::VaultLocation;

/// An error that knows which vault and which object. Cheap to clone: an upload's failure is told to all its writers.
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum VaultError {
    /// Nothing at the location says that it is a vault.
    #[error(
        "there is no vault at {location}\n\
         hint: is the URL right? A new one is made by: segvault vault init --vault {location}"
    )]
    NotAVault { location: VaultLocation },
    /// `init` on a vault.
    #[error("{location} is a vault already ({id})\nhint: use it, or give another prefix")]
    AlreadyExists { location: VaultLocation, id: VaultId },
    /// No answer, or no connection.
    #[error("{location} cannot be reached: {why}\nhint: check endpoint, network and DNS")]
    Unreachable { location: VaultLocation, why: String },
    /// No credentials were given, and the machine has none or must not be asked.
    #[error(
        "no credentials for {location}: {why}\n\
         hint: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles in ~/.aws are not read)"
    )]
    NoCredentials { location: VaultLocation, why: String },
    /// The store knows us and refuses, or does not know us.
    #[error("{location} refuses to {action} {key}: {why}\nhint: {}", access_hint(location))]
    Denied { location: VaultLocation, action: &'static str, key: String, why: String },
    /// The bucket is not there.
    #[error("there is no bucket for {location}: {why}\nhint: create the bucket first, or check endpoint and region")]
    NoBucket { location: VaultLocation, why: String },
    /// The store takes create-if-absent and lets more than one win.
    #[error(
        "{location} does not keep its promises: {why}\n\
         hint: the store must support create-if-absent (If-None-Match: *) on PUT; a restore point on this one could be \
         overwritten by another. Use another store"
    )]
    ConditionsIgnored { location: VaultLocation, why: String },
    /// The disk is full.
    #[error("no space left at {location} to write {key}\nhint: free some space and run it again; nothing is damaged")]
    Full { location: VaultLocation, key: String },
    /// An object that something refers to is gone.
    #[error(
        "{key} is missing in {location}\n\
         hint: bring that object back from a copy of the vault, or use another restore point"
    )]
    Missing { location: VaultLocation, key: String },
    /// An object is not what it should be.
    #[error(
        "{key} in {location} is damaged: {why}\n\
         hint: bring that object back from a copy of the vault, or use another restore point"
    )]
    Corrupt { location: VaultLocation, key: String, why: String },
    /// Written by a later version.
    #[error("{key} in {location} was written by a later version: {why}\nhint: use a newer segvault")]
    TooNew { location: VaultLocation, key: String, why: String },
    /// The point was decided before, by somebody else.
    #[error("restore point {point} was {} before", decided(outcome))]
    AlreadyDecided { point: PointId, outcome: Box<Outcome> },
    /// A point that is not there.
    #[error("there is no restore point {point} in {location}\nhint: segvault snapshot list --vault {location}")]
    NoPoint { location: VaultLocation, point: PointId },
    /// A point that cannot be restored.
    #[error("restore point {point} in {location} {why}\nhint: segvault snapshot list --vault {location}")]
    NotCommitted { location: VaultLocation, point: PointId, why: String },
    /// No point to use.
    #[error(
        "there is no committed restore point of cluster {cluster} in {location}\n\
         hint: take one with: segvault snapshot create --vault {location}"
    )]
    NoCommittedPoint { location: VaultLocation, cluster: String },
    /// The vault holds no cluster.
    #[error(
        "{location} holds no cluster yet: it has no {key}\n\
         hint: take a point with: segvault snapshot create --vault {location}. If it had points before, bring that object \
         back from a copy of the vault"
    )]
    NoClusters { location: VaultLocation, key: String },
    /// A plan that is not there.
    #[error("there is no restore plan {plan} in {location}\nhint: segvault restore plans --vault {location}")]
    NoPlan { location: VaultLocation, plan: PlanId },
    /// A name that fits none or several.
    #[error("{wanted} in {location}, which holds {known}\nhint: give one of these")]
    WhichCluster { location: VaultLocation, wanted: String, known: String },
    /// Two clusters with one name.
    #[error("{location} knows the name {name:?} as that of cluster {known}\nhint: give another --cluster name")]
    ClusterNameTaken { location: VaultLocation, name: String, known: String },
    /// A value that we were about to write makes no sense.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A cluster id that cannot be part of a key.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system gave no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    /// Anything else that a store may answer.
    #[error("{action} {key} in {location}")]
    Store { location: VaultLocation, action: &'static str, key: String, source: Arc<object_store::Error> },
}

fn decided(outcome: &Outcome) -> String {
    if outcome.committed { "committed".into() } else { format!("aborted ({})", outcome.reason) }
}

impl VaultError {
    pub(crate) fn corrupt(location: &VaultLocation, key: &Key, why: impl Display) -> Self {
        Self::Corrupt { location: location.clone(), key: key.to_string(), why: why.to_string() }
    }

    pub(crate) fn too_new(location: &VaultLocation, key: &Key, why: impl Display) -> Self {
        Self::TooNew { location: location.clone(), key: key.to_string(), why: why.to_string() }
    }

    pub(crate) fn missing(location: &VaultLocation, key: &Key) -> Self {
        Self::Missing { location: location.clone(), key: key.to_string() }
    }

    /// What a store answered when it was asked to `action` the object `key`.
    pub(crate) fn store(
        location: &VaultLocation,
        action: &'static str,
        key: impl Display,
        source: object_store::Error,
    ) -> Self {
        let (location, key, why) = (location.clone(), key.to_string(), innermost(&source));
        if let Some(error) = find::<io::Error>(&source) {
            // A local error, or a socket's.
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    return Self::Full { location, key };
                }
                io::ErrorKind::PermissionDenied if matches!(location, VaultLocation::File(_)) => {
                    return Self::Denied { location, action, key, why };
                }
                _ => {}
            }
        }
        match &source {
            object_store::Error::NotFound { .. } => match s3_code(&source.to_string()) {
                None | Some("NoSuchKey") => Self::Missing { location, key },
                Some("NoSuchBucket") => Self::NoBucket { location, why: "the store says NoSuchBucket".into() },
                // Some stores say of an unknown user that he is not found. That is not to be taken for an absent key.
                Some(code) => Self::Denied { location, action, key, why: code.to_owned() },
            },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Denied { location, action, key, why: status_text(&source) }
            }
            _ if unreachable(&source) => Self::Unreachable { location, why },
            _ => Self::Store { location, action, key, source: Arc::new(source) },
        }
    }
}

fn access_hint(location: &VaultLocation) -> &'static str {
    match location {
        VaultLocation::File(_) => "check the owner and mode of the vault's folder",
        // Without it a store answers 403 for a key that is not there, and absent looks like forbidden.
        VaultLocation::S3 { .. } => {
            "check the credentials; the policy needs s3:GetObject and s3:ListBucket (so that an absent key is answered \
             as absent), and s3:PutObject to write"
        }
    }
}

/// An error and those that it came from.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// The first error of this type in the chain.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn unreachable(error: &object_store::Error) -> bool {
    let kind = find::<HttpError>(error).map(HttpError::kind);
    matches!(kind, Some(HttpErrorKind::Connect | HttpErrorKind::Timeout | HttpErrorKind::Request))
}

/// The last error of the chain, which mostly says it best.
fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// The `<Code>` of an S3 answer. An answer to HEAD has none.
fn s3_code(text: &str) -> Option<&str> {
    Some(text.split_once("<Code>")?.1.split_once("</Code>")?.0)
}

/// The `<Code>` of an S3 answer, or what there is.
fn status_text(error: &object_store::Error) -> String {
    s3_code(&error.to_string()).map_or_else(|| innermost(error), str::to_owned)
}
