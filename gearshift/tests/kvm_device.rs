//! Whatever stands in the place of KVM's device: `probe` tells what it is and what helps, `auto` does without, and whoever
//! asks for KVM gets one line and an exit code of its own.

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{IDLE, file, gearshift, path, pvh_elf, stderr, stdout};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::Value;

const ACCELERATOR: i32 = 4;
/// A guest that says how it ended: `mov al, 1; out 0xf4, al`, which is exit code 3.
const QUIT: &[u8] = b"\xb0\x01\xe6\xf4\xfa\xf4";

/// What the program says with `device` in the place of KVM's.
struct Told {
    /// The entry of `probe --json`.
    entry: Value,
    auto: Value,
    /// The line with which `run --accel kvm` refuses.
    refusal: String,
}

/// Asks `program`, a command that runs gearshift with these arguments.
fn ask(device: &Path, program: &dyn Fn(&[&str]) -> Command) -> Told {
    let run = |arguments: &[&str]| program(arguments).env("GEARSHIFT_KVM_DEVICE", device).output().unwrap();
    let output = run(&["probe", "--json"]);
    let report: Value =
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    let entry = kvm_entry(&report);
    let table = stdout(&run(&["probe"]));
    for text in [&entry["reason"], &entry["remedy"]] {
        assert!(table.contains(text.as_str().unwrap()), "{text}\n{table}");
    }

    let kernel = file(&pvh_elf(IDLE));
    let output = run(&["run", "--accel", "kvm", "--kernel", path(&kernel)]);
    let refusal = stderr(&output);
    assert_eq!(output.status.code(), Some(ACCELERATOR), "{refusal}");
    assert_eq!(refusal.lines().count(), 1, "{refusal}");
    Told { entry, auto: report["auto"].clone(), refusal }
}

/// Says that this host has nothing to try `what` on.
fn skipped(what: &str) {
    // Past the harness, which would keep it to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED (optional): {what}");
}

fn kvm_entry(report: &Value) -> Value {
    let list = report["accelerators"].as_array().unwrap();
    list.iter().find(|entry| entry["name"] == "kvm").unwrap().clone()
}

#[track_caller]
fn assert_told(told: &Told, missing: &str, words: &[&str]) {
    let Told { entry, auto, refusal } = told;
    assert_eq!((&entry["status"], &entry["missing"]), (&"absent".into(), &missing.into()), "{entry}");
    assert_eq!(auto, "jit");
    for word in words {
        assert!(refusal.contains(word), "no {word:?} in {refusal}");
    }
    assert!(refusal.contains(entry["reason"].as_str().unwrap()), "{refusal}");
    assert!(refusal.contains(entry["remedy"].as_str().unwrap()), "{refusal}");
}

#[test]
fn files_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let regular = file(b"/dev/kvm");
    let fifo = folder.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    for (device, missing, words) in [
        (Path::new("/nonexistent/kvm"), "no-device", ["/nonexistent/kvm", "does not exist"]),
        (Path::new("/dev/null"), "wrong-device", ["/dev/null", "another device"]),
        (regular.path(), "wrong-device", [path(&regular), "regular file"]),
        (folder.path(), "wrong-device", ["folder", "/dev/kvm"]),
        (&fifo, "wrong-device", ["FIFO", "/dev/kvm"]),
    ] {
        assert_told(&ask(device, &gearshift), missing, &words);
    }
}

/// The device as a distribution has it, and as some broken host has it, asked by nobody.
#[test]
fn no_permission() {
    if !rustix::process::geteuid().is_root() {
        return skipped("a device without permission: only root makes one");
    }
    const NOBODY: u32 = 65534;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Nobody may not look into our folders. Another process copies: children that other tests start meanwhile would have the
    // file open to be written for a moment, and it could not be executed.
    let program = folder.path().join("gearshift");
    assert!(
        Command::new("cp").arg(env!("CARGO_BIN_EXE_gearshift")).arg(&program).status().unwrap().success()
    );
    let group = fs::read_to_string("/etc/group").unwrap();
    let group =
        group.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|line| line[0] == "daemon");
    let gid: u32 = group.unwrap()[2].parse().unwrap();

    for (mode, words) in [(0o660, ["group daemon", "usermod -aG daemon"]), (0, ["mode 0000", "chgrp kvm"])] {
        let device = folder.path().join(format!("kvm-{mode:o}"));
        mknodat(CWD, &device, FileType::CharacterDevice, Mode::empty(), makedev(10, 232)).unwrap();
        std::os::unix::fs::chown(&device, Some(0), Some(gid)).unwrap();
        fs::set_permissions(&device, fs::Permissions::from_mode(mode)).unwrap();
        let told = ask(&device, &|arguments| {
            let mut command = Command::new(&program);
            command.args(arguments).uid(NOBODY).gid(NOBODY).stdin(Stdio::null()).current_dir("/");
            command
        });
        assert_told(&told, "no-permission", &words);
    }
}

/// `auto` without a device boots, and says in one line what it does without.
#[test]
fn auto_does_without() {
    let kernel = file(&pvh_elf(QUIT));
    let run = |accel: &str| {
        let mut command = gearshift(&["run", "--accel", accel, "--kernel", path(&kernel)]);
        let output = command.env("GEARSHIFT_KVM_DEVICE", "/nonexistent/kvm").output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        stderr(&output)
    };
    for accel in ["auto", "kvm,jit"] {
        let text = run(accel);
        let line = "gearshift: accel: jit (kvm: /nonexistent/kvm does not exist)";
        assert!(text.lines().any(|other| other == line), "{text}");
    }
    assert!(!run("jit").contains("accel:"), "what was asked for needs no explanation");
}

/// The device of the host the tests run on, whoever provides it.
#[test]
fn this_hosts_own() {
    if !Path::new("/dev/kvm").exists() {
        return skipped("the host's KVM: there is no /dev/kvm");
    }
    let output = gearshift(&["probe", "--json"]).output().unwrap();
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let entry = kvm_entry(&report);
    if entry["status"] != "available" {
        assert!(entry["remedy"].is_string() && report["auto"] == "jit", "{report:#}");
        return skipped(&format!("the host's KVM: {}", entry["reason"]));
    }
    let measured = |name: &str| entry["measured"][name].as_f64().unwrap();
    let (ring0, ring3, native) = (measured("ring0_ns"), measured("ring3_ns"), measured("native_ns"));
    assert!(ring0 > 0.0 && ring3 > 0.0 && native > 0.0 && measured("exit_ns") > 0.0, "{entry:#}");
    let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
    if loaded("kvm_pvm") && !loaded("kvm_amd") && !loaded("kvm_intel") {
        // Emulates ring 0, and ring 0 only.
        assert_eq!(entry["provider"], "kvm_pvm");
        assert!(ring0 > 100.0 * ring3 && ring3 < 10.0 * native, "{entry:#}");
    }
    if ring0 > 10.0 * ring3.min(native) {
        assert_eq!((&entry["quality"], &report["auto"]), (&"degraded".into(), &"jit".into()));
        let kernel = file(&pvh_elf(QUIT));
        let output = gearshift(&["run", "--kernel", path(&kernel)]).output().unwrap();
        let text = stderr(&output);
        let start = "gearshift: accel: jit (kvm: ring 0 is emulated on this host, ";
        let line = text.lines().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("{text}"));
        assert!(line.contains(" an instruction; provider ") && line.ends_with(')'), "{line}");
    } else {
        assert_eq!((&entry["quality"], &report["auto"]), (&"hardware".into(), &"kvm".into()));
    }
}
