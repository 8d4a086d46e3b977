//! Debian's unmodified kernel boots to a shell that takes input. The guest is fetched if it is not in the cache;
//! where that cannot be, GEARSHIFT_OFFLINE=1 skips these tests and says so.

mod common;

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use common::guest::have;
use common::pty::Pty;
use common::{gearshift, stderr, stdout};
use guests::debian::Flavour;

/// A boot takes seconds; this is for a host that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(420);

/// Whether the default guest is there.
fn have_guest() -> bool {
    have(Flavour::Cloud)
}

#[test]
fn a_user_gets_a_shell() {
    if !have_guest() {
        return;
    }
    let pty = Pty::new();
    let mut session = pty.spawn(&mut gearshift(&["run"]));
    pty.expect("INIT-REACHED", PATIENCE);
    pty.expect("guest:", PATIENCE);
    pty.send("echo answer-$((6*7))\r");
    pty.expect("answer-42", PATIENCE);
    pty.send("poweroff -f\r");
    assert_eq!(session.wait(PATIENCE).code(), Some(0), "{}", pty.text());
    assert!(!pty.is_raw());
}

#[test]
fn a_script_needs_no_terminal_and_sees_all_vcpus() {
    if !have_guest() {
        return;
    }
    let mut child = gearshift(&["run", "--cpus", "2", "--mem", "256M"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"echo cpus-$(nproc)\npoweroff -f\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (text, console) = (stderr(&output), stdout(&output));
    assert_eq!(output.status.code(), Some(0), "{text}\n{console}");
    assert!(console.contains("cpus-2"), "{console}");
    assert!(text.contains("Debian's linux-image-"), "{text}");
}

/// The kernel takes over what it finds on the PCI bus, through the configuration spaces where the tables say that they are, and
/// complains of nothing.
#[test]
fn the_pci_bus_is_as_the_kernel_expects() {
    if !have_guest() {
        return;
    }
    let mut child = gearshift(&["run", "--mem", "256M"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let script = b"dmesg | grep -iE 'pci|mmconfig|ecam|BAR ' | sed 's/^/pci-/'; cat /proc/bus/pci/devices; poweroff -f\n";
    child.stdin.take().unwrap().write_all(script).unwrap();
    let output = child.wait_with_output().unwrap();
    let console = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}\n{console}", stderr(&output));
    for said in [
        "MMCONFIG at [mem 0xe0000000-0xefffffff] reserved in E820",
        "PCI: Using configuration type 1",
        "PCI Root Bridge [PCI0] (domain 0000 [bus 00-ff])",
        "root bus resource [mem 0xf0000000-0xfebfffff window]",
        "[8086:29c0] type 00 class 0x060000",
        "[8086:2918] type 00 class 0x060100",
        "0000\t808629c0\t0",
        "00f8\t80862918\t0",
    ] {
        assert!(console.contains(said), "{said}: {console}");
    }
    for line in console.lines().filter(|line| line.starts_with("pci-")) {
        for bad in ["conflict", "can't", "fail", "error", "invalid", "bogus", "not reserved", "bug]"] {
            assert!(!line.to_lowercase().contains(bad), "{line}");
        }
    }
}

/// The kernel finds AVX2, uses XSAVE for it, and busybox's C library its string functions.
#[test]
fn the_v3_model_is_one_to_linux() {
    if !have_guest() || !std::is_x86_feature_detected!("avx2") {
        return;
    }
    let mut child = gearshift(&["run", "--cpu", "x86-64-v3", "--cpus", "2", "--mem", "256M"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let script = b"grep -m1 ^flags /proc/cpuinfo\ndmesg | grep xstate\npoweroff -f\n";
    child.stdin.take().unwrap().write_all(script).unwrap();
    let output = child.wait_with_output().unwrap();
    let (text, console) = (stderr(&output), stdout(&output));
    assert_eq!(output.status.code(), Some(0), "{text}\n{console}");
    let flags: Vec<&str> = console
        .lines()
        .find(|line| line.starts_with("flags\t"))
        .map(|line| line.split_whitespace().collect())
        .unwrap_or_default();
    for flag in ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"] {
        assert!(flags.contains(&flag), "{flag}: {console}");
    }
    assert!(console.contains("Enabled xstate features 0x7, context size is 832 bytes"), "{console}");
}

/// Each block that the JIT makes of the kernel and its programs does what its instructions do.
#[test]
fn the_jit_boots_it_in_lockstep() {
    let probe = stdout(&gearshift(&["probe", "--json"]).output().unwrap());
    if !have_guest() || !probe.contains("\"name\": \"jit\"") {
        return;
    }
    let mut child = gearshift(&["run", "--accel", "jit", "--verify=500", "--stats"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"ls -lR /proc/self; poweroff -f\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (text, console) = (stderr(&output), stdout(&output));
    assert_eq!(output.status.code(), Some(0), "{text}\n{console}");
    let compared = text.split("blocks_compared ").nth(1).and_then(|rest| rest.split(',').next());
    let compared: u64 = compared.unwrap().replace('_', "").parse().unwrap();
    assert!(compared > 100_000, "{text}");
}

/// The kernel panics without an init, and panic=-1 resets.
#[test]
fn a_panic_has_its_own_exit_code() {
    if !have_guest() {
        return;
    }
    let output =
        gearshift(&["run", "--cmdline", "console=ttyS0 panic=-1 rdinit=/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(16), "{}\n{}", stderr(&output), stdout(&output));
    assert!(stdout(&output).contains("Kernel panic"), "{}", stdout(&output));
}

/// Boots Debian's other kernels to the shell, which tells what it runs on.
fn boots(flavour: Flavour, machine: &str, cpu: &str) {
    if !have(flavour) {
        return;
    }
    let cmdline = "console=ttyS0 panic=-1 quiet cryptomgr.notests";
    let mut child = gearshift(&["run", "--guest", flavour.name(), "--cpu", cpu, "--cmdline", cmdline])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"echo machine-$(uname -m)-\npoweroff -f\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (text, console) = (stderr(&output), stdout(&output));
    assert_eq!(output.status.code(), Some(0), "{text}\n{console}");
    assert!(console.contains(&format!("machine-{machine}-")), "{console}");
    assert!(text.contains("the guest powered off"), "{text}");
}

#[test]
fn the_32_bit_kernel_boots() {
    boots(Flavour::I386, "i686", "x86-64-v3");
}

#[test]
fn the_generic_kernel_boots() {
    boots(Flavour::Generic, "x86_64", "x86-64-v3");
}
