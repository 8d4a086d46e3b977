//! More input than anything between the user and the guest can hold: all of it arrives, or waits where it is.

mod common;

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use common::pty::{Pty, modes};
use common::{IDLE, file, gearshift, path, pvh_elf, stderr, stdout};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(300);
/// More than 64 KiB, what a terminal holds, and what is read ahead, together.
const COUNT: u32 = 1_500_000;

/// Reads [`COUNT`] bytes from the serial port, writes their checksum as eight letters, and powers off. Without its first
/// byte, `mov ecx, COUNT`:
/// `xor ebx, ebx; 1: mov dx, 0x3fd; 2: in al, dx; test al, 1; jz 2b; mov dx, 0x3f8; in al, dx; movzx eax, al;
/// imul ebx, ebx, 31; add ebx, eax; dec ecx; jnz 1b; mov ecx, ebx; mov ebx, 8; 3: mov al, cl; and al, 15; add al, 'a';
/// out dx, al; shr ecx, 4; dec ebx; jnz 3b; out 0x604, 0x3400`.
const SUM: &[u8] =
    b"\x31\xdb\x66\xba\xfd\x03\xec\xa8\x01\x74\xfb\x66\xba\xf8\x03\xec\x0f\xb6\xc0\x6b\xdb\x1f\x01\xc3\x49\
                     \x75\xe7\x89\xd9\xbb\x08\0\0\0\x88\xc8\x24\x0f\x04a\xee\xc1\xe9\x04\x4b\x75\xf3\
                     \x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xf4";

fn guest() -> Vec<u8> {
    pvh_elf(&[&[0xb9], &COUNT.to_le_bytes()[..], SUM].concat())
}

/// What the guest should say of `bytes`.
fn sum(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    (0..8).map(|n| char::from(b'a' + (sum >> (4 * n) & 15) as u8)).collect()
}

/// Bytes of all values from `first` on, in no order.
fn bytes(first: u8) -> Vec<u8> {
    let values = 256 - u32::from(first);
    (0..COUNT).map(|n| first + ((n.wrapping_mul(2_654_435_761) >> 8) % values) as u8).collect()
}

#[test]
fn a_pipe_and_a_file_arrive_whole() {
    let kernel = file(&guest());
    let bytes = bytes(0);
    let run = |stdin: Stdio| {
        let mut command = gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = run(Stdio::piped());
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(stdout(&output), sum(&bytes), "{}", stderr(&output));

    let mut input: File = tempfile::tempfile().unwrap();
    input.write_all(&bytes).unwrap();
    input.rewind().unwrap();
    let output = run(input.into()).wait_with_output().unwrap();
    assert_eq!(stdout(&output), sum(&bytes), "{}", stderr(&output));
}

#[test]
fn what_is_pasted_arrives_whole() {
    let kernel = file(&guest());
    // Without Ctrl-a, which is for us.
    let bytes = bytes(2);
    let pty = Pty::new();
    let mut session = pty.spawn(&mut gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]));
    pty.expect("Ctrl-a h helps", PATIENCE);
    pty.send_bytes(&bytes);
    pty.expect(&sum(&bytes), PATIENCE);
    assert_eq!(session.wait(PATIENCE).code(), Some(0), "{}", pty.text());
    assert!(!pty.text().contains('\x07'), "nothing is dropped with a beep");
}

/// Half a megabyte that nobody reads, and Ctrl-a x behind it.
#[test]
fn ctrl_a_x_is_seen_behind_what_the_guest_does_not_take() {
    let pty = Pty::new();
    let kernel = file(&pvh_elf(IDLE));
    let mut session = pty.spawn(&mut gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]));
    pty.expect("Ctrl-a h helps", PATIENCE);
    pty.send_bytes(&[b'x'; 512 << 10]);
    pty.send("\x01x");
    assert_eq!(session.wait(PATIENCE).code(), Some(18), "{}", pty.text());
}

/// Beyond what is read ahead the terminal is held back, which is said; a signal still ends the run.
#[test]
fn a_terminal_that_is_held_back_is_said_and_signals_work() {
    let pty = Pty::new();
    let before = modes(&pty.attributes());
    let kernel = file(&pvh_elf(IDLE));
    let mut session = pty.spawn(&mut gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]));
    pty.expect("Ctrl-a h helps", PATIENCE);
    pty.send_in_background(vec![b'x'; 2 << 20]);
    pty.expect("the guest takes no input: 1024 KiB wait", PATIENCE);
    pty.expect(&format!("`kill {}`", session.0.id()), PATIENCE);
    session.signal(Signal::TERM);
    assert_eq!(session.wait(PATIENCE).signal(), Some(15), "{}", pty.text());
    assert_eq!(modes(&pty.attributes()), before);
}
