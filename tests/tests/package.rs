//! What `scripts/package` packs, with the binary under test in it.
//!
//! dpkg really installs the package, keeps what operators have changed, removes and purges it, but into a root of its own:
//! this host stays as it is. As that root has no shell, the maintainer scripts run on this host and are told about the root
//! (`--force-script-chrootless`, `DPKG_ROOT`). The installed binary then serves as the units start it, with the installed
//! samples; systemd itself only checks the units, and nobody runs an rpm here.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use segvault_tests::PATIENCE;
use segvault_tests::cluster::{project_root, segvault_binary};
use segvault_tests::segvault::golden_node;
use tempfile::TempDir;

/// The package, made once.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
        let made = run(Command::new(project_root().join("scripts/package"))
            .arg("deb")
            .arg("--binary")
            .arg(segvault_binary())
            .arg("--out")
            .arg(&out));
        PathBuf::from(made.trim())
    })
}

/// Runs a command that must succeed; its standard output.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o7777
}

/// The package's files: mode and owner by path.
fn contents() -> BTreeMap<String, String> {
    let listing = run(Command::new("dpkg-deb").arg("-c").arg(package()));
    let entry = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields[5].trim_start_matches('.').to_owned(), format!("{} {}", fields[0], fields[1]))
    };
    listing.lines().map(entry).collect()
}

fn control(field: &str) -> String {
    run(Command::new("dpkg-deb").arg("-f").arg(package()).arg(field)).trim().to_owned()
}

/// The package unpacked, as it comes.
fn unpacked() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    run(Command::new("dpkg-deb").arg("-x").arg(package()).arg(root.path()));
    root
}

#[test]
fn the_package_holds_what_operators_look_for() {
    let contents = contents();
    for (path, expected) in [
        ("/usr/bin/segvault", "-rwxr-xr-x root/root"),
        ("/usr/lib/systemd/system/segvault-agent.service", "-rw-r--r-- root/root"),
        ("/usr/lib/systemd/system/segvault-coordinator.service", "-rw-r--r-- root/root"),
        ("/usr/lib/sysusers.d/segvault.conf", "-rw-r--r-- root/root"),
        ("/usr/lib/tmpfiles.d/segvault.conf", "-rw-r--r-- root/root"),
        ("/etc/segvault/agent.toml", "-rw-r--r-- root/root"),
        ("/etc/segvault/coordinator.toml", "-rw-r--r-- root/root"),
        ("/etc/segvault/vault.toml", "-rw-r----- root/root"),
        ("/usr/share/man/man1/segvault.1.gz", "-rw-r--r-- root/root"),
        ("/usr/share/man/man1/segvault-snapshot-create.1.gz", "-rw-r--r-- root/root"),
        ("/usr/share/bash-completion/completions/segvault", "-rw-r--r-- root/root"),
        ("/usr/share/zsh/vendor-completions/_segvault", "-rw-r--r-- root/root"),
        ("/usr/share/fish/vendor_completions.d/segvault.fish", "-rw-r--r-- root/root"),
        ("/usr/share/doc/segvault/copyright", "-rw-r--r-- root/root"),
        ("/usr/share/doc/segvault/THIRD-PARTY.gz", "-rw-r--r-- root/root"),
        ("/usr/share/doc/segvault/README.md", "-rw-r--r-- root/root"),
        ("/usr/share/doc/segvault/deploy/systemd/agent-beside-kafka.conf", "-rw-r--r-- root/root"),
    ] {
        assert_eq!(contents.get(path).map(String::as_str), Some(expected), "{path}");
    }
    for file in fs::read_dir(project_root().join("docs")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(contents.contains_key(&format!("/usr/share/doc/segvault/docs/{name}")), "{name} is missing");
    }
    let is_ours = |path: &str| path.starts_with("/usr/") || path.starts_with("/etc/segvault/");
    let folders = ["/", "/etc/", "/usr/"];
    assert!(contents.keys().all(|path| is_ours(path) || folders.contains(&&path[..])), "{contents:#?}");

    let version = run(Command::new(segvault_binary()).arg("--version"));
    assert_eq!(format!("segvault {}", control("Version")), format!("{}-1", version.trim()));
    assert!(control("Depends").starts_with("libc6 (>= 2."), "{}", control("Depends"));
    let conffiles = run(Command::new("dpkg-deb").arg("-I").arg(package()).arg("conffiles"));
    let expected = "/etc/segvault/agent.toml\n/etc/segvault/coordinator.toml\n/etc/segvault/vault.toml\n";
    assert_eq!(conffiles, expected);
}

#[test]
fn the_licences_of_what_is_linked_are_there() {
    let root = unpacked();
    let notices = root.path().join("usr/share/doc/segvault/THIRD-PARTY.gz");
    let text = run(Command::new("gzip").arg("-dc").arg(notices));
    for library in ["aws-lc-sys ", "tokio ", "zstd-sys "] {
        assert!(text.lines().any(|line| line.starts_with(library)), "{library}");
    }
    for words in ["Permission is hereby granted, free of charge", "TERMS AND CONDITIONS FOR USE, REPRODUCTION"] {
        assert!(text.contains(words), "{words}");
    }
    assert!(!text.lines().any(|line| line.starts_with("proptest ")), "tests are not in the binary");
}

/// A root that dpkg installs into.
struct Root(TempDir);

impl Root {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        for dir in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "etc/kafka", "usr/sbin"] {
            fs::create_dir_all(root.path(dir)).unwrap();
        }
        fs::write(root.path("var/lib/dpkg/status"), "").unwrap();
        fs::write(root.path("etc/kafka/server.properties"), "node.id=1\n").unwrap();
        fs::write(root.path("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        fs::write(root.path("etc/group"), "root:x:0:\n").unwrap();
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn dpkg(&self, args: &[&str]) {
        let root = self.0.path().display();
        run(Command::new("dpkg")
            .args([format!("--root={root}"), format!("--log={root}/dpkg.log")])
            .args(["--force-script-chrootless", "--force-depends"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive"));
    }

    /// The number of a name in `etc/passwd` or `etc/group`.
    fn id(&self, file: &str, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.path(file)).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}:")))?;
        line.split(':').nth(2)?.parse().ok()
    }
}

#[test]
fn dpkg_installs_it_keeps_what_was_changed_and_takes_it_away() {
    if !geteuid().is_root() {
        println!("SKIPPED: only root can install; run the tests as root to try dpkg");
        return;
    }
    let root = Root::new();
    let deb = package().display().to_string();
    root.dpkg(&["-i", &deb]);
    let version = run(Command::new(root.path("usr/bin/segvault")).arg("--version"));
    assert_eq!(version, run(Command::new(segvault_binary()).arg("--version")));
    assert!(root.id("etc/passwd", "segvault").is_some_and(|uid| (1..1000).contains(&uid)), "a system user is made");
    let vault = root.path("etc/segvault/vault.toml");
    let owner = fs::metadata(&vault).unwrap();
    assert_eq!((owner.uid(), Some(owner.gid())), (0, root.id("etc/group", "segvault")));
    assert_eq!(mode(&vault), 0o640);
    assert!(!root.path("etc/systemd").exists(), "nothing is enabled");

    // An upgrade keeps what was changed, and whom the file belongs to.
    fs::write(&vault, "vault = \"file:///elsewhere\"\n").unwrap();
    std::os::unix::fs::chown(&vault, None, Some(4711)).unwrap();
    fs::write(root.path("etc/segvault/agent.key"), "secret").unwrap();
    root.dpkg(&["-i", "--force-confold", &deb]);
    assert_eq!(fs::read_to_string(&vault).unwrap(), "vault = \"file:///elsewhere\"\n");
    assert_eq!((fs::metadata(&vault).unwrap().gid(), mode(&vault)), (4711, 0o640));

    root.dpkg(&["--remove", "segvault"]);
    assert!(!root.path("usr/bin/segvault").exists() && vault.exists(), "configuration outlives the program");
    root.dpkg(&["--purge", "segvault"]);
    assert!(!vault.exists() && root.path("etc/segvault/agent.key").exists(), "keys are not for a package to delete");
    assert!(root.id("etc/passwd", "segvault").is_some(), "files may belong to the user");
    assert_eq!(fs::read_to_string(root.path("etc/kafka/server.properties")).unwrap(), "node.id=1\n");
    assert_eq!(fs::read_dir(root.path("etc/kafka")).unwrap().count(), 1);
}

/// What systemd gives a service: a socket to speak to.
struct Service {
    child: Child,
    notices: UnixDatagram,
    log: PathBuf,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Service {
    /// Starts what a unit starts, of the package that is unpacked in `root`; `more` are further arguments.
    fn start(root: &Path, unit: &str, more: &[&str]) -> Self {
        let text = fs::read_to_string(root.join("usr/lib/systemd/system").join(unit)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let words = line.split(' ').map(|word| match word.starts_with('/') {
            true => root.join(&word[1..]).display().to_string(),
            false => word.to_owned(),
        });
        let words: Vec<String> = words.collect();
        let (socket, log) = (root.join(format!("{unit}.socket")), root.join(format!("{unit}.log")));
        let notices = UnixDatagram::bind(&socket).unwrap();
        notices.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(more).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000").stderr(fs::File::create(&log).unwrap());
        Self { child: command.spawn().unwrap(), notices, log }
    }

    /// Waits until it says something to systemd.
    fn says(&self, what: &str) {
        let mut notice = [0; 4096];
        loop {
            let len = self.notices.recv(&mut notice).unwrap_or_else(|error| {
                panic!("{what} was not said: {error}\n{}", fs::read_to_string(&self.log).unwrap())
            });
            if String::from_utf8_lossy(&notice[..len]).contains(what) {
                return;
            }
        }
    }

    fn stop(mut self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        let ended = self.child.wait().unwrap();
        assert_eq!(ended.code(), Some(0), "{}", fs::read_to_string(&self.log).unwrap());
        self.says("STOPPING=1");
    }
}

/// Replaces each of `changes` in an installed file; all of them must be in it.
fn adapt(file: &Path, changes: &[(&str, String)]) {
    let mut text = fs::read_to_string(file).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in {}", file.display());
        text = text.replace(from, to);
    }
    fs::write(file, text).unwrap();
}

/// A formatted node whose broker never ran.
fn node(dir: &Path) -> PathBuf {
    let log_dir = dir.join("kafka/data");
    fs::create_dir_all(&log_dir).unwrap();
    fs::write(log_dir.join("meta.properties"), "version=1\ncluster.id=MkU3OEVBNTcwNTJENDM2Qg\nnode.id=1\n").unwrap();
    let [_, properties] = golden_node(dir, 1, &log_dir).unwrap();
    PathBuf::from(properties)
}

#[test]
fn what_is_installed_serves_as_the_units_and_samples_say() {
    let installed = unpacked();
    let (root, segvault) = (installed.path(), installed.path().join("usr/bin/segvault"));
    let (etc, properties) = (root.join("etc/segvault"), node(root));
    let (etc_text, vault) = (etc.display().to_string(), format!("file://{}/vault", root.display()));

    let cert = |args: &[&str]| run(Command::new(&segvault).arg("cert").args(args));
    let issue = |whom: &[&str]| cert(&[&["issue", "--dir", &etc_text][..], whom].concat());
    cert(&["authority", "--dir", &etc_text]);
    issue(&["coordinator", "--host", "127.0.0.1"]);
    issue(&["agent", "--broker-config", &properties.display().to_string()]);
    issue(&["operator", "--name", "ann"]);

    adapt(&etc.join("vault.toml"), &[("s3://backups/kafka", vault)]);
    run(Command::new(&segvault).args(["vault", "init", "--vault-config"]).arg(etc.join("vault.toml")));
    let here = ("/etc/segvault", etc_text.clone());
    adapt(&etc.join("coordinator.toml"), &[here.clone(), ("0.0.0.0:9640", "127.0.0.1:0".into())]);
    let address_file = root.join("address");
    let more = ["--address-file", &address_file.display().to_string()];
    let coordinator = Service::start(root, "segvault-coordinator.service", &more);
    coordinator.says("READY=1");
    coordinator.says("WATCHDOG=1");
    let address = fs::read_to_string(&address_file).unwrap();

    let changes = [
        here,
        ("coordinator.example.org:9640", address.clone()),
        ("/etc/kafka/server.properties", properties.display().to_string()),
        ("agent.pem", "agent-1.pem".into()),
        ("agent.key", "agent-1.key".into()),
    ];
    adapt(&etc.join("agent.toml"), &changes);
    let agent = Service::start(root, "segvault-agent.service", &[]);
    agent.says(&format!("connected to {address}"));
    agent.says("WATCHDOG=1");

    let mut status = Command::new(&segvault);
    status.args(["status", "--coordinator", &address, "--ca"]).arg(etc.join("ca.pem"));
    status.arg("--cert").arg(etc.join("operator-ann.pem")).arg("--key").arg(etc.join("operator-ann.key"));
    let status = run(&mut status);
    assert!(status.contains("MkU3OEVBNTcwNTJENDM2Qg") && !status.contains("NOT CONNECTED"), "{status}");
    agent.stop();
    coordinator.stop();
}

/// A sample with all that it shows and leaves out, and paths below `dir`.
fn in_full(sample: &str, dir: &Path) -> String {
    let text = fs::read_to_string(project_root().join("deploy/sample").join(sample)).unwrap();
    let shown = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.is_empty() && !key.starts_with(' ') => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    let text: String = text.lines().map(shown).collect();
    text.replace("/etc/", &format!("{}/etc/", dir.display()))
}

/// What the binary says of a configuration file, in a folder where nothing else is.
fn complaint(role: &str, text: &str, dir: &Path) -> String {
    let file = dir.join("config.toml");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(segvault_binary());
    match role {
        "vault" => command.args(["snapshot", "list", "--vault-config"]),
        role => command.args([role, "--config"]),
    };
    let output = command.arg(file).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{role}: {}", said(&output));
    said(&output)
}

/// The keys that serde names when it meets one that it does not know.
fn known_keys(complaint: &str) -> Vec<String> {
    let (_, keys) = complaint.split_once("expected").unwrap_or_else(|| panic!("{complaint}"));
    keys.lines().next().unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn samples_show_every_key_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    for (role, goes_on_to) in [("agent", ".pem"), ("coordinator", ".pem"), ("vault", "nothing-there")] {
        let text = in_full(&format!("{role}.toml"), dir.path());
        let nowhere = format!("file://{}/nothing-there", dir.path().display());
        let text = if role == "vault" { text.replace("s3://backups/kafka", &nowhere) } else { text };
        let said = complaint(role, &text, dir.path());
        assert!(said.contains(goes_on_to) && !said.contains("config.toml"), "{role}: {said}");

        let tables = text.lines().filter(|line| line.starts_with('[')).map(str::to_owned);
        for table in std::iter::once(String::new()).chain(tables) {
            let wrong = match table.is_empty() {
                true => format!("nonsense = 1\n{text}"),
                false => text.replace(&table, &format!("{table}\nnonsense = 1")),
            };
            let said = complaint(role, &wrong, dir.path());
            assert!(said.contains("unknown field `nonsense`"), "{role} {table}: {said}");
            for key in known_keys(&said) {
                let is_shown = |line: &str| {
                    line.starts_with(&format!("{key} = ")) || line.trim_matches(['[', ']']) == key && line != key
                };
                assert!(text.lines().any(is_shown), "{role}.toml does not show {key} of {table:?}");
            }
        }
    }
}

#[test]
fn systemd_understands_the_units_with_either_drop_in() {
    if !is_there("systemd-analyze") {
        println!("SKIPPED: systemd-analyze is not installed");
        return;
    }
    let installed = unpacked();
    let root = installed.path();
    let binary = root.join("usr/bin/segvault").display().to_string();
    for drop_in in ["agent-beside-kafka.conf", "agent-as-kafka.conf"] {
        // Units that name the unpacked binary: systemd checks that it is there.
        let dir = tempfile::tempdir().unwrap();
        for unit in ["segvault-agent.service", "segvault-coordinator.service"] {
            let text = fs::read_to_string(root.join("usr/lib/systemd/system").join(unit)).unwrap();
            fs::write(dir.path().join(unit), text.replace("/usr/bin/segvault", &binary)).unwrap();
        }
        let drop_ins = dir.path().join("segvault-agent.service.d");
        fs::create_dir(&drop_ins).unwrap();
        fs::copy(root.join("usr/share/doc/segvault/deploy/systemd").join(drop_in), drop_ins.join(drop_in)).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(dir.path().join("segvault-agent.service"))
            .arg(dir.path().join("segvault-coordinator.service"))
            .output()
            .unwrap();
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        // These came with systemd 254; older ones say that they pass over them.
        let is_newer = |line: &&str| line.contains("RestartSteps") || line.contains("RestartMaxDelaySec");
        let ours: Vec<_> = said.lines().filter(|line| line.contains("segvault") && !is_newer(line)).collect();
        assert!(ours.is_empty(), "{ours:#?}");
        // Less than 2 of 10; what is left is what they need: the network, and the agent's two capabilities.
        for unit in ["segvault-agent.service", "segvault-coordinator.service"] {
            let exposed = ["security", "--offline=yes", "--threshold=20", "--no-pager"];
            run(Command::new("systemd-analyze").args(exposed).arg(dir.path().join(unit)));
        }
    }
}
