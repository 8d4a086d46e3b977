//! Where asynchronous code may be: in the device back ends and the control plane, and in what stands above them.
//!
//! Registers of devices, vCPU threads and accelerators are synchronous: a future that is polled there would hold a vCPU, or
//! a lock, for as long as a disk takes. So below those layers there is neither a runtime in a manifest, of any kind of
//! dependency, nor asynchronous code in a source file.

use super::Finding;
use super::crates::Metadata;
use super::source::Line;
use super::text::has_word;
use std::path::Path;

/// Top-level folders that may be asynchronous.
const ALLOWED: [&str; 4] = ["backends", "control", "servers", "gearshift"];
/// Runtimes and what comes with them: these crates, and those whose names begin with one of them and a hyphen.
const CRATES: [&str; 7] = ["tokio", "async-trait", "async-std", "futures", "smol", "mio", "pollster"];
/// The same in paths, and the language's own words. A raw identifier has no business here either.
const WORDS: [&str; 8] = ["async", "await", "tokio", "async_trait", "async_std", "futures", "smol", "mio"];

/// Manifests that name a runtime below the layers that may have one.
pub(super) fn manifests(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let manifest = Path::new(&package.manifest_path);
        let path = manifest.strip_prefix(&metadata.workspace_root).unwrap_or(manifest).to_string_lossy();
        if allowed(&path) {
            continue;
        }
        for dependency in package.dependencies.iter().filter(|dependency| is_runtime(&dependency.name)) {
            let message = format!("depends on {}, which is asynchronous: {}", dependency.name, places());
            findings.push(Finding { place: path.to_string(), line: None, message });
        }
    }
    findings
}

/// What line `number` of the file at `path` has of it.
pub(super) fn source(path: &str, line: &Line) -> Option<String> {
    let word = WORDS.iter().find(|word| has_word(&line.code, word))?;
    (!allowed(path)).then(|| format!("`{word}` is asynchronous: {}", places()))
}

fn allowed(path: &str) -> bool {
    path.split('/').next().is_some_and(|folder| ALLOWED.contains(&folder))
}

fn is_runtime(name: &str) -> bool {
    CRATES
        .iter()
        .any(|crate_| name.strip_prefix(crate_).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
}

fn places() -> String {
    format!("only {} may be", ALLOWED.map(|folder| format!("{folder}/")).join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::{crates, source, text};
    use super::*;

    fn found_in_manifest(folder: &str, dependency: &str, kind: &str) -> Vec<String> {
        let json = format!(
            r#"{{"workspace_root":"/w","packages":[{{"name":"p","manifest_path":"/w/{folder}/Cargo.toml",
               "dependencies":[{{"name":"serde","kind":null}},{{"name":"{dependency}","kind":{kind}}}]}}]}}"#
        );
        manifests(&crates::parse(json.as_bytes()).unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_runtime_below_is_found_in_every_kind_of_dependency() {
        for dependency in ["tokio", "tokio-util", "async-trait", "futures", "futures-util", "smol"] {
            for kind in ["null", r#""dev""#, r#""build""#] {
                let found = found_in_manifest("devices", dependency, kind);
                let expected = format!(
                    "devices/Cargo.toml: depends on {dependency}, which is asynchronous: only backends/, control/, \
                     servers/, gearshift/ may be"
                );
                assert_eq!(found, [expected], "{kind}");
            }
        }
    }

    #[test]
    fn a_runtime_above_is_not_and_neither_is_another_crate() {
        for folder in ["backends", "control", "servers/web", "gearshift"] {
            assert!(found_in_manifest(folder, "tokio", "null").is_empty(), "{folder}");
        }
        // A folder's name is compared whole, a crate's up to a hyphen.
        assert_eq!(found_in_manifest("backends2", "tokio", "null").len(), 1);
        assert_eq!(found_in_manifest("guests/backends", "tokio", "null").len(), 1);
        for other in ["smoltcp", "tokiometer", "signal-hook"] {
            assert!(found_in_manifest("devices", other, "null").is_empty(), "{other}");
        }
    }

    #[test]
    fn asynchronous_code_below_is_found_by_line() {
        let content =
            "fn f() {}\nasync fn g() {}\nlet x = h().await;\nuse tokio::sync::mpsc;\n#[async_trait]\n";
        let found = |path: &str| -> Vec<_> {
            text::check(path, content).iter().map(|finding| finding.line.unwrap()).collect()
        };
        assert_eq!(found("machine/src/vm.rs"), [2, 3, 4, 5]);
        assert_eq!(found("accel-api/src/lib.rs"), [2, 3, 4, 5]);
        assert!(found("backends/src/disk.rs").is_empty());
        assert!(found("control/src/lib.rs").is_empty());
    }

    #[test]
    fn words_of_comments_literals_and_longer_names_are_none() {
        let content = "// tokio, async\nlet s = \"await\";\nlet async_exit = is_async;\nuse smoltcp::wire;\n";
        let lines = source::lines(content);
        assert!(lines.iter().all(|line| super::source("machine/src/vm.rs", line).is_none()));
    }
}
