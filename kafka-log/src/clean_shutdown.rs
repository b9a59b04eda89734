//! `.kafka_cleanshutdown`: the marker that a broker stopped cleanly (`CleanShutdownFileHandler`).
//!
//! Its existence alone makes the next start skip recovery. Since 3.7 it says which registration of the broker
//! stopped, by which controllers since 4.0 decide whether the broker keeps its place in the ISR. Up to 3.6 it is empty.

/// The marker's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CleanShutdown {
    /// Epoch of the broker's registration; `None` if the file does not say.
    pub broker_epoch: Option<i64>,
}

impl CleanShutdown {
    /// Reads a file's bytes. Like Kafka's, it takes whatever it cannot read for an unknown epoch.
    pub fn decode(bytes: &[u8]) -> Self {
        CleanShutdown { broker_epoch: str::from_utf8(bytes).ok().and_then(broker_epoch) }
    }

    /// The file's text: empty without an epoch, as up to 3.6.
    pub fn encode(&self) -> String {
        self.broker_epoch.map_or_else(String::new, |epoch| format!("{{\"version\":0,\"brokerEpoch\":{epoch}}}"))
    }
}

/// Finds the number `brokerEpoch` in a JSON object, skipping other fields.
fn broker_epoch(json: &str) -> Option<i64> {
    let mut rest = json.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut epoch = None;
    while !rest.trim().is_empty() {
        let (name, value) = string(rest.trim_start())?;
        let value = value.trim_start().strip_prefix(':')?;
        let len = value_len(value)?;
        if name == "brokerEpoch" {
            epoch = Some(value[..len].trim().parse().ok()?);
        }
        rest = &value[len..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    epoch
}

/// Splits a JSON string off, without its quotes; escapes stay as they are.
fn string(json: &str) -> Option<(&str, &str)> {
    let inner = json.strip_prefix('"')?;
    let mut escaped = false;
    let end = inner.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    Some((&inner[..end], &inner[end + 1..]))
}

/// Bytes up to the comma that ends a value, or to the end of the text.
fn value_len(json: &str) -> Option<usize> {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(c) = json.as_bytes().get(at) {
        match c {
            b',' if depth == 0 => break,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => at = json.len() - string(&json[at..])?.1.len() - 1,
            _ => {}
        }
        at += 1;
    }
    (depth == 0).then_some(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch(json: &str) -> Option<i64> {
        CleanShutdown::decode(json.as_bytes()).broker_epoch
    }

    #[test]
    fn epoch_is_found_whatever_else_there_is() {
        assert_eq!(epoch(r#"{"version":0,"brokerEpoch":4711}"#), Some(4711));
        assert_eq!(epoch(" { \"brokerEpoch\" : -1 }\n"), Some(-1));
        assert_eq!(epoch(r#"{"x":{"brokerEpoch":1,"y":["}",{}]},"brokerEpoch":2,"z":"a\"b,"}"#), Some(2));
    }

    #[test]
    fn what_cannot_be_read_is_an_unknown_epoch() {
        for json in ["", "{}", "{", "4711", r#"{"version":0}"#, r#"{"brokerEpoch":"x"}"#, r#"{"brokerEpoch":1"#, "{,}"]
        {
            assert_eq!(epoch(json), None, "{json}");
        }
    }

    #[test]
    fn text_is_what_kafka_writes() {
        assert_eq!(CleanShutdown { broker_epoch: Some(4711) }.encode(), r#"{"version":0,"brokerEpoch":4711}"#);
        assert_eq!(CleanShutdown::default().encode(), "");
    }

    proptest! {
        #[test]
        fn any_bytes_decode(bytes: Vec<u8>, json in "[{}\\[\\]\",:\\\\a0]*", broker_epoch in prop::option::of(any::<i64>())) {
            CleanShutdown::decode(&bytes);
            epoch(&json);
            let marker = CleanShutdown { broker_epoch };
            prop_assert_eq!(CleanShutdown::decode(marker.encode().as_bytes()), marker);
        }
    }
}
