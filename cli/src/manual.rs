//! `segvault manual` and `segvault completions`: what a package installs beside the binary.
//!
//! Both are made from the command line's own definition, so they cannot say what the binary does not know. They are
//! hidden: whoever packs Segvault runs them (`scripts/package`), operators have no use for them.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::args::Cli;
use crate::output::Ending;

/// Options of `manual`.
#[derive(Debug, Args)]
pub struct ManualArgs {
    /// The folder that the pages go to; it is made if it is not there.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Whose completions; they go to standard output.
    pub shell: Shell,
}

/// `segvault manual`.
pub fn write_pages(args: &ManualArgs) -> Result<Ending> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("make {}", args.dir.display()))?;
    for page in pages()? {
        let path = args.dir.join(&page.file_name);
        std::fs::write(&path, page.roff).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(Ending::Done)
}

/// `segvault completions`.
pub fn print_completions(args: &CompletionsArgs) -> Result<Ending> {
    io::stdout().write_all(&completions(args.shell))?;
    Ok(Ending::Done)
}

/// Without the hidden commands, which `clap_complete` would offer.
fn completions(shell: Shell) -> Vec<u8> {
    let all = Cli::command();
    let shown = Command::new("segvault").args(all.get_arguments()).subcommands(shown_below(&all));
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown.version(env!("CARGO_PKG_VERSION")), "segvault", &mut script);
    script
}

/// A manual page.
struct Page {
    file_name: String,
    roff: Vec<u8>,
}

/// A page for each command that is not hidden, of all levels.
fn pages() -> io::Result<Vec<Page>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add_pages(&command, &mut pages)?;
    Ok(pages)
}

fn add_pages(command: &Command, pages: &mut Vec<Page>) -> io::Result<()> {
    pages.push(page(command)?);
    shown_below(command).try_for_each(|below| add_pages(below, pages))
}

fn shown_below(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help")
}

/// As `clap_mangen` lays a page out, but for the text after the options: it would run examples together.
fn page(command: &Command) -> io::Result<Page> {
    let source = format!("segvault {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual("Segvault");
    let mut roff = Vec::new();
    man.render_title(&mut roff)?;
    man.render_name_section(&mut roff)?;
    man.render_synopsis_section(&mut roff)?;
    man.render_description_section(&mut roff)?;
    if shown_below(command).next().is_some() {
        man.render_subcommands_section(&mut roff)?;
    }
    man.render_options_section(&mut roff)?;
    if let Some(text) = command.get_after_help() {
        notes(&text.to_string()).to_writer(&mut roff)?;
    }
    see_also(command).to_writer(&mut roff)?;
    Ok(Page { file_name: man.get_filename(), roff })
}

/// Lines that are indented are set as they are, others as paragraphs.
fn notes(text: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["NOTES"]);
    let mut is_verbatim = false;
    for line in text.lines() {
        if line.starts_with(' ') != is_verbatim {
            is_verbatim = !is_verbatim;
            roff.control(if is_verbatim { "nf" } else { "fi" }, []);
        }
        match line {
            "" => roff.control("PP", []),
            line => roff.text([roman(line)]),
        };
    }
    if is_verbatim {
        roff.control("fi", []);
    }
    roff
}

fn see_also(command: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    if command.get_name() != "segvault" {
        roff.text([roman("segvault(1);")]);
    }
    roff.text([roman("/usr/share/doc/segvault: README.md, docs/operations.md, docs/consistency.md")]);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(file_name: &str) -> String {
        let page = pages().unwrap().into_iter().find(|page| page.file_name == file_name);
        String::from_utf8(page.unwrap_or_else(|| panic!("there is no {file_name}")).roff).unwrap()
    }

    #[test]
    fn there_is_a_page_for_every_command_that_is_shown() {
        let names: Vec<String> = pages().unwrap().into_iter().map(|page| page.file_name).collect();
        for name in ["segvault.1", "segvault-agent.1", "segvault-snapshot-create.1", "segvault-cert-issue-agent.1"] {
            assert!(names.iter().any(|other| other == name), "{name} is not among {names:?}");
        }
        assert!(names.iter().all(|name| !name.contains("help") && !name.contains("manual")), "{names:?}");
    }

    #[test]
    fn examples_keep_their_lines() {
        let page = notes("Examples:\n  segvault a \\\n      --b\n  .c\n\nMore.").to_roff();
        assert_eq!(page, ".SH NOTES\nExamples:\n.nf\n  segvault a \\\\\n      \\-\\-b\n  .c\n.fi\n.PP\nMore.\n");
    }

    #[test]
    fn what_is_hidden_is_not_told() {
        let page = page_of("segvault.1");
        assert!(page.contains("Take and list restore points") && !page.contains("completions"), "{page}");
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let script = String::from_utf8(completions(shell)).unwrap();
            assert!(script.contains("snapshot") && script.contains("broker-config"), "{shell}");
            assert!(!script.contains("completions for a shell") && !script.contains("segvault,manual"), "{shell}");
        }
    }
}
