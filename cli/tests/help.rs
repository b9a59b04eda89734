//! Every verb explains itself, with an example, and wrong usage is told apart from failure.

use std::process::{Command, Output};

fn segvault(args: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segvault"));
    command.args(args).env("SEGVAULT_VAULT", "file:///nowhere/at/all").output().unwrap()
}

/// The verbs that the help of `verbs` lists; none if it is the help of a verb that does something.
fn below(help: &str) -> Vec<String> {
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names =
        commands.take_while(|line| !line.is_empty()).filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_verb_has_an_example() {
    let (mut open, mut leaves) = (vec![Vec::new()], 0);
    while let Some(verbs) = open.pop() {
        let output = segvault(&[&verbs[..], &["--help".to_owned()]].concat());
        assert!(output.status.success(), "{verbs:?}: {output:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        // Verbs that differ in little are shown by the one above them.
        let further = if help.contains("Example") { Vec::new() } else { below(&help) };
        if further.is_empty() {
            leaves += 1;
            let example = format!("  segvault {}", verbs.join(" "));
            assert!(help.contains(&example), "segvault {} --help has no example:\n{help}", verbs.join(" "));
        }
        open.extend(further.into_iter().map(|verb| [&verbs[..], &[verb]].concat()));
    }
    assert!(leaves >= 20, "only {leaves} verbs were found");
}

#[test]
fn wrong_usage_is_two_and_failure_one() {
    let run = |args: &[&str]| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let output = segvault(&args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = run(&["snapshot", "verify", "--level", "L4", "--vault", "file:///nowhere"]);
    assert!(code == Some(2) && text.contains("levels are L0, L1, L2 and L3"), "{code:?} {text}");
    let (code, text) = run(&["doctor"]);
    assert!(code == Some(2) && text.contains("--broker-config"), "{code:?} {text}");
    // Nobody listens there. A vault in the environment is that of other commands.
    let (code, text) = run(&["doctor", "--coordinator", "127.0.0.1:1", "--plain-text"]);
    assert!(code == Some(1) && text.contains("127.0.0.1:1"), "{code:?} {text}");
    let (code, text) = run(&["snapshot", "verify"]);
    assert!(code == Some(1) && text.contains("there is no vault at"), "{code:?} {text}");
}
