//! What the tests of the program share: the program, a terminal to run it on, guests that do one thing.
#![allow(dead_code, unreachable_pub)] // each test program uses a part of it

pub mod accelerators;
pub mod compiler;
pub mod guest;
pub mod pty;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The program with an environment that does not depend on the caller's.
pub fn gearshift(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gearshift"));
    command.args(arguments).env_remove("GEARSHIFT_OFFLINE").env_remove("GEARSHIFT_LOG");
    command.env_remove("GEARSHIFT_KVM_DEVICE");
    command.env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    command
}

/// Its standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Its standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A guest: 32-bit code at 1 MiB in an ELF file with a PVH entry note (Xen's `XEN_ELFNOTE_PHYS32_ENTRY`, 18).
pub fn pvh_elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 2 * 56;
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend((BASE as u32).to_le_bytes());
    let code_at = HEADERS + note.len() as u64;

    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [BASE, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, flags: u32, offset: u64, address: u64, len: u64, align: u64| {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        for word in [offset, address, address, len, len, align] {
            elf.extend(word.to_le_bytes());
        }
    };
    segment(1, 5, code_at, BASE, code.len() as u64, 1);
    segment(4, 4, HEADERS, 0, note.len() as u64, 4);
    elf.extend(note);
    elf.extend(code);
    elf
}

/// Whether a line of `from` has `wanted` in it within `patience`.
pub fn lines_until(
    from: impl std::io::Read + Send + 'static,
    wanted: &'static str,
    patience: Duration,
) -> bool {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let lines = std::io::BufRead::lines(std::io::BufReader::new(from));
        let _ = tell.send(lines.map_while(Result::ok).any(|line| line.contains(wanted)));
    });
    told.recv_timeout(patience).unwrap_or(false)
}

/// A file that goes with the returned handle.
pub fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    file
}

/// The path of a file as an argument.
pub fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

/// `hlt` with interrupts off, for ever: a guest that does nothing.
pub const IDLE: &[u8] = b"\xfa\xf4\xeb\xfd";
