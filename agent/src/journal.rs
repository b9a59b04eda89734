//! Chunks that are durable in the vault and, as far as the agent knows, in no committed point.
//!
//! An agent that is killed, or whose point is given up, leaves packs in the vault that nothing refers to. The journal
//! says what lies where in them, so that the next upload takes it over instead of storing it again. It is appended to as
//! packs become durable, read when an upload begins, and removed when a point was committed: what counted is in the point.
//!
//! Losing it costs storing again, never correctness. So nothing is synced, whatever is torn or damaged is not believed,
//! and neither is the journal of another vault.
//!
//! **Why what it names may be referred to.** Packs never change, and nothing deletes any in this version. Still, a
//! journal may be old, so it is only believed together with a look at the store *after* the intent of the point that is
//! to refer to the pack (`upload/leftover.rs`). That look is what a garbage collector will have to respect, for it sees
//! no journals, and takes packs that no point refers to for garbage. It has to make known what it condemns before it
//! deletes any of it. A point whose intent is older may have looked before: it has to be decided, and what it refers to
//! kept, before anything is deleted. For a point whose intent is younger, seeing the pack is then not enough: its look has
//! to leave out what is condemned.
//!
//! ```text
//! header   "SVJOURN\1" 8 (the last byte is the format version) | vault id 16
//! records  until the file ends:
//!          number of places u32 | places, 68 bytes each | BLAKE3 of number and places 32
//! place    blob id 32 | pack id 16 | offset u64 | stored length u32 | raw length u32 | codec u8 | reserved = 0 3
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use segvault_vault_format::blob::BlobPlace;
use segvault_vault_format::ids::{PackId, VaultId};
use segvault_vault_format::manifest::BlobRef;

const MAGIC: &[u8; 7] = b"SVJOURN";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 24;
const PLACE_LEN: usize = 68;
const HASH_LEN: usize = 32;

/// Places of one record. More than the chunks of a few seconds; bounds what is read before its hash is known.
const RECORD_PLACES_MAX: usize = 4096;

/// Places of a journal: the chunks of a terabyte. They take about 71 MB as a file, and as memory of an upload that reads it.
const PLACES_MAX: usize = 1 << 20;

/// The journal of one agent.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    vault: VaultId,
}

/// Appends to a journal, for one upload.
#[derive(Debug)]
pub(crate) struct Notes {
    path: PathBuf,
    vault: VaultId,
    /// Open once there is something to append.
    file: Option<File>,
    /// Bytes of the header and of whole records. What follows them is overwritten.
    len: u64,
    /// Places that may still be noted.
    room: usize,
    /// Stored, but not durable when last asked.
    waiting: BTreeMap<PackId, Vec<BlobPlace>>,
    /// Nothing more is noted, and it has been said why.
    ended: bool,
}

impl Journal {
    /// The journal at `path`, of what lies in `vault`. The file is not touched yet, and need not be there.
    pub fn new(path: PathBuf, vault: VaultId) -> Self {
        Self { path, vault }
    }

    /// What the journal holds, and the means to append to it.
    pub fn open(&self) -> (Vec<BlobPlace>, Notes) {
        let mut places = Vec::new();
        let (len, result) = match File::open(&self.path) {
            Ok(file) => decode(self.vault, &mut BufReader::new(file), &mut places),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, Ok(())),
            Err(error) => (0, Err(error)),
        };
        if let Err(error) = result {
            let (path, chunks) = (self.path.display(), places.len());
            tracing::warn!(%path, %error, chunks, "journal is believed up to so many chunks, and written anew from there");
        }
        let notes = Notes {
            path: self.path.clone(),
            vault: self.vault,
            file: None,
            len,
            room: PLACES_MAX.saturating_sub(places.len()),
            waiting: BTreeMap::new(),
            ended: false,
        };
        (places, notes)
    }

    /// Removes the file: all that counted is in a committed point.
    pub fn remove(&self) {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // It is true nevertheless, only of no use.
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "remove journal"),
        }
    }
}

impl Notes {
    /// Takes in chunks that were `stored`, and notes those, of these and earlier ones, whose pack is durable by now.
    pub fn note(&mut self, stored: Vec<BlobPlace>, is_durable: impl Fn(&PackId) -> bool) {
        if self.ended {
            return;
        }
        for place in stored {
            self.waiting.entry(place.pack).or_default().push(place);
        }
        let mut durable: Vec<_> =
            self.waiting.extract_if(.., |pack, _| is_durable(pack)).flat_map(|(_, places)| places).collect();
        let is_full = durable.len() > self.room;
        durable.truncate(self.room);
        let appended = self.append(&durable);
        let path = self.path.display();
        let what_follows = "chunks from here on are stored again should this upload break off";
        if let Err(error) = appended {
            tracing::warn!(%path, %error, "write journal: {what_follows}");
            self.ended = true;
        } else if is_full {
            tracing::warn!(%path, chunks = PLACES_MAX, "journal is full: {what_follows}");
            self.ended = true;
        }
    }

    fn append(&mut self, places: &[BlobPlace]) -> io::Result<()> {
        if places.is_empty() {
            return Ok(());
        }
        let mut bytes = if self.len == 0 { header(self.vault).to_vec() } else { Vec::new() };
        places.chunks(RECORD_PLACES_MAX).for_each(|places| encode_record(places, &mut bytes));
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
                file.set_len(self.len)?;
                file.seek(SeekFrom::End(0))?;
                self.file.insert(file)
            }
        };
        file.write_all(&bytes)?;
        self.len += bytes.len() as u64;
        self.room -= places.len();
        Ok(())
    }
}

/// Reads a journal into `places`. Returns how many of its bytes are good, and what is wrong with the next, unless they
/// are only cut short: that is how a kill leaves them.
fn decode(vault: VaultId, from: &mut impl Read, places: &mut Vec<BlobPlace>) -> (u64, io::Result<()>) {
    let mut len = 0;
    let mut decode_all = || -> io::Result<()> {
        let mut found = [0; HEADER_LEN];
        from.read_exact(&mut found)?;
        check_header(vault, &found).map_err(io::Error::other)?;
        len = HEADER_LEN as u64;
        while places.len() < PLACES_MAX {
            len += decode_record(from, places)?;
        }
        Ok(())
    };
    let result = match decode_all() {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        result => result,
    };
    (len, result)
}

/// Reads one record's places, and returns its length.
fn decode_record(from: &mut impl Read, places: &mut Vec<BlobPlace>) -> io::Result<u64> {
    let damaged = || io::Error::other("a record is damaged");
    let mut number = [0; 4];
    from.read_exact(&mut number)?;
    let count = u32::from_be_bytes(number) as usize;
    if !(1..=RECORD_PLACES_MAX).contains(&count) {
        return Err(damaged());
    }
    let mut bytes = vec![0; count * PLACE_LEN + HASH_LEN];
    from.read_exact(&mut bytes)?;
    let (body, hash) = bytes.split_at(count * PLACE_LEN);
    if digest(&number, body) != *hash {
        return Err(damaged());
    }
    let decoded: Option<Vec<_>> = body.as_chunks().0.iter().map(decode_place).collect();
    places.extend(decoded.ok_or_else(damaged)?);
    Ok((number.len() + bytes.len()) as u64)
}

fn encode_record(places: &[BlobPlace], bytes: &mut Vec<u8>) {
    let start = bytes.len();
    let count = u32::try_from(places.len()).expect("at most RECORD_PLACES_MAX");
    bytes.extend_from_slice(&count.to_be_bytes());
    places.iter().for_each(|place| bytes.extend_from_slice(&encode_place(place)));
    let hash = digest(&[], &bytes[start..]);
    bytes.extend_from_slice(&hash);
}

fn encode_place(place: &BlobPlace) -> [u8; PLACE_LEN] {
    let mut bytes = [0; PLACE_LEN];
    bytes[..32].copy_from_slice(&place.id.0);
    bytes[32..48].copy_from_slice(&place.pack.0);
    bytes[48..56].copy_from_slice(&place.offset.to_be_bytes());
    bytes[56..60].copy_from_slice(&place.stored_len.to_be_bytes());
    bytes[60..64].copy_from_slice(&place.raw_len.to_be_bytes());
    bytes[64] = place.codec as u8;
    bytes
}

fn decode_place(bytes: &[u8; PLACE_LEN]) -> Option<BlobPlace> {
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let place = BlobRef {
        id: bytes[..32].to_vec(),
        pack: bytes[32..48].to_vec(),
        offset: u64::from_be_bytes(bytes[48..56].try_into().expect("8 bytes")),
        stored_len: number(56),
        raw_len: number(60),
        codec: bytes[64].into(),
    };
    BlobPlace::try_from(&place).ok().filter(|_| bytes[65..] == [0; 3])
}

fn header(vault: VaultId) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..7].copy_from_slice(MAGIC);
    bytes[7] = VERSION;
    bytes[8..].copy_from_slice(&vault.0);
    bytes
}

fn check_header(vault: VaultId, found: &[u8; HEADER_LEN]) -> Result<(), String> {
    if found[..7] != *MAGIC {
        return Err("it does not begin with SVJOURN".into());
    }
    if found[7] != VERSION {
        return Err(format!("it has format version {}, this program reads {VERSION}", found[7]));
    }
    let owner = VaultId::from_slice(&found[8..]).expect("16 bytes");
    if owner != vault {
        return Err(format!("it belongs to vault {owner}, not to {vault}"));
    }
    Ok(())
}

fn digest(number: &[u8], places: &[u8]) -> [u8; HASH_LEN] {
    *blake3::Hasher::new().update(number).update(places).finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::path::Path;

    use proptest::prelude::*;
    use segvault_vault_format::blob::{BLOB_LEN_MAX, Codec};
    use segvault_vault_format::ids::BlobId;
    use segvault_vault_format::pack::PACK_HEADER_LEN;
    use tempfile::TempDir;

    use super::*;

    const VAULT: VaultId = VaultId([1; 16]);

    fn place(number: u8, pack: u8) -> BlobPlace {
        let len = 1000 + u32::from(number);
        BlobPlace {
            id: BlobId::of(&[number]),
            pack: PackId([pack; 16]),
            offset: 40 + u64::from(number),
            stored_len: len,
            raw_len: len,
            codec: Codec::Raw,
        }
    }

    fn journal() -> (TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::new(folder.path().join("journal"), VAULT);
        (folder, journal)
    }

    /// Three records of one, two and one places.
    fn three_records(path: &Path) -> Vec<BlobPlace> {
        let places: Vec<_> = (0..4).map(|number| place(number, number)).collect();
        let (_, mut notes) = Journal::new(path.to_owned(), VAULT).open();
        for record in [&places[..1], &places[1..3], &places[3..]] {
            notes.note(record.to_vec(), |_| true);
        }
        places
    }

    fn sorted(mut places: Vec<BlobPlace>) -> Vec<BlobPlace> {
        places.sort_unstable_by_key(|place| place.offset);
        places
    }

    #[test]
    fn a_chunk_is_noted_once_its_pack_is_durable() {
        let (_folder, journal) = journal();
        let durable = RefCell::new(BTreeSet::new());
        let is_durable = |pack: &PackId| durable.borrow().contains(pack);
        let (found, mut notes) = journal.open();
        assert_eq!(found, []);
        notes.note(vec![place(1, 1), place(2, 2)], is_durable);
        assert!(!journal.path.exists(), "nothing to note, nothing to write");
        durable.borrow_mut().insert(PackId([1; 16]));
        notes.note(vec![place(3, 2)], is_durable);
        assert_eq!(journal.open().0, [place(1, 1)]);
        durable.borrow_mut().insert(PackId([2; 16]));
        notes.note(Vec::new(), is_durable);
        assert_eq!(sorted(journal.open().0), [place(1, 1), place(2, 2), place(3, 2)]);

        let (_, mut notes) = journal.open();
        notes.note(vec![place(4, 1)], is_durable);
        assert_eq!(journal.open().0.len(), 4, "a later upload appends");
        journal.remove();
        journal.remove();
        assert_eq!(journal.open().0, []);
    }

    #[test]
    fn a_torn_journal_is_good_up_to_its_last_whole_record_and_goes_on_from_there() {
        let (_folder, journal) = journal();
        let places = three_records(&journal.path);
        let bytes = fs::read(&journal.path).unwrap();
        let record = |count: usize| 4 + count * PLACE_LEN + HASH_LEN;
        let ends = [HEADER_LEN, HEADER_LEN + record(1), HEADER_LEN + record(1) + record(2), bytes.len()];
        for len in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= len).count();
            let good = [0, 0, 1, 3, 4][whole];
            let (mut found, torn) = (Vec::new(), &bytes[..len]);
            let (good_len, result) = decode(VAULT, &mut &*torn, &mut found);
            assert!(result.is_ok(), "{len}: it is as a kill leaves it");
            assert_eq!(good_len as usize, if whole == 0 { 0 } else { ends[whole - 1] });
            assert_eq!(found, places[..good]);

            fs::write(&journal.path, torn).unwrap();
            journal.open().1.note(vec![place(9, 9)], |_| true);
            assert_eq!(journal.open().0, [&places[..good], &[place(9, 9)]].concat(), "{len}");
        }
    }

    #[test]
    fn a_damaged_journal_is_good_up_to_the_damage_and_goes_on_from_there() {
        let (_folder, journal) = journal();
        let places = three_records(&journal.path);
        let bytes = fs::read(&journal.path).unwrap();
        let second = HEADER_LEN + 4 + PLACE_LEN + HASH_LEN;
        let third = second + 4 + 2 * PLACE_LEN + HASH_LEN;
        for at in 0..bytes.len() {
            let good = [0, 1, 3][usize::from(at >= second) + usize::from(at >= third)];
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            fs::write(&journal.path, &bad).unwrap();
            let (found, mut notes) = journal.open();
            assert_eq!(found, places[..good], "byte {at}");
            notes.note(vec![place(9, 9)], |_| true);
            assert_eq!(journal.open().0, [&places[..good], &[place(9, 9)]].concat(), "byte {at}");
        }
        // What a file system may leave of bytes that were never synced.
        let zeros = [&bytes[..second], &[0; 500]].concat();
        let mut found = Vec::new();
        let (good_len, result) = decode(VAULT, &mut &zeros[..], &mut found);
        assert_eq!((good_len as usize, found.len()), (second, 1));
        assert!(result.is_err(), "that is said, unlike a cut end");
    }

    #[test]
    fn a_journal_of_another_vault_or_version_is_replaced() {
        let (_folder, journal) = journal();
        for (at, text) in [(20, "belongs to vault"), (7, "version 2"), (0, "SVJOURN")] {
            three_records(&journal.path);
            let mut bytes = fs::read(&journal.path).unwrap();
            bytes[at] = 2;
            let (_, result) = decode(VAULT, &mut &bytes[..], &mut Vec::new());
            assert!(result.unwrap_err().to_string().contains(text));
            fs::write(&journal.path, &bytes).unwrap();
            let (found, mut notes) = journal.open();
            assert_eq!(found, [], "{text}");
            notes.note(vec![place(9, 9)], |_| true);
            assert_eq!(journal.open().0, [place(9, 9)], "{text}");
            journal.remove();
        }
    }

    #[test]
    fn a_full_journal_takes_no_more() {
        let (_folder, journal) = journal();
        let (_, mut notes) = journal.open();
        notes.room = 3;
        notes.note(vec![place(1, 1), place(2, 1)], |_| true);
        assert!(!notes.ended);
        notes.note(vec![place(3, 1), place(4, 1)], |_| true);
        assert!(notes.ended);
        notes.note(vec![place(5, 1)], |_| true);
        assert_eq!(journal.open().0, [place(1, 1), place(2, 1), place(3, 1)]);
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_given_up() {
        let (folder, journal) = journal();
        fs::create_dir(&journal.path).unwrap();
        let (found, mut notes) = journal.open();
        notes.note(vec![place(1, 1)], |_| true);
        assert!(found.is_empty() && notes.ended);
        // Nothing is tried again, else what follows would lie behind half a record.
        fs::remove_dir(&journal.path).unwrap();
        notes.note(vec![place(2, 1)], |_| true);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    fn any_place() -> impl Strategy<Value = BlobPlace> {
        let lens = prop_oneof![
            (0..=BLOB_LEN_MAX).prop_map(|len| (Codec::Raw, len, len)),
            (1..=BLOB_LEN_MAX, any::<u32>()).prop_map(|(raw, stored)| (Codec::Zstd, raw, stored % raw)),
        ];
        let offsets = PACK_HEADER_LEN as u64..u64::MAX - (u64::from(BLOB_LEN_MAX) + 64);
        (any::<[u8; 32]>(), any::<[u8; 16]>(), offsets, lens).prop_map(
            |(id, pack, offset, (codec, raw_len, stored_len))| BlobPlace {
                id: BlobId(id),
                pack: PackId(pack),
                offset,
                stored_len,
                raw_len,
                codec,
            },
        )
    }

    proptest! {
        #[test]
        fn places_come_back_as_they_were(records in prop::collection::vec(prop::collection::vec(any_place(), 1..20), 0..8)) {
            let mut bytes = header(VAULT).to_vec();
            records.iter().for_each(|places| encode_record(places, &mut bytes));
            let mut found = Vec::new();
            let (len, result) = decode(VAULT, &mut &bytes[..], &mut found);
            prop_assert!(result.is_ok());
            prop_assert_eq!(len, bytes.len() as u64);
            prop_assert_eq!(found, records.concat());
        }

        /// A record that says so many places is not believed before they are there and its hash fits.
        #[test]
        fn no_bytes_are_taken_for_places(count in any::<u32>(), junk in prop::collection::vec(any::<u8>(), 0..1000)) {
            let bytes = [&header(VAULT)[..], &count.to_be_bytes(), &junk].concat();
            let mut found = Vec::new();
            let (len, _) = decode(VAULT, &mut &bytes[..], &mut found);
            prop_assert_eq!((len as usize, found.len()), (HEADER_LEN, 0));
        }
    }
}
