//! The initial RAM file system of the lab's machine: files, their shared libraries, modules, and a command.

use anyhow::{Context as _, Result, bail};
use guests::debian::DefaultGuest;
use guests::initramfs::{Compression, Initramfs};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const INIT: &str = include_str!("init.sh");
/// Folder of what was brought along, and where the command runs.
const FOLDER: &str = "lab";

/// What goes into the machine.
#[derive(Debug, Default, Clone)]
pub(super) struct Contents {
    /// Path in the machine, relative to its root, and the file it is a copy of.
    files: BTreeMap<String, PathBuf>,
}

impl Contents {
    /// Adds a file to the lab's folder, with the shared libraries it needs; or a folder with all in it.
    pub(super) fn add(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
        let name = name.to_str().with_context(|| format!("{} is no UTF-8", path.display()))?;
        self.add_as(path, &format!("{FOLDER}/{name}"))
    }

    /// The same under a path of one's own.
    pub(super) fn add_as(&mut self, path: &Path, at: &str) -> Result<()> {
        let read = || format!("cannot read {}", path.display());
        if fs::metadata(path).with_context(read)?.is_dir() {
            for entry in fs::read_dir(path).with_context(read)? {
                let path = entry.with_context(read)?.path();
                let name = path.file_name().and_then(|name| name.to_str());
                let name = name.with_context(|| format!("{} is no UTF-8", path.display()))?;
                self.add_as(&path, &format!("{at}/{name}"))?;
            }
            return Ok(());
        }
        for library in shared_libraries(path)? {
            self.files.insert(library.trim_start_matches('/').to_owned(), library.into());
        }
        self.files.insert(at.to_owned(), path.to_owned());
        Ok(())
    }

    /// The archive, in which `command` (program and arguments) is run between markers with `token`.
    pub(super) fn build(&self, guest: &DefaultGuest, command: &[String], token: &str) -> Result<Vec<u8>> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let init = INIT.replace("$LAB_TOKEN", token);
        let mut image = Initramfs::new(&read(&guest.busybox)?).init(&init);
        let mut order = String::new();
        for module in &guest.modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            image = image.file(&format!("modules/{name}"), 0o644, read(module)?)?;
            order += &format!("{name}\n");
        }
        image = image.file("modules/order", 0o644, order.into_bytes())?;
        for (at, path) in &self.files {
            let mode = fs::metadata(path).map_or(0o644, |meta| meta.permissions().mode());
            image = image.file(at, mode, read(path)?)?;
        }
        let line = format!("exec {}\n", quoted(command));
        image = image.file(&format!("{FOLDER}/.command"), 0o644, line.into_bytes())?;
        // Not compressed: unpacking would cost the emulated processor more than copying does.
        Ok(image.build(Compression::None))
    }
}

/// As a shell reads it back, word by word.
fn quoted(command: &[String]) -> String {
    let word = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    command.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Absolute paths of what the host's loader would map for a program; none for what is no dynamic program.
fn shared_libraries(program: &Path) -> Result<Vec<String>> {
    if !is_elf(program)? {
        return Ok(Vec::new());
    }
    let output = Command::new("ldd")
        .arg(fs::canonicalize(program)?)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("cannot run ldd, which tells the shared libraries of a program (Debian: libc-bin)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", program.display(), line.trim());
    }
    Ok(libraries(&text))
}

fn is_elf(path: &Path) -> Result<bool> {
    use std::io::Read as _;
    let read = || format!("cannot read {}", path.display());
    let mut magic = Vec::new();
    fs::File::open(path).with_context(read)?.take(4).read_to_end(&mut magic).with_context(read)?;
    Ok(magic == b"\x7fELF")
}

/// Reads ldd's lines: `name => /path (0x...)`, or `/path (0x...)` for the loader; the vDSO has no path.
fn libraries(ldd: &str) -> Vec<String> {
    let path = |line: &str| {
        let line = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = line.trim().split(" (0x").next()?;
        path.starts_with('/').then(|| path.to_owned())
    };
    ldd.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tstatically linked\n";
        assert_eq!(libraries(text), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn words_survive_a_shell() {
        let words = ["printf", "%s|", "it's", "a b", "$HOME", "", "\\", "\n"].map(str::to_owned);
        let output = Command::new("sh").arg("-c").arg(quoted(&words)).output().unwrap();
        assert_eq!(output.stdout, b"it's|a b|$HOME||\\|\n|");
    }

    /// This test program itself is dynamic, and its libraries are there.
    #[test]
    fn programs_bring_their_libraries() {
        let mut contents = Contents::default();
        contents.add(&std::env::current_exe().unwrap()).unwrap();
        assert!(contents.files.keys().any(|at| at.contains("libc.so")), "{contents:?}");
        assert!(contents.files.values().all(|path| path.exists()));
        contents.add(Path::new("/nonexistent")).unwrap_err();
    }
}
