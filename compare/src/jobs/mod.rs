//! The guests: what is started, and what of its output is a result.
//!
//! 1. A [`Job`] is one process that gives one or several *rows* of the report: a bare-metal guest gives one, a
//!    user-space suite one for each of its classes.
//! 2. A job's run on a subject gives a [`Reading`] for each row: a number, and the *answer* that must be the same on
//!    every subject.
//! 3. [`list`] is what may be named on the command line.

mod boot;
mod file;
mod micro;
mod start;
mod user;

use std::path::{Path, PathBuf};
use std::time::Duration;

use guests::debian::{self, DefaultGuest, Flavour};
use guests::suite::Suite;
use serde_json::Value;

use crate::error::Error;
use crate::host::Scratch;
use crate::memory::Memory;
use crate::process::{Broken, End, Runner};
use crate::subject::Subject;

/// What the guests are made with.
#[derive(Debug)]
pub(crate) struct Kitchen<'a> {
    pub(crate) quick: bool,
    pub(crate) offline: bool,
    /// Milliseconds a class of a user-space suite is repeated for.
    pub(crate) millis: u32,
    /// The user-space suite of our own, if it is not to be built.
    pub(crate) suite: Option<&'a Path>,
    /// For kernels that are files.
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
    pub(crate) scratch: &'a Scratch,
}

/// One row of the report, before it has numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowSpec {
    /// As it is named on the command line.
    pub(crate) guest: String,
    pub(crate) group: &'static str,
    pub(crate) about: String,
    /// Of its numbers.
    pub(crate) unit: &'static str,
    /// What exactly is run, with its version.
    pub(crate) what: String,
}

/// What one run says of one row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reading {
    /// In the row's unit; nothing of a guest that failed.
    pub(crate) value: Option<f64>,
    /// Why this subject cannot run it, by the guest's own word.
    pub(crate) refusal: Option<String>,
    /// Why there is no value.
    pub(crate) failure: Option<String>,
    /// What it computed or printed, and how it ended; nothing where there is nothing to compare.
    pub(crate) answer: Option<(String, End)>,
    pub(crate) memory: Option<Memory>,
    pub(crate) counters: Option<Value>,
    /// Names and seconds.
    pub(crate) milestones: Vec<(String, f64)>,
}

impl Reading {
    pub(crate) fn failed(failure: impl Into<String>) -> Self {
        Self { failure: Some(failure.into()), ..Self::default() }
    }
}

/// A job's readings, one a row.
pub(crate) type Readings = Result<Vec<Reading>, Broken>;

/// Why the host itself does not run a guest.
const NO_NATIVE_FORM: &str = "only the user-space suites have a native form";

/// One process, and how its output is read.
pub(crate) trait Job {
    /// Never empty, and always the same.
    fn rows(&self) -> &[RowSpec];

    /// Why this subject does not run it, other than by failing.
    fn refusal(&self, subject: &Subject) -> Option<String> {
        if subject.is_native() {
            return Some(NO_NATIVE_FORM.to_owned());
        }
        let bare = subject.is_linux_only() && !self.is_linux();
        bare.then(|| "boots Linux from a disk, and this is a bare-metal guest".to_owned())
    }

    /// Its kernel is Linux's.
    fn is_linux(&self) -> bool {
        false
    }

    /// Roughly how many instructions of an operating system's kernel it executes before it says anything.
    fn kernel_instructions(&self) -> f64 {
        0.0
    }

    /// Takes well below a second on every backend: a warm-up that a quick comparison can afford.
    fn is_cheap(&self) -> bool;

    /// Runs it once.
    fn run(&self, subject: &Subject, runner: &Runner<'_>) -> Result<Readings, Error>;
}

/// Why a subject is not even tried: the job would take longer than a guest may.
pub(crate) fn too_slow(job: &dyn Job, subject: &Subject, limit: Duration) -> Option<String> {
    let ring0 = subject.ring0_ns?;
    let seconds = job.kernel_instructions() * ring0 * 1e-9;
    (seconds > limit.as_secs_f64()).then(|| {
        let provider = subject.provider.as_ref().map_or_else(String::new, |p| format!(" by provider {p}"));
        format!(
            "an instruction of a guest's kernel takes {} there (measured{provider}), so this one would take some {:.0} \
             minutes; --limit {:.0} tries it",
            accel_api::duration_text(ring0),
            (seconds / 60.0).ceil(),
            (seconds * 2.0 / 100.0).ceil() * 100.0
        )
    })
}

/// A job that cannot be made here, for everybody.
struct Unavailable {
    rows: Vec<RowSpec>,
    reason: String,
}

impl Job for Unavailable {
    fn rows(&self) -> &[RowSpec] {
        &self.rows
    }
    fn refusal(&self, _: &Subject) -> Option<String> {
        Some(self.reason.clone())
    }
    fn is_cheap(&self) -> bool {
        false
    }
    fn run(&self, _: &Subject, _: &Runner<'_>) -> Result<Readings, Error> {
        Ok(Err(Broken::Failed(self.reason.clone())))
    }
}

/// Groups of guests, in the order of reports.
pub(crate) const GROUPS: [(&str, &str); 6] = [
    ("boot", "Debian's cloud kernel from process start to its first program"),
    ("start", "process start to the guest's first byte, and the memory that takes"),
    ("exits", "what leaving a guest costs: bare-metal guests that do nothing else"),
    ("micro", "bare-metal guests, one a class of work"),
    ("user", "a Linux program of our own, one row a class of work"),
    ("libraries", "a Linux program that drives libraries of Debian's, one row a class of work"),
];
/// Takes a boot of its own: a quick comparison runs it only if it is named.
const SLOW: &str = "libraries";
/// The group of kernels that are named by path.
pub(crate) const FILES: &str = "file";

/// What is to be run: guests of a group by name, or all of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Group and guest; no guest stands for all of the group.
    wanted: Vec<(&'static str, Option<String>)>,
    files: Vec<PathBuf>,
}

impl Selection {
    /// Takes the words of the command line apart.
    ///
    /// # Errors
    /// A word that is no guest. Classes of the user-space suite are only known when it is built.
    pub(crate) fn parse(words: &[String], quick: bool) -> Result<Self, Error> {
        let mut selection = Self::default();
        if words.is_empty() {
            let all = GROUPS.iter().filter(|(group, _)| !quick || *group != SLOW);
            selection.wanted = all.map(|(group, _)| (*group, None)).collect();
        }
        for word in words {
            let (group, guest) = match word.split_once('/') {
                Some((group, guest)) => (group, Some(guest)),
                None => (word.as_str(), None),
            };
            let known = GROUPS.iter().find(|(name, _)| *name == group).map(|(name, _)| *name);
            let there_is = |known: &str, guest: &str| {
                user::suite_of(known).is_some() || micro::names(known).any(|n| n == guest)
            };
            match (known, guest) {
                (Some(known), None) if known != "exits" || micro::names(known).next().is_some() => {
                    selection.wanted.push((known, None));
                }
                (Some(known), Some(guest)) if there_is(known, guest) => {
                    selection.wanted.push((known, Some(guest.to_owned())));
                }
                _ if Path::new(word).is_file() => selection.files.push(word.into()),
                _ => return Err(unknown(word)),
            }
        }
        Ok(selection)
    }

    pub(crate) fn wants(&self, group: &str, guest: &str) -> bool {
        self.wanted.iter().any(|(g, name)| *g == group && name.as_ref().is_none_or(|name| name == guest))
    }

    fn wants_some_of(&self, group: &str) -> bool {
        self.wanted.iter().any(|(g, _)| *g == group)
    }

    /// The guests of a group that are wanted by name, or nothing if all of it is.
    fn named(&self, group: &str) -> Option<Vec<String>> {
        let of_group = self.wanted.iter().filter(|(g, _)| *g == group);
        of_group.map(|(_, name)| name.clone()).collect()
    }
}

fn unknown(word: &str) -> Error {
    Error::Guest { name: word.to_owned(), known: list().into_iter().map(|(name, _)| name).collect() }
}

/// Everything that may be named, and what it is.
pub fn list() -> Vec<(String, String)> {
    let mut list = Vec::new();
    for (group, about) in GROUPS {
        let mut guests = micro::described(group).peekable();
        if group != "exits" || guests.peek().is_some() {
            list.push((group.to_owned(), about.to_owned()));
        }
        list.extend(guests);
    }
    list
}

/// Makes the jobs, in the order of reports.
///
/// # Errors
/// A class of the user-space suite that it does not have, or a scratch file that cannot be written.
pub(crate) fn make(
    selection: &Selection,
    kitchen: &Kitchen<'_>,
    say: &dyn Fn(&str),
) -> Result<Vec<Box<dyn Job>>, Error> {
    let mut jobs: Vec<Box<dyn Job>> = Vec::new();
    let debian = || debian_guest(kitchen, say);
    let mut guest: Option<Result<DefaultGuest, String>> = None;
    let with_user = kitchen.quick && selection.wants_some_of("boot") && selection.wants_some_of("user");
    for (group, _) in GROUPS {
        if !selection.wants_some_of(group) {
            continue;
        }
        match group {
            // A quick comparison boots once for both, as booting is most of what it does.
            "boot" if with_user => {
                let guest = guest.get_or_insert_with(debian).as_ref();
                if guest.is_err() {
                    jobs.push(boot::job(guest));
                }
                jobs.extend(user::jobs("user", Suite::User, selection, kitchen, guest, guest.is_ok(), say)?);
            }
            "user" if with_user => {}
            "boot" => jobs.push(boot::job(guest.get_or_insert_with(debian).as_ref())),
            "start" => jobs.push(start::job(kitchen)?),
            group => match user::suite_of(group) {
                Some(suite) => {
                    let guest = guest.get_or_insert_with(debian).as_ref();
                    jobs.extend(user::jobs(group, suite, selection, kitchen, guest, false, say)?);
                }
                None => jobs.extend(micro::jobs(group, selection, kitchen)?),
            },
        }
    }
    jobs.extend(selection.files.iter().map(|path| file::job(path, kitchen)));
    Ok(jobs)
}

/// The kernel with busybox, from the cache or the archive; or why there is none.
fn debian_guest(kitchen: &Kitchen<'_>, say: &dyn Fn(&str)) -> Result<DefaultGuest, String> {
    match debian::cached(Flavour::Cloud) {
        Some(guest) => Ok(guest),
        None if kitchen.offline => {
            Err("Debian's kernel is not in the cache, and --offline forbids to fetch it".to_owned())
        }
        None => debian::fetch(Flavour::Cloud, &mut |line| say(line))
            .map_err(|error| format!("no Debian guest: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Selection, Error> {
        Selection::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), false)
    }

    #[test]
    fn guests_and_groups_are_named() {
        let all = parse(&[]).unwrap();
        assert!(all.wants("boot", "boot") && all.wants("micro", "int") && all.wants("user", "any"));
        let some = parse(&["micro/int", "user/calls", "start"]).unwrap();
        assert!(some.wants("micro", "int") && !some.wants("micro", "sse") && !some.wants("boot", "boot"));
        assert_eq!(some.named("user"), Some(vec!["calls".to_owned()]));
        assert_eq!(all.named("user"), None);
        let quick = Selection::parse(&[], true).unwrap();
        assert!(
            all.wants("libraries", "any") && quick.wants("user", "any") && !quick.wants("libraries", "any")
        );
    }

    #[test]
    fn unknown_guests_are_refused_with_those_there_are() {
        for word in ["mirco", "micro/none", "boot/x", "/nonexistent/vmlinuz", ""] {
            let error = parse(&["start", word]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{word}`")) && error.contains("micro/int"), "{error}");
        }
    }

    #[test]
    fn every_guest_of_ours_is_in_one_group_and_listed() {
        let listed = list();
        for micro in guests::micro::all() {
            let count = listed.iter().filter(|(name, _)| name.ends_with(&format!("/{}", micro.name))).count();
            assert_eq!(count, 1, "{}", micro.name);
        }
    }
}
