//! Who may depend on whom. The table is the one of `ARCHITECTURE.md`.

use super::Finding;
use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Crate and the workspace crates it may use in its library, binary or build script. Development dependencies are free:
/// tests may look at everything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("accel-api", &[]),
    ("x86-core", &["accel-api"]),
    ("accel-interp", &["accel-api", "x86-core"]),
    ("accel-dynasm", &["accel-api", "accel-interp", "x86-core"]),
    ("accel-kvm", &["accel-api"]),
    ("state", &[]),
    ("backends", &["user-net"]),
    ("user-net", &[]),
    ("boot-disk", &[]),
    ("devices", &["accel-api", "backends", "state"]),
    ("machine", &["accel-api", "accel-interp", "accel-dynasm", "accel-kvm", "backends", "devices", "state"]),
    ("compare", &["accel-api", "machine", "guests"]),
    ("gearshift", &["accel-api", "backends", "boot-disk", "compare", "machine", "guests"]),
    ("guests", &[]),
    ("testkit", &["accel-api", "x86-core", "guests"]),
    (
        "benches",
        &[
            "accel-api",
            "accel-interp",
            "accel-dynasm",
            "accel-kvm",
            "backends",
            "compare",
            "devices",
            "guests",
            "machine",
            "testkit",
            "x86-core",
        ],
    ),
    ("suite-runner", &[]),
    ("user-suite", &["suite-runner"]),
    ("library-suite", &["suite-runner"]),
    ("xtask", &["guests", "machine", "testkit"]),
];

/// What we read of `cargo metadata --no-deps`.
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    pub(super) workspace_root: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Package {
    name: String,
    /// Absolute.
    #[serde(default)]
    pub(super) manifest_path: String,
    pub(super) dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Dependency {
    pub(super) name: String,
    /// Absent for the normal kind, else "dev" or "build".
    kind: Option<String>,
}

pub(super) fn parse(json: &[u8]) -> Result<Metadata> {
    serde_json::from_slice(json).context("cargo metadata wrote something unexpected")
}

/// Every crate of others that a manifest names, and `documented` (docs/dependencies.md) does not.
pub(super) fn undocumented(metadata: &Metadata, documented: &str) -> Vec<Finding> {
    let ours = |name: &str| metadata.packages.iter().any(|package| package.name == name);
    let mut missing: Vec<_> = metadata.packages.iter().flat_map(|package| &package.dependencies).collect();
    missing.retain(|d| !ours(&d.name) && !documented.contains(&format!("| `{}` |", d.name)));
    missing.sort_by_key(|d| &d.name);
    missing.dedup_by_key(|d| &d.name);
    let finding = |d: &Dependency| Finding {
        place: "docs/dependencies.md".to_owned(),
        line: None,
        message: format!("does not say what {} is for", d.name),
    };
    missing.into_iter().map(finding).collect()
}

pub(super) fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let mut report =
            |message| findings.push(Finding { place: package.name.clone(), line: None, message });
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == package.name) else {
            report("no rule says what this crate may depend on (xtask/src/lint/crates.rs)".to_owned());
            continue;
        };
        for dependency in &package.dependencies {
            let ours = metadata.packages.iter().any(|p| p.name == dependency.name);
            let dev = dependency.kind.as_deref() == Some("dev");
            if ours && !dev && !allowed.contains(&dependency.name.as_str()) {
                report(format!("must not depend on {}", dependency.name));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(packages: &str) -> Vec<String> {
        let json = format!(r#"{{"packages":[{packages}],"workspace_root":"/w","other":1}}"#);
        check(&parse(json.as_bytes()).unwrap()).iter().map(ToString::to_string).collect()
    }

    const API: &str = r#"{"name":"accel-api","dependencies":[{"name":"serde","kind":null}]}"#;
    const INTERP: &str = r#"{"name":"accel-interp","dependencies":[{"name":"accel-api","kind":null}]}"#;

    #[test]
    fn allowed_edges_pass() {
        assert!(findings(&format!("{API},{INTERP}")).is_empty());
    }

    #[test]
    fn forbidden_edges_are_found_by_kind() {
        let devices = |kind: &str| {
            format!(
                r#"{API},{INTERP},{{"name":"devices","dependencies":[{{"name":"accel-interp","kind":{kind}}}]}}"#
            )
        };
        let expected = ["devices: must not depend on accel-interp"];
        assert_eq!(findings(&devices("null")), expected);
        assert_eq!(findings(&devices(r#""build""#)), expected);
        assert!(findings(&devices(r#""dev""#)).is_empty());
    }

    #[test]
    fn dependencies_are_documented() {
        let metadata =
            parse(format!(r#"{{"packages":[{API},{INTERP}],"workspace_root":"/w"}}"#).as_bytes()).unwrap();
        assert_eq!(undocumented(&metadata, "| `serde` | x | y |"), []);
        let found = undocumented(&metadata, "nothing of serde");
        assert_eq!((found.len(), found[0].message.contains("serde")), (1, true));
    }

    #[test]
    fn a_crate_without_a_rule_is_found() {
        let found = findings(r#"{"name":"novel","dependencies":[]}"#);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("novel: no rule"));
    }

    #[test]
    fn every_rule_names_crates_with_rules() {
        for (name, allowed) in MAY_USE {
            for other in *allowed {
                assert!(MAY_USE.iter().any(|(n, _)| n == other), "{name}: {other}");
                // A cycle of two would make layers meaningless.
                let back = MAY_USE.iter().find(|(n, _)| n == other).unwrap().1;
                assert!(!back.contains(name), "{name} and {other}");
            }
        }
    }
}
