//! What is said of a guest that says nothing.

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use common::pty::Pty;
use common::{IDLE, file, gearshift, path, pvh_elf, stderr};

const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a guest until the line of silence has come; the line.
fn line(code: &[u8], cmdline: &str) -> String {
    let kernel = file(&pvh_elf(code));
    let mut command = gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel), "--cmdline", cmdline]);
    let mut child = command.env("GEARSHIFT_SILENCE", "1").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("nothing has come")).expect("the line");
    child.kill().unwrap();
    child.wait().unwrap();
    line
}

#[test]
fn a_silent_guest_is_said_with_where_it_is_and_what_may_help() {
    let halted = line(IDLE, "quiet");
    for word in
        ["gearshift: nothing has come from the console for 1 s", "is halted at 0x10000", "32-bit mode"]
    {
        assert!(halted.contains(word), "no {word} in {halted}");
    }
    assert!(halted.contains("interrupts off") && halted.contains("no `console=ttyS0`"), "{halted}");
    // 1: jmp 1b
    let spins = line(b"\xeb\xfe", "console=ttyS0 quiet");
    assert!(spins.contains("vCPU 0 spins at 0x100000 (32-bit mode)"), "{spins}");
    assert!(spins.contains("`earlyprintk=ttyS0`") && spins.contains("in place of `quiet`"), "{spins}");
}

/// On a terminal in raw mode the line begins and ends at the left margin, and comes once.
#[test]
fn the_line_fits_a_raw_terminal_and_comes_once() {
    let pty = Pty::new();
    let kernel = file(&pvh_elf(IDLE));
    let mut command = gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]);
    let mut session = pty.spawn(command.env("GEARSHIFT_SILENCE", "1"));
    pty.expect("`earlyprintk=ttyS0` on the command line shows what Linux says first\r\n", PATIENCE);
    assert!(pty.is_raw());
    pty.send("\x01x");
    session.wait(PATIENCE);
    let text = pty.text();
    assert_eq!(text.matches("\r\ngearshift: nothing has come").count(), 1, "{text}");
    assert!(!text.replace("\r\n", "").contains('\n'), "{text:?}");
}

/// One byte, and then nothing: mov dx, 0x3f8; mov al, '!'; out dx, al; then as many turns as take longer than the limit:
/// rdtsc; mov esi, eax; mov edi, edx; 1: rdtsc; sub eax, esi; sbb edx, edi; cmp edx, 2; jb 1b; mov dx, 0x604; ...
#[test]
fn a_guest_that_has_spoken_is_left_alone() {
    let code =
        b"\x66\xba\xf8\x03\xb0!\xee\x0f\x31\x89\xc6\x89\xd7\x0f\x31\x29\xf0\x19\xfa\x83\xfa\x02\x72\xf5\
                 \x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xf4";
    let kernel = file(&pvh_elf(code));
    let mut command = gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]);
    let output = command.env("GEARSHIFT_SILENCE", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("nothing has come"), "{}", stderr(&output));
}
