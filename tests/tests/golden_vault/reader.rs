//! A second reader of vaults, written from `docs/vault-format.md` and sharing no code with the first: what it can read
//! and finds in order is documented. It panics at whatever is not as the page says.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// A protobuf message: its values by field number.
#[derive(Debug, Default)]
pub struct Message(BTreeMap<u64, Vec<Value>>);

#[derive(Debug)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.split_off_first().expect("a varint that ends");
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint of more than ten bytes");
}

impl Message {
    fn decode(mut bytes: &[u8]) -> Self {
        let mut fields = Self::default();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let value = match tag & 7 {
                0 => Value::Number(varint(&mut bytes)),
                2 => {
                    let len = usize::try_from(varint(&mut bytes)).unwrap();
                    Value::Bytes(bytes.split_off(..len).expect("a field that ends").to_vec())
                }
                wire_type => panic!("wire type {wire_type}"),
            };
            fields.0.entry(tag >> 3).or_default().push(value);
        }
        fields
    }

    /// A number; 0 where the field is absent.
    pub fn number(&self, field: u64) -> i64 {
        match self.0.get(&field).map(Vec::as_slice) {
            None => 0,
            Some([Value::Number(number)]) => *number as i64,
            other => panic!("field {field}: {other:?}"),
        }
    }

    /// A `sint32` or `sint64`.
    pub fn zigzag(&self, field: u64) -> i64 {
        let number = self.number(field) as u64;
        (number >> 1) as i64 ^ -((number & 1) as i64)
    }

    pub fn all_bytes(&self, field: u64) -> Vec<&[u8]> {
        let values = self.0.get(&field).into_iter().flatten();
        let bytes = values.map(|value| match value {
            Value::Bytes(bytes) => &bytes[..],
            Value::Number(number) => panic!("field {field}: {number}"),
        });
        bytes.collect()
    }

    /// Bytes; none where the field is absent.
    pub fn bytes(&self, field: u64) -> &[u8] {
        self.all_bytes(field).pop().unwrap_or_default()
    }

    pub fn text(&self, field: u64) -> &str {
        std::str::from_utf8(self.bytes(field)).unwrap()
    }

    pub fn messages(&self, field: u64) -> Vec<Message> {
        self.all_bytes(field).into_iter().map(Message::decode).collect()
    }

    pub fn message(&self, field: u64) -> Option<Message> {
        self.messages(field).pop()
    }
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a codec byte makes of stored bytes.
fn unpack(codec: u8, stored: &[u8], raw_len: usize) -> Vec<u8> {
    let raw = match codec {
        0 => stored.to_vec(),
        1 => zstd::bulk::decompress(stored, raw_len).unwrap(),
        _ => panic!("codec {codec}"),
    };
    assert_eq!(raw.len(), raw_len);
    raw
}

/// A stream: its manifest and its bytes.
pub struct Stream {
    pub manifest: Message,
    pub bytes: Vec<u8>,
}

pub struct Reader {
    root: PathBuf,
    id: Vec<u8>,
}

impl Reader {
    pub fn open(root: PathBuf) -> Self {
        let id = fs::read(root.join("vault")).unwrap()[12..28].to_vec();
        let reader = Self { root, id };
        assert_eq!(reader.object("vault", 1).unwrap().bytes(1), reader.id);
        reader
    }

    /// The message in the envelope at `key`.
    pub fn object(&self, key: &str, kind: u8) -> Option<Message> {
        let bytes = fs::read(self.root.join(key)).ok()?;
        let (header, payload) = bytes.split_at(68);
        assert_eq!(header[..12], [&b"SEGVAULT"[..], &[kind, 1, header[10], 0]].concat(), "{key}");
        assert_eq!(header[12..28], self.id, "{key}");
        assert_eq!(be(&header[32..36]), payload.len() as u64, "{key}");
        assert_eq!(blake3::hash(&[&header[..36], payload].concat()).as_bytes()[..], header[36..], "{key}");
        let raw = unpack(header[10], payload, be(&header[28..32]) as usize);
        if let Some((_, root)) = key.split_once("manifest-") {
            assert_eq!(blake3::hash(&raw).to_hex().as_str(), root);
        }
        Some(Message::decode(&raw))
    }

    /// Numbers are dense from 1.
    pub fn newest(&self, key: impl Fn(u64) -> String) -> u64 {
        (1..).take_while(|number| self.root.join(key(*number)).exists()).last().unwrap_or(0)
    }

    /// The manifest of a point, if it was committed.
    pub fn point(&self, cluster: &str, number: u64) -> Option<Message> {
        let folder = format!("points/{cluster}/{number:016}");
        let intent = self.object(&format!("{folder}/intent"), 3).unwrap();
        let outcome = self.object(&format!("{folder}/outcome"), 4).unwrap();
        for message in [&intent, &outcome] {
            assert_eq!((message.text(1), message.number(2)), (cluster, number as i64));
        }
        (outcome.number(3) == 1)
            .then(|| self.object(&format!("{folder}/manifest-{}", hex(outcome.bytes(4))), 5).unwrap())
    }

    /// The stream that a `StreamRef` refers to, with every chunk held against its bytes.
    pub fn stream(&self, reference: &Message) -> Stream {
        let blob_ref = |field, kind| {
            let blob = reference.message(field).unwrap();
            let lens = [blob.number(4), blob.number(5)];
            Message::decode(&self.blob(kind, blob.bytes(1), blob.bytes(2), blob.number(3), lens, blob.number(6)))
        };
        let (manifest, index) = (blob_ref(1, 2), blob_ref(2, 3));
        let (chunks, locations, packs) = (manifest.messages(7), index.messages(2), index.all_bytes(1));
        assert_eq!(chunks.len(), locations.len());
        let mut bytes = Vec::new();
        for (chunk, location) in chunks.iter().zip(&locations) {
            let lens = [location.number(3), chunk.number(4)];
            let pack = packs[location.number(1) as usize];
            let raw = self.blob(1, chunk.bytes(1), pack, location.number(2), lens, location.number(4));
            check_chunk(chunk, &raw);
            bytes.extend(raw);
        }
        Stream { manifest, bytes }
    }

    fn blob(
        &self,
        kind: u8,
        id: &[u8],
        pack: &[u8],
        offset: i64,
        [stored_len, raw_len]: [i64; 2],
        codec: i64,
    ) -> Vec<u8> {
        let bytes = fs::read(self.root.join(format!("packs/{}/{}", hex(&pack[..1]), hex(pack)))).unwrap();
        let (header, stored) = bytes[offset as usize..].split_at(64);
        let lens = [raw_len, stored_len].map(|len| (len as u32).to_be_bytes()).concat();
        assert_eq!(header, [b"SVB1", &[kind, codec as u8, 0, 0], &self.id[..], &lens, id].concat());
        let raw = unpack(codec as u8, &stored[..stored_len as usize], raw_len as usize);
        assert_eq!(blake3::hash(&raw).as_bytes()[..], *id);
        raw
    }

    /// Walks every pack from its front and holds its directory against what is there; returns the number of blobs.
    pub fn check_packs(&self) -> usize {
        let folders = fs::read_dir(self.root.join("packs")).unwrap().map(|folder| folder.unwrap().path());
        let packs = folders.flat_map(|folder| fs::read_dir(folder).unwrap()).map(|pack| pack.unwrap().path());
        packs.map(|path| self.check_pack(&fs::read(&path).unwrap(), path.file_name().unwrap().to_str().unwrap())).sum()
    }

    fn check_pack(&self, pack: &[u8], name: &str) -> usize {
        assert_eq!(pack[..24], [&b"SVPACK\0\x01"[..], &self.id].concat());
        assert_eq!(hex(&pack[24..40]), name);
        let (rest, trailer) = pack.split_at(pack.len() - 44);
        assert_eq!(trailer[36..], *b"SVPACKE\x01");
        let directory = &rest[rest.len() - 52 * be(&trailer[..4]) as usize..];
        assert_eq!(blake3::hash(&[&pack[..40], directory].concat()).as_bytes()[..], trailer[4..36]);
        let mut offset = 40;
        for entry in directory.chunks(52) {
            let blob = &pack[offset..];
            let entry_again =
                [&(offset as u64).to_be_bytes(), &blob[28..32], &blob[24..28], &blob[4..8], &blob[32..64]];
            assert_eq!(entry, entry_again.concat());
            offset += 64 + be(&blob[28..32]) as usize;
        }
        assert_eq!(offset, rest.len() - directory.len());
        directory.len() / 52
    }
}

/// Holds what a manifest says of a chunk against its record batches.
fn check_chunk(chunk: &Message, raw: &[u8]) {
    let batches = batches(raw);
    let greatest =
        |at: std::ops::Range<usize>| batches.iter().map(|batch| be(&batch[at.clone()]) as i64).max().unwrap();
    let last = batches.last().unwrap();
    assert_eq!(chunk.number(2), be(&raw[..8]) as i64);
    assert_eq!(chunk.number(3), (be(&last[..8]) + be(&last[23..27])) as i64);
    assert_eq!(chunk.number(5), batches.len() as i64);
    assert_eq!((chunk.zigzag(6), chunk.zigzag(7)), (greatest(35..43), greatest(12..16)));
}

/// Kafka's record batches, one after the other.
pub fn batches(mut bytes: &[u8]) -> Vec<&[u8]> {
    let next = || Some(bytes.split_off(..12 + be(bytes.get(8..12)?) as usize).expect("a whole batch"));
    std::iter::from_fn(next).collect()
}
