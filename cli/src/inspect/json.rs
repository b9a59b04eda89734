//! What is shown, as a value with two forms: JSON for scripts, lines of text for people.
//!
//! A [`Row`] is an object in JSON and a line of `name: value` in text, so that no field can be in one form and not in the
//! other. Names are `snake_case` in JSON, and in text spelled as Kafka's tools do (`baseOffset`).

use std::{borrow::Cow, fmt};

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::report::printable;

/// A JSON value whose objects keep the order of their fields.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// Null, a truth value, a number or a string.
    Plain(Value),
    /// A list.
    List(Vec<Json>),
    /// An object.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Null.
    pub const NULL: Json = Json::Plain(Value::Null);

    /// An object of these fields.
    pub fn object<const N: usize>(fields: [(&str, Json); N]) -> Self {
        Json::Object(fields.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// Bytes that are mostly text: a string where they are UTF-8, else `{"hex": "..."}`.
    pub fn text(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(
            |error| {
                let hex: String = error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                Json::object([("hex", hex.into())])
            },
            Json::from,
        )
    }
}

impl<T: Into<Value>> From<T> for Json {
    fn from(value: T) -> Self {
        Json::Plain(value.into())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Plain(value) => value.serialize(serializer),
            Json::List(items) => serializer.collect_seq(items),
            Json::Object(fields) => serializer.collect_map(fields.iter().map(|(name, value)| (name, value))),
        }
    }
}

/// Strings without quotes, all else as in JSON.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Plain(Value::String(text)) => f.write_str(&printable(text)),
            other => f.write_str(&printable(&serde_json::to_string(other).map_err(|_| fmt::Error)?)),
        }
    }
}

/// One thing that is shown; see [`row!`].
#[derive(Clone, Debug)]
pub struct Row {
    what: &'static str,
    fields: Vec<(Cow<'static, str>, Json)>,
    rows: Option<(&'static str, Vec<Row>)>,
}

impl Row {
    /// A row of these fields. `what` is how the line begins, in text only.
    pub fn new(what: &'static str, fields: Vec<(&'static str, Json)>) -> Self {
        Row { what, fields: fields.into_iter().map(|(name, value)| (name.into(), value)).collect(), rows: None }
    }

    /// An object as a row.
    pub fn of(what: &'static str, object: Json) -> Self {
        let fields = match object {
            Json::Object(fields) => fields,
            other => vec![("value".to_owned(), other)],
        };
        Row { what, fields: fields.into_iter().map(|(name, value)| (name.into(), value)).collect(), rows: None }
    }

    /// One more field.
    pub fn with(mut self, name: &'static str, value: impl Into<Json>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// With rows of its own: a list in JSON, lines below its own in text.
    pub fn with_rows(mut self, name: &'static str, rows: Vec<Row>) -> Self {
        self.rows = Some((name, rows));
        self
    }

    /// Names of the fields, and the fields, as cells of a table.
    pub fn cells(&self) -> (Vec<String>, Vec<String>) {
        let cell = |(name, value): &(Cow<'_, str>, Json)| {
            let value = if *value == Json::NULL { "-".to_owned() } else { value.to_string() };
            (name.replace('_', " "), value)
        };
        self.fields.iter().map(cell).unzip()
    }
}

/// `row!["what", "name": value, ...]`: a [`Row`].
macro_rules! row {
    ($what:literal $(, $name:literal: $value:expr)* $(,)?) => {
        $crate::inspect::json::Row::new($what, vec![$(($name, $crate::inspect::json::Json::from($value))),*])
    };
}
pub(super) use row;

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        if let Some((name, rows)) = &self.rows {
            map.serialize_entry(name, rows)?;
        }
        map.end()
    }
}

/// Leaves out what is null, and shows times as such.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        let mut space = if self.what.is_empty() { "" } else { " " };
        for (name, value) in self.fields.iter().filter(|(_, value)| *value != Json::NULL) {
            match time(name, value) {
                Some((name, time)) => write!(f, "{space}{}: {time}", camel(name))?,
                None => write!(f, "{space}{}: {value}", camel(name))?,
            }
            space = " ";
        }
        let rows = self.rows.iter().flat_map(|(_, rows)| rows);
        rows.into_iter().try_for_each(|row| write!(f, "\n| {row}"))
    }
}

/// A field whose name ends in `timestamp_ms`, for people; not where it is -1, which stands for none.
fn time<'a>(name: &'a str, value: &Json) -> Option<(&'a str, String)> {
    let name = name.strip_suffix("_ms").filter(|name| name.ends_with("timestamp"))?;
    let Json::Plain(Value::Number(ms)) = value else {
        return None;
    };
    let time = jiff::Timestamp::from_millisecond(ms.as_i64().filter(|ms| *ms >= 0)?).ok()?;
    Some((name, format!("{time:.3}")))
}

/// `some_field` as `someField`.
pub fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut out = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        out.push_str(&first.to_ascii_uppercase());
        out.push_str(rest);
    }
    out
}
