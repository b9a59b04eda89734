//! How to reach an S3-compatible store: flags before environment before file, and where each value came from.
//!
//! Secrets are never printed: not by `Debug`, not in an error, not in [`Config::origins`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use object_store::ClientOptions;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use serde::Deserialize;

/// Something that must not be printed.
#[derive(Clone, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// What an operator can set, by flags or in a TOML file of the same names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where the vault is, for callers that let the file say so. Not looked at here.
    pub vault: Option<String>,
    /// URL of the store; AWS's own for the region if none is given.
    pub endpoint: Option<String>,
    /// Region; `us-east-1` if none is given.
    pub region: Option<String>,
    /// Access key id.
    pub access_key_id: Option<String>,
    /// Secret access key.
    pub secret_access_key: Option<Secret>,
    /// Session token of temporary credentials.
    pub session_token: Option<Secret>,
    /// The bucket is part of the path, not of the host name; true if none is given and there is an endpoint.
    pub path_style: Option<bool>,
    /// Permits an endpoint without TLS.
    pub allow_http: Option<bool>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is not TOML of the names in [`Settings`].
    #[error("{}: line {line}: {message}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// 1 and up.
        line: usize,
        /// What is wrong; quotes nothing of the file.
        message: String,
    },
    /// A value that makes no sense.
    #[error("{origin}: {name} {problem}")]
    Value {
        /// Where the value came from.
        origin: String,
        /// Which setting.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The access key without its secret, or the reverse.
    #[error("{given} is set ({origin}), but {missing} is not")]
    HalfCredentials {
        /// The setting that is there.
        given: &'static str,
        /// Where it came from.
        origin: String,
        /// The setting that is not.
        missing: &'static str,
    },
    /// The client refused the settings.
    #[error("S3 settings: {0}")]
    Client(String),
}

/// A setting that was made, as it may be shown to an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name in [`Settings`].
    pub name: &'static str,
    /// Its value; `(secret)` for a secret.
    pub value: String,
    /// Where it came from: `flag`, the variable, or the file.
    pub origin: String,
}

/// Settings put together.
#[derive(Clone, Debug, Default)]
pub struct Config {
    settings: Settings,
    origins: Vec<Setting>,
    /// Variables that name other ways to credentials (a role of a pod or a container), handed on as they are.
    identity: Vec<(AmazonS3ConfigKey, String)>,
    /// `AWS_EC2_METADATA_DISABLED`, as all AWS clients know it.
    machine_forbidden: bool,
}

/// Variables for credentials that are fetched. Without them and without keys, those of the EC2 instance are asked for.
const IDENTITY_VARS: [&str; 7] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

impl Settings {
    /// The settings in the TOML `text` of the file at `path`.
    pub fn from_toml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        // The error's own text quotes the line, which may hold a secret.
        toml::from_str(text).map_err(|error| ConfigError::File {
            path: path.to_owned(),
            line: 1 + error.span().map_or(0, |span| text[..span.start].matches('\n').count()),
            message: error.message().to_owned(),
        })
    }
}

impl Config {
    /// Puts together flags, environment (`env` looks a variable up) and a file that was read.
    pub fn resolve(
        flags: Settings,
        env: impl Fn(&str) -> Option<String>,
        file: Option<(&Path, Settings)>,
    ) -> Result<Self, ConfigError> {
        let (path, file) = file
            .map_or((String::new(), Settings::default()), |(path, settings)| (path.display().to_string(), settings));
        let mut layers = Layers { env, path, origins: Vec::new() };
        let secret = |text: String| Ok(Secret(text));
        let settings = Settings {
            vault: None,
            endpoint: layers.pick(
                "endpoint",
                flags.endpoint,
                &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"],
                file.endpoint,
                Ok,
            )?,
            region: layers.pick("region", flags.region, &["AWS_REGION", "AWS_DEFAULT_REGION"], file.region, Ok)?,
            access_key_id: layers.pick(
                "access_key_id",
                flags.access_key_id,
                &["AWS_ACCESS_KEY_ID"],
                file.access_key_id,
                Ok,
            )?,
            secret_access_key: layers.pick(
                "secret_access_key",
                flags.secret_access_key,
                &["AWS_SECRET_ACCESS_KEY"],
                file.secret_access_key,
                secret,
            )?,
            session_token: layers.pick(
                "session_token",
                flags.session_token,
                &["AWS_SESSION_TOKEN"],
                file.session_token,
                secret,
            )?,
            path_style: layers.pick("path_style", flags.path_style, &["AWS_S3_PATH_STYLE"], file.path_style, flag)?,
            allow_http: layers.pick("allow_http", flags.allow_http, &["AWS_ALLOW_HTTP"], file.allow_http, flag)?,
        };
        let identity = IDENTITY_VARS
            .iter()
            .filter_map(|name| Some((name.to_ascii_lowercase().parse().ok()?, (layers.env)(name)?)))
            .collect();
        let machine_forbidden = (layers.env)("AWS_EC2_METADATA_DISABLED").is_some_and(|text| flag(text) == Ok(true));
        let config = Self { settings, origins: layers.origins, identity, machine_forbidden };
        config.check()?;
        Ok(config)
    }

    /// What was set, and where.
    pub fn origins(&self) -> &[Setting] {
        &self.origins
    }

    /// Nobody said which credentials to use, so those of the machine are asked for.
    pub(crate) fn lacks_credentials(&self) -> bool {
        use AmazonS3ConfigKey::{
            ContainerAuthorizationTokenFile, ContainerCredentialsFullUri, ContainerCredentialsRelativeUri, RoleArn,
            WebIdentityTokenFile,
        };
        // The combinations that the client takes; with any other it asks the machine.
        let ways = [
            &[WebIdentityTokenFile, RoleArn][..],
            &[ContainerCredentialsRelativeUri],
            &[ContainerCredentialsFullUri, ContainerAuthorizationTokenFile],
        ];
        let is_set = |key: &AmazonS3ConfigKey| self.identity.iter().any(|(set, _)| set == key);
        self.settings.access_key_id.is_none() && !ways.iter().any(|way| way.iter().all(is_set))
    }

    /// Why not even the machine's credentials may be asked for, where no others were given.
    pub(crate) fn credentials_are_hopeless(&self) -> Option<&'static str> {
        let host = |url: &str| Some(url.split_once("://")?.1.split(['/', ':']).next()?.to_ascii_lowercase());
        let aws = |host: String| host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn");
        if !self.lacks_credentials() {
            None
        } else if self.settings.endpoint.as_deref().is_some_and(|url| !host(url).is_some_and(aws)) {
            Some("none are set, and those of an AWS machine are nothing to a store that is not AWS's")
        } else if self.machine_forbidden {
            Some("none are set, and AWS_EC2_METADATA_DISABLED forbids to ask for those of the machine")
        } else {
            None
        }
    }

    fn origin(&self, name: &str) -> String {
        let setting = self.origins.iter().find(|setting| setting.name == name);
        setting.map(|setting| setting.origin.clone()).unwrap_or_default()
    }

    fn check(&self) -> Result<(), ConfigError> {
        let Settings { endpoint, access_key_id, secret_access_key, allow_http, .. } = &self.settings;
        let half = |given, missing| ConfigError::HalfCredentials { given, origin: self.origin(given), missing };
        match (access_key_id, secret_access_key) {
            (Some(_), None) => return Err(half("access_key_id", "secret_access_key")),
            (None, Some(_)) => return Err(half("secret_access_key", "access_key_id")),
            _ => {}
        }
        let Some(endpoint) = endpoint else {
            return Ok(());
        };
        let problem = match endpoint.split_once("://") {
            Some((_, host)) if host.contains('@') => "must not hold credentials",
            Some(("https", host)) if !host.is_empty() => return Ok(()),
            Some(("http", host)) if !host.is_empty() && *allow_http == Some(true) => return Ok(()),
            Some(("http", _)) => "has no TLS\nhint: set allow_http (or AWS_ALLOW_HTTP=true) if that is meant",
            _ => "is not a URL like https://host:port",
        };
        let origin = self.origin("endpoint");
        Err(ConfigError::Value { origin, name: "endpoint", problem: problem.into() })
    }

    /// A client for `bucket` with these settings.
    pub(crate) fn s3(&self, bucket: &str, options: ClientOptions) -> AmazonS3Builder {
        let Settings {
            endpoint,
            region,
            access_key_id,
            secret_access_key,
            session_token,
            path_style,
            allow_http,
            vault: _,
        } = self.settings.clone();
        let virtual_hosted = !path_style.unwrap_or(endpoint.is_some());
        let mut builder =
            AmazonS3Builder::new().with_bucket_name(bucket).with_virtual_hosted_style_request(virtual_hosted);
        for (key, value) in &self.identity {
            builder = builder.with_config(*key, value);
        }
        if let Some(endpoint) = endpoint {
            // The client wants the bucket in a virtual host's endpoint.
            builder = builder.with_endpoint(match endpoint.split_once("://") {
                Some((scheme, host)) if virtual_hosted => format!("{scheme}://{bucket}.{host}"),
                _ => endpoint,
            });
        }
        if let (Some(id), Some(secret)) = (access_key_id, secret_access_key) {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret.0);
        }
        if let Some(token) = session_token {
            builder = builder.with_token(token.0);
        }
        builder
            .with_region(region.as_deref().unwrap_or("us-east-1"))
            .with_client_options(options.with_allow_http(allow_http.unwrap_or(false)))
    }
}

fn flag(text: String) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("is neither true nor false".into()),
    }
}

struct Layers<E> {
    env: E,
    path: String,
    origins: Vec<Setting>,
}

impl<E: Fn(&str) -> Option<String>> Layers<E> {
    fn pick<T: fmt::Debug + Clone>(
        &mut self,
        name: &'static str,
        flag: Option<T>,
        vars: &[&str],
        file: Option<T>,
        parse: impl Fn(String) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let var = vars.iter().find_map(|var| Some((*var, (self.env)(var).filter(|value| !value.is_empty())?)));
        let (value, origin) = if let Some(value) = flag {
            (value, "flag".to_owned())
        } else if let Some((var, text)) = var {
            let error = |problem| ConfigError::Value { origin: var.to_owned(), name, problem };
            (parse(text).map_err(error)?, var.to_owned())
        } else if let Some(value) = file {
            (value, self.path.clone())
        } else {
            return Ok(None);
        };
        let shown = format!("{value:?}").trim_matches('"').to_owned();
        self.origins.push(Setting { name, value: shown, origin });
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| vars.iter().find(|(var, _)| *var == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let path = Path::new("vault.toml");
        let file = Settings::from_toml(
            path,
            "region = 'file'\nendpoint = 'https://file'\naccess_key_id = 'file'\nsecret_access_key = 'hunter2'\n",
        )
        .unwrap();
        let flags = Settings { region: Some("flag".into()), ..Settings::default() };
        let vars = env(&[("AWS_REGION", "env"), ("AWS_ENDPOINT_URL", "http://env"), ("AWS_ALLOW_HTTP", "TRUE")]);
        let config = Config::resolve(flags, vars, Some((path, file))).unwrap();
        let shown: Vec<_> = config.origins().iter().map(|s| (s.name, s.value.as_str(), s.origin.as_str())).collect();
        let wanted = [
            ("endpoint", "http://env", "AWS_ENDPOINT_URL"),
            ("region", "flag", "flag"),
            ("access_key_id", "file", "vault.toml"),
            ("secret_access_key", "(secret)", "vault.toml"),
            ("allow_http", "true", "AWS_ALLOW_HTTP"),
        ];
        assert_eq!(shown, wanted);
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn mistakes_are_named_with_their_place_and_without_secrets() {
        let toml = |text| Settings::from_toml(Path::new("vault.toml"), text).unwrap_err().to_string();
        assert!(toml("\nregio = 'x'").starts_with("vault.toml: line 2: unknown field `regio`"));
        assert!(!toml("secret_access_key = ['hunter2']").contains("hunter2"));

        let resolve = |vars| Config::resolve(Settings::default(), env(vars), None).unwrap_err().to_string();
        assert!(resolve(&[("AWS_ALLOW_HTTP", "maybe")]).starts_with("AWS_ALLOW_HTTP: allow_http is neither"));
        assert!(resolve(&[("AWS_ENDPOINT_URL", "http://x")]).contains("hint: set allow_http"));
        assert!(resolve(&[("AWS_ENDPOINT_URL", "minio:9000")]).contains("not a URL"));
        assert!(resolve(&[("AWS_SECRET_ACCESS_KEY", "x")]).contains("access_key_id is not"));
    }

    #[test]
    fn the_machine_is_asked_for_credentials_only_where_its_own_can_help() {
        let config = |vars| Config::resolve(Settings::default(), env(vars), None).unwrap();
        for (vars, lacks, hopeless) in [
            (&[][..], true, false),
            (&[("AWS_ENDPOINT_URL", "https://minio:9000")], true, true),
            (&[("AWS_ENDPOINT_URL", "https://amazonaws.com.example")], true, true),
            (&[("AWS_ENDPOINT_URL", "https://vpce-1.s3.us-east-1.vpce.amazonaws.com/x")], true, false),
            (&[("AWS_EC2_METADATA_DISABLED", "true")], true, true),
            (&[("AWS_EC2_METADATA_DISABLED", "false")], true, false),
            // Half of a role: the client would ask the machine.
            (&[("AWS_ROLE_ARN", "arn"), ("AWS_EC2_METADATA_DISABLED", "true")], true, true),
            (&[("AWS_ROLE_ARN", "arn"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")], false, false),
            (&[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x")], false, false),
            (&[("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "x")], false, false),
        ] {
            let config = config(vars);
            assert_eq!(
                (config.lacks_credentials(), config.credentials_are_hopeless().is_some()),
                (lacks, hopeless),
                "{vars:?}"
            );
        }
    }
}
