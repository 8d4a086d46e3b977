//! What the oracle covers: every instruction of the CPU models, by size of code.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use accel_api::x86::{CpuFeatures, Feature};
use iced_x86::Code;

use super::case::CodeSize;
use super::run::is_defined;
use super::select::{Excluded, excluded, exists};

/// How an instruction is tested.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tested {
    /// Against the host's processor.
    Natively,
    /// By a table test.
    ByTable(Excluded),
    /// Not at all: it has no semantics.
    Missing,
}

/// Every instruction that some CPU model may have, in code of `size`, and how it is tested. The same on every host.
pub fn instructions(size: CodeSize) -> impl Iterator<Item = (Code, Tested)> {
    let features = CpuFeatures::of(Feature::ALL);
    Code::values().filter(move |&code| exists(code, size, &features)).map(move |code| {
        let tested = match excluded(code, size) {
            _ if !is_defined(code) => Tested::Missing,
            Some(excluded) => Tested::ByTable(excluded),
            None => Tested::Natively,
        };
        (code, tested)
    })
}

/// The summary in docs/cpu.md: numbers by size of code, what is not run natively with its reason and its test, and what
/// processors do differently.
pub fn summary() -> String {
    let mut text =
        String::from("| code | instructions | on the host's processor | by table tests | missing |\n");
    text += "|---|---|---|---|---|\n";
    let mut reasons: BTreeMap<Excluded, BTreeMap<String, Vec<u32>>> = BTreeMap::new();
    for size in CodeSize::ALL {
        let (mut natively, mut tables, mut missing) = (0, 0, 0);
        for (code, tested) in instructions(size) {
            match tested {
                Tested::Natively => natively += 1,
                Tested::Missing => missing += 1,
                Tested::ByTable(why) => {
                    tables += 1;
                    let name = format!("{:?}", code.mnemonic()).to_uppercase();
                    let sizes = reasons.entry(why).or_default().entry(name).or_default();
                    if sizes.last() != Some(&size.bitness()) {
                        sizes.push(size.bitness());
                    }
                }
            }
        }
        let all = natively + tables + missing;
        let bits = size.bitness();
        let _ = writeln!(text, "| {bits} bits | {all} | {natively} | {tables} | {missing} |");
    }
    text += "\n| not run natively | why | test |\n|---|---|---|\n";
    for (Excluded { reason, test: (file, test) }, names) in &reasons {
        let list: Vec<String> = names
            .iter()
            .map(|(name, sizes)| match sizes.len() {
                3 => name.clone(),
                _ => {
                    let sizes: Vec<String> = sizes.iter().map(u32::to_string).collect();
                    format!("{name} ({})", sizes.join(", "))
                }
            })
            .collect();
        let _ = writeln!(text, "| {} | {reason} | `{test}` in `{file}` |", list.join(", "));
    }
    text += "\n";
    text += &super::known::table();
    text
}

/// `document` with the summary between its markers brought up to date; `None` without markers.
pub fn with_summary(document: &str) -> Option<String> {
    const BEGIN: &str = "<!-- begin: cargo xtask oracle --write-docs -->\n";
    const END: &str = "<!-- end -->\n";
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}{END}{after}", summary()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_are_current() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cpu.md");
        let text = std::fs::read_to_string(path).unwrap();
        let current = with_summary(&text).unwrap();
        assert!(text == current, "run `cargo xtask oracle --write-docs`");
    }

    #[test]
    fn every_instruction_of_the_models_is_tested() {
        for size in CodeSize::ALL {
            let missing: Vec<_> = instructions(size).filter(|(_, t)| *t == Tested::Missing).collect();
            assert!(missing.is_empty(), "{size:?}: {missing:?}");
            assert!(instructions(size).count() > 1500);
        }
    }

    #[test]
    fn the_named_tests_exist() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../x86-core/src/exec");
        for (code, tested) in CodeSize::ALL.into_iter().flat_map(instructions) {
            let Tested::ByTable(Excluded { test: (file, test), .. }) = tested else { continue };
            let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
            assert!(text.contains(&format!("#[test]\nfn {test}()")), "{code:?}: no {test} in {file}");
        }
    }
}
