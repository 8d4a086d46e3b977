//! `gearshift compare`, as a user meets it: with guests that behave, that do not, and with a Ctrl-c in between.
//!
//! All of it runs on the interpreter, which works everywhere. A guest whose output differs from run to run stands for two
//! backends of which one is wrong: to a comparison that is the same.

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::{IDLE, file, gearshift, path, pvh_elf, stderr, stdout};
use serde_json::Value;

const USAGE: i32 = 2;
const ACCELERATOR: i32 = 4;
const CPU: i32 = 6;
const DISAGREEMENT: i32 = 26;
const GUEST_FAILED: i32 = 28;
const SLOWER: i32 = 30;
const REPORT: i32 = 32;

/// Writes `hi` to the serial port, and powers off: `mov dx, 0x3f8; mov al, 'h'; out dx, al; ...; out 0x604, 0x3400`.
const HELLO: &[u8] =
    b"\x66\xba\xf8\x03\xb0h\xee\xb0i\xee\xb0\n\xee\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xf4";

/// Writes eight letters that are the time-stamp counter, and powers off:
/// `rdtsc; mov ecx, eax; mov ebx, 8; mov dx, 0x3f8; 1: mov al, cl; and al, 15; add al, 'a'; out dx, al; shr ecx, 4;
/// dec ebx; jnz 1b; out 0x604, 0x3400`.
const CLOCK: &[u8] =
    b"\x0f\x31\x89\xc1\xbb\x08\0\0\0\x66\xba\xf8\x03\x88\xc8\x24\x0f\x04a\xee\xc1\xe9\x04\x4b\x75\xf3\
                       \x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xf4";

const FEW: &[&str] = &["--accel", "interp", "--repeat", "3", "--warm-up", "0"];

fn compare(arguments: &[&str]) -> Output {
    gearshift(&["compare"]).args(FEW).args(arguments).output().unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn json(path: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Refused before anything runs: one line.
#[track_caller]
fn refused(arguments: &[&str], expected: i32, words: &[&str]) {
    let mut command = gearshift(&["compare"]);
    let output = command.args(arguments).env("GEARSHIFT_KVM_DEVICE", "/nonexistent/kvm").output().unwrap();
    let text = stderr(&output);
    assert_eq!(code(&output), Some(expected), "{text}");
    assert_eq!((text.lines().count(), stdout(&output)), (1, String::new()), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    refused(&["mirco"], USAGE, &["`mirco`", "micro/int", "path of a kernel"]);
    refused(&["micro/none"], USAGE, &["`micro/none`", "micro/int"]);
    refused(&["start", "--repeat", "0"], USAGE, &["--repeat"]);
    refused(&["start", "--base", "native"], USAGE, &["`native`", "interp"]);
    refused(&["start", "--core", "1023"], USAGE, &["1023", "--core"]);
    refused(&["start", "--peer", "vax"], USAGE, &["vax", "qemu-tcg"]);
    for (path, reason) in [
        ("/nonexistent/gearshift", "No such file"),
        ("/etc/passwd", "Permission denied"),
        ("/", "Permission denied"),
        ("/bin/sh", "--version"),
    ] {
        let line = ["cannot take part as another build", "gearshift=PATH", reason];
        refused(&["start", "--peer", &format!("qemu-tcg,gearshift={path}")], USAGE, &line);
    }
    refused(&["start", "--peer", "gearshift="], USAGE, &["gearshift=", "qemu-tcg", "gearshift=PATH"]);
    refused(&["start", "--accel", "warp"], ACCELERATOR, &["`warp`", "interp"]);
    refused(&["start", "--accel", "kvm"], ACCELERATOR, &["nothing to compare", "kvm", "/nonexistent/kvm"]);
    refused(&["start", "--cpu", "z80"], CPU, &["z80"]);
    for option in ["--json", "--csv", "--html", "--markdown"] {
        refused(
            &["start", option, "/nonexistent/report"],
            REPORT,
            &["/nonexistent/report", "No such file", "folder"],
        );
    }
    let text = file(b"{\"schema\": 1}");
    refused(&["start", "--against", path(&text)], REPORT, &[path(&text), "schema 1"]);
    refused(&["start", "--against", "/nonexistent/old"], REPORT, &["/nonexistent/old", "No such file"]);
}

#[test]
fn a_guest_that_behaves_gives_a_table_and_all_files() {
    let kernel = file(&pvh_elf(HELLO));
    let folder = tempfile::tempdir().unwrap();
    let name = |end: &str| folder.path().join(end).display().to_string();
    let (json_file, csv, html) = (name("r.json"), name("r.csv"), name("r.html"));
    let output = compare(&[path(&kernel), "start", "--json", &json_file, "--csv", &csv, "--html", &html]);
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    let table = stdout(&output);
    for word in [path(&kernel), "start", "interp", "x interp", "3 of 3 rounds"] {
        assert!(table.contains(word), "no {word} in {table}");
    }
    let report = json(json_file.as_ref());
    assert_eq!((&report["schema"], &report["interrupted"]), (&2.into(), &false.into()));
    assert_eq!(report["rows"][1]["cells"][0]["samples"].as_array().unwrap().len(), 3);
    let answers = &report["rows"][1]["cells"][0]["answers"];
    assert_eq!((&answers[0]["said"], &answers[0]["end"]), (&"hi".into(), &"power-off".into()));
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 3);
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.contains(path(&kernel)) && page.ends_with("</html>\n")
    );
}

/// The other build is this one again, named twice by different ways, so every ratio is one of equals.
#[test]
fn another_build_runs_every_guest_beside_this_one() {
    // Exits that only `run`'s exit code tells: mov dx, 0xf4; mov al, 3; out dx, al.
    let (hello, exit) = (file(&pvh_elf(HELLO)), file(&pvh_elf(b"\x66\xba\xf4\0\xb0\x03\xee")));
    let folder = tempfile::tempdir().unwrap();
    let name = |end: &str| folder.path().join(end).display().to_string();
    let program = env!("CARGO_BIN_EXE_gearshift");
    std::os::unix::fs::symlink(program, name("link")).unwrap();
    let peers = format!("gearshift={program},gearshift={}", name("link"));
    let files = ["json", "csv", "html", "markdown"].map(|kind| (format!("--{kind}"), name(kind)));
    let files: Vec<&str> = files.iter().flat_map(|(option, path)| [option.as_str(), path]).collect();
    let words = [path(&hello), path(&exit), "--peer", &peers, "--cpu", "x86-64-v2"];
    let output = compare(&[&words[..], &files[..]].concat());
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));

    let report = json(name("json").as_ref());
    let names: Vec<_> = report["subjects"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    let folder = std::path::Path::new(program).parent().unwrap().file_name().unwrap().to_str().unwrap();
    let label = format!("{folder}/gearshift");
    assert_eq!(names, ["interp", &format!("interp@{label}")]);
    assert_eq!(report["subjects"][1]["kind"], "build");
    for (row, end) in [(0, "power-off"), (1, "debug exit 3")] {
        let cells = &report["rows"][row]["cells"];
        assert_eq!(
            (&cells[0]["answers"][0]["end"], &cells[1]["answers"][0]["end"]),
            (&end.into(), &end.into())
        );
        // Both in every round: a ratio a round, so there is an interval.
        assert!(cells[0]["this_build"].is_null() && cells[1]["this_build"]["interval"].is_array(), "{cells}");
    }
    let mean = &report["builds"][0];
    assert_eq!(
        (&mean["backend"], &mean["rows"], &mean["group"]),
        (&"interp".into(), &2.into(), &"file".into())
    );

    let table = stdout(&output);
    let beside = table.split_once(&format!("\nbeside {label}: ")).unwrap().1;
    for word in [path(&hello), path(&exit), "geometric mean, file: 2 rows", "below 1 this build is faster"] {
        assert!(beside.contains(word), "no {word} in {table}");
    }
    let read = |kind: &str| std::fs::read_to_string(name(kind)).unwrap();
    assert!(
        read("csv").lines().last().unwrap().starts_with(&format!("file,geometric mean,interp@{label},ok,"))
    );
    assert!(read("html").contains(&format!("<h2>Beside {label}</h2>")));
    assert!(read("markdown").contains(&format!("### Beside `{label}`")));
}

#[test]
fn who_cannot_take_part_is_marked_with_the_reason() {
    let kernel = file(&pvh_elf(HELLO));
    let mut command = gearshift(&["compare", path(&kernel), "--repeat", "1", "--warm-up", "0"]);
    let output = command.env("GEARSHIFT_KVM_DEVICE", "/nonexistent/kvm").output().unwrap();
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    let table = stdout(&output);
    let line = table.lines().find(|line| line.starts_with("NOT HERE: kvm: "));
    assert!(line.is_some_and(|line| line.contains("/nonexistent/kvm")), "{table}");
}

#[test]
fn disagreements_come_first_with_both_sides_and_their_own_code() {
    let kernel = file(&pvh_elf(CLOCK));
    let output = compare(&[path(&kernel)]);
    assert_eq!(code(&output), Some(DISAGREEMENT), "{}", stderr(&output));
    let table = stdout(&output);
    let first = table.lines().next().unwrap();
    assert!(first.starts_with(&format!("DISAGREEMENT: {}: on interp: `", path(&kernel))), "{table}");
    assert!(first.matches("(power-off)").count() >= 2, "{first}");
    let last = stderr(&output).lines().last().unwrap().to_owned();
    assert!(last.contains("DISAGREEMENT") && last.contains("one of them is wrong"), "{last}");
}

#[test]
fn a_guest_that_never_ends_fails_and_the_others_go_on() {
    let (idle, hello) = (file(&pvh_elf(IDLE)), file(&pvh_elf(HELLO)));
    let output = compare(&[path(&idle), path(&hello), "--limit", "1"]);
    assert_eq!(code(&output), Some(GUEST_FAILED), "{}", stderr(&output));
    let table = stdout(&output);
    let failed = table.lines().find(|line| line.starts_with("FAILED: ")).unwrap();
    for word in [path(&idle), "on interp", "did not end in 1 s", "--limit"] {
        assert!(failed.contains(word), "no {word} in {failed}");
    }
    assert!(table.lines().any(|line| line.starts_with(path(&hello))), "{table}");
}

#[test]
fn a_kernel_that_is_none_fails_with_the_machines_own_line() {
    let text = file(b"just some text, which no machine boots, however long it is looked at by a loader\n");
    let output = compare(&[path(&text)]);
    assert_eq!(code(&output), Some(GUEST_FAILED), "{}", stderr(&output));
    assert!(stderr(&output).lines().last().unwrap().contains("text file"), "{}", stderr(&output));
}

/// Processes whose command line has this word.
fn runs(word: &str) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default()).any(|line| {
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words.contains(&&b"compare-guest"[..]) && words.contains(&word.as_bytes())
    })
}

#[test]
fn an_interrupted_run_keeps_what_it_has() {
    let (hello, idle) = (file(&pvh_elf(HELLO)), file(&pvh_elf(IDLE)));
    let folder = tempfile::tempdir().unwrap();
    let (json_file, html) = (folder.path().join("r.json"), folder.path().join("r.html"));
    let mut command = gearshift(&["compare", path(&hello), path(&idle)]);
    command.args(FEW).arg("--json").arg(&json_file).arg("--html").arg(&html);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !runs(path(&idle)) {
        assert!(started.elapsed() < Duration::from_secs(60), "the second guest never started");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(2), "{}", stderr(&output));
    assert!(!runs(path(&idle)), "the guest is still there");
    let table = stdout(&output);
    assert!(table.contains("INTERRUPTED in round 1 of 3"), "{table}");
    assert!(table.contains(&format!("NOT RUN: {} on interp: interrupted", path(&idle))), "{table}");
    let report = json(&json_file);
    assert_eq!(report["interrupted"], true);
    let status = |row: usize| report["rows"][row]["cells"][0]["status"].as_str().unwrap();
    assert_eq!((status(0), status(1)), ("ok", "unfinished"));
    assert!(std::fs::read_to_string(&html).unwrap().contains("Interrupted"));
}

/// However the comparison is ended, its guest is.
#[test]
fn a_run_that_is_killed_leaves_no_guest() {
    use rustix::process::{Pid, Signal, kill_process};
    // The second signal ends it at once.
    for signals in [&[Signal::KILL][..], &[Signal::TERM], &[Signal::TERM, Signal::TERM]] {
        let idle = file(&pvh_elf(IDLE));
        let mut command = gearshift(&["compare", path(&idle), "--limit", "600"]);
        let mut child =
            command.args(FEW).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
        let await_guest = |there: bool| {
            let started = Instant::now();
            while runs(path(&idle)) != there {
                assert!(started.elapsed() < Duration::from_secs(60), "{signals:?}: {there}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        await_guest(true);
        for signal in signals {
            kill_process(Pid::from_child(&child), *signal).expect("it lives");
        }
        let status = child.wait().expect("its end");
        assert_eq!(status.signal(), signals.last().map(|signal| signal.as_raw()), "{status}");
        await_guest(false);
    }
}

#[test]
fn what_is_slower_than_an_old_report_is_said() {
    let kernel = file(&pvh_elf(HELLO));
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old.json");
    let old_name = old.to_str().unwrap();
    assert_eq!(code(&compare(&[path(&kernel), "--json", old_name])), Some(0));
    let mut report = json(&old);
    // As if it had taken a microsecond.
    let cell = &mut report["rows"][0]["cells"][0];
    cell["samples"] = vec![1e-6, 1e-6, 1e-6].into();
    cell["value"] = serde_json::json!({ "value": 1e-6, "interval": [1e-6, 1e-6] });
    std::fs::write(&old, report.to_string()).unwrap();
    let output = compare(&[path(&kernel), "--against", old_name]);
    assert_eq!(code(&output), Some(SLOWER), "{}", stderr(&output));
    let line = stderr(&output).lines().last().unwrap().to_owned();
    assert!(line.contains("slower: ") && line.contains(path(&kernel)) && line.contains("interp"), "{line}");
    assert!(stdout(&output).contains("1 slower and 0 faster of 1"), "{}", stdout(&output));
}

#[test]
fn the_guests_are_listed() {
    let list = stdout(&gearshift(&["compare", "--list"]).output().unwrap());
    for name in ["boot", "start", "micro/int", "user"] {
        assert!(list.lines().any(|line| line.split_whitespace().next() == Some(name)), "{name}\n{list}");
    }
}
