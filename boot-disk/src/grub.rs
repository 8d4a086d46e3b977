//! GRUB's configuration, as `grub-mkconfig` writes it: menu, submenus, variables that are set, the default entry.
//!
//! Conditions are not evaluated: all branches count, the last assignment of a variable is the one that holds. So `default` is what
//! `GRUB_DEFAULT` says, and an entry that was chosen for the next boot only is not, since it could not be struck out.

use std::collections::BTreeMap;

use crate::Entry;
use crate::files::Files;

/// Where it lies: Debian's place, that of a separate /boot, and other distributions'.
const FOLDERS: [&str; 4] = ["/boot/grub", "/grub", "/boot/grub2", "/grub2"];
/// Submenus within submenus, and functions within whatever.
const DEPTH_MAX: usize = 8;
/// Most entries of all menus.
const ENTRIES_MAX: usize = 1024;
/// Longest word, however its variables are expanded.
const WORD_MAX: usize = 8192;

type Variables = BTreeMap<String, String>;

/// The default entry of a file system's configuration.
pub(crate) fn entry(files: &Files) -> Option<Entry> {
    FOLDERS.iter().find_map(|folder| {
        let text = files.text(&format!("{folder}/grub.cfg"))?;
        default_entry(&text, environment(files, &[folder]))
    })
}

/// The variables that GRUB keeps between boots.
pub(crate) fn environment(files: &Files, folders: &[&str]) -> BTreeMap<String, String> {
    let text = folders.iter().find_map(|folder| files.text(&format!("{folder}/grubenv")));
    let text = text.unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// The entry that a configuration boots by default. `variables` are those that are kept between boots.
pub fn default_entry(text: &str, mut variables: BTreeMap<String, String>) -> Option<Entry> {
    let mut parser = Parser { lines: text.lines(), variables: &mut variables, entries: 0 };
    let mut menu = Vec::new();
    parser.menu(&mut menu, 0);
    let default = variables.get("default").cloned().unwrap_or_default();
    select(&menu, &default).or_else(|| first(&menu)).cloned()
}

#[derive(Debug)]
enum Item {
    Entry { id: Option<String>, entry: Entry },
    Submenu { id: Option<String>, title: String, items: Vec<Item> },
}

/// The entry of a path such as `1>2`, of numbers, titles or ids.
fn select<'a>(mut items: &'a [Item], path: &str) -> Option<&'a Entry> {
    for part in path.split('>').map(str::trim) {
        let named = |item: &&Item| {
            let (Item::Entry { id, entry: Entry { title, .. } } | Item::Submenu { id, title, .. }) = *item;
            title == part || id.as_deref() == Some(part)
        };
        let numbered = || part.parse().ok().and_then(|number: usize| items.get(number));
        match numbered().or_else(|| items.iter().find(named))? {
            Item::Entry { entry, .. } => return (!entry.kernel.is_empty()).then_some(entry),
            Item::Submenu { items: inner, .. } => items = inner,
        }
    }
    first(items)
}

/// The first entry with a kernel.
fn first(items: &[Item]) -> Option<&Entry> {
    items.iter().find_map(|item| match item {
        Item::Entry { entry, .. } => (!entry.kernel.is_empty()).then_some(entry),
        Item::Submenu { items, .. } => first(items),
    })
}

struct Parser<'a> {
    lines: std::str::Lines<'a>,
    variables: &'a mut Variables,
    entries: usize,
}

impl Parser<'_> {
    /// Reads to the end of the text or of the block.
    fn menu(&mut self, items: &mut Vec<Item>, depth: usize) {
        while let Some(line) = self.lines.next() {
            let mut words = words(line, self.variables);
            let opens = words.last().is_some_and(|word| word == "{");
            if opens {
                words.pop();
            }
            match words.first().map(String::as_str) {
                Some("}") => return,
                Some("menuentry") if opens => {
                    let (title, id) = names(&words);
                    let mut entry = Entry { title, ..Entry::default() };
                    self.entry(&mut entry);
                    self.add(items, Item::Entry { id, entry });
                }
                Some("submenu") if opens && depth < DEPTH_MAX => {
                    let (title, id) = names(&words);
                    let mut inner = Vec::new();
                    self.menu(&mut inner, depth + 1);
                    self.add(items, Item::Submenu { id, title, items: inner });
                }
                Some("set") => self.set(&words),
                _ if opens => self.skip(),
                _ => {}
            }
        }
    }

    fn add(&mut self, items: &mut Vec<Item>, item: Item) {
        self.entries += 1;
        if self.entries <= ENTRIES_MAX {
            items.push(item);
        }
    }

    /// Reads the commands of an entry.
    fn entry(&mut self, entry: &mut Entry) {
        while let Some(line) = self.lines.next() {
            let words = words(line, self.variables);
            match words.first().map(String::as_str) {
                Some("}") => return,
                Some("linux" | "linux16" | "linuxefi") => {
                    entry.kernel = words.get(1).map(|path| plain_path(path)).unwrap_or_default();
                    let told = words.iter().skip(2).map(|word| quoted(word));
                    entry.cmdline = told.collect::<Vec<_>>().join(" ");
                }
                Some("initrd" | "initrd16" | "initrdefi") => {
                    entry.initrd = words.iter().skip(1).map(|path| plain_path(path)).collect();
                }
                Some("set") => self.set(&words),
                _ if words.last().is_some_and(|word| word == "{") => self.skip(),
                _ => {}
            }
        }
    }

    /// Passes over a block.
    fn skip(&mut self) {
        let mut depth = 1usize;
        for line in self.lines.by_ref() {
            let line = line.trim();
            if line.ends_with('{') {
                depth += 1;
            }
            if line.starts_with('}') {
                depth -= 1;
            }
            if depth == 0 {
                return;
            }
        }
    }

    fn set(&mut self, words: &[String]) {
        if let Some((name, value)) = words.get(1).and_then(|word| word.split_once('=')) {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }
}

/// Title and id of `menuentry` or `submenu`. `$menuentry_id_option` is `--id`, or nothing where it is not set.
fn names(words: &[String]) -> (String, Option<String>) {
    let title = words.get(1).cloned().unwrap_or_default();
    let at = words.iter().position(|word| word == "--id").map(|at| at + 1);
    (title, at.and_then(|at| words.get(at)).cloned())
}

/// A path without the device in front: `($root)/vmlinuz`.
fn plain_path(path: &str) -> String {
    let behind = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    behind.map_or(path, |(_, path)| path).to_owned()
}

/// A word as Linux reads it from its command line.
fn quoted(word: &str) -> String {
    if word.contains(' ') { format!("\"{word}\"") } else { word.to_owned() }
}

/// The words of a line, with variables expanded and quotes gone. A comment and what is behind a semicolon is left out.
fn words(line: &str, variables: &Variables) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = line.trim();
    while let Some(c) = rest.chars().next() {
        let behind = rest.get(c.len_utf8()..).unwrap_or_default();
        match c {
            ' ' | '\t' => {
                words.extend(word.take());
                rest = behind;
            }
            '#' if word.is_none() => break,
            ';' => break,
            '\'' => {
                let (inside, next) = behind.split_once('\'').unwrap_or((behind, ""));
                push(word.get_or_insert_default(), inside);
                rest = next;
            }
            '"' => {
                let (inside, next) = behind.split_once('"').unwrap_or((behind, ""));
                push(word.get_or_insert_default(), &expand(inside, variables));
                rest = next;
            }
            '$' => {
                let (value, next) = variable(behind, variables);
                // An empty one is no word.
                if !value.is_empty() {
                    push(word.get_or_insert_default(), value);
                }
                rest = next;
            }
            '\\' => {
                let next = behind.chars().next();
                word.get_or_insert_default().extend(next);
                rest = behind.get(next.map_or(0, char::len_utf8)..).unwrap_or_default();
            }
            c => {
                word.get_or_insert_default().push(c);
                rest = behind;
            }
        }
    }
    words.extend(word);
    words
}

/// A text with its variables expanded.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        push(&mut done, before);
        let (value, next) = variable(behind, variables);
        push(&mut done, value);
        rest = next;
    }
    push(&mut done, rest);
    done
}

/// Appends what there is room for.
fn push(word: &mut String, text: &str) {
    if word.len() + text.len() <= WORD_MAX {
        word.push_str(text);
    }
}

/// The value of the variable whose name, or `{name}`, `text` begins with, and what is behind.
fn variable<'a>(text: &'a str, variables: &'a Variables) -> (&'a str, &'a str) {
    let (name, rest) = match text.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
        Some(found) => found,
        None => {
            let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
            text.split_at(end)
        }
    };
    // What tells GRUB that an id follows.
    let value =
        if name == "menuentry_id_option" { "--id" } else { variables.get(name).map_or("", String::as_str) };
    (value, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
else
   set default="DEFAULT"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
  fi
}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'simple-1' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	set root='hd0,gpt1'
	echo	'Loading Linux 6.1 ...'
	linux	/boot/vmlinuz-6.1 root=UUID=1-2 ro  quiet dyndbg="file a +p"
	initrd	/boot/microcode ($root)/boot/initrd.img-6.1
}
submenu 'Advanced options' $menuentry_id_option 'advanced-1' {
	menuentry 'Debian, with 6.0' --class debian $menuentry_id_option 'old-1' {
		linux	/boot/vmlinuz-6.0 root=UUID=1-2 ro
	}
	menuentry 'Debian, with 5.9' {
		linux	/boot/vmlinuz-5.9
	}
}
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
	fwsetup
}
"#;

    fn kernel(default: &str) -> String {
        let saved = BTreeMap::from([("saved_entry".to_owned(), "advanced-1>1".to_owned())]);
        default_entry(&DEBIAN.replace("DEFAULT", default), saved).unwrap().kernel
    }

    #[test]
    fn debians_default_entry() {
        let entry = default_entry(&DEBIAN.replace("DEFAULT", "0"), BTreeMap::new()).unwrap();
        assert_eq!(entry.title, "Debian GNU/Linux");
        assert_eq!(entry.kernel, "/boot/vmlinuz-6.1");
        assert_eq!(entry.initrd, ["/boot/microcode", "/boot/initrd.img-6.1"]);
        assert_eq!(entry.cmdline, r#"root=UUID=1-2 ro quiet "dyndbg=file a +p""#);
    }

    #[test]
    fn entries_are_named_by_number_title_and_id() {
        for (default, version) in [
            ("1>0", "6.0"),
            ("Advanced options>Debian, with 5.9", "5.9"),
            ("advanced-1>old-1", "6.0"),
            ("${saved_entry}", "5.9"),
            ("1", "6.0"),
            // Not there, and without a kernel: the first.
            ("7", "6.1"),
            ("uefi-firmware", "6.1"),
        ] {
            assert_eq!(kernel(default), format!("/boot/vmlinuz-{version}"), "{default}");
        }
    }

    #[test]
    fn every_piece_of_it_ends() {
        for end in (0..DEBIAN.len()).filter(|end| DEBIAN.is_char_boundary(*end)) {
            let _ = default_entry(&DEBIAN[..end], BTreeMap::new());
            let _ = default_entry(&DEBIAN[end..], BTreeMap::new());
        }
        let nested = "submenu x {\n".repeat(100_000);
        assert_eq!(default_entry(&nested, BTreeMap::new()), None);
        // A variable that doubles itself stays bounded.
        let doubling = "set a=\"x${a}${a}\"\n".repeat(200) + "menuentry a {\nlinux /k $a\n}\n";
        assert!(default_entry(&doubling, BTreeMap::new()).unwrap().cmdline.len() <= WORD_MAX);
    }
}
