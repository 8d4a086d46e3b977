//! What may be asked of a comparison, as options of a command line.

use std::path::PathBuf;

use clap::Args;

use crate::against::Changes;
use crate::error::Error;
use crate::host::Scratch;
use crate::html::html;
use crate::jobs::Kitchen;
use crate::markdown::markdown;
use crate::peer::{Peer, PeerParser};
use crate::report::{Output, Report};
use crate::stats::Rounds;
use crate::subject::Field;
use crate::text::csv;

/// Rounds that count, and rounds before them.
const ROUNDS: Rounds = Rounds { warm_up: 1, repeat: 5 };
const QUICK_ROUNDS: Rounds = Rounds { warm_up: 1, repeat: 3 };
/// Seconds that one run of a guest may take.
const LIMIT: u64 = 300;
const QUICK_LIMIT: u64 = 60;
/// Milliseconds a class of the user-space suite is repeated for.
const MILLIS: u32 = 200;
const QUICK_MILLIS: u32 = 10;
/// What a kernel named by path is told.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t";

/// What to compare, on what, how often, and where to write it.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Guests, groups of guests, or paths of kernels; `--list` shows them [default: all]
    #[arg(value_name = "GUEST")]
    pub guests: Vec<String>,

    /// Our backends: names separated by commas, `auto`, or `all` that work here
    #[arg(long, value_name = "LIST", default_value = "all", value_delimiter = ',')]
    pub accel: Vec<String>,

    /// CPU model of our machine: `host`, `x86-64-v3` or `x86-64-v2`
    #[arg(long, value_name = "MODEL", default_value = machine::DEFAULT_MODEL)]
    pub cpu: String,

    /// Other programs that run the same guests, where they are installed, and other builds of this one
    #[arg(long, value_name = "LIST", value_parser = PeerParser, value_delimiter = ',')]
    pub peer: Vec<Peer>,

    /// Run the user-space suite on the host as well: the limit
    #[arg(long)]
    pub native: bool,

    /// Fewer rounds and shorter guests: about half a minute, and wider intervals
    #[arg(long)]
    pub quick: bool,

    /// Rounds that count [default: 5; quick: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: Option<u32>,

    /// Rounds before them [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1000))]
    pub warm_up: Option<u32>,

    /// Core that everything measured is pinned to [default: the last one this process may use]
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,

    /// Seconds after which a guest has failed [default: 300; quick: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub limit: Option<u64>,

    /// Who ratios are to [default: native, else a peer, else the first backend]
    #[arg(long, value_name = "NAME")]
    pub base: Option<String>,

    /// Milliseconds a class of the user-space suite is repeated for [default: 200; quick: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub millis: Option<u32>,

    /// This static executable instead of building the user-space suite
    #[arg(long, value_name = "FILE")]
    pub suite: Option<PathBuf>,

    /// Initial RAM disk for kernels named by path
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Command line for kernels named by path
    #[arg(long, alias = "append", value_name = "STRING", default_value = CMDLINE, allow_hyphen_values = true)]
    pub cmdline: String,

    /// Write everything here, as JSON (docs/compare.md tells the schema)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write a line a guest and subject here
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,

    /// Write a page with plots here, in one file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Write tables for a document here, in Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// Say what is slower, beyond noise, than in this report of an earlier `--json`
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,

    /// Percent by which something must differ before --against says so
    #[arg(long, value_name = "PERCENT", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(..=1000))]
    pub floor: u32,

    /// Fetch nothing: without Debian's kernel in the cache, what needs it is not run
    #[arg(long, env = "GEARSHIFT_OFFLINE", hide_env = true)]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub offline: bool,

    /// Show the guests, and run nothing
    #[arg(long)]
    pub list: bool,
}

impl Options {
    pub(crate) fn rounds(&self) -> Rounds {
        let default = if self.quick { QUICK_ROUNDS } else { ROUNDS };
        Rounds {
            warm_up: self.warm_up.unwrap_or(default.warm_up),
            repeat: self.repeat.unwrap_or(default.repeat),
        }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.unwrap_or(if self.quick { QUICK_LIMIT } else { LIMIT })
    }

    /// As a fraction.
    pub fn floor(&self) -> f64 {
        f64::from(self.floor) / 100.0
    }

    pub(crate) fn kitchen<'a>(&'a self, scratch: &'a Scratch) -> Kitchen<'a> {
        Kitchen {
            quick: self.quick,
            offline: self.offline,
            millis: self.millis.unwrap_or(if self.quick { QUICK_MILLIS } else { MILLIS }),
            suite: self.suite.as_deref(),
            initrd: self.initrd.as_deref(),
            cmdline: &self.cmdline,
            scratch,
        }
    }

    /// The base must take part.
    pub(crate) fn check_base(&self, field: &Field) -> Result<(), Error> {
        let Some(base) = &self.base else { return Ok(()) };
        let known: Vec<_> = field.subjects.iter().map(|subject| subject.name.clone()).collect();
        if known.contains(base) { Ok(()) } else { Err(Error::Base { name: base.clone(), known }) }
    }

    /// Looks whether the files can be written.
    pub(crate) fn outputs(&self) -> Result<Outputs, Error> {
        let check = |path: &Option<PathBuf>| path.as_deref().map(Output::check).transpose();
        Ok(Outputs {
            json: check(&self.json)?,
            csv: check(&self.csv)?,
            html: check(&self.html)?,
            markdown: check(&self.markdown)?,
        })
    }
}

/// Where reports go.
#[derive(Debug)]
pub(crate) struct Outputs {
    json: Option<Output>,
    csv: Option<Output>,
    html: Option<Output>,
    markdown: Option<Output>,
}

impl Outputs {
    /// Writes all of them.
    pub(crate) fn write(&self, report: &Report, changes: Option<&Changes>, floor: f64) -> Result<(), Error> {
        if let Some(output) = &self.json {
            output.write(&(serde_json::to_string_pretty(report)? + "\n"))?;
        }
        if let Some(output) = &self.csv {
            output.write(&csv(report))?;
        }
        if let Some(output) = &self.html {
            output.write(&html(report, changes, floor))?;
        }
        if let Some(output) = &self.markdown {
            output.write(&markdown(report))?;
        }
        Ok(())
    }
}
