//! How guests end, and what the process makes of it.

mod common;

use std::io::{BufRead as _, Read as _, Write as _};
use std::process::{Output, Stdio};

use common::{file, gearshift, path, pvh_elf, stderr, stdout};

/// Runs a guest of these bytes of 32-bit code.
fn run(code: &[u8], arguments: &[&str]) -> Output {
    let kernel = file(&pvh_elf(code));
    gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]).args(arguments).output().unwrap()
}

/// mov dx, port; mov al, value; out dx, al
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

#[test]
fn debug_exit_gives_its_value() {
    for (value, code) in [(0, 1), (0x10, 33), (0x7f, 255), (0xff, 255)] {
        let output = run(&out(0xf4, value), &[]);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains("debug-exit"), "{}", stderr(&output));
    }
}

/// lidt of an empty table, then ud2: #UD, #DF and the shutdown that follows (Intel SDM vol. 3, 6.15).
#[test]
fn a_triple_fault_shows_the_vcpu() {
    let output = run(&[0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b], &[]);
    assert_eq!(output.status.code(), Some(14), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("triple fault") && stderr(&output).contains("RIP="),
        "{}",
        stderr(&output)
    );
}

/// Port 0xcf9, value 6: a hard reset.
#[test]
fn a_reset_ends_the_run() {
    let output = run(&out(0xcf9, 6), &[]);
    assert_eq!(output.status.code(), Some(16), "{}", stderr(&output));
    assert!(stderr(&output).contains("reset"), "{}", stderr(&output));
}

#[test]
fn console_goes_to_stdout_and_the_debug_console_to_stderr() {
    let code: Vec<u8> = [out(0x3f8, b'C'), out(0xe9, b'D'), out(0xf4, 1)].concat();
    let output = run(&code, &["--debug-console", "--stats", "--accel", "interp"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(3), "C"), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(text.contains('D') && text.contains("vCPU 0: "), "{text}");
    assert!(text.lines().next().unwrap().starts_with("gearshift: interp runs"), "{text}");
}

/// Echoes what it reads from the serial port until a dot: standard input reaches the guest, and its end ends nothing.
#[test]
fn standard_input_is_typed_into_the_guest() {
    #[rustfmt::skip]
    let code = [
        0x66, 0xba, 0xfd, 0x03, // again: mov dx, 0x3fd
        0xec, 0xa8, 0x01,       // in al, dx; test al, 1
        0x74, 0xf7,             // jz again
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, 0xee, 0x3c, b'.', // in al, dx; out dx, al; cmp al, '.'
        0x75, 0xed,             // jne again
    ];
    let kernel = file(&pvh_elf(&[&code, out(0xf4, 2).as_slice()].concat()));
    let mut child = gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"bytes \x01x are not keys here.").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert_eq!(stdout(&output), "bytes \x01x are not keys here.");
}

/// A guest that prints for ever, and a reader that goes away.
#[test]
fn a_console_nobody_reads_any_more_ends_the_run() {
    let mut code = out(0x3f8, b'\n');
    code.extend([0xeb, 0xfd]);
    let kernel = file(&pvh_elf(&code));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(20), "{text}");
    assert!(
        text.lines().last().unwrap().contains("standard output cannot be written: Broken pipe"),
        "{text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

/// Without network and cache: the guest that is built in measures this machine and powers off.
#[test]
fn the_built_in_guest_prints_its_table() {
    let cache = tempfile::tempdir().unwrap();
    let output = gearshift(&["run", "--offline"]).env("GEARSHIFT_CACHE", cache.path()).output().unwrap();
    let (text, table) = (stderr(&output), stdout(&output));
    assert_eq!(output.status.code(), Some(0), "{text}\n{table}");
    assert!(text.contains("built-in guest"), "{text}");
    for name in guests::embedded::LOOPS {
        assert!(table.contains(name), "{name}\n{table}");
    }
    assert!(table.contains("KiB of RAM") && table.contains("Powering off"), "{table}");
}

/// A guest that touches memory which its host does not have any more: one line and the code of a failure of the host, no
/// signal and no core.
#[test]
fn memory_that_the_host_cannot_give_ends_the_run() {
    #[rustfmt::skip]
    let code = [
        &[0xba, 0xfd, 0x03, 0, 0, 0xec, 0xa8, 1, 0x74, 0xfb][..], // mov edx, 0x3fd; again: in al, dx; test al, 1; jz again
        &[0xa3, 0, 0, 0x80, 0, 0xeb, 0xfe],                       // mov [0x800000], eax; jmp $
    ].concat();
    let kernel = file(&pvh_elf(&code));
    for accel in ["interp", "jit"] {
        let mut child = gearshift(&["run", "--mem", "16M", "--accel", accel, "--kernel", path(&kernel)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // The guest's memory is there when the guest runs, which is when this line comes.
        let mut errors = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        errors.read_line(&mut first).unwrap();
        let files = std::fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
        let ram = files.map(|entry| entry.unwrap().path()).find(|path| {
            std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:gearshift-ram"))
        });
        let ram = std::fs::OpenOptions::new().write(true).open(ram.unwrap()).unwrap();
        ram.set_len(4 << 20).unwrap();
        input.write_all(b"x").unwrap();
        let mut text = String::new();
        errors.read_to_string(&mut text).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(22), "{status:?} {first}{text}");
        let line = text.lines().find(|line| line.starts_with("gearshift: the machine failed: "));
        let line = line.unwrap_or_else(|| panic!("{text}"));
        assert!(line.contains("cannot provide the page of guest RAM at 0x800000"), "{line}");
        assert!(text.contains("RIP="), "{text}");
    }
}
