//! Our guests on a processor that is not ours: QEMU's TCG, where it is installed.
//!
//! This checks the guests (the machine's own tests check the machine): each checksum must be the one that the Rust
//! model of the same algorithm computes.

mod common;

use common::{qemu, run};
use guests::bare::{Image, layout};
use guests::initramfs::{Compression, Initramfs};
use guests::{debian, embedded, micro};
use iced_x86::code_asm::*;
use std::ffi::OsStr;
use std::io::Write as _;

#[test]
fn benchmark_guests_compute_what_their_models_do() {
    for program in micro::all() {
        // More than one round of every table, ring and window that the programs have.
        let n = if program.iterations < 100_000 { 70 } else { 20_011 };
        let Some((console, code)) = qemu(program.name, program.elf, &format!("quiet n={n} x")) else {
            return;
        };
        if let ("avx2", Some(reason)) = (program.name, program.unavailable(&console)) {
            // QEMU before 7.2.
            let line = format!("SKIPPED (optional): avx2 on QEMU: {reason}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            continue;
        }
        let report = micro::Report::find(&console).unwrap_or_else(|| panic!("{}: {console}", program.name));
        assert_eq!((report.name.as_str(), report.iterations), (program.name, n));
        assert_eq!(report.checksum, program.expected(n), "{}", program.name);
        assert_eq!(code, 1, "{}", program.name);
    }
}

#[test]
fn without_a_command_line_the_default_count_runs() {
    let program = micro::find("smc").unwrap();
    let Some((console, _)) = qemu("default", program.elf, "") else { return };
    let report = micro::Report::find(&console).expect(&console);
    assert_eq!(report.iterations, program.iterations);
    assert_eq!(report.checksum, program.expected(program.iterations));
}

#[test]
fn embedded_guest_prints_its_table() {
    let Some((console, code)) = qemu("embedded", embedded::ELF, "tsc-khz=2000000") else { return };
    assert_eq!(code, 1);
    for name in embedded::LOOPS {
        let row = console.lines().find(|line| line.trim_start().starts_with(name)).expect(name);
        let numbers: Vec<f64> =
            row.trim_start()[name.len()..].split_whitespace().map(|n| n.parse().unwrap()).collect();
        let [instructions, cycles, ns, mips] = numbers[..] else { panic!("{row}") };
        // Two decimals, rounded down; the frequency is the command line's 2 GHz.
        assert!((ns - cycles / 2.0).abs() < 0.02, "{row}");
        assert!((mips - instructions * 1000.0 / ns).abs() <= 1.0 + mips * 0.02 / ns, "{row}");
    }
    let ram: u64 = console
        .lines()
        .find(|l| l.contains("KiB of RAM"))
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!((63 << 10..=64 << 10).contains(&ram), "{ram}");
}

/// A stray exception is one line and an exit value of its own (here #UD, vector 6, by UD2).
#[test]
fn a_fault_is_reported() {
    let elf = Image::new().assemble(|a, _| a.ud2()).unwrap();
    let Some((console, code)) = qemu("fault", &elf, "") else { return };
    let line = console.lines().find(|l| l.starts_with("FAULT")).expect(&console);
    assert!(line.starts_with("FAULT vector=6 error=0000000000000000 rip=000000000010"), "{line}");
    assert_eq!(code, 0x46 << 1 | 1);
}

#[test]
fn runtime_prints_numbers() {
    let elf = Image::new()
        .assemble(|a, rt| {
            for (value, width) in [(0u64, 0u32), (7, 3), (u64::MAX, 0)] {
                rt.print(a, "[")?;
                a.mov(rdi, value)?;
                a.mov(esi, width)?;
                a.call(rt.put_dec)?;
                rt.print(a, "]")?;
            }
            a.mov(edi, 1_234_506)?;
            a.mov(esi, 6)?;
            a.call(rt.put_cents)?;
            // The work area is zeroed, and stack and code are where the layout says.
            a.mov(rdi, qword_ptr(layout::WORK))?;
            a.add(rdi, rsp)?;
            a.call(rt.put_hex)
        })
        .unwrap();
    let Some((console, _)) = qemu("numbers", &elf, "") else { return };
    assert!(console.contains("[0][  7][18446744073709551615] 12345.06000000000022"), "{console}");
}

#[test]
fn a_guest_too_large_is_refused() {
    let error = Image::new().assemble(|a, _| (0..40_000).try_for_each(|_| a.db(&[0u8; 32]))).unwrap_err();
    assert!(matches!(error, guests::bare::BuildError::TooLarge { .. }), "{error}");
}

/// The default guest, once its packages are in the cache: a command of the kernel's command line, and a script of
/// the archive's own (here compressed), each with its status.
#[test]
fn debian_runs_scripts_and_powers_off() {
    let Some(guest) = debian::cached(debian::Flavour::Cloud) else {
        std::io::stderr().write_all(b"SKIPPED: no Debian guest in the cache to run on QEMU\n").unwrap();
        return;
    };
    let own = Initramfs::new(&std::fs::read(&guest.busybox).unwrap())
        .script("cat /etc/mark; echo \"pid $$\" | sed 's/pid 1$/first/'; exit 3\n")
        .file("etc/mark", 0o644, b"from a file\n".to_vec())
        .unwrap()
        .build(Compression::Gzip);
    let path = std::env::temp_dir().join(format!("gearshift-guest-{}.initrd", std::process::id()));
    std::fs::write(&path, own).unwrap();
    let boot = |initrd: &OsStr, more: &str| {
        let files = ["-kernel".as_ref(), guest.kernel.as_os_str(), "-initrd".as_ref(), initrd];
        // On a busy host QEMU gets too little time for the kernel's check of the timer, which then panics.
        run("debian", &files, "256", &format!("console=ttyS0 quiet no_timer_check {more}"))
    };
    let script = boot(path.as_os_str(), "");
    std::fs::remove_file(&path).unwrap();
    let command = boot(guest.initrd.as_os_str(), "gearshift.script=\"echo one two; ls /proc/self/comm\" x=y");
    let (Some((script, code)), Some((command, other))) = (script, command) else { return };
    assert_eq!((code, other), (0, 0), "{script}{command}");
    for console in [&script, &command] {
        assert!(console.starts_with("INIT-REACHED uptime: "), "{console}");
        assert!(console.contains("CPUS 1\r\n"), "{console}");
    }
    assert!(script.contains("from a file\r\npid ") && !script.contains("first"), "{script}");
    assert!(script.contains("GUEST-DONE status: 3\r\n"), "{script}");
    assert!(command.contains("one two\r\n/proc/self/comm\r\nGUEST-DONE status: 0\r\n"), "{command}");
}
