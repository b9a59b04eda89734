//! Java properties files, as `java.util.Properties` reads and writes them.
//!
//! Bytes are ISO-8859-1 (Kafka loads from a stream, which says so), everything else is a `\uXXXX` of UTF-16. A line
//! may go on behind a backslash; a key ends at the first `=`, `:` or space; `#` and `!` begin comments.

use std::{collections::BTreeMap, fmt::Write};

use thiserror::Error;

/// What is wrong with a properties file. Lines are counted from 1; one that is continued counts where it begins.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PropertiesError {
    /// A `\u` without four hexadecimal digits behind it.
    #[error("malformed \\u escape in line {0} of properties")]
    BadEscape(usize),
    /// Half of a UTF-16 pair.
    #[error("line {0} of properties is not text: it has half of a UTF-16 pair")]
    NotText(usize),
}

/// Keys and values, without order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    entries: BTreeMap<String, String>,
}

impl Properties {
    /// Reads a file's bytes. The last one counts where a key appears twice.
    pub fn decode(bytes: &[u8]) -> Result<Self, PropertiesError> {
        let text: String = bytes.iter().copied().map(char::from).collect();
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut lines = text.lines().map(|line| line.trim_start_matches(SPACE)).enumerate();
        let mut properties = Properties::default();
        while let Some((number, line)) = lines.next() {
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let mut line = line.to_owned();
            while ends_in_backslash(&line) {
                line.pop();
                line.push_str(lines.next().map_or("", |(_, next)| next));
            }
            let (key, value) = split(&line);
            properties.set(unescape(key, number + 1)?, unescape(value, number + 1)?);
        }
        Ok(properties)
    }

    /// The file's bytes, all of them ASCII, keys in order and without the comment that Java puts first.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        for (key, value) in &self.entries {
            escape(key, true, &mut out);
            out.push('=');
            escape(value, false, &mut out);
            out.push('\n');
        }
        out
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.get(key).map(String::as_str)
    }

    /// Sets the value of `key`.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.entries.insert(key.into(), value.into());
    }

    /// Keys and values in the keys' order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// White space within a line.
const SPACE: [char; 3] = [' ', '\t', '\x0c'];

fn ends_in_backslash(line: &str) -> bool {
    line.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1
}

/// Splits a line at the first separator that is not escaped: space, `=` or `:`, or one of the latter amid space.
fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = line.find(|c| {
        let ends = !escaped && (SPACE.contains(&c) || matches!(c, '=' | ':'));
        escaped = !escaped && c == '\\';
        ends
    });
    let (key, rest) = line.split_at(end.unwrap_or(line.len()));
    let rest = rest.trim_start_matches(SPACE);
    (key, rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start_matches(SPACE))
}

fn unescape(text: &str, line: usize) -> Result<String, PropertiesError> {
    let mut units = Vec::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let c = if c == '\\' {
            rest.next()
        } else {
            units.extend(c.encode_utf16(&mut [0; 2]).iter());
            continue;
        };
        match c {
            None => {}
            Some('u') => {
                let digits = rest.as_str().get(..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
                let unit = digits.and_then(|d| u16::from_str_radix(d, 16).ok());
                units.push(unit.ok_or(PropertiesError::BadEscape(line))?);
                rest = rest.as_str()[4..].chars();
            }
            Some(c) => {
                let c = match c {
                    't' => '\t',
                    'n' => '\n',
                    'r' => '\r',
                    'f' => '\x0c',
                    other => other,
                };
                units.extend(c.encode_utf16(&mut [0; 2]).iter());
            }
        }
    }
    String::from_utf16(&units).map_err(|_| PropertiesError::NotText(line))
}

fn escape(text: &str, is_key: bool, out: &mut String) {
    for (i, unit) in text.encode_utf16().enumerate() {
        match u8::try_from(unit) {
            Ok(b' ') if is_key || i == 0 => out.push_str("\\ "),
            Ok(b'\t') => out.push_str("\\t"),
            Ok(b'\n') => out.push_str("\\n"),
            Ok(b'\r') => out.push_str("\\r"),
            Ok(b'\x0c') => out.push_str("\\f"),
            Ok(c @ (b'\\' | b'=' | b':' | b'#' | b'!')) => out.extend(['\\', c.into()]),
            Ok(c @ b' '..=b'~') => out.push(c.into()),
            _ => write!(out, "\\u{unit:04X}").expect("writing to a string"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(text: &str) -> Vec<(String, String)> {
        let properties = Properties::decode(text.as_bytes()).unwrap();
        properties.iter().map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn java_s_ways_to_write_a_property_are_read() {
        let cases = [
            ("a=b", "a", "b"),
            ("a : b", "a", "b"),
            ("  a\tb c ", "a", "b c "),
            ("a", "a", ""),
            ("a==b", "a", "=b"),
            ("# x=y\n! z\n\n a = b\r\n", "a", "b"),
            ("a=b,\\\n   c,\\\r\n\t# d", "a", "b,c,# d"),
            ("a=b\\\\\n", "a", "b\\"),
            ("a\\ \\=\\:=\\u00e4\\uD83D\\uDE00\\t\\q", "a =:", "ä😀\tq"),
            ("a=b\\", "a", "b"),
            ("a=1\na=2", "a", "2"),
        ];
        for (text, key, value) in cases {
            assert_eq!(decode(text), [(key.into(), value.into())], "{text:?}");
        }
    }

    #[test]
    fn bytes_are_latin_1_as_for_java() {
        assert_eq!(Properties::decode(b"a=\xe4").unwrap().get("a"), Some("ä"));
    }

    #[test]
    fn damage_is_named_with_its_line() {
        assert_eq!(Properties::decode(b"a=1\nb=\\u12"), Err(PropertiesError::BadEscape(2)));
        assert_eq!(Properties::decode(b"a=\\uD83D"), Err(PropertiesError::NotText(1)));
    }

    proptest! {
        #[test]
        fn every_property_reads_back(entries: BTreeMap<String, String>) {
            let properties = Properties { entries };
            prop_assert!(properties.encode().is_ascii());
            prop_assert_eq!(Properties::decode(properties.encode().as_bytes()), Ok(properties));
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>, text in "[\\\\u0-9a:=# \n\r]*") {
            let _ = (Properties::decode(&bytes), Properties::decode(text.as_bytes()));
        }
    }
}
