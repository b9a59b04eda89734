//! Reads what a service exposes and what the documents say that it exposes, to hold the one against the other; and asks
//! a service for a page.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A page that has not come by then does not come.
const PAGE_DEADLINE: Duration = Duration::from_secs(10);

/// What a metric looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// `seconds`, `bytes`, or nothing for a plain number.
    pub unit: String,
    /// Names of its labels.
    pub labels: BTreeSet<String>,
}

/// Metrics by name.
pub type Shapes = BTreeMap<String, Shape>;

/// The metrics of a page in the text format of Prometheus. Labels are those that any sample has.
pub fn exposed(page: &str) -> Shapes {
    let mut shapes = Shapes::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            shapes.insert(name.to_owned(), Shape { kind: kind.to_owned(), unit: unit_of(name), ..Shape::default() });
        } else if !line.starts_with('#') {
            let name_len = line.find(['{', ' ']).unwrap_or(line.len());
            let name = base_name(&line[..name_len], &shapes).to_owned();
            let shape = shapes.get_mut(&name).unwrap_or_else(|| panic!("{name} has no type"));
            shape.labels.extend(labels_of(&line[name_len..]));
        }
    }
    shapes
}

/// The metrics in the tables below `## heading` (or `### heading`) of a document: rows of
/// ``| `name` | kind | unit | `label`, `label` | meaning |``.
pub fn documented(document: &str, heading: &str) -> Shapes {
    let is_heading = |line: &&str| line.trim_start_matches('#').trim() == heading && line.starts_with('#');
    let (mut lines, mut shapes) = (document.lines(), Shapes::new());
    let depth = |line: &str| line.chars().take_while(|character| *character == '#').count();
    let own = lines.find(is_heading).unwrap_or_else(|| panic!("there is no heading {heading:?}"));
    let section = lines.take_while(|line| !line.starts_with('#') || depth(line) > depth(own));
    for row in section.filter(|line| line.starts_with("| `segvault_")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, labels, _] = cells[..] else { panic!("not a row of five cells: {row}") };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let shape = Shape { kind: kind.to_owned(), unit: unit.to_owned(), labels };
        let known = shapes.insert(name.trim_matches('`').to_owned(), shape);
        assert!(known.is_none(), "{name} is in the table twice");
    }
    shapes
}

/// The name of the metric that a sample, or an expression, is about: a histogram's samples have suffixes.
pub fn base_name<'a>(name: &'a str, shapes: &Shapes) -> &'a str {
    let is_histogram = |base: &&str| shapes.get(*base).is_some_and(|shape| shape.kind == "histogram");
    let bases = ["_bucket", "_sum", "_count"].into_iter().filter_map(|suffix| name.strip_suffix(suffix));
    bases.into_iter().find(is_histogram).unwrap_or(name)
}

/// The unit is in the name.
fn unit_of(name: &str) -> String {
    let name = name.strip_suffix("_total").unwrap_or(name);
    let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")));
    unit.unwrap_or_default().to_owned()
}

/// Names of the labels in `{name="value",…}`, which values without escapes are assumed to have.
fn labels_of(rest: &str) -> Vec<String> {
    let inner = rest.strip_prefix('{').and_then(|rest| rest.rsplit_once('}')).map_or("", |(inner, _)| inner);
    let names = inner.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
    names.filter(|name| name != "le").collect()
}

/// Asks for a page: its status code, content type and text.
pub fn get(addr: SocketAddr, path: &str) -> io::Result<(u16, String, String)> {
    ask(addr, &format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\n\r\n"))
}

/// Sends a request as it is, and reads the answer to its end.
pub fn ask(addr: SocketAddr, request: &str) -> io::Result<(u16, String, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, PAGE_DEADLINE)?;
    stream.set_read_timeout(Some(PAGE_DEADLINE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let content_type = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
    Ok((code, content_type.to_owned(), body.to_owned()))
}
