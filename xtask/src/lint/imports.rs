//! Which file of a crate imports which: parts of a crate that stand on each other in a circle cannot be read, tested or
//! replaced one at a time.
//!
//! An import is any path that begins with `crate`, `super` or `self`, in a `use` or elsewhere. Methods count where
//! their type is imported, and tests do not count. Folders of the crates in [`LAYERED`] must not import each other in a
//! cycle; files of a folder may in pairs, such as a type and its parts.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::source::lines;

/// Crates whose folders are layers.
const LAYERED: [&str; 1] = ["accel-dynasm"];

/// Most files that may import each other in a cycle.
const MOST_IN_A_CYCLE: usize = 2;

/// Nodes by name, and which others each imports.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// All cycles that are too large. `files`: paths relative to the workspace, and contents.
pub(super) fn check<'a>(files: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Vec<Finding> {
    LAYERED.iter().flat_map(|name| check_crate(name, files.clone())).collect()
}

fn check_crate<'a>(name: &str, files: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Finding> {
    let source = format!("{name}/src/");
    let modules: BTreeMap<Vec<String>, (&str, &str)> = files
        .filter_map(|(path, content)| path.strip_prefix(&source).map(|path| (path, content)))
        .filter(|(path, _)| !path.split(['/', '.']).any(|part| part == "tests"))
        .map(|(path, content)| (module(path), (path, content)))
        .collect();
    let (mut of_files, mut of_folders) = (Graph::new(), Graph::new());
    for (module, (path, content)) in &modules {
        let imported = paths(content).into_iter().filter_map(|path| resolve(module, &path));
        let owners =
            imported.map(|path| (0..=path.len()).rev().find_map(|n| modules.get_key_value(&path[..n])));
        let edges = of_files.entry((*path).to_owned()).or_default();
        for (other, (to, _)) in owners.flatten() {
            edges.insert((*to).to_owned());
            of_folders.entry(folder(module)).or_default().insert(folder(other));
        }
    }
    let mut findings = Vec::new();
    let mut report = |what: &str, cycle: &[String]| {
        let message = format!("{} {what} import each other in a cycle: {}", cycle.len(), cycle.join(", "));
        findings.push(Finding { place: source.clone(), line: None, message });
    };
    cycles(&of_folders).iter().filter(|cycle| cycle.len() > 1).for_each(|cycle| report("folders", cycle));
    cycles(&of_files)
        .iter()
        .filter(|cycle| cycle.len() > MOST_IN_A_CYCLE)
        .for_each(|cycle| report("files", cycle));
    findings
}

/// The module that a file of `src` is: nothing for the crate's root.
fn module(path: &str) -> Vec<String> {
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// The part of the crate that a module belongs to.
fn folder(module: &[String]) -> String {
    module.first().map_or("lib", String::as_str).to_owned()
}

/// `path` from the crate's root, as `module` means it.
fn resolve(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let (first, rest) = path.split_first()?;
    let mut base = match first.as_str() {
        "crate" => Vec::new(),
        "self" => module.to_vec(),
        _ => module[..module.len().checked_sub(1)?].to_vec(),
    };
    for part in rest {
        match part.as_str() {
            "super" => drop(base.pop()?),
            "self" => {}
            part => base.push(part.to_owned()),
        }
    }
    Some(base)
}

/// All paths in `content` that begin with `crate`, `super` or `self`, but for those of its tests.
fn paths(content: &str) -> Vec<Vec<String>> {
    let lines = lines(content);
    let tests = lines
        .windows(2)
        .position(|pair| pair[0].code.trim() == "#[cfg(test)]" && pair[1].code.trim() == "mod tests {");
    let lines = &lines[..tests.unwrap_or(lines.len())];
    let code: Vec<char> = lines.iter().flat_map(|line| line.code.chars().chain(['\n'])).collect();
    let (mut at, mut found) = (0, Vec::new());
    while at < code.len() {
        let word = word(&code[at..]);
        let starts = ["crate", "super", "self"].iter().any(|first| word.iter().copied().eq(first.chars()));
        let path = code[at + word.len()..].starts_with(&[':', ':']);
        at = if starts && path { tree(&code, at, &[], &mut found) } else { at + word.len().max(1) };
    }
    found
}

fn word(code: &[char]) -> &[char] {
    let len = code.iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
    &code[..len]
}

/// Takes the tree of paths at `at` apart, which go on from `prefix`; where it ends.
fn tree(code: &[char], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let blanks = |at: usize| at + code[at..].iter().take_while(|c| c.is_whitespace()).count();
    at = blanks(at);
    if code.get(at) == Some(&'{') {
        at = blanks(at + 1);
        while at < code.len() && code[at] != '}' {
            let next = blanks(tree(code, at, prefix, found));
            // A comma, or what is no tree.
            at = blanks(next.max(at) + usize::from(code.get(next) == Some(&',') || next == at));
        }
        return at + 1;
    }
    let word = word(&code[at..]);
    let path: Vec<String> =
        prefix.iter().cloned().chain((!word.is_empty()).then(|| word.iter().collect())).collect();
    at += word.len();
    if !word.is_empty() && code[at..].starts_with(&[':', ':']) {
        return tree(code, at + 2, &path, found);
    }
    found.push(path);
    if word.is_empty() && code.get(at) == Some(&'*') {
        return at + 1;
    }
    // `name as other`
    let as_ = blanks(at);
    if code[as_..].starts_with(&['a', 's', ' ']) { as_ + 3 + self::word(&code[as_ + 3..]).len() } else { at }
}

/// Sets of nodes of which each leads to each, those of one node left out unless it leads to itself.
fn cycles(graph: &Graph) -> Vec<Vec<String>> {
    let reach = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(node) = open.pop() {
            for next in graph.get(node).into_iter().flatten() {
                if seen.insert(next.as_str()) {
                    open.push(next);
                }
            }
        }
        seen
    };
    let all: BTreeMap<&str, BTreeSet<&str>> = graph.keys().map(|node| (node.as_str(), reach(node))).collect();
    let mut cycles: Vec<Vec<String>> = Vec::new();
    for (node, reached) in &all {
        let cycle: Vec<String> = reached
            .iter()
            .filter(|other| all.get(**other).is_some_and(|back| back.contains(node)))
            .map(|other| (*other).to_owned())
            .collect();
        if !cycle.is_empty() && !cycles.contains(&cycle) {
            cycles.push(cycle);
        }
    }
    cycles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(files: &[(&str, &str)]) -> Vec<String> {
        check_crate("a", files.iter().copied()).iter().map(|finding| finding.message.clone()).collect()
    }

    #[test]
    fn paths_are_taken_apart() {
        let text = "use crate::{a::{self, B, c::*}, d as e};\nuse super::super::f;\n// crate::g\nlet x = \"crate::h\";\n\
                    fn k() -> crate::i::J<u8> { crate::l::m::<u8>(my_crate::n) }\n#[cfg(test)]\nmod tests {\nuse crate::o;";
        let found: Vec<String> = paths(text).iter().map(|path| path.join("::")).collect();
        let expected =
            ["crate::a::self", "crate::a::B", "crate::a::c", "crate::d", "super::super::f", "crate::i::J"];
        assert_eq!(found, [&expected[..], &["crate::l::m"]].concat());
    }

    #[test]
    fn paths_are_resolved() {
        let names = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
        let at =
            |module: &str, path: &str| resolve(&module_of(module), &names(path)).map(|path| path.join("::"));
        fn module_of(text: &str) -> Vec<String> {
            super::module(text)
        }
        assert_eq!(at("b/c.rs", "super::d").as_deref(), Some("b::d"));
        assert_eq!(at("b/c.rs", "super::super::d").as_deref(), Some("d"));
        assert_eq!(at("b/mod.rs", "self::d").as_deref(), Some("b::d"));
        assert_eq!(at("b.rs", "super::d").as_deref(), Some("d"));
        assert_eq!(at("lib.rs", "super::d"), None);
    }

    #[test]
    fn layers_and_pairs_pass() {
        let files = [
            ("a/src/lib.rs", "mod low;\nmod high;\npub use high::X;"),
            ("a/src/low/mod.rs", "use self::pair::Y;"),
            ("a/src/low/pair.rs", "use super::Z;\nuse crate::low::pair::W;"),
            ("a/src/high.rs", "use crate::low::{Z, pair::Y};"),
            ("a/src/tests.rs", "use crate::high::X;"),
            ("b/src/low.rs", "use crate::high::X;"),
        ];
        assert_eq!(messages(&files), [""; 0]);
    }

    #[test]
    fn folders_in_a_cycle_are_found() {
        let files = [
            ("a/src/low/mod.rs", "use crate::high::X;"),
            ("a/src/high/mod.rs", "mod part;"),
            ("a/src/high/part.rs", "fn f() { crate::low::g() }"),
        ];
        assert_eq!(messages(&files), ["2 folders import each other in a cycle: high, low"]);
        let through_root = [("a/src/lib.rs", "use crate::low::X;"), ("a/src/low.rs", "use crate::X;")];
        assert_eq!(messages(&through_root), ["2 folders import each other in a cycle: lib, low"]);
    }

    #[test]
    fn three_files_in_a_cycle_are_found() {
        let files = [
            ("a/src/x/b.rs", "use super::c;"),
            ("a/src/x/c.rs", "use super::d;"),
            ("a/src/x/d.rs", "use crate::x::b;"),
            ("a/src/x/e.rs", "use super::b;"),
        ];
        assert_eq!(messages(&files), ["3 files import each other in a cycle: x/b.rs, x/c.rs, x/d.rs"]);
    }
}
