//! What a person sees while a cluster starts: a line that changes in a terminal, plain lines elsewhere. On standard error,
//! so that standard output holds only what scripts read.

use indicatif::{ProgressBar, ProgressStyle};
use pgherd_local_cluster::Event;
use std::io::IsTerminal;
use std::time::Duration;

/// The start of a cluster, as shown to a person.
#[derive(Clone)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows that something goes on from now.
    pub fn begin(steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            let style = ProgressStyle::with_template("{spinner:.green} {bar:24.green/dim} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    /// Says what is being done now.
    pub fn say(&self, message: impl Into<String>) {
        let message = message.into();
        match &self.bar {
            Some(bar) => bar.set_message(message),
            None => eprintln!("{message}"),
        }
    }

    /// One of the steps is done.
    pub fn step(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// Shows what the local cluster reports.
    pub fn show(&self, event: Event) {
        match event {
            Event::Finding => self.say("looking for PostgreSQL (fetched if none is installed)"),
            Event::Making(name) => self.say(format!("{name}: making its data folder")),
            Event::Starting(name) => self.say(format!("{name}: starting")),
            Event::TakenOver(name) => {
                self.say(format!("{name}: was running already"));
                self.step();
            }
            Event::Ready(name) => {
                self.say(format!("{name}: ready"));
                self.step();
            }
        }
    }

    /// Takes the changing line away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
