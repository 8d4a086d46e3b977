//! Programs for Linux user space that measure and check classes of work, on the host and in guests.
//!
//! 1. There are two ([`Suite`]): `user-suite`, a static executable of our own code, and `library-suite`, which drives
//!    libraries of Debian's. Both are built for the baseline x86-64 by cargo, from the sources beside this crate.
//! 2. [`build`] makes one and fetches what it needs: a [`Program`], which is a set of files. The same files make the
//!    command on the host ([`Program::native`]) and the content of an initramfs ([`Program::initramfs`]), so host and
//!    guest execute identical code. `library-suite` is started by Debian's loader on both sides.
//! 3. Both take `[--millis N] [CLASS...]` and print a line for each class ([`parse`]). [`Program::classes`] asks for the
//!    classes there are.

use crate::debian::{self, FetchError, LIBRARIES, LOADER, Libraries};
use crate::initramfs::{Initramfs, InitramfsError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

/// One of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// Our own code, with the C library as the only other: integer, floating point, memory, system calls, processes,
    /// generated code, threads.
    User,
    /// Debian's libraries: compression, a database, an interpreter, digests.
    Libraries,
}

impl Suite {
    /// Both, in the order of reports.
    pub const ALL: [Self; 2] = [Self::User, Self::Libraries];

    /// Name of the executable, also that of its package.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user-suite",
            Self::Libraries => "library-suite",
        }
    }

    /// How the C library is linked. The baseline processor, whatever the user builds other things for; and no symbols,
    /// since the file travels in the initramfs.
    fn flags(self) -> &'static str {
        match self {
            Self::User => "-C target-cpu=x86-64 -C strip=symbols -C target-feature=+crt-static",
            Self::Libraries => "-C target-cpu=x86-64 -C strip=symbols -C target-feature=-crt-static",
        }
    }
}

/// Why there is no program, or why it does not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuiteError {
    /// cargo could not build it.
    #[error("cannot build {name}: {command}\n{output}")]
    Build {
        /// Of the suite.
        name: &'static str,
        /// What was run.
        command: String,
        /// What it said.
        output: String,
    },
    /// The sources are not where this crate was compiled.
    #[error("cannot build {name}: its sources are no longer in {folder}; name the folder of a checkout")]
    NoSource {
        /// Of the suite.
        name: &'static str,
        /// Where they were.
        folder: PathBuf,
    },
    /// Debian's libraries could not be had.
    #[error("the libraries of library-suite: {0}")]
    Fetch(#[from] FetchError),
    /// It does not start on this host.
    #[error("a suite does not run on this host: {command}: {output}")]
    DoesNotRun {
        /// What was run.
        command: String,
        /// What it said, or why it could not be started.
        output: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be put into an archive.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
}

/// A suite, ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Which.
    pub suite: Suite,
    /// The executable.
    pub executable: PathBuf,
    /// What it is linked against; nothing if it is static.
    pub libraries: Option<Libraries>,
}

/// A class of a suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// What it is called on the command line and in its line of the report.
    pub name: String,
    /// What a unit of it does, for people.
    pub about: String,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The folder of the workspace that this crate was compiled in.
pub fn source() -> &'static Path {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.parent().unwrap_or(crate_folder)
}

/// Builds a suite from the workspace in `source` (see [`source()`]) into its target folder, and obtains its libraries
/// from the cache or the archive. `progress` gets one-line messages for the user.
///
/// # Errors
/// See [`SuiteError`].
pub fn build(suite: Suite, source: &Path, progress: &mut dyn FnMut(&str)) -> Result<Program, SuiteError> {
    let libraries = match suite {
        Suite::User => None,
        Suite::Libraries => Some(debian::fetch_libraries(progress)?),
    };
    progress(&format!("building {}", suite.name()));
    let executable = compile(suite, source)?;
    Ok(Program { suite, executable, libraries })
}

/// The executable. Each suite has a target folder of its own: cargo would build everything anew at each change of flags.
fn compile(suite: Suite, source: &Path) -> Result<PathBuf, SuiteError> {
    let name = suite.name();
    if !source.join("Cargo.toml").exists() {
        return Err(SuiteError::NoSource { name, folder: source.to_owned() });
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| source.join("target"), PathBuf::from);
    let target = source.join(target).join(name);
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--package", name, "--target", TARGET, "--target-dir"]);
    cargo.arg(&target).current_dir(source).stdin(Stdio::null());
    cargo.env("RUSTFLAGS", suite.flags()).env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = match cargo.output() {
        Ok(output) if output.status.success() => {
            return Ok(target.join(TARGET).join("release").join(name));
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    Err(SuiteError::Build { name, command: format!("{cargo:?}"), output })
}

/// Folder of a guest's root that holds the files of [`Suite::Libraries`].
const GUEST_FOLDER: &str = "suite";

impl Program {
    /// The command that runs it on the host, without arguments for it yet.
    pub fn native(&self) -> Command {
        let mut command = match &self.libraries {
            None => return Command::new(&self.executable),
            Some(libraries) => {
                let mut command = Command::new(libraries.file(LOADER));
                command.arg("--library-path").arg(&libraries.folder);
                command
            }
        };
        command.arg(&self.executable);
        command
    }

    /// The same command in a guest that has [`Program::add_to`]'s files, for a shell.
    pub fn guest_command(&self) -> String {
        let name = self.suite.name();
        match self.libraries {
            None => format!("/bin/{name}"),
            Some(_) => {
                format!("/{GUEST_FOLDER}/{LOADER} --library-path /{GUEST_FOLDER} /{GUEST_FOLDER}/{name}")
            }
        }
    }

    /// Puts its files into an initramfs.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn add_to(&self, mut initramfs: Initramfs) -> Result<Initramfs, SuiteError> {
        let read =
            |path: &Path| fs::read(path).map_err(|source| SuiteError::Read { path: path.to_owned(), source });
        let name = self.suite.name();
        let Some(libraries) = &self.libraries else {
            return Ok(initramfs.file(&format!("bin/{name}"), 0o755, read(&self.executable)?)?);
        };
        for soname in LIBRARIES {
            let path = format!("{GUEST_FOLDER}/{soname}");
            initramfs = initramfs.file(&path, 0o755, read(&libraries.file(soname))?)?;
        }
        Ok(initramfs.file(&format!("{GUEST_FOLDER}/{name}"), 0o755, read(&self.executable)?)?)
    }

    /// The initramfs of a guest that runs it with these arguments and powers off: around `busybox`, with all its files
    /// and the script (see [`crate::initramfs`]).
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn initramfs(&self, busybox: &[u8], arguments: &str) -> Result<Initramfs, SuiteError> {
        let script = format!("{} {arguments}\n", self.guest_command());
        self.add_to(Initramfs::new(busybox).script(&script))
    }

    /// The classes it has, by its usage text.
    ///
    /// # Errors
    /// [`SuiteError::DoesNotRun`]: for example, Debian's C library in the cache may be older than the one that the
    /// executable was linked with.
    pub fn classes(&self) -> Result<Vec<Class>, SuiteError> {
        let mut command = self.native();
        command.arg("--help").stdin(Stdio::null());
        let line = format!("{command:?}");
        let fail = |output| SuiteError::DoesNotRun { command: line, output };
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => return Err(fail(error.to_string())),
        };
        let text = String::from_utf8_lossy(&output.stderr);
        let classes: Vec<_> = classes(&text).collect();
        if classes.is_empty() { Err(fail(text.trim().to_owned())) } else { Ok(classes) }
    }
}

fn classes(usage: &str) -> impl Iterator<Item = Class> {
    let lines = usage.lines().skip_while(|line| *line != "classes:").skip(1);
    lines.filter_map(|line| {
        let (name, about) = line.trim().split_once(' ')?;
        Some(Class { name: name.to_owned(), about: about.trim().to_owned() })
    })
}

/// What a line of a suite's report says of its class.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// `RESULT <class> iterations=<units> ns=<sum> best=<fastest unit> checksum=<16 hex digits>`
    Measured {
        /// Units that were timed, at least 1.
        units: u64,
        /// Nanoseconds all of them took.
        ns: u64,
        /// Nanoseconds the fastest took.
        best: u64,
        /// What every unit computed.
        checksum: u64,
    },
    /// `RESULT <class> unavailable: <reason>`: the processor or the system lacks what the class needs. No failure.
    Unavailable(String),
    /// The same as measured, with ` WRONG` at its end: a checksum was wrong. All of the line.
    Wrong(String),
}

/// What the console says of `class`; nothing if there is no such line, or one that is none.
pub fn parse(class: &str, console: &str) -> Option<Line> {
    if let Some(reason) = crate::unavailable(class, console) {
        return Some(Line::Unavailable(reason.to_owned()));
    }
    let start = format!("RESULT {class} ");
    let line = console.lines().map(str::trim_end).find(|line| line.starts_with(&start))?;
    if line.ends_with(" WRONG") {
        return Some(Line::Wrong(line.to_owned()));
    }
    let field = |name: &str, radix| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
        u64::from_str_radix(value, radix).ok()
    };
    let (units, ns, best) = (field("iterations", 10)?, field("ns", 10)?, field("best", 10)?);
    let checksum = field("checksum", 16)?;
    (units > 0).then_some(Line::Measured { units, ns, best, checksum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let console = "INIT\r\nRESULT a iterations=4 ns=1000 best=200 checksum=000000000000001a\r\n\
            RESULT ab unavailable: the processor has no AVX2\r\n\
            RESULT c iterations=4 ns=1000 best=200 checksum=0000000000000001 WRONG\r\n\
            RESULT d iterations=0 ns=1 best=1 checksum=00\r\nRESULT e iterations=1\r\n";
        let measured = Line::Measured { units: 4, ns: 1000, best: 200, checksum: 0x1a };
        assert_eq!(parse("a", console), Some(measured));
        assert_eq!(parse("ab", console), Some(Line::Unavailable("the processor has no AVX2".to_owned())));
        assert!(matches!(parse("c", console), Some(Line::Wrong(line)) if line.starts_with("RESULT c ")));
        for none in ["b", "d", "e", "INIT"] {
            assert_eq!(parse(none, console), None, "{none}");
        }
    }

    #[test]
    fn usage_tells_the_classes() {
        let usage = "usage: x [CLASS...]\nclasses:\n  zlib       deflate and inflate\n  b          c d\n";
        let classes: Vec<_> = classes(usage).collect();
        assert_eq!((classes.len(), classes[0].name.as_str()), (2, "zlib"));
        assert_eq!(classes[0].about, "deflate and inflate");
        assert_eq!(super::classes("error while loading shared libraries: x\n").count(), 0);
    }

    #[test]
    fn without_sources_the_folder_is_named() {
        let error = build(Suite::User, Path::new("/nonexistent"), &mut |_| {}).unwrap_err();
        assert!(matches!(error, SuiteError::NoSource { .. }), "{error}");
        assert!(error.to_string().contains("/nonexistent"));
    }

    #[test]
    fn guests_have_the_files_that_the_command_names() {
        let folder = env::temp_dir().join(format!("gearshift-suite-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for soname in LIBRARIES.iter().chain(&["library-suite"]) {
            fs::write(folder.join(soname), soname).unwrap();
        }
        let program = Program {
            suite: Suite::Libraries,
            executable: folder.join("library-suite"),
            libraries: Some(Libraries { folder: folder.clone(), version: String::new() }),
        };
        let archive = program
            .initramfs(b"busy", "--millis 1 x")
            .map(|it| it.build(crate::initramfs::Compression::None));
        fs::remove_dir_all(&folder).unwrap();
        let archive = String::from_utf8_lossy(&archive.unwrap()).into_owned();
        let command = "/suite/ld-linux-x86-64.so.2 --library-path /suite /suite/library-suite --millis 1 x\n";
        assert!(archive.contains(command));
        for soname in LIBRARIES.iter().chain(&["library-suite"]) {
            assert!(archive.contains(&format!("suite/{soname}\0")), "{soname}");
        }
        let native = program.native();
        assert_eq!(native.get_program(), folder.join(LOADER).as_os_str());
        assert_eq!(native.get_args().last(), Some(folder.join("library-suite").as_os_str()));
    }
}
