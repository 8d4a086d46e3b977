//! A guest on QEMU's TCG, where it is installed.
#![allow(dead_code, unreachable_pub)] // each test program uses a part of it

use std::ffi::OsStr;
use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

/// Console output and exit status (`value << 1 | 1` of the debug-exit port), or nothing without QEMU.
pub fn qemu(name: &str, elf: &[u8], cmdline: &str) -> Option<(String, i32)> {
    let path = std::env::temp_dir().join(format!("gearshift-guest-{}-{name}.elf", std::process::id()));
    std::fs::write(&path, elf).unwrap();
    let result = run(name, &["-kernel".as_ref(), path.as_os_str()], "64", cmdline);
    std::fs::remove_file(&path).unwrap();
    result
}

/// Likewise, with any files.
pub fn run(name: &str, files: &[&OsStr], mebibytes: &str, cmdline: &str) -> Option<(String, i32)> {
    let result = Command::new("timeout")
        .args(["120", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", mebibytes])
        .args(["-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-append", cmdline])
        .args(files)
        .stdin(Stdio::null())
        .output();
    match result {
        Ok(output) if output.status.code() == Some(127) => skip(name),
        Ok(output) => {
            Some((String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().unwrap_or(-1)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => skip(name),
        Err(error) => panic!("{error}"),
    }
}

/// Says that a test did not run, past the harness, which would keep it to itself. `cargo xtask test` counts these.
fn skip<T>(name: &str) -> Option<T> {
    let line = format!("SKIPPED (optional): {name}: this host has no qemu-system-x86_64 to compare with\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}
