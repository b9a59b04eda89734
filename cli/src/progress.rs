//! Lines of progress on standard error, only when that is a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line that says what goes on; silent where nobody watches.
pub fn line() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    dress(&bar);
    bar
}

/// Some lines, one below the other.
pub struct Lines {
    all: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl Default for Lines {
    fn default() -> Self {
        Self { all: MultiProgress::with_draw_target(target()), lines: Vec::new() }
    }
}

impl Lines {
    /// Shows these lines in place of those before.
    pub fn show(&mut self, texts: impl Iterator<Item = String>) {
        for (index, text) in texts.enumerate() {
            if index == self.lines.len() {
                let bar = self.all.add(ProgressBar::no_length());
                dress(&bar);
                self.lines.push(bar);
            }
            self.lines[index].set_message(text);
        }
    }

    /// Shows nothing any more.
    pub fn clear(self) {
        self.lines.iter().for_each(ProgressBar::finish_and_clear);
    }
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

fn dress(bar: &ProgressBar) {
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}").expect("the template is constant"));
    bar.enable_steady_tick(Duration::from_millis(200));
}
