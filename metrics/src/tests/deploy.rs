//! The alerts and the dashboard that are shipped ask for metrics that there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::test_util::{Shapes, base_name, documented};

fn project_file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What the documents say; that this is what is exposed is tested where it is.
fn metrics() -> Shapes {
    documented(&project_file("docs/metrics.md"), "Metrics")
}

/// The names in an expression that begin with `segvault`.
fn names_in(expression: &str) -> BTreeSet<String> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    let names = expression.split(|character| !is_part(character)).filter(|word| word.starts_with("segvault"));
    names.map(str::to_owned).collect()
}

fn assert_known(expression: &str, recorded: &BTreeSet<String>, known: &Shapes) {
    let names = names_in(expression);
    for name in &names {
        let is_known = recorded.contains(name) || known.contains_key(base_name(name, known));
        assert!(is_known, "there is no metric {name}: {expression}");
    }
    assert!(!names.is_empty() || expression.starts_with("vector("), "{expression} is about nothing of ours");
    for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
        assert_eq!(expression.matches(open).count(), expression.matches(close).count(), "{expression}");
    }
}

/// The rules of all groups.
fn rules() -> Vec<Yaml> {
    let documents = YamlLoader::load_from_str(&project_file("deploy/alerts/segvault.rules.yml")).unwrap();
    let groups = documents[0]["groups"].as_vec().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_vec().unwrap().clone()).collect()
}

#[test]
fn alerts_ask_for_metrics_that_there_are() {
    let (rules, known) = (rules(), metrics());
    let recorded = rules.iter().filter_map(|rule| rule["record"].as_str()).map(str::to_owned).collect();
    assert!(rules.len() > 6);
    for rule in &rules {
        assert_known(rule["expr"].as_str().unwrap(), &recorded, &known);
    }
}

#[test]
fn alerts_say_how_bad_it_is_and_what_to_do() {
    for rule in rules().iter().filter(|rule| !rule["alert"].is_badvalue()) {
        let name = rule["alert"].as_str().unwrap();
        assert!(name.starts_with("Segvault"), "{name}");
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        for annotation in ["summary", "description"] {
            assert!(!rule["annotations"][annotation].as_str().unwrap().is_empty(), "{name}");
        }
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let board: Value = serde_json::from_str(&project_file("deploy/grafana/segvault.json")).unwrap();
    let known = metrics();
    let panels = board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{} has another panel's id", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            assert_known(target["expr"].as_str().unwrap(), &BTreeSet::new(), &known);
        }
    }
    assert!(ids.len() > 8);
    for variable in board["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            assert_known(query, &BTreeSet::new(), &known);
        }
    }
}
