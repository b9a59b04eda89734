//! What a vault promises, on every kind of store: a local folder, and, where `SEGVAULT_TEST_S3` holds the URL of a
//! bucket (with endpoint and credentials in the usual variables), an S3-compatible server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;
use segvault_vault::{Access, Config, PointState, Settings, UploadOptions, Uploader, Vault, VaultError, VaultLocation};
use segvault_vault_format::blob::{BlobKind, BlobPlace};
use segvault_vault_format::ids::{BlobId, PackId, PointId};
use segvault_vault_format::keys::Key;
use segvault_vault_format::manifest::{Chunk, MetadataEntry, PointManifest, Segment, Stream, StreamRef, Totals};
use segvault_vault_format::pack::{ENTRY_LEN, TRAILER_LEN};
use tokio::runtime::Runtime;

const NOW: i64 = 1_790_000_000_000;

/// A place for a vault that goes away with the test.
struct Place {
    location: VaultLocation,
    config: Config,
    _folder: Option<tempfile::TempDir>,
}

fn folder() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let location = VaultLocation::File(folder.path().join("deep/vault"));
    Place { location, config: Config::default(), _folder: Some(folder) }
}

/// A folder, and a fresh prefix of the bucket if there is one.
fn places(test: &str) -> Vec<Place> {
    let mut places = vec![folder()];
    if let Ok(url) = std::env::var("SEGVAULT_TEST_S3") {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let location = format!("{url}/{test}-{}-{}", std::process::id(), now.as_nanos());
        let config = Config::resolve(Settings::default(), |name| std::env::var(name).ok(), None).unwrap();
        let location: VaultLocation = location.parse().unwrap();
        assert!(matches!(location, VaultLocation::S3 { .. }), "SEGVAULT_TEST_S3 is no bucket: {location}");
        places.push(Place { location, config, _folder: None });
    }
    places
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Place {
    async fn init(&self) -> Vault {
        Vault::init(&self.location, &self.config, NOW).await.unwrap()
    }

    fn path(&self, key: &Key) -> PathBuf {
        let VaultLocation::File(path) = &self.location else { panic!("only on a local vault") };
        path.join(key.to_string())
    }
}

/// Bytes that compress somewhat and differ by `seed`.
fn chunk(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| if i % 3 == 0 { b'k' } else { ((i * (seed + 7)) >> 3) as u8 }).collect()
}

/// Stores `chunks` and their stream, and returns once all is durable.
fn upload(vault: &Vault, chunks: &[Vec<u8>]) -> (StreamRef, Vec<BlobPlace>) {
    let uploader = Uploader::new(vault, UploadOptions { pack_bytes: 256 << 10, ..UploadOptions::default() });
    let mut writer = uploader.writer();
    let store = |raw: &Vec<u8>| writer.store(BlobKind::Chunk, BlobId::of(raw), raw, 0).unwrap();
    let places: Vec<BlobPlace> = chunks.iter().map(store).collect();
    let entries = places.iter().zip(0..).map(|(place, offset)| Chunk {
        id: place.id.0.to_vec(),
        base_offset: offset,
        last_offset: offset,
        len: place.raw_len,
        batches: 1,
        ..Chunk::default()
    });
    let stream = Stream {
        cluster_id: "cluster".into(),
        topic_id: vec![1; 16],
        topic: "orders".into(),
        end_offset: chunks.len() as i64,
        chunks: entries.collect(),
        segments: vec![Segment::default()],
        ..Stream::default()
    };
    let reference = writer.store_stream(&stream, &places, None).unwrap();
    assert_eq!(writer.store_stream(&stream, &places, Some(&reference)).unwrap(), reference);
    uploader.flush().unwrap();
    assert!(uploader.stored_bytes() > 0);
    (reference, places)
}

fn manifest(point: &PointId, stream: &StreamRef) -> PointManifest {
    PointManifest {
        cluster_id: point.cluster_id.clone(),
        number: point.number,
        metadata: Some(MetadataEntry { log: Some(stream.clone()), ..MetadataEntry::default() }),
        ..PointManifest::default()
    }
}

#[test]
fn a_vault_is_made_once_and_opened_by_all() {
    for place in places("init") {
        runtime().block_on(async {
            let open = |access| Vault::open(&place.location, &place.config, access);
            assert!(matches!(open(Access::Read).await, Err(VaultError::NotAVault { .. })));
            let vault = place.init().await;
            assert_eq!(vault.created_ms(), NOW);
            for access in [Access::Read, Access::Write] {
                assert_eq!(open(access).await.unwrap().id(), vault.id());
            }
            let again = Vault::init(&place.location, &place.config, NOW).await;
            assert!(matches!(again, Err(VaultError::AlreadyExists { id, .. }) if id == vault.id()));
        });
    }
}

#[test]
fn of_many_racing_inits_one_wins() {
    for place in places("race") {
        runtime().block_on(async {
            let inits = (0..4).map(|_| Vault::init(&place.location, &place.config, NOW));
            let made: Vec<_> = futures::future::join_all(inits).await.into_iter().filter_map(Result::ok).collect();
            assert_eq!(made.len(), 1);
        });
    }
}

#[test]
fn blobs_of_many_threads_come_back_in_any_order() {
    for place in places("blobs") {
        let runtime = runtime();
        let vault = runtime.block_on(place.init());
        let uploader = Uploader::new(&vault, UploadOptions { pack_bytes: 256 << 10, ..UploadOptions::default() });
        let store = |thread: usize| {
            let mut writer = uploader.writer();
            let store = |number| {
                let raw = chunk(thread * 100 + number, 10_000 + 7_000 * number);
                (writer.store(BlobKind::Chunk, BlobId::of(&raw), &raw, 0).unwrap(), raw)
            };
            (0..40).map(store).collect::<Vec<_>>()
        };
        let store = &store;
        let mut blobs: Vec<(BlobPlace, Vec<u8>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || store(thread))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        uploader.flush().unwrap();

        let read = |blobs: &[(BlobPlace, Vec<u8>)]| {
            let mut reader = vault.read_chunks(blobs.iter().map(|(place, _)| *place).collect());
            let mut raw = Vec::new();
            for (_, wanted) in blobs {
                assert!(reader.next(&mut raw).unwrap());
                assert_eq!(&raw, wanted);
            }
            assert!(!reader.next(&mut raw).unwrap());
        };
        read(&blobs);
        blobs.reverse();
        read(&blobs);
        let wanted: Vec<_> = blobs.iter().map(|(place, _)| (BlobKind::Chunk, *place)).collect();
        let got = runtime.block_on(vault.get_blobs(&wanted)).unwrap();
        assert!(got.iter().eq(blobs.iter().map(|(_, raw)| raw)));
    }
}

#[test]
fn a_pack_is_durable_once_it_was_written_and_found_as_long_as_it_is_there() {
    for place in places("looks") {
        let runtime = runtime();
        let vault = runtime.block_on(place.init());
        let uploader = |pack_bytes| Uploader::new(&vault, UploadOptions { pack_bytes, ..UploadOptions::default() });
        let store = |uploader: &Uploader, seed| {
            let raw = chunk(seed, 1000);
            uploader.writer().store(BlobKind::Chunk, BlobId::of(&raw), &raw, 0).unwrap()
        };
        let waiting = uploader(1 << 20);
        let open = store(&waiting, 0);
        assert!(!waiting.is_durable(&open.pack), "nothing has written it");
        waiting.flush().unwrap();
        assert!(waiting.is_durable(&open.pack));

        // A pack for each, and more than are asked for at the same time.
        let each = uploader(1);
        let mut all: Vec<BlobPlace> = (1..=50).map(|seed| store(&each, seed)).collect();
        each.flush().unwrap();
        assert!(all.iter().all(|place| each.is_durable(&place.pack)));

        all.push(open);
        let absent = PackId([7; 16]);
        let packs = all.iter().map(|place| place.pack).chain([absent]).collect();
        let looks: Vec<_> = runtime.block_on(vault.look_for_packs(packs).try_collect()).unwrap();
        let looks: BTreeMap<PackId, Option<u64>> = looks.into_iter().collect();
        assert_eq!((looks.len(), looks[&absent]), (52, None));
        for place in all {
            assert_eq!(looks[&place.pack], Some(place.end() + (ENTRY_LEN + TRAILER_LEN) as u64), "one blob a pack");
        }
    }
}

#[test]
fn a_point_is_what_its_outcome_says() {
    for place in places("points") {
        let runtime = runtime();
        let vault = runtime.block_on(place.init());
        let (stream, places) = upload(&vault, &[chunk(1, 50_000), chunk(2, 60_000)]);
        runtime.block_on(async {
            assert!(matches!(vault.find_cluster(None).await, Err(VaultError::NoClusters { .. })));
            let cluster = vault.register_cluster("cluster", "prod").await.unwrap();
            assert!(matches!(vault.require_committed(&cluster).await, Err(VaultError::NoCommittedPoint { .. })));

            // Whoever takes it dies here: what it has written is not a point.
            let dead = vault.begin_point("cluster", 0, "test", NOW).await.unwrap();
            assert_eq!(vault.latest_committed("cluster").await.unwrap(), None);
            let error = vault.point_manifest(&dead).await.unwrap_err();
            assert!(error.to_string().contains("is not finished"), "{error}");

            let point = vault.begin_point("cluster", 0, "test", NOW).await.unwrap();
            assert_eq!(point.number, 2);
            let manifest = manifest(&point, &stream);
            let totals = Totals { bytes: 110_000, ..Totals::default() };
            let outcome = vault.commit_point(&manifest, totals).await.unwrap();
            assert_eq!(vault.commit_point(&manifest, totals).await.unwrap(), outcome, "repeated");
            assert_eq!(vault.outcome(&point).await.unwrap(), Some(outcome));
            assert!(matches!(vault.abort_point(&point, "late").await, Err(VaultError::AlreadyDecided { .. })));

            let aborted = vault.begin_point("cluster", 2, "test", NOW).await.unwrap();
            vault.abort_point(&aborted, "no space").await.unwrap();
            let late = PointManifest { number: aborted.number, ..manifest.clone() };
            let error = vault.commit_point(&late, totals).await.unwrap_err().to_string();
            assert_eq!(error, "restore point cluster/3 was aborted (no space) before");

            let vault = Vault::open(&place.location, &place.config, Access::Read).await.unwrap();
            assert_eq!(vault.latest_committed("cluster").await.unwrap(), Some(point.clone()));
            assert_eq!(vault.require_committed(&cluster).await.unwrap(), point);
            assert_eq!(vault.point_manifest(&point).await.unwrap(), manifest);
            let loaded = vault.load_stream(&stream).await.unwrap();
            assert_eq!(loaded.places, places);
            let points = vault.list_points("cluster").await.unwrap();
            let states: Vec<_> = points.into_iter().map(|point| point.state).collect();
            let aborted = PointState::Aborted("no space".into());
            assert_eq!(states, [PointState::Undecided, PointState::Committed(totals), aborted]);
            let absent = PointId { number: 9, ..point };
            assert!(matches!(vault.point_manifest(&absent).await, Err(VaultError::NoPoint { .. })));
        });
    }
}

#[test]
fn numbers_are_dense_and_given_once_however_many_want_one() {
    for place in places("numbers") {
        runtime().block_on(async {
            let vault = place.init().await;
            let takers = (0..12).map(|_| vault.begin_point("cluster", 0, "test", NOW));
            let mut numbers: Vec<u64> =
                futures::future::join_all(takers).await.into_iter().map(|point| point.unwrap().number).collect();
            numbers.sort_unstable();
            assert_eq!(numbers, Vec::from_iter(1..=12));
            for number in 13..=18 {
                assert_eq!(vault.newest_point("cluster").await.unwrap(), number - 1);
                vault.begin_point("cluster", 0, "test", NOW).await.unwrap();
            }
            assert_eq!(vault.newest_point("other").await.unwrap(), 0);
        });
    }
}

#[test]
fn clusters_are_found_by_id_by_name_or_by_being_alone() {
    for place in places("clusters") {
        runtime().block_on(async {
            let vault = place.init().await;
            let first = vault.register_cluster("id-1", "prod").await.unwrap();
            assert_eq!(vault.register_cluster("id-1", "other").await.unwrap(), first, "a name stays");
            assert_eq!(vault.find_cluster(None).await.unwrap(), first);
            let second = vault.register_cluster("id-2", "").await.unwrap();
            assert_eq!(second.name, "id-2");
            assert!(matches!(vault.register_cluster("id-3", "prod").await, Err(VaultError::ClusterNameTaken { .. })));
            for name in ["two\nlines", &"long".repeat(21)] {
                assert!(matches!(vault.register_cluster("id-3", name).await, Err(VaultError::Id(_))), "{name}");
            }
            assert_eq!(vault.find_cluster(Some("prod")).await.unwrap(), first);
            assert_eq!(vault.find_cluster(Some("id-2")).await.unwrap(), second);
            for wanted in [None, Some("id-3")] {
                let error = vault.find_cluster(wanted).await.unwrap_err().to_string();
                assert!(error.contains("prod (id-1), id-2"), "{error}");
            }
        });
    }
}

/// Ways to damage an object, and whether one notices by reading it.
type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 4] = [
    ("flipped bit", |path| {
        let mut bytes = std::fs::read(path).unwrap();
        // Past the pack's own header, which a reader of blobs does not look at.
        let at = bytes.len().min(200) / 2;
        bytes[at] ^= 4;
        std::fs::write(path, bytes).unwrap();
    }),
    ("cut short", |path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(60).unwrap();
    }),
    ("empty", |path| std::fs::write(path, b"").unwrap()),
    ("deleted", |path| std::fs::remove_file(path).unwrap()),
];

#[test]
fn damage_to_any_object_is_noticed_and_named() {
    for (what, damage) in DAMAGES {
        for victim in ["vault", "cluster", "intent", "outcome", "manifest", "stream pack", "chunk pack"] {
            let place = folder();
            let runtime = runtime();
            let vault = runtime.block_on(place.init());
            let (stream, places) = upload(&vault, &[chunk(1, 3_000)]);
            let stream_pack = PackId::from_slice(&stream.manifest.as_ref().unwrap().pack).unwrap();
            let (point, outcome) = runtime.block_on(async {
                vault.register_cluster("cluster", "").await.unwrap();
                let point = vault.begin_point("cluster", 0, "test", NOW).await.unwrap();
                let outcome = vault.commit_point(&manifest(&point, &stream), Totals::default()).await.unwrap();
                (point, outcome)
            });
            let key = match victim {
                "vault" => Key::Vault,
                "cluster" => Key::Cluster(1),
                "intent" => Key::Intent(point.clone()),
                "outcome" => Key::Outcome(point.clone()),
                "manifest" => Key::Manifest(point.clone(), outcome.root().unwrap().unwrap()),
                "stream pack" => Key::Pack(stream_pack),
                _ => Key::Pack(places[0].pack),
            };
            damage(&place.path(&key));

            let all = async {
                let vault = Vault::open(&place.location, &place.config, Access::Read).await?;
                let cluster = vault.find_cluster(None).await?;
                vault.list_points("cluster").await?;
                let point = vault.require_committed(&cluster).await?;
                vault.point_manifest(&point).await?;
                vault.load_stream(&stream).await?;
                Ok::<_, VaultError>(vault)
            };
            let read = runtime.block_on(all).and_then(|vault| {
                let mut raw = Vec::new();
                vault.read_chunks(places).next(&mut raw)
            });
            let error = read.unwrap_err();
            let case = format!("{victim}, {what}: {error}");
            match (&error, victim, what) {
                // These are how a vault without them looks like.
                (VaultError::NoClusters { .. }, "cluster", "deleted") => {}
                (VaultError::NotCommitted { .. }, "outcome", "deleted") => {}
                (VaultError::Missing { .. }, _, "deleted") => {
                    assert!(error.to_string().contains(&key.to_string()))
                }
                (VaultError::Corrupt { .. }, _, _) => {
                    assert_ne!(what, "deleted", "{case}");
                    assert!(error.to_string().contains(&key.to_string()), "{case}");
                    assert!(error.to_string().contains("hint: "), "{case}");
                }
                _ => panic!("{case}"),
            }
        }
    }
}

#[test]
fn a_vault_of_a_later_version_is_not_called_damaged() {
    let place = folder();
    let runtime = runtime();
    runtime.block_on(place.init());
    let path = place.path(&Key::Vault);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[9] = 2;
    std::fs::write(&path, bytes).unwrap();
    let opened = runtime.block_on(Vault::open(&place.location, &place.config, Access::Read));
    assert!(matches!(opened, Err(VaultError::TooNew { .. })), "{opened:?}");
}

#[test]
fn an_object_of_another_vault_is_refused() {
    let (place, other) = (folder(), folder());
    runtime().block_on(async {
        let (vault, stranger) = (place.init().await, other.init().await);
        for vault in [&vault, &stranger] {
            vault.begin_point("cluster", 0, "test", NOW).await.unwrap();
        }
        let key = Key::Intent(PointId { cluster_id: "cluster".into(), number: 1 });
        std::fs::copy(other.path(&key), place.path(&key)).unwrap();
        let error = vault.list_points("cluster").await.unwrap_err().to_string();
        assert!(error.contains(&format!("belongs to vault {}", stranger.id())), "{error}");
    });
}

#[test]
fn an_object_of_another_point_is_refused() {
    let place = folder();
    runtime().block_on(async {
        let vault = place.init().await;
        let point = vault.begin_point("cluster", 0, "test", NOW).await.unwrap();
        vault.abort_point(&point, "enough").await.unwrap();
        let next = vault.begin_point("cluster", 0, "test", NOW).await.unwrap();
        for key in [Key::Outcome, Key::Intent] {
            let wrong = key(next.clone());
            std::fs::copy(place.path(&key(point.clone())), place.path(&wrong)).unwrap();
            let error = vault.point(&next).await.unwrap_err().to_string();
            assert!(error.contains(&wrong.to_string()) && error.contains("that of another point"), "{error}");
        }
    });
}

#[test]
fn reading_writes_nothing() {
    let place = folder();
    runtime().block_on(async {
        place.init().await;
        let VaultLocation::File(path) = &place.location else { unreachable!() };
        let list = || std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(list(), ["vault"], "probes are gone");
        Vault::open(&place.location, &place.config, Access::Read).await.unwrap();
        assert_eq!(list(), ["vault"]);
    });
}

#[test]
fn a_pack_that_cannot_be_written_fails_the_upload() {
    let place = folder();
    let runtime = runtime();
    let vault = runtime.block_on(place.init());
    let VaultLocation::File(path) = &place.location else { unreachable!() };
    std::fs::write(path.join("packs"), b"in the way").unwrap();
    let uploader = Uploader::new(&vault, UploadOptions::default());
    let raw = chunk(1, 1000);
    let lost = uploader.writer().store(BlobKind::Chunk, BlobId::of(&raw), &raw, 0).unwrap();
    let error = uploader.flush().unwrap_err();
    assert!(error.to_string().contains("packs/"), "{error}");
    assert!(uploader.flush().is_err(), "and stays failed");
    assert!(!uploader.is_durable(&lost.pack), "what is lost is never durable");
}

#[test]
fn what_is_written_beneath_a_vault_that_was_unmounted_does_not_count_as_stored() {
    let place = folder();
    let runtime = runtime();
    runtime.block_on(place.init());
    let vault = runtime.block_on(Vault::open(&place.location, &place.config, Access::Write)).unwrap();
    let VaultLocation::File(path) = &place.location else { unreachable!() };
    let away = path.with_extension("away");
    let store = |seed| {
        let uploader = Uploader::new(&vault, UploadOptions::default());
        let raw = chunk(seed, 1000);
        let place = uploader.writer().store(BlobKind::Chunk, BlobId::of(&raw), &raw, 0).unwrap();
        uploader.flush().map(|()| place)
    };
    store(1).unwrap();
    runtime.block_on(vault.begin_point("cluster", 0, "test", NOW)).unwrap();
    // Where a file system was mounted an empty folder is left.
    std::fs::rename(path, &away).unwrap();
    std::fs::create_dir(path).unwrap();
    assert!(store(2).is_err());
    let error = runtime.block_on(vault.begin_point("cluster", 0, "test", NOW)).unwrap_err();
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    assert!(causes.map(ToString::to_string).any(|cause| cause.contains("unmounted")), "{error:?}");
    std::fs::remove_dir_all(path).unwrap();
    std::fs::rename(&away, path).unwrap();
    let stored = store(3).unwrap();
    assert!(place.path(&Key::Pack(stored.pack)).is_file(), "once it is back all is well");
}

#[test]
fn a_store_that_does_not_answer_is_unreachable_and_soon() {
    let settings = Settings {
        endpoint: Some("http://127.0.0.1:9".into()),
        access_key_id: Some("id".into()),
        secret_access_key: Some("hunter2".to_owned().into()),
        allow_http: Some(true),
        ..Settings::default()
    };
    let config = Config::resolve(settings, |_| None, None).unwrap();
    let began = Instant::now();
    let opened = runtime().block_on(Vault::open(&"s3://bucket/x".parse().unwrap(), &config, Access::Read));
    let error = opened.unwrap_err();
    assert!(matches!(error, VaultError::Unreachable { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[test]
fn what_is_spawned_may_move_between_threads() {
    fn send<T: Send>(_: &T) {}
    fn all(vault: &Vault, point: &PointId, stream: &StreamRef, manifest: &PointManifest) {
        send(&Vault::open(vault.location(), &Config::default(), Access::Write));
        send(&Vault::init(vault.location(), &Config::default(), NOW));
        send(&vault.register_cluster("", ""));
        send(&vault.find_cluster(None));
        send(&vault.begin_point("", 0, "", NOW));
        send(&vault.commit_point(manifest, Totals::default()));
        send(&vault.abort_point(point, ""));
        send(&vault.latest_committed(""));
        send(&vault.list_points(""));
        send(&vault.point_manifest(point));
        send(&vault.load_stream(stream));
        send(&vault.read_chunks(Vec::new()));
        send(&Uploader::new(vault, UploadOptions::default()).writer());
    }
    let _ = all;
}
