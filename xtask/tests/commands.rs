//! The commands as they are typed.

use std::path::PathBuf;
use std::process::{Command, Output};

fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments).env("RUST_BACKTRACE", "0");
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("gearshift-xtask-{}-{name}", std::process::id()))
}

#[test]
fn guests_are_written() {
    let out = temporary("int.elf");
    let status = xtask(&["guest", "int", out.to_str().unwrap()]).status().unwrap();
    let elf = std::fs::read(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    assert!(status.success());
    assert_eq!(elf, guests::micro::find("int").unwrap().elf);
}

#[test]
fn an_unknown_guest_lists_the_known() {
    let output = xtask(&["guest", "nothing", "/dev/null"]).output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("embedded, int, calls"), "{}", text(&output));
}

/// A host without apt: one line, and nothing in the cache that looks like a guest.
#[test]
fn a_host_without_apt_is_told_so() {
    let cache = temporary("cache");
    let output = xtask(&["fetch"]).env("PATH", "").env("GEARSHIFT_CACHE", &cache).output().unwrap();
    let left: Vec<_> =
        std::fs::read_dir(cache.join("debian/cloud")).unwrap().map(|e| e.unwrap().file_name()).collect();
    std::fs::remove_dir_all(&cache).unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("this host has no apt"), "{}", text(&output));
    assert_eq!(left, ["lock"]);
}

#[test]
fn an_unusable_cache_folder_is_told() {
    let file = temporary("file");
    std::fs::write(&file, "").unwrap();
    let output = xtask(&["fetch"]).env("GEARSHIFT_CACHE", &file).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("cache folder"), "{}", text(&output));
}
