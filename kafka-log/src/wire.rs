//! Kafka's primitive encodings, in both the old and the *flexible* form, and a macro that reads and writes a
//! struct from its schema.
//!
//! A message has a version; the version decides which fields are there and whether it is flexible. What a schema
//! calls *tagged* fields stand at the end of a flexible struct and are only written where they differ from their
//! default; unknown ones are kept, so that a message written by a newer Kafka survives being read and written.
//!
//! ```text
//!                old form                  flexible form
//! string, bytes  i16 / i32 length, bytes   uvarint length + 1, bytes      (null: -1, or 0)
//! array          i32 count, items          uvarint count + 1, items       (null: -1, or 0)
//! struct         fields                    fields, uvarint count of tags, each: uvarint tag, uvarint length, bytes
//! ```
//!
//! Nothing is allocated for a length or count that the bytes cannot hold. What Kafka writes is read and written
//! back byte for byte; encodings that Kafka never writes (over-long varints, tagged fields at their default) are
//! read as well, and come back in Kafka's form.

use std::fmt;

use thiserror::Error;

use crate::Uuid;

/// Most items for which memory is reserved ahead of reading them; the rest grows as bytes turn out to be there.
const RESERVED_ITEMS_MAX: usize = 64;

/// What is wrong with the bytes of a message; `at` counts bytes from its start.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The bytes end before the value does.
    #[error("{needed} more bytes are needed at byte {at}")]
    Truncated {
        /// Where the value begins.
        at: usize,
        /// Bytes that are missing.
        needed: usize,
    },
    /// A varint does not fit into 32 bits.
    #[error("the varint at byte {at} is too long")]
    Varint {
        /// Where it begins.
        at: usize,
    },
    /// A length or count is negative.
    #[error("impossible length {length} at byte {at}")]
    Length {
        /// Where it stands.
        at: usize,
        /// Its value.
        length: i64,
    },
    /// Null stands where the schema has a value.
    #[error("null at byte {at}, where a value must be")]
    Null {
        /// Where it stands.
        at: usize,
    },
    /// A string is not UTF-8.
    #[error("the string at byte {at} is not UTF-8")]
    Utf8 {
        /// Where its characters begin.
        at: usize,
    },
    /// A tagged field is longer or shorter than its content, or comes twice.
    #[error("tagged field {tag}, which ends at byte {at}, is malformed")]
    Tag {
        /// The field's tag.
        tag: u32,
        /// Where it should end.
        at: usize,
    },
    /// Bytes follow the end of the message.
    #[error("{len} bytes too many at byte {at}")]
    Trailing {
        /// Where they begin.
        at: usize,
        /// How many there are.
        len: usize,
    },
    /// The message has a version that this code does not know.
    #[error("unknown version {version}")]
    Version {
        /// The version.
        version: i16,
    },
}

/// Reads values off a slice, in one version of one message.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    version: i16,
    flexible: bool,
}

impl<'a> Reader<'a> {
    /// Reads `bytes` as version `version`, flexible or not.
    pub fn new(bytes: &'a [u8], version: i16, flexible: bool) -> Self {
        Reader { bytes, at: 0, version, flexible }
    }

    /// The message's version.
    pub fn version(&self) -> i16 {
        self.version
    }

    /// Bytes not read yet.
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let rest = self.rest();
        let taken = rest.get(..len).ok_or_else(|| WireError::Truncated { at: self.at, needed: len - rest.len() })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        Ok(*self.take(N)?.first_chunk().expect("N bytes were taken"))
    }

    /// An unsigned varint of at most 32 bits (`ByteUtils.readUnsignedVarint`).
    pub fn uvarint(&mut self) -> Result<u32, WireError> {
        let at = self.at;
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| WireError::Varint { at });
            }
        }
        Err(WireError::Varint { at })
    }

    /// A length or count of at most what is left; `None` is null. `width` is 2 or 4 bytes in the old form.
    fn length(&mut self, width: usize) -> Result<Option<usize>, WireError> {
        let at = self.at;
        let length = match (self.flexible, width) {
            (true, _) => i64::from(self.uvarint()?) - 1,
            (false, 2) => i64::from(i16::from_be_bytes(self.array()?)),
            (false, _) => i64::from(i32::from_be_bytes(self.array()?)),
        };
        let left = self.rest().len();
        match usize::try_from(length) {
            Err(_) if length == -1 => Ok(None),
            Err(_) => Err(WireError::Length { at, length }),
            // Every item of an array has at least one byte, so a count is bounded like a length.
            Ok(length) if length > left => Err(WireError::Truncated { at: self.at, needed: length - left }),
            Ok(length) => Ok(Some(length)),
        }
    }

    /// The tagged fields at the end of a flexible struct; none in the old form. `known` reads the value of a tag
    /// that it knows and says so; the others are returned in the order in which they stand.
    pub fn tagged(
        &mut self,
        mut known: impl FnMut(u32, &mut Reader<'a>) -> Result<bool, WireError>,
    ) -> Result<Vec<UnknownTag>, WireError> {
        let mut unknown = Vec::new();
        if !self.flexible {
            return Ok(unknown);
        }
        let mut next_tag = 0u64;
        for _ in 0..self.uvarint()? {
            let (tag, len) = (self.uvarint()?, self.uvarint()? as usize);
            let end = self.at.saturating_add(len);
            if u64::from(tag) < next_tag {
                return Err(WireError::Tag { tag, at: end });
            }
            next_tag = u64::from(tag) + 1;
            let bytes = self.take(len)?;
            let mut field = Reader { bytes: &self.bytes[..end], at: end - len, ..*self };
            if !known(tag, &mut field)? {
                let bytes = bytes.to_vec();
                unknown.push(UnknownTag { tag, bytes });
            } else if field.at != end {
                return Err(WireError::Tag { tag, at: end });
            }
        }
        Ok(unknown)
    }

    /// Ends reading: nothing may be left.
    pub fn finish(self) -> Result<(), WireError> {
        match self.rest().len() {
            0 => Ok(()),
            len => Err(WireError::Trailing { at: self.at, len }),
        }
    }
}

/// Writes values behind one another, in one version of one message.
///
/// # Panics
/// Lengths beyond the encoding's range (32 KiB for old strings, 2 GiB otherwise) are our own mistake and panic.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    version: i16,
    flexible: bool,
}

impl Writer {
    /// Writes version `version`, flexible or not, behind `bytes`.
    pub fn new(bytes: Vec<u8>, version: i16, flexible: bool) -> Self {
        Writer { bytes, version, flexible }
    }

    /// The message's version.
    pub fn version(&self) -> i16 {
        self.version
    }

    /// Appends bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends an unsigned varint.
    pub fn put_uvarint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn put_length(&mut self, width: usize, length: Option<usize>) {
        let fits = "a length fits its encoding";
        match (self.flexible, width, length) {
            (true, _, length) => {
                self.put_uvarint(length.map_or(0, |l| u32::try_from(l).expect(fits).checked_add(1).expect(fits)))
            }
            (false, 2, length) => {
                let length = length.map_or(-1, |l| i16::try_from(l).expect(fits));
                self.put(&length.to_be_bytes());
            }
            (false, _, length) => {
                let length = length.map_or(-1, |l| i32::try_from(l).expect(fits));
                self.put(&length.to_be_bytes());
            }
        }
    }

    /// The encoding of one value, apart, in the same version and form.
    pub fn apart<T: Wire>(&self, value: &T) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), self.version, self.flexible);
        value.write(&mut writer);
        writer.bytes
    }

    /// Appends the tagged fields of a struct, `known` and `unknown`, in ascending order; nothing in the old form.
    pub fn put_tagged(&mut self, known: Vec<(u32, Vec<u8>)>, unknown: &[UnknownTag]) {
        if !self.flexible {
            return;
        }
        let mut fields: Vec<(u32, &[u8])> = known
            .iter()
            .map(|(tag, bytes)| (*tag, &bytes[..]))
            .chain(unknown.iter().map(|field| (field.tag, &field.bytes[..])))
            .collect();
        fields.sort_by_key(|(tag, _)| *tag);
        self.put_uvarint(fields.len() as u32);
        for (tag, bytes) in fields {
            self.put_uvarint(tag);
            self.put_uvarint(u32::try_from(bytes.len()).expect("a tagged field is below 4 GiB"));
            self.put(bytes);
        }
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// A value with a place in Kafka's schemas.
pub trait Wire: Sized {
    /// Reads the value.
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError>;

    /// Appends the value.
    fn write(&self, writer: &mut Writer);
}

/// A value that has a null: a length of -1, or a leading uvarint 0 instead of 1 for structs, which our schemas have as
/// nullable in tagged fields only.
pub trait Nullable: Sized {
    /// Reads the value or null.
    fn read_nullable(reader: &mut Reader<'_>) -> Result<Option<Self>, WireError>;

    /// Appends the value or null.
    fn write_nullable(value: Option<&Self>, writer: &mut Writer);
}

impl<T: Nullable> Wire for Option<T> {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        T::read_nullable(reader)
    }

    fn write(&self, writer: &mut Writer) {
        T::write_nullable(self.as_ref(), writer);
    }
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Wire for $number {
            fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
                Ok(<$number>::from_be_bytes(reader.array()?))
            }

            fn write(&self, writer: &mut Writer) {
                writer.put(&self.to_be_bytes());
            }
        }
    )*};
}

numbers!(i8 i16 u16 i32 i64 f64);

impl Wire for bool {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(i8::read(reader)? != 0)
    }

    fn write(&self, writer: &mut Writer) {
        i8::from(*self).write(writer);
    }
}

impl Wire for Uuid {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Uuid(reader.array()?))
    }

    fn write(&self, writer: &mut Writer) {
        writer.put(&self.0);
    }
}

impl Nullable for String {
    fn read_nullable(reader: &mut Reader<'_>) -> Result<Option<Self>, WireError> {
        let Some(len) = reader.length(2)? else {
            return Ok(None);
        };
        let at = reader.at;
        let text = std::str::from_utf8(reader.take(len)?).map_err(|_| WireError::Utf8 { at })?;
        Ok(Some(text.to_owned()))
    }

    fn write_nullable(value: Option<&Self>, writer: &mut Writer) {
        writer.put_length(2, value.map(String::len));
        writer.put(value.map_or(&[], |text| text.as_bytes()));
    }
}

/// Bytes that Kafka keeps without looking into them. Never shown by `Debug`, as they may be secret.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl Nullable for Blob {
    fn read_nullable(reader: &mut Reader<'_>) -> Result<Option<Self>, WireError> {
        match reader.length(4)? {
            None => Ok(None),
            Some(len) => Ok(Some(Blob(reader.take(len)?.to_vec()))),
        }
    }

    fn write_nullable(value: Option<&Self>, writer: &mut Writer) {
        writer.put_length(4, value.map(|blob| blob.0.len()));
        writer.put(value.map_or(&[], |blob| &blob.0));
    }
}

impl<T: Wire> Nullable for Vec<T> {
    fn read_nullable(reader: &mut Reader<'_>) -> Result<Option<Self>, WireError> {
        let Some(count) = reader.length(4)? else {
            return Ok(None);
        };
        let mut items = Vec::with_capacity(count.min(RESERVED_ITEMS_MAX));
        for _ in 0..count {
            items.push(T::read(reader)?);
        }
        Ok(Some(items))
    }

    fn write_nullable(value: Option<&Self>, writer: &mut Writer) {
        writer.put_length(4, value.map(Vec::len));
        for item in value.into_iter().flatten() {
            item.write(writer);
        }
    }
}

macro_rules! not_null {
    ($type:ty $(, $generic:ident: $bound:ident)?) => {
        impl$(<$generic: $bound>)? Wire for $type {
            fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
                let at = reader.at;
                Self::read_nullable(reader)?.ok_or(WireError::Null { at })
            }

            fn write(&self, writer: &mut Writer) {
                Self::write_nullable(Some(self), writer);
            }
        }
    };
}

not_null!(String);
not_null!(Blob);
not_null!(Vec<T>, T: Wire);

/// A tagged field that this code does not know, kept as it is.
#[derive(Clone, PartialEq, Eq)]
pub struct UnknownTag {
    /// The field's tag.
    pub tag: u32,
    /// Its encoded value.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for UnknownTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tag {} [{} bytes]", self.tag, self.bytes.len())
    }
}

/// A message that says its version, such as a record of the metadata log.
pub trait Message: Wire {
    /// Versions that this code knows.
    const VERSIONS: std::ops::RangeInclusive<i16>;

    /// The first flexible version; beyond the last one if none is.
    const FLEXIBLE: i16;

    /// The version that was read, or is to be written.
    fn version(&self) -> i16;

    /// Reads all of `bytes` as version `version`.
    fn decode(bytes: &[u8], version: i16) -> Result<Self, WireError> {
        Self::decode_rest(Reader::new(bytes, version, false))
    }

    /// Reads all of `bytes`, which begin with the version as an int16.
    fn decode_prefixed(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes, 0, false);
        reader.version = i16::read(&mut reader)?;
        Self::decode_rest(reader)
    }

    /// Reads all that is left, as the reader's version.
    fn decode_rest(mut reader: Reader<'_>) -> Result<Self, WireError> {
        let version = reader.version;
        if !Self::VERSIONS.contains(&version) {
            return Err(WireError::Version { version });
        }
        reader.flexible = version >= Self::FLEXIBLE;
        let message = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(message)
    }

    /// Appends the message to `bytes`. Fields that its version does not have are left out.
    ///
    /// # Panics
    /// If its version is unknown.
    fn encode_into(&self, bytes: Vec<u8>) -> Vec<u8> {
        let version = self.version();
        assert!(Self::VERSIONS.contains(&version), "only known versions are written");
        let mut writer = Writer::new(bytes, version, version >= Self::FLEXIBLE);
        self.write(&mut writer);
        writer.into_bytes()
    }

    /// The message's bytes.
    ///
    /// # Panics
    /// If its version is unknown.
    fn encode(&self) -> Vec<u8> {
        self.encode_into(Vec::new())
    }

    /// The message's bytes behind its version as an int16.
    ///
    /// # Panics
    /// If its version is unknown.
    fn encode_prefixed(&self) -> Vec<u8> {
        self.encode_into(self.version().to_be_bytes().to_vec())
    }
}

/// Defines a struct of a Kafka schema, its defaults and its [`Wire`] form.
///
/// Fields stand in the schema's order as `name: type = default, since version, until version;`, default and
/// versions being optional; tagged ones follow in a block of their own as `tag => name: type = default, since version;`. With
/// `[versions, flexible version]` behind the name it is a [`Message`] and has a field `version`.
macro_rules! message {
    (
        $(#[$meta:meta])*
        $name:ident $([$versions:expr, flexible $flexible:expr])? {
            $($(#[$field_meta:meta])* $field:ident: $type:ty $(= $default:expr)? $(, since $since:literal)? $(, until $until:literal)?;)*
        }
        $(tagged {
            $($(#[$tag_meta:meta])* $tag:literal => $tag_field:ident: $tag_type:ty
                $(= $tag_default:expr)? $(, since $tag_since:literal)?;)*
        })?
    ) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq)]
        pub struct $name {
            $(
                #[doc = concat!("The version read or to be written, one of `", stringify!($versions), "`.")]
                pub version: i16,
            )?
            $($(#[$field_meta])* pub $field: $type,)*
            $($($(#[$tag_meta])* pub $tag_field: $tag_type,)*)?
            /// Tagged fields of newer Kafkas.
            pub unknown_tags: Vec<$crate::wire::UnknownTag>,
        }

        impl Default for $name {
            fn default() -> Self {
                $name {
                    $(version: *($versions).start(),)?
                    $($field: $crate::wire::message!(@default $($default)?),)*
                    $($($tag_field: $crate::wire::message!(@default $($tag_default)?),)*)?
                    unknown_tags: Vec::new(),
                }
            }
        }

        impl $crate::wire::Wire for $name {
            fn read(reader: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::wire::WireError> {
                let mut value = Self::default();
                $(
                    let _ = $versions;
                    value.version = reader.version();
                )?
                $(if $crate::wire::message!(@present reader $($since)? $(.. $until)?) {
                    value.$field = $crate::wire::Wire::read(reader)?;
                })*
                value.unknown_tags = reader.tagged(|_tag, _field| {
                    $($(if _tag == $tag && $crate::wire::message!(@present _field $($tag_since)?) {
                        value.$tag_field = $crate::wire::Wire::read(_field)?;
                        return Ok(true);
                    })*)?
                    Ok(false)
                })?;
                Ok(value)
            }

            fn write(&self, writer: &mut $crate::wire::Writer) {
                $(if $crate::wire::message!(@present writer $($since)? $(.. $until)?) {
                    $crate::wire::Wire::write(&self.$field, writer);
                })*
                #[allow(unused_mut, reason = "most structs have no tagged fields")]
                let mut known: Vec<(u32, Vec<u8>)> = Vec::new();
                $($({
                    let default: $tag_type = $crate::wire::message!(@default $($tag_default)?);
                    if $crate::wire::message!(@present writer $($tag_since)?) && self.$tag_field != default {
                        known.push(($tag, writer.apart(&self.$tag_field)));
                    }
                })*)?
                writer.put_tagged(known, &self.unknown_tags);
            }
        }

        impl $crate::wire::Nullable for $name {
            fn read_nullable(
                reader: &mut $crate::wire::Reader<'_>,
            ) -> Result<Option<Self>, $crate::wire::WireError> {
                match reader.uvarint()? {
                    0 => Ok(None),
                    _ => Ok(Some($crate::wire::Wire::read(reader)?)),
                }
            }

            fn write_nullable(value: Option<&Self>, writer: &mut $crate::wire::Writer) {
                writer.put_uvarint(u32::from(value.is_some()));
                if let Some(value) = value {
                    $crate::wire::Wire::write(value, writer);
                }
            }
        }

        $(impl $crate::wire::Message for $name {
            const VERSIONS: std::ops::RangeInclusive<i16> = $versions;
            const FLEXIBLE: i16 = $flexible;

            fn version(&self) -> i16 {
                self.version
            }
        })?
    };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
    (@present $io:ident) => { true };
    (@present $io:ident $since:literal) => { $io.version() >= $since };
    (@present $io:ident $since:literal .. $until:literal) => { ($since..=$until).contains(&$io.version()) };
}

pub(crate) use message;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    message! {
        /// Every kind of field.
        #[derive(Debug)]
        Sample [0..=2, flexible 1] {
            /// A number.
            number: i32 = -1;
            /// Text.
            text: Option<String>;
            /// Only later.
            later: u16 = 7, since 2;
            /// Items.
            items: Vec<Item>;
        }
        tagged {
            /// Tagged.
            0 => flag: i8 = -1;
            /// Tagged, later.
            3 => blob: Option<Blob>, since 2;
            /// A nullable struct.
            4 => item: Option<Item>, since 2;
        }
    }

    message! {
        /// A struct in a struct.
        #[derive(Debug)]
        Item {
            /// An id.
            id: Uuid;
            /// A list.
            list: Option<Vec<i64>>;
        }
    }

    fn item() -> impl Strategy<Value = Item> {
        (any::<[u8; 16]>(), any::<Option<Vec<i64>>>()).prop_map(|(id, list)| Item {
            id: Uuid(id),
            list,
            ..Item::default()
        })
    }

    fn sample() -> impl Strategy<Value = Sample> {
        let fields = (any::<i32>(), any::<Option<String>>(), any::<u16>(), prop::collection::vec(item(), 0..4));
        let tags = (any::<i8>(), any::<Option<Vec<u8>>>(), prop::option::of(item()), any::<Option<[u8; 3]>>());
        (0..3i16, fields, tags).prop_map(|(version, (number, text, later, items), (flag, blob, item, unknown))| {
            let unknown_tags = unknown.map(|bytes| UnknownTag { tag: 2, bytes: bytes.to_vec() });
            Sample {
                version,
                number,
                text,
                later: if version >= 2 { later } else { 7 },
                items,
                flag: if version >= 1 { flag } else { -1 },
                blob: blob.filter(|_| version >= 2).map(Blob),
                item: item.filter(|_| version >= 2),
                unknown_tags: unknown_tags.filter(|_| version >= 1).into_iter().collect(),
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(sample in sample()) {
            let bytes = sample.encode();
            prop_assert_eq!(Sample::decode(&bytes, sample.version), Ok(sample));
        }

        #[test]
        fn a_message_cut_short_is_an_error(sample in sample(), cut: prop::sample::Index) {
            let bytes = sample.encode();
            prop_assert!(Sample::decode(&bytes[..cut.index(bytes.len())], sample.version).is_err());
        }

        #[test]
        fn any_bytes_read_as_a_message_or_an_error(bytes: Vec<u8>, version in 0..3i16) {
            if let Ok(sample) = Sample::decode(&bytes, version) {
                prop_assert_eq!(Sample::decode(&sample.encode(), version), Ok(sample));
            }
        }
    }

    #[test]
    fn encodings_are_those_of_kafka() {
        let sample = Sample { number: 1, text: Some("ab".into()), ..Sample::default() };
        assert_eq!(sample.encode(), [0, 0, 0, 1, 0, 2, b'a', b'b', 0, 0, 0, 0]);
        let sample =
            Sample { version: 2, flag: 5, unknown_tags: vec![UnknownTag { tag: 300, bytes: vec![9] }], ..sample };
        assert_eq!(sample.encode(), [0, 0, 0, 1, 3, b'a', b'b', 0, 7, 1, 2, 0, 1, 5, 0xac, 2, 1, 9]);
    }

    #[test]
    fn each_kind_of_damage_has_its_name() {
        let read = |bytes: &[u8], flexible| Sample::read(&mut Reader::new(bytes, 1, flexible)).unwrap_err();
        let text = |tail: &[u8]| [&[0, 0, 0, 1], tail].concat();
        for (bytes, flexible, error) in [
            (text(&[0xff, 0xff, 0xff, 0xff, 0x1f]), true, WireError::Varint { at: 4 }),
            (text(&[0xff, 0xfe]), false, WireError::Length { at: 4, length: -2 }),
            (text(&[2, 0xff]), true, WireError::Utf8 { at: 5 }),
            (text(&[0, 0]), true, WireError::Null { at: 5 }),
            (text(&[0, 0xff, 0x7f]), true, WireError::Truncated { at: 7, needed: 16382 }),
            (text(&[0, 1, 1, 0, 2, 5, 5]), true, WireError::Tag { tag: 0, at: 11 }),
            (text(&[0, 1, 2, 9, 0, 9, 0]), true, WireError::Tag { tag: 9, at: 11 }),
        ] {
            assert_eq!(read(&bytes, flexible), error);
        }
        assert_eq!(Sample::decode(&text(&[0, 1, 0, 0]), 1), Err(WireError::Trailing { at: 7, len: 1 }));
        assert_eq!(Sample::decode(&[], 3), Err(WireError::Version { version: 3 }));
    }
}
