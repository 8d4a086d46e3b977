//! Guests that reset the machine and start again.

mod common;

use std::time::{Duration, Instant};

use common::guest::have;
use common::pty::Pty;
use common::{file, gearshift, path, pvh_elf, stderr, stdout};
use guests::debian::Flavour;

/// A boot takes seconds; this is for a host that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(420);

/// A guest that counts its starts in the CMOS memory, which a battery keeps, resets the machine in the way of `reset` until it
/// has started 200 times, and then ends.
fn counting(reset: &[u8]) -> Vec<u8> {
    // mov al, 40h; out 70h, al; in al, 71h; inc al; out 71h, al; cmp al, 200; jae
    let mut code = vec![
        0xb0,
        0x40,
        0xe6,
        0x70,
        0xe4,
        0x71,
        0xfe,
        0xc0,
        0xe6,
        0x71,
        0x3c,
        200,
        0x73,
        reset.len() as u8 + 1,
    ];
    code.extend(reset);
    // hlt; then mov al, 20; out f4h, al
    code.extend([0xf4, 0xb0, 20, 0xe6, 0xf4]);
    code
}

#[test]
fn a_guest_starts_again_as_often_as_it_wants() {
    // mov dx, cf9h; mov al, 6; out dx, al
    let port: &[u8] = &[0x66, 0xba, 0xf9, 0x0c, 0xb0, 6, 0xee];
    // push 0; push 0; lidt [esp]; ud2: #UD, #DF and the shutdown that follows (Intel SDM vol. 3, 6.15)
    let shutdown: &[u8] = &[0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];
    for (reset, option) in [(port, "--on-reset"), (shutdown, "--on-triple-fault")] {
        for accel in ["interp", "jit"] {
            let kernel = file(&pvh_elf(&counting(reset)));
            let kernel = ["--kernel", path(&kernel), "--mem", "16M"];
            let output =
                gearshift(&["run", "--accel", accel, option, "restart"]).args(kernel).output().unwrap();
            let text = stderr(&output);
            if accel == "jit" && output.status.code() == Some(4) {
                continue; // a host that forbids executable mappings
            }
            assert_eq!(output.status.code(), Some(41), "{text}");
            assert_eq!(text.matches("starts again").count(), 199, "{text}");
        }
    }
}

/// Debian's `reboot` leads to a second boot, in the same process, in which the time of day has gone on.
#[test]
fn debian_reboots() {
    if !have(Flavour::Cloud) {
        return;
    }
    let pty = Pty::new();
    let mut session = pty.spawn(&mut gearshift(&["run", "--cpus", "2", "--on-reset", "restart"]));
    let mut times = Vec::new();
    for boot in 1..=3 {
        // The shell of this boot.
        let end = Instant::now() + PATIENCE;
        let ready = || {
            let text = pty.text();
            let last = text.rsplit("INIT-REACHED").next().unwrap_or_default();
            text.matches("INIT-REACHED").count() == boot && last.contains("guest:")
        };
        while !ready() {
            assert!(Instant::now() < end, "boot {boot}: {}", pty.text());
            std::thread::sleep(Duration::from_millis(20));
        }
        pty.send(&format!("echo boot-{boot}-at-$(date +%s)-with-$(nproc)\r"));
        pty.expect(&format!("boot-{boot}-at-1"), PATIENCE);
        pty.expect("-with-2", PATIENCE);
        let text = pty.text();
        let mark = format!("boot-{boot}-at-");
        let time = text.split(&mark).filter_map(|rest| rest.split('-').next()?.parse::<u64>().ok()).next();
        times.push(time.expect("a time"));
        pty.send(if boot < 3 { "reboot -f\r" } else { "poweroff -f\r" });
    }
    assert_eq!(session.wait(PATIENCE).code(), Some(0), "{}", pty.text());
    assert!(times.is_sorted(), "{times:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(times[2]) < 3600, "{times:?} at {now}");
}

#[test]
fn what_else_may_happen_is_told() {
    let output = gearshift(&["run", "--on-reset", "again"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("end, restart"), "{}", stderr(&output));
    assert!(stdout(&output).is_empty());
}
