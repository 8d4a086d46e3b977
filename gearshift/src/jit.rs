//! Options of the JIT alone: to look for its mistakes, and to see what it does.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use accel_api::{AccelId, BackendReport};
use clap::Args;
use machine::{JIT, JitOptions};

use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::size;
use crate::stdio::{say, say_all};

/// See the module.
#[derive(Debug, Args)]
pub(crate) struct JitArgs {
    /// Check translated code against the interpreter's functions, all of it or one block in N
    ///
    /// Each block is executed twice, and registers and memory compared; with N each block at first, and then one in N. The
    /// first difference ends the run with a report and an exit code of its own. Only with one vCPU.
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) verify: Option<u64>,

    /// Translate only blocks whose hash lies in this range, both ends included, such as 0..0x7fffffffffffffff
    ///
    /// All others are interpreted one by one: halving the range finds the block that makes a guest fail. The hash is the same
    /// in each run in which the guest has the code at the same place; reports and --dump-block name it.
    #[arg(long, value_name = "LO..HI", value_parser = parse_range)]
    pub(crate) jit_bisect: Option<RangeInclusive<u64>>,

    /// Show, at the end, what the guest code at this linear address was translated to
    #[arg(long, value_name = "GVA", value_parser = parse_number)]
    pub(crate) dump_block: Option<u64>,

    /// Write /tmp/perf-PID.map, up to 64 MiB, from which perf(1) names guest blocks
    #[arg(long)]
    pub(crate) perf_map: bool,

    /// Write jit-PID.dump into this folder, up to 1 GiB, from which perf(1) shows the host code of guest blocks
    ///
    /// `perf record -k mono gearshift run --jitdump DIR ...`, then `perf inject --jit -i perf.data -o jit.data`, then
    /// `perf report -i jit.data` and `perf annotate -i jit.data`.
    #[arg(long, value_name = "DIR")]
    pub(crate) jitdump: Option<PathBuf>,

    /// Memory for translated code, for each vCPU [default: 64M]
    ///
    /// Up to 1G; it is taken as code comes to fill it. When it is full the code that was translated first makes room, a
    /// sixteenth at a time.
    #[arg(long, value_name = "SIZE", value_parser = parse_cache)]
    pub(crate) jit_cache: Option<usize>,
}

/// The size of a code cache.
fn parse_cache(text: &str) -> Result<usize, String> {
    let bytes = size::parse(text)?;
    let range = 32 << 10..=1 << 30;
    let fits = usize::try_from(bytes).ok().filter(|bytes| range.contains(bytes));
    fits.ok_or_else(|| "give a size from 32K to 1G".to_owned())
}

/// Whether files can be made in `folder`.
fn try_folder(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!(".gearshift-{}", std::process::id()));
    File::create_new(&probe)?;
    fs::remove_file(probe)
}

/// A decimal number, or a hexadecimal one behind 0x.
fn parse_number(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    let number = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    number.map_err(|_| "not a number of 64 bits, such as 4096 or 0xffffffff81000000".to_owned())
}

fn parse_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (low, high) = text.split_once("..").ok_or("not a range, such as 0..0x7fffffffffffffff")?;
    let (low, high) = (parse_number(low)?, parse_number(high)?);
    if low > high { Err("the first number is the larger one".to_owned()) } else { Ok(low..=high) }
}

/// Texts for the end of the run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown(Arc<Mutex<Vec<String>>>);

impl Shown {
    fn listener(&self) -> machine::Listener {
        let list = self.0.clone();
        Arc::new(move |text| list.lock().unwrap_or_else(PoisonError::into_inner).push(text))
    }

    /// Prints them.
    pub(crate) fn print(&self) {
        for text in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            say_all(text);
        }
    }
}

impl JitArgs {
    /// What the JIT is to be made with.
    pub(crate) fn options(&self, with_stats: bool, shown: &Shown) -> JitOptions {
        JitOptions {
            verify: self.verify,
            only: self.jit_bisect.clone(),
            show: self.dump_block.map(|address| (address, shown.listener())),
            counting: with_stats,
            perf_map: self.perf_map,
            jitdump: self.jitdump.clone(),
            cache_bytes: self.jit_cache,
            notice: Some(Arc::new(say)),
            ..JitOptions::default()
        }
    }

    /// Refuses what does not go together.
    ///
    /// # Errors
    /// Bad usage.
    pub(crate) fn check(&self, vcpus: u32) -> Result<(), Failure> {
        if self.verify.is_some() && vcpus > 1 {
            let message = format!(
                "--verify checks one vCPU, which nobody else's stores may disturb, not {vcpus}; leave --cpus at 1"
            );
            return Err(Failure::new(ExitCode::Usage, message));
        }
        if let Some(folder) = &self.jitdump
            && let Err(error) = try_folder(folder)
        {
            let message =
                format!("--jitdump {}: {error}; name a folder that can be written to", folder.display());
            return Err(Failure::new(ExitCode::Usage, message));
        }
        Ok(())
    }

    /// Refuses options of the JIT if something else runs the guest.
    ///
    /// # Errors
    /// Bad usage.
    pub(crate) fn check_accelerator(&self, id: AccelId) -> Result<(), Failure> {
        let given = [
            ("--verify", self.verify.is_some()),
            ("--jit-bisect", self.jit_bisect.is_some()),
            ("--dump-block", self.dump_block.is_some()),
            ("--perf-map", self.perf_map),
            ("--jitdump", self.jitdump.is_some()),
            ("--jit-cache", self.jit_cache.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((name, _)) if id != JIT => {
                let message = format!(
                    "{name} is for the {JIT} accelerator, and {id} runs this guest; choose it with --accel {JIT}"
                );
                Err(Failure::new(ExitCode::Usage, message))
            }
            _ => Ok(()),
        }
    }
}

/// The options that set what `report` says, for [`again`]. `None` if it says nothing.
pub(crate) fn options_of(report: &BackendReport) -> Option<String> {
    let option = |(name, value): &(&str, String)| match (*name, value.as_str()) {
        ("verify", "1") => "--verify".to_owned(),
        ("verify", n) => format!("--verify={n}"),
        ("only", range) => format!("--jit-bisect {range}"),
        // A setting that has no option has a name, which is better than nothing.
        (name, value) => format!("({name} {value})"),
    };
    let options: Vec<_> = report.settings.iter().map(option).collect();
    (!options.is_empty()).then(|| options.join(" "))
}

/// The command line with `options` in place of those of the same names, for a shell.
pub(crate) fn again(arguments: impl IntoIterator<Item = OsString>, options: &str) -> String {
    let mut words = Vec::new();
    let mut arguments = arguments.into_iter().map(|a| a.to_string_lossy().into_owned());
    while let Some(word) = arguments.next() {
        if word == "--jit-bisect" {
            arguments.next();
        } else if word != "--verify" && !word.starts_with("--verify=") && !word.starts_with("--jit-bisect=") {
            words.push(quoted(&word));
        }
    }
    words.push(options.to_owned());
    words.join(" ")
}

/// `word` as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges() {
        assert_eq!(parse_number("0xffff_ffff_8100_0000"), Ok(0xffff_ffff_8100_0000));
        assert_eq!(parse_range("0..0x10"), Ok(0..=16));
        assert_eq!(parse_range("7..7"), Ok(7..=7));
        for bad in ["", "1", "..", "1..", "..1", "2..1", "0x..1", "0..0x1ffffffffffffffff", "-1..2"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_of_the_cache() {
        assert_eq!(
            (parse_cache("32K"), parse_cache("1G"), parse_cache("48")),
            (Ok(32 << 10), Ok(1 << 30), Ok(48 << 20))
        );
        for bad in ["0", "31K", "1025M", "17179869184G", "big"] {
            assert!(parse_cache(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_become_options() {
        let settings = vec![("verify", "1".to_owned()), ("only", "0x5..0x5".to_owned())];
        let mut report = BackendReport { settings, ..BackendReport::default() };
        assert_eq!(options_of(&report).as_deref(), Some("--verify --jit-bisect 0x5..0x5"));
        report.settings = vec![("verify", "64".to_owned())];
        assert_eq!(options_of(&report).as_deref(), Some("--verify=64"));
        assert_eq!(options_of(&BackendReport::default()), None);
    }

    #[test]
    fn the_command_line_again() {
        let words =
            "gearshift run --verify=64 --jit-bisect 0..9 --jit-bisect=1..2 --verify --mem 1G --cmdline";
        let words = words.split(' ').chain(["console=ttyS0 it's", ""]).map(OsString::from);
        assert_eq!(
            again(words, "--verify --jit-bisect 5..5"),
            r"gearshift run --mem 1G --cmdline 'console=ttyS0 it'\''s' '' --verify --jit-bisect 5..5"
        );
    }
}
