//! An S3-compatible server on loopback, started by `scripts/stores`, with an empty bucket.

use crate::{PATIENCE, Result, cluster::project_root, segvault::Segvault};
use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The bucket that the server begins with.
const BUCKET: &str = "segvault";
/// Key id and secret; see `scripts/stores`.
const KEY: &str = "S3RVER";

/// A running server. It dies with this object, and with the thread that started it.
pub struct Store {
    process: Child,
    port: u16,
    dir: TempDir,
}

/// A line of the server's access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Such as `GetObject`.
    pub operation: String,
    /// Object key; `-` if the request was about none.
    pub key: String,
    /// HTTP status.
    pub status: u16,
}

impl Store {
    /// A server that keeps its promises and an access log.
    pub fn versitygw() -> Result<Self> {
        Self::start("versitygw", &["--access-log", "requests"])
    }

    /// A server that takes every condition and ignores it.
    pub fn s3rver() -> Result<Self> {
        Self::start("s3rver", &[])
    }

    fn start(name: &str, args: &[&str]) -> Result<Self> {
        let script = project_root().join("scripts/stores");
        // A first start installs it, which takes its time.
        let fetched = Command::new(&script).args(["fetch", name]).output()?;
        if !fetched.status.success() {
            return Err(String::from_utf8_lossy(&fetched.stderr).into());
        }
        let dir = tempfile::Builder::new().prefix("segvault-store-").tempdir()?;
        let port = free_port()?;
        let log = File::create(dir.path().join("log"))?;
        let process = Command::new(script)
            .args(["run", name, "store", "--port", &port.to_string()])
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut store = Self { process, port, dir };
        store.wait_until_it_answers()?;
        Ok(store)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("the store ended: {status}\n{}", self.log()).into());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("the store does not answer\n{}", self.log()).into());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// A vault under `prefix` of the server's bucket, and the variables to reach it.
    pub fn vault(&self, prefix: &str) -> Segvault {
        vault_at(self.port, BUCKET, prefix)
    }

    /// The same in a bucket that is not there.
    pub fn vault_without_bucket(&self) -> Segvault {
        vault_at(self.port, "no-such-bucket", "vault")
    }

    /// The files under `prefix` of the bucket, one per object, as paths relative to it.
    pub fn objects(&self, prefix: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let root = self.dir.path().join("store").join(BUCKET).join(prefix);
        if root.is_dir() {
            files_below(&root, &root, &mut found)?;
        }
        found.sort();
        Ok(found)
    }

    /// Every request that it was asked so far. Only [`versitygw`](Self::versitygw) keeps an access log.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let text = fs::read_to_string(self.dir.path().join("requests"))?;
        let lines = text.lines().filter(|line| !line.starts_with("log starts"));
        lines.map(|line| Request::parse(line).ok_or_else(|| format!("no access log: {line}").into())).collect()
    }
}

/// A vault in a bucket of whatever listens at `port` of this host.
pub fn vault_at(port: u16, bucket: &str, prefix: &str) -> Segvault {
    Segvault::at(format!("s3://{bucket}/{prefix}"))
        .with("AWS_ACCESS_KEY_ID", KEY)
        .with("AWS_SECRET_ACCESS_KEY", KEY)
        .with("AWS_REGION", "us-east-1")
        .with("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{port}"))
        .with("AWS_ALLOW_HTTP", "true")
}

impl Request {
    /// `owner bucket [time] address requester id operation key uri status ...`.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<_> = line.split_once("] ")?.1.split(' ').collect();
        let [_, _, _, operation, key, _, status, ..] = fields[..] else { return None };
        let operation = operation.strip_prefix("s3_")?.to_owned();
        Some(Self { operation, key: key.to_owned(), status: status.parse().ok()? })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("what the store said:\n{}", self.log());
        }
    }
}

/// A port of this host that nobody listens at.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn files_below(root: &Path, dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(root, &path, found)?;
        } else {
            found.push(path.strip_prefix(root)?.to_owned());
        }
    }
    Ok(())
}
