//! The commands as they are typed.

use std::io::Write as _;
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
    let left: Vec<_> = std::fs::read_dir(cache.join("debian/guest-cloud"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
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

#[test]
fn a_lab_without_qemu_says_what_to_install() {
    let output = xtask(&["kvm-lab", "--", "true"]).env("PATH", "").output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output).contains("apt-get install qemu-system-x86"), "{}", text(&output));
}

/// Output and status are the command's; a command that does not end, and one that takes the machine with it, are told
/// apart from it and from each other.
#[test]
fn the_lab_runs_commands() {
    let installed = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    let cached = guests::debian::cached(guests::debian::Flavour::Cloud).is_some();
    if !installed || !cached {
        let line = "SKIPPED (optional): the_lab_runs_commands: no qemu-system-x86_64, or no Debian guest\n";
        // Past the harness, which swallows what a passing test prints.
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    let lab = |arguments: &[&str], command: &str| {
        let mut words = vec!["kvm-lab", "--mem", "512"];
        words.extend(arguments);
        words.extend(["--", "sh", "-c", command]);
        xtask(&words).output().unwrap()
    };
    let output = lab(&["/etc/passwd"], "test -c /dev/kvm && head -c 5 passwd; printf 'a\\tb' >&2; exit 42");
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(42), &b"root:a\tb"[..]),
        "{}",
        text(&output)
    );

    let output = lab(&["--timeout", "1"], "echo before; sleep 100");
    assert_eq!(output.status.code(), Some(124), "{}", text(&output));
    assert!(text(&output).contains("did not end in 1 s"), "{}", text(&output));

    let output = lab(&[], "echo last words; echo c >/proc/sysrq-trigger; sleep 100");
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    for part in ["without an end marker", "Kernel panic - not syncing: sysrq triggered crash"] {
        assert!(text(&output).contains(part), "{}", text(&output));
    }
}
