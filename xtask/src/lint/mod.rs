//! Rules of the house that neither rustc nor clippy checks.
//!
//! * [`async_runtime`]: which folders may be asynchronous.
//! * [`crates`]: which crate of the workspace may depend on which, and that others' crates are accounted for.
//! * [`imports`]: which file of a crate may import which.
//! * [`text`]: what may stand in a source file, read through [`source`], which tells code from comments and strings.

mod async_runtime;
mod crates;
mod imports;
mod source;
mod text;

use crate::cargo;
use anyhow::{Context as _, Result, bail};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

/// One violation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Path relative to the workspace, or a crate's name.
    place: String,
    /// Counted from 1.
    line: Option<usize>,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All findings in the workspace around this program.
pub(crate) fn run() -> Result<Vec<Finding>> {
    let output = Command::new(cargo::program())
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata = crates::parse(&output.stdout)?;
    let mut findings = crates::check(&metadata);
    findings.extend(async_runtime::manifests(&metadata));
    let root = Path::new(&metadata.workspace_root);
    let documented = fs::read_to_string(root.join("docs/dependencies.md")).context("docs/dependencies.md")?;
    findings.extend(crates::undocumented(&metadata, &documented));
    let mut files = Vec::new();
    collect(root, &mut files)?;
    if files.is_empty() {
        bail!("no source file below {}", root.display());
    }
    files.sort();
    let mut contents = Vec::new();
    for file in files {
        let path = file.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        let content = fs::read_to_string(&file).with_context(|| format!("cannot read {path}"))?;
        findings.extend(text::check(&path, &content));
        contents.push((path, content));
    }
    findings.extend(imports::check(contents.iter().map(|(path, content)| (path.as_str(), content.as_str()))));
    Ok(findings)
}

/// Rust files below `folder`, but not what cargo or a fuzzer writes, nor hidden folders.
fn collect(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.') && !["target", "corpus", "artifacts"].contains(&&*name) {
                collect(&entry.path(), files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(entry.path());
        }
    }
    Ok(())
}
