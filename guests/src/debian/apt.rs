//! The host's apt, run without root and without touching the host's state.

use super::FetchError;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A download that moves no byte for this long is given up.
const STALLED: Duration = Duration::from_secs(20);
/// The same for what needs no network, on a slow and busy host.
const SLOW: Duration = Duration::from_secs(120);

/// Whose package lists apt reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lists {
    Host,
    Private,
}

/// What `apt-cache show` tells of a package's candidate version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// Bytes to download.
    pub(super) size: u64,
    depends: Vec<String>,
}

/// apt with folders of its own below `scratch`.
#[derive(Debug)]
pub(super) struct Apt<'a> {
    scratch: &'a Path,
    architecture: &'static str,
    lists: Lists,
    /// What an update complained of; a later failure is then the network's.
    complaint: Option<String>,
}

impl<'a> Apt<'a> {
    pub(super) fn new(scratch: &'a Path, architecture: &'static str) -> Result<Self, FetchError> {
        let fail = |source| FetchError::Cache { path: scratch.to_owned(), source };
        for folder in ["state/lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(scratch.join(folder)).map_err(fail)?;
        }
        // Hooks of the host's configuration would work on the host's folders.
        let hooks = ["Pre-Invoke", "Post-Invoke", "Post-Invoke-Success"];
        let clear: String = hooks.map(|hook| format!("#clear APT::Update::{hook};\n")).concat();
        fs::write(scratch.join("apt.conf"), clear).map_err(fail)?;
        // No package is installed in a status file that is empty.
        fs::write(scratch.join("status"), "").map_err(fail)?;
        Ok(Self { scratch, architecture, lists: Lists::Host, complaint: None })
    }

    pub(super) fn lists(&self) -> Lists {
        self.lists
    }

    /// Fetches package lists into the private folder and uses those from now on.
    pub(super) fn update(&mut self) -> Result<(), FetchError> {
        self.lists = Lists::Private;
        let output = self.run("apt-get", &["update"], STALLED)?;
        // Its status tells little: it succeeds where nothing could be fetched, and fails where one index of many is out
        // of step. The complaint is kept for the moment a package turns out to be missing.
        self.complaint = output.complaint();
        Ok(())
    }

    /// Candidate version of `name`.
    pub(super) fn show(&self, name: &str) -> Result<Package, FetchError> {
        let output = self.run("apt-cache", &["show", "--no-all-versions", name], SLOW)?;
        match parse_show(&output.stdout) {
            Some(package) if output.success => Ok(package),
            _ => Err(match &self.complaint {
                Some(complaint) => FetchError::Network(complaint.clone()),
                None => FetchError::NoPackage(name.to_owned()),
            }),
        }
    }

    /// Follows dependencies from the package that is always named alike to the one that holds the kernel.
    pub(super) fn kernel_behind(&self, name: &str) -> Result<Package, FetchError> {
        let mut package = self.show(name)?;
        // Debian splits kernels as image (meta) -> image (version) and, in newer releases, -> binary (version).
        for _ in 0..3 {
            let next = package
                .depends
                .iter()
                .find(|d| d.starts_with("linux-image-") || d.starts_with("linux-binary-"))
                .cloned();
            match next {
                Some(next) => package = self.show(&next)?,
                None => break,
            }
        }
        if package.name == name {
            return Err(FetchError::NoPackage(format!("kernel behind {name}")));
        }
        Ok(package)
    }

    /// Downloads packages, verified by apt.
    pub(super) fn download(&self, names: &[&str]) -> Result<(), FetchError> {
        let mut arguments = vec!["download"];
        arguments.extend(names);
        let output = self.run("apt-get", &arguments, STALLED)?;
        if output.success { Ok(()) } else { Err(output.failure()) }
    }

    /// The file of a downloaded package.
    pub(super) fn downloaded(&self, name: &str) -> Result<PathBuf, FetchError> {
        let folder = self.scratch.join("packages");
        let prefix = format!("{name}_");
        let entries =
            fs::read_dir(&folder).map_err(|source| FetchError::Cache { path: folder.clone(), source })?;
        entries
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .ok_or_else(|| FetchError::Apt(format!("apt-get download succeeded and left no file of {name}")))
    }

    fn options(&self) -> Vec<OsString> {
        let scratch = |option: &str, path: &str| {
            let mut text = OsString::from(format!("{option}="));
            text.push(self.scratch.join(path));
            text
        };
        let mut options = vec![scratch("Dir::State::status", "status"), scratch("Dir::Cache", "cache")];
        if self.lists == Lists::Private {
            options.push(scratch("Dir::State", "state"));
            options.push(scratch("Dir::State::lists", "state/lists"));
        }
        let fixed = [
            "Debug::NoLocking=1",
            // As root, apt would become a user that cannot write here.
            "APT::Sandbox::User=root",
            "APT::Get::AllowUnauthenticated=false",
            "Acquire::AllowInsecureRepositories=false",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
            "Acquire::IndexTargets::deb-src::Sources::DefaultEnabled=false",
            "Acquire::Retries=1",
            "Acquire::http::Timeout=8",
            "Acquire::https::Timeout=8",
            "Acquire::ftp::Timeout=8",
        ];
        options.extend(fixed.map(OsString::from));
        options.push(format!("APT::Architecture={}", self.architecture).into());
        options.push(format!("APT::Architectures::={}", self.architecture).into());
        options
    }

    fn run(&self, tool: &'static str, arguments: &[&str], patience: Duration) -> Result<Output, FetchError> {
        let mut command = Command::new(tool);
        command.arg("-q").arg("-c").arg(self.scratch.join("apt.conf"));
        for option in self.options() {
            command.arg("-o").arg(option);
        }
        let spawned = command
            .args(arguments)
            .current_dir(self.scratch.join("packages"))
            // apt's words are read here, and translations differ.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(FetchError::NoTool(tool)),
            Err(error) => return Err(FetchError::Apt(format!("{tool}: {error}"))),
        };
        wait(child, patience, || size_of(self.scratch)).map_err(|error| match error {
            Wait::Stalled => {
                FetchError::Network(format!("nothing arrived for {} seconds", patience.as_secs()))
            }
            Wait::Failed(error) => FetchError::Apt(format!("{tool}: {error}")),
        })
    }
}

enum Wait {
    Stalled,
    Failed(io::Error),
}

/// Waits for `child`, ending it if `measure` does not change for `patience`.
fn wait(mut child: Child, patience: Duration, measure: impl Fn() -> u64) -> Result<Output, Wait> {
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let (mut size, mut since, mut checked) = (measure(), Instant::now(), Instant::now());
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) => {}
            Err(error) => break Err(Wait::Failed(error)),
        }
        if checked.elapsed() > Duration::from_millis(500) {
            checked = Instant::now();
            let now = measure();
            if now != size {
                (size, since) = (now, checked);
            }
        }
        if since.elapsed() > patience {
            break Err(Wait::Stalled);
        }
        thread::sleep(Duration::from_millis(10));
    };
    let status = status.inspect_err(|_| {
        // Its methods end when their pipes close.
        let _ = child.kill().and_then(|()| child.wait());
    })?;
    // A thread that panicked has read nothing worth telling.
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Ok(Output { success: status.success(), stdout: text(stdout), stderr: text(stderr) })
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is kept.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Bytes below a folder, of files as they are now: apt moves and removes them meanwhile.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[derive(Debug)]
struct Output {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Output {
    /// apt's last line about fetching, else its last error.
    fn complaint(&self) -> Option<String> {
        let last = |starts: [&str; 2]| {
            let line =
                self.stderr.lines().map(str::trim).rfind(|line| starts.iter().any(|s| line.starts_with(s)));
            line.map(str::to_owned)
        };
        last(["E: Failed to fetch", "W: Failed to fetch"]).or_else(|| last(["E: ", "E:\t"]))
    }

    fn reason(&self) -> String {
        let last = || self.stderr.lines().chain(self.stdout.lines()).last().map(str::trim).map(str::to_owned);
        self.complaint().or_else(last).unwrap_or_else(|| "it gave no reason".to_owned())
    }

    fn failure(&self) -> FetchError {
        let reason = self.reason();
        if let Some(name) = reason.strip_prefix("E: Unable to locate package ") {
            return FetchError::NoPackage(name.to_owned());
        }
        if ["fetch", "resolv", "connect", "timed out"].iter().any(|word| reason.contains(word)) {
            return FetchError::Network(reason);
        }
        FetchError::Apt(reason)
    }
}

/// First paragraph of `apt-cache show`: the fields this module wants.
fn parse_show(text: &str) -> Option<Package> {
    let paragraph = text.split("\n\n").next()?;
    let field = |name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    // "name (= version), other | alternative": the first alternative of each.
    let depends = field("Depends")
        .unwrap_or("")
        .split(',')
        .filter_map(|item| item.split(['(', '|', ':']).next())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    Some(Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        size: field("Size").and_then(|size| size.parse().ok()).unwrap_or(0),
        depends,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn show_is_read() {
        let text = "Package: linux-image-cloud-amd64\nSource: linux-signed\nVersion: 6.1.2-1\nSize: 1504\n\
            Depends: linux-image-6.1.0-2-cloud-amd64 (= 6.1.2-1), kmod | other, x:any\nDescription: a\n b\n\n\
            Package: old\nVersion: 1\n";
        let package = parse_show(text).unwrap();
        assert_eq!((package.name.as_str(), package.version.as_str()), ("linux-image-cloud-amd64", "6.1.2-1"));
        assert_eq!(package.size, 1504);
        assert_eq!(package.depends, ["linux-image-6.1.0-2-cloud-amd64", "kmod", "x"]);
        assert_eq!(parse_show(""), None);
        assert_eq!(parse_show("N: Unable to locate package x\n"), None);
    }

    #[test]
    fn failures_are_told_apart() {
        let output =
            |stderr: &str| Output { success: false, stdout: String::new(), stderr: stderr.to_owned() };
        let kind = |stderr: &str| output(stderr).failure();
        assert!(
            matches!(kind("W: x\nE: Unable to locate package abc\n"), FetchError::NoPackage(n) if n == "abc")
        );
        assert!(matches!(kind("E: Failed to fetch x  Could not resolve 'y'\nW: z"), FetchError::Network(_)));
        assert!(matches!(kind("E: The list of sources could not be read."), FetchError::Apt(_)));
        assert!(matches!(kind(""), FetchError::Apt(reason) if reason == "it gave no reason"));
        let partial = output("E: Failed to fetch b\n   Hashes:\nE: Some index files failed to download.\n");
        assert_eq!(partial.complaint().as_deref(), Some("E: Failed to fetch b"));
        let partial = output("W: Failed to fetch a\nW: Some index files failed to download.\n");
        assert_eq!(partial.complaint().as_deref(), Some("W: Failed to fetch a"));
    }

    #[test]
    fn a_stalled_child_is_ended() {
        let child =
            Command::new("sleep").arg("600").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        assert!(matches!(wait(child, Duration::from_millis(50), || 0), Err(Wait::Stalled)));
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
