//! Entries of the boot loader specification (UAPI.1), type 1: `loader/entries/*.conf`.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use crate::files::Files;
use crate::{Entry, grub};

/// Folders that hold `loader`: of a separate /boot, and of a root that has it.
const FOLDERS: [&str; 2] = ["", "/boot"];
/// Most entries that are read.
const ENTRIES_MAX: usize = 256;

/// The entry that would be booted.
pub(crate) fn entry(files: &Files) -> Option<Entry> {
    FOLDERS.iter().find_map(|folder| {
        let names = files.names(&format!("{folder}/loader/entries"));
        let texts = names.iter().filter(|name| name.ends_with(".conf")).take(ENTRIES_MAX);
        let texts: Vec<_> = texts
            .filter_map(|name| Some((name.clone(), files.text(&format!("{folder}/loader/entries/{name}"))?)))
            .collect();
        let loader = files.text(&format!("{folder}/loader/loader.conf")).unwrap_or_default();
        let variables = grub::environment(files, &["/grub2", "/boot/grub2", "/grub", "/boot/grub"]);
        choose(&texts, &loader, &variables)
    })
}

/// The best of entries `(file name, text)`: what `loader.conf` names, else the newest.
pub fn choose(
    texts: &[(String, String)],
    loader: &str,
    variables: &BTreeMap<String, String>,
) -> Option<Entry> {
    let mut entries: Vec<Read> =
        texts.iter().filter_map(|(name, text)| read(name, text, variables)).collect();
    entries.sort_by(|a, b| a.order(b));
    let default = loader.lines().find_map(|line| line.trim().strip_prefix("default ")).map(str::trim);
    let named = default.and_then(|pattern| entries.iter().position(|read| matches(pattern, &read.name)));
    (!entries.is_empty()).then(|| entries.swap_remove(named.unwrap_or(0)).entry)
}

struct Read {
    /// The file's name without `.conf`.
    name: String,
    sort_key: Option<String>,
    version: String,
    entry: Entry,
}

impl Read {
    /// The specification's order, best first: those with a sort key, by it; then the newest version; then the name.
    fn order(&self, other: &Self) -> Ordering {
        let key = |read: &Self| (read.sort_key.is_none(), read.sort_key.clone());
        key(self)
            .cmp(&key(other))
            .then_with(|| compare_versions(&other.version, &self.version))
            .then_with(|| compare_versions(&other.name, &self.name))
    }
}

fn read(name: &str, text: &str, variables: &BTreeMap<String, String>) -> Option<Read> {
    let name = name.trim_end_matches(".conf").to_owned();
    let mut read = Read { name, sort_key: None, version: String::new(), entry: Entry::default() };
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once([' ', '\t']) else { continue };
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut read.entry.title),
            "version" => value.clone_into(&mut read.version),
            "sort-key" => read.sort_key = Some(value.to_owned()),
            "linux" => value.clone_into(&mut read.entry.kernel),
            // Of what a tool may put there, variables of GRUB's stand for files that are not there yet.
            "initrd" => {
                let words = grub::expand(value, variables);
                read.entry.initrd.extend(words.split_whitespace().map(str::to_owned));
            }
            "options" => {
                let words = grub::expand(value, variables);
                read.entry.cmdline = format!("{} {words}", read.entry.cmdline).trim().to_owned();
            }
            _ => {}
        }
    }
    if read.entry.title.is_empty() {
        read.name.clone_into(&mut read.entry.title);
    }
    (!read.entry.kernel.is_empty()).then_some(read)
}

/// Versions as people count: numbers by their value.
pub(crate) fn compare_versions(a: &str, b: &str) -> Ordering {
    pieces(a).cmp(&pieces(b))
}

/// Runs of digits, as (length, digits) without leading zeroes, and what stands between them. A tilde comes before the end.
fn pieces(text: &str) -> Vec<(u8, usize, String)> {
    let mut pieces: Vec<(u8, usize, String)> = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (piece, behind) = rest.split_at(end);
        rest = behind;
        let number = piece.trim_start_matches('0');
        pieces.push(match digits {
            true => (3, number.len(), number.to_owned()),
            false if piece.starts_with('~') => (0, 0, piece.to_owned()),
            false => (2, 0, piece.to_owned()),
        });
    }
    pieces.push((1, 0, String::new()));
    pieces
}

/// Whether a pattern of loader.conf (`*` for anything) is `name`, with or without `.conf`.
fn matches(pattern: &str, name: &str) -> bool {
    let pattern = pattern.trim_end_matches(".conf");
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Orders kernels' names, newest first.
pub(crate) fn newest_first(names: &mut [String]) {
    names.sort_by_cached_key(|name| Reverse(pieces(name)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(name: &str, version: &str) -> (String, String) {
        let text = format!(
            "# made\ntitle Debian {version}\nversion {version}\nlinux /{name}/linux\ninitrd /{name}/a /b\noptions root=x $kernelopts\noptions quiet\n"
        );
        (format!("{name}.conf"), text)
    }

    #[test]
    fn the_newest_entry_or_the_one_that_is_named() {
        let variables = BTreeMap::from([("kernelopts".to_owned(), "ro".to_owned())]);
        let texts = [conf("m-6.9", "6.9"), conf("m-6.10", "6.10"), conf("m-6.10-rc", "6.10~rc1")];
        let best = choose(&texts, "", &variables).unwrap();
        assert_eq!(best.title, "Debian 6.10");
        assert_eq!(
            (best.kernel.as_str(), &best.initrd[..]),
            ("/m-6.10/linux", &["/m-6.10/a".to_owned(), "/b".to_owned()][..])
        );
        assert_eq!(best.cmdline, "root=x ro quiet");
        let named = |loader: &str| choose(&texts, loader, &variables).unwrap().title;
        assert_eq!(named("timeout 3\ndefault m-6.9.conf\n"), "Debian 6.9");
        assert_eq!(named("default m-*rc\n"), "Debian 6.10~rc1");
        assert_eq!(named("default other\n"), "Debian 6.10");
        assert_eq!(choose(&[("x.conf".into(), "title x\n".into())], "", &variables), None);
    }

    #[test]
    fn patterns_and_versions() {
        assert!(matches("a*c*e", "abcde") && matches("*", "") && matches("a", "a"));
        assert!(!matches("a*c*e", "abde") && !matches("a", "ab") && !matches("ab*b", "ab"));
        for (older, newer) in
            [("6.9", "6.10"), ("6.1.0-9", "6.1.0-10"), ("1~rc1", "1"), ("1", "1a"), ("9", "00010")]
        {
            assert_eq!(compare_versions(older, newer), Ordering::Less, "{older} {newer}");
        }
    }
}
