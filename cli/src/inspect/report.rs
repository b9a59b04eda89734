//! Where an inspection's results go: lines of text, or the parts of one JSON document, written as they come.
//!
//! Findings are shown where they turn up in text, and kept for the end of the document in JSON; so that a ruined file
//! cannot fill memory only the first [`FINDINGS_MAX`] of them are spelled out, the others counted.

use std::{
    fmt::{self, Display},
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use super::json::{Json, Row};
use crate::output::{self, Ending};

/// Findings that are spelled out.
const FINDINGS_MAX: u64 = 1000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Damage, or something that a broker would stumble over.
    Fault,
}

/// Something to be known about a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file or directory.
    pub file: String,
    /// Where in the file, in bytes.
    pub position: Option<u64>,
    /// The record's or batch's offset.
    pub offset: Option<i64>,
    /// What there is to know.
    pub what: String,
}

impl Finding {
    /// Something is wrong with `file`.
    pub fn fault(file: &Path, what: impl Display) -> Self {
        Finding {
            severity: Severity::Fault,
            file: file.display().to_string(),
            position: None,
            offset: None,
            what: what.to_string(),
        }
    }

    /// Something about `file` is worth knowing.
    pub fn note(file: &Path, what: impl Display) -> Self {
        Finding { severity: Severity::Note, ..Finding::fault(file, what) }
    }

    /// It is at byte `position`.
    pub fn at(mut self, position: u64) -> Self {
        self.position = Some(position);
        self
    }

    /// It is at `offset` of the log.
    pub fn offset(mut self, offset: i64) -> Self {
        self.offset = Some(offset);
        self
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.severity {
            Severity::Note => "note",
            Severity::Fault => "FAULT",
        };
        write!(f, "{mark}: {}", printable(&self.file))?;
        if let Some(position) = self.position {
            write!(f, " at byte {position}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        write!(f, ": {}", printable(&self.what))
    }
}

/// A document in the making.
pub struct Report<'w> {
    out: &'w mut dyn Write,
    json: bool,
    /// Whether anything was written.
    begun: bool,
    /// What stands before the next element of the list or document that is open.
    separator: &'static str,
    in_list: bool,
    findings: Vec<Finding>,
    faults: u64,
    notes: u64,
}

impl<'w> Report<'w> {
    /// Begins nothing yet: see [`Report::begin`].
    pub fn new(out: &'w mut dyn Write, json: bool) -> Self {
        let findings = Vec::new();
        Report { out, json, begun: false, separator: "\n", in_list: false, findings, faults: 0, notes: 0 }
    }

    /// Begins the document: what is inspected, and as what.
    pub fn begin(&mut self, kind: &str, path: &Path) -> io::Result<()> {
        self.begun = true;
        let path = path.display().to_string();
        if self.json {
            write!(self.out, "{{")?;
        }
        self.line(format_args!("{kind} {}", printable(&path)))?;
        self.field("kind", kind)?;
        self.field("path", path)
    }

    /// A field of the document; JSON only.
    pub fn field(&mut self, name: &str, value: impl Into<Json>) -> io::Result<()> {
        self.element(Some(name), &value.into())
    }

    /// A line; text only.
    pub fn line(&mut self, text: impl Display) -> io::Result<()> {
        if !self.json {
            writeln!(self.out, "{text}")?;
        }
        Ok(())
    }

    /// A field that is an object, and a line of its own in text.
    pub fn row(&mut self, name: &str, row: &Row) -> io::Result<()> {
        self.element(Some(name), row)?;
        self.line(row)
    }

    /// Begins a list; nothing but [`Report::item`], [`Report::finding`] and text may come before [`Report::end_list`].
    pub fn begin_list(&mut self, name: &str) -> io::Result<()> {
        self.in_list = true;
        if self.json {
            write!(self.out, "{}{name:?}:[", self.separator)?;
            self.separator = "\n";
        }
        Ok(())
    }

    /// The next element of the list, and a line of its own in text.
    pub fn item(&mut self, row: &Row) -> io::Result<()> {
        self.element(None, row)?;
        self.line(row)
    }

    /// Ends the list.
    pub fn end_list(&mut self) -> io::Result<()> {
        self.in_list = false;
        if self.json {
            write!(self.out, "]")?;
            self.separator = ",\n";
        }
        Ok(())
    }

    /// A whole list.
    pub fn list(&mut self, name: &str, rows: impl IntoIterator<Item = Row>) -> io::Result<()> {
        self.begin_list(name)?;
        rows.into_iter().try_for_each(|row| self.item(&row))?;
        self.end_list()
    }

    /// A whole list, as a table in text.
    pub fn table(&mut self, name: &str, rows: &[Row]) -> io::Result<()> {
        self.element(Some(name), rows)?;
        let header = rows.first().map(|row| row.cells().0);
        let cells: Vec<_> = header.into_iter().chain(rows.iter().map(|row| row.cells().1)).collect();
        self.line(output::table(&cells))
    }

    /// Takes a finding.
    pub fn finding(&mut self, finding: Finding) -> io::Result<()> {
        match finding.severity {
            Severity::Note => self.notes += 1,
            Severity::Fault => self.faults += 1,
        }
        if self.faults + self.notes > FINDINGS_MAX {
            return Ok(());
        }
        self.line(&finding)?;
        if self.json {
            self.findings.push(finding);
        }
        Ok(())
    }

    /// Ends the document with its findings.
    pub fn end(&mut self) -> io::Result<()> {
        let findings = std::mem::take(&mut self.findings);
        self.element(Some("findings"), &findings)?;
        self.field("faults", self.faults)?;
        self.field("notes", self.notes)?;
        if self.json {
            return writeln!(self.out, "\n}}");
        }
        if self.faults + self.notes > FINDINGS_MAX {
            writeln!(self.out, "only the first {FINDINGS_MAX} findings are shown")?;
        }
        writeln!(self.out, "faults: {} notes: {}", self.faults, self.notes)
    }

    /// Whether anything was written.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Ends the document wherever it stands: what is to follow cannot be had.
    pub fn abandon(&mut self, finding: Finding) -> io::Result<()> {
        if self.in_list {
            self.end_list()?;
        }
        self.finding(finding)?;
        self.end()
    }

    /// How the inspection ends, as of now.
    pub fn ending(&self) -> Ending {
        Ending::with_findings(self.faults > 0)
    }

    fn element(&mut self, name: Option<&str>, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
        if self.json {
            self.out.write_all(self.separator.as_bytes())?;
            self.separator = ",\n";
            if let Some(name) = name {
                write!(self.out, "{name:?}:")?;
            }
            serde_json::to_writer(&mut self.out, value)?;
        }
        Ok(())
    }
}

/// Text from a file as one line without control characters, so that it cannot act on a terminal.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}
