//! What the binary prints, and how it ends.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

/// How a command ended that has printed what there is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Exit code 0.
    Done,
    /// Exit code 1: what was printed says what failed.
    Failed,
    /// Exit code 3: done, but something is not covered or not as it should be.
    Findings,
}

impl Ending {
    /// [`Ending::Findings`] if `found`.
    pub fn with_findings(found: bool) -> Self {
        if found { Self::Findings } else { Self::Done }
    }
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Done => ExitCode::SUCCESS,
            Ending::Failed => ExitCode::FAILURE,
            Ending::Findings => ExitCode::from(3),
        }
    }
}

/// Prints `document` as JSON, or as text.
pub fn print<T: Serialize + Display>(document: &T, json: bool) -> Result<(), std::io::Error> {
    let mut out = std::io::stdout().lock();
    let written = if json {
        serde_json::to_writer_pretty(&mut out, document).map_err(std::io::Error::from).and_then(|()| writeln!(out))
    } else {
        write!(out, "{document}")
    };
    match written {
        // Whoever reads our output has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A time for people: UTC, to the second.
pub fn time(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms)
        .map_or_else(|_| format!("{unix_ms} ms"), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// How long, for people: to a tenth of a second, and longer ones to the minute, hour or day.
pub fn duration(ms: i64) -> String {
    const MINUTE_MS: u64 = 60_000;
    const HOUR_MS: u64 = 60 * MINUTE_MS;
    const DAY_MS: u64 = 24 * HOUR_MS;
    let sign = if ms < 0 { "-" } else { "" };
    match ms.unsigned_abs() {
        ms @ ..1000 => format!("{sign}{ms} ms"),
        ms if ms < 2 * MINUTE_MS => format!("{sign}{}.{} s", ms / 1000, ms % 1000 / 100),
        ms if ms < 2 * HOUR_MS => format!("{sign}{} min", ms / MINUTE_MS),
        ms if ms < 2 * DAY_MS => format!("{sign}{} h", ms / HOUR_MS),
        ms => format!("{sign}{} d", ms / DAY_MS),
    }
}

/// So many of something, for people: `1 node`, `2 nodes`.
pub fn count(count: impl TryInto<i64>, noun: &str) -> String {
    match count.try_into().unwrap_or(i64::MAX) {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// Bytes for people.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// Lines with their columns aligned: all but the first to the right if `right`.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_as_exact_as_they_are_short() {
        for (ms, expected) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (-20, "-20 ms"),
            (1549, "1.5 s"),
            (119_999, "119.9 s"),
            (-120_000, "-2 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 d"),
            (i64::MIN, "-106751991167 d"),
        ] {
            assert_eq!(duration(ms), expected);
        }
    }
}
