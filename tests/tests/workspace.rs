//! What ARCHITECTURE.md says of the crates: who may depend on whom, and that the pure ones are pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use segvault_tests::cluster::project_root;
use serde_json::Value;

/// The crates from the lowest layer up. Each may depend on those in lower layers only, in its tests as well.
const LAYERS: [&[&str]; 7] = [
    &["kafka-log", "transport", "metrics"],
    &["vault-format"],
    &["alignment"],
    &["vault", "proto"],
    &["agent", "coordinator", "verifier"],
    &["cli"],
    &["tests"],
];

/// Crates without runtime, file system, clock and randomness.
const PURE: [&str; 3] = ["kafka-log", "vault-format", "alignment"];

/// What may be linked into a pure crate: codecs, sums, and what those consist of. Ask before you add one whether it
/// reads a file, a clock or the environment.
const PURE_DEPENDENCIES: [&str; 29] = [
    "adler2",
    "arrayvec",
    "blake3",
    "bytes",
    "cfg-if",
    "constant_time_eq",
    "cpufeatures",
    "crc-fast",
    "crc32fast",
    "crypto-common",
    "digest",
    "flate2",
    "generic-array",
    "libc", // For `cpufeatures`, which asks what the processor can do.
    "lz4_flex",
    "miniz_oxide",
    "prost",
    "serde",
    "serde_core",
    "simd-adler32",
    "snap",
    "spin",
    "thiserror",
    "twox-hash",
    "typenum",
    "zlib-rs",
    "zstd",
    "zstd-safe",
    "zstd-sys",
];

/// Each pure crate's `clippy.toml` bans at least these.
const BANNED: [&str; 14] = [
    "std::env::var",
    "std::fs::File",
    "std::fs::read",
    "std::fs::read_dir",
    "std::fs::write",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::process::Command",
    "std::thread::sleep",
    "std::thread::scope",
    "std::thread::spawn",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// The packages that are linked for this machine, by id.
struct Packages(BTreeMap<String, Package>);

struct Package {
    name: String,
    /// Runs at compile time only.
    is_macro: bool,
    /// Ids of what is linked into it, and of what only its tests have.
    normal: Vec<String>,
    dev: Vec<String>,
}

impl Packages {
    fn load() -> Self {
        let cargo = |args: &[&str]| {
            let output = Command::new(env!("CARGO")).args(args).current_dir(project_root()).output().unwrap();
            assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let version = cargo(&["-vV"]);
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        let metadata = cargo(&["metadata", "--format-version", "1", "--locked", "--filter-platform", host]);
        let metadata: Value = serde_json::from_str(&metadata).unwrap();
        let packages = metadata["packages"].as_array().unwrap().iter().map(|package| {
            let mut kinds = package["targets"].as_array().unwrap().iter().map(|target| target["kind"][0].as_str());
            (&package["id"], (text(&package["name"]), kinds.any(|kind| kind == Some("proc-macro"))))
        });
        let packages: BTreeMap<_, _> = packages.map(|(id, package)| (text(id), package)).collect();
        let nodes = metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| {
            let id = text(&node["id"]);
            let (name, is_macro) = packages[&id].clone();
            let of_kind = |kind: Value| {
                let deps = node["deps"].as_array().unwrap().iter();
                let deps =
                    deps.filter(|dep| dep["dep_kinds"].as_array().unwrap().iter().any(|dep| dep["kind"] == kind));
                deps.map(|dep| text(&dep["pkg"])).collect()
            };
            (id, Package { name, is_macro, normal: of_kind(Value::Null), dev: of_kind("dev".into()) })
        });
        Self(nodes.collect())
    }

    fn ours(&self, folder: &str) -> &Package {
        let name = format!("segvault-{folder}");
        self.0.values().find(|package| package.name == name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// Names of all that is linked into a package.
    fn linked(&self, package: &Package) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        let mut to_visit: Vec<_> = package.normal.iter().collect();
        while let Some(package) = to_visit.pop().map(|id| &self.0[id]) {
            if !package.is_macro && names.insert(&package.name[..]) {
                to_visit.extend(&package.normal);
            }
        }
        names
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("cargo's metadata has text here").to_owned()
}

#[test]
fn crates_depend_on_lower_layers_only() {
    let packages = Packages::load();
    let ours = packages.0.values().filter(|package| package.name.starts_with("segvault-")).count();
    assert_eq!(ours, LAYERS.concat().len(), "every crate has its layer");
    for (height, layer) in LAYERS.iter().enumerate() {
        let lower: Vec<String> = LAYERS[..height].concat().iter().map(|folder| format!("segvault-{folder}")).collect();
        for folder in *layer {
            let package = packages.ours(folder);
            for id in package.normal.iter().chain(&package.dev) {
                let name = &packages.0[id].name;
                let is_lower = !name.starts_with("segvault-") || lower.contains(name);
                assert!(is_lower, "{folder} must not depend on {name}");
            }
        }
    }
}

/// Who proves a point must not repeat the mistakes of who took it.
#[test]
fn the_verifier_shares_formats_with_the_capture_and_nothing_else() {
    let packages = Packages::load();
    let linked = packages.linked(packages.ours("verifier"));
    let ours: Vec<_> = linked.into_iter().filter_map(|name| name.strip_prefix("segvault-")).collect();
    assert_eq!(ours, ["kafka-log", "vault", "vault-format"]);
}

#[test]
fn pure_crates_link_nothing_that_is_not_pure() {
    let packages = Packages::load();
    for folder in PURE {
        for name in packages.linked(packages.ours(folder)) {
            let ours = name.strip_prefix("segvault-");
            let allowed = ours.map_or(PURE_DEPENDENCIES.contains(&name), |ours| PURE.contains(&ours));
            assert!(allowed, "{folder} is pure and must not link {name}");
        }
    }
}

#[test]
fn pure_crates_ban_what_is_not_pure() {
    let read = |folder: &str| fs::read_to_string(project_root().join(folder).join("clippy.toml")).unwrap();
    for folder in PURE {
        let text = read(folder);
        assert_eq!(text, read(PURE[0]), "pure crates have the same clippy.toml");
        for path in BANNED {
            assert!(text.contains(&format!("path = \"{path}\"")), "{folder}/clippy.toml should ban {path}");
        }
        check_exceptions(&project_root().join(folder).join("src"));
    }
}

/// Nothing but tests may be excepted from the bans.
fn check_exceptions(dir: &Path) {
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            check_exceptions(&path);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        assert!(!code.contains("clippy::disallowed"), "{} makes an exception of itself", path.display());
    }
}
