//! A process that is stopped, for longer than a guest may be without its processors.
//!
//! The guest reads its time-stamp counter all the time, and says at last what the largest step was. What a process cannot
//! know of costs one lease of time at most (`accel_api::host_time`).

mod common;

use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use accel_api::host_time::Lease;
use common::{accelerators, file, gearshift, path, pvh_elf};
use machine::TscFrequency;
use rustix::process::{Pid, Signal, kill_process};

/// Writes `!`, reads the counter until a byte comes, writes the largest step by 65,536 as eight letters, lowest digit first,
/// or eight times `p` if it ever went back, and powers off. In 32-bit code:
/// `mov dx, 0x3f8; mov al, '!'; out dx, al; rdtsc; mov esi, eax; mov edi, edx; xor ebx, ebx; 1: rdtsc; mov ecx, eax;
/// mov ebp, edx; sub eax, esi; sbb edx, edi; js 4f; mov esi, ecx; mov edi, ebp; shrd eax, edx, 16; cmp eax, ebx; jbe 2f;
/// mov ebx, eax; 2: mov dx, 0x3fd; in al, dx; test al, 1; jz 1b; mov ecx, ebx; jmp 5f; 4: mov ecx, -1; 5: mov ebx, 8;
/// mov dx, 0x3f8; 3: mov al, cl; and al, 15; add al, 'a'; out dx, al; shr ecx, 4; dec ebx; jnz 3b; out 0x604, 0x3400`.
const STEPS: &[u8] = b"\x66\xba\xf8\x03\xb0!\xee\x0f\x31\x89\xc6\x89\xd7\x31\xdb\x0f\x31\x89\xc1\x89\xd5\x29\xf0\x19\xfa\
                       \x78\x1b\x89\xce\x89\xef\x0f\xac\xd0\x10\x39\xd8\x76\x02\x89\xc3\x66\xba\xfd\x03\xec\xa8\x01\x74\xdd\
                       \x89\xd9\xeb\x05\xb9\xff\xff\xff\xff\xbb\x08\0\0\0\x66\xba\xf8\x03\x88\xc8\x24\x0f\x04a\xee\
                       \xc1\xe9\x04\x4b\x75\xf3\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef";

/// Leases that the process is stopped for.
const STOPPED: u64 = 3;
/// How often the measurement is made, if others on the host keep the vCPU from running for long.
const TRIES: u32 = 3;

fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().chars().next().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// The largest step of a guest's counter, in leases, whose process is stopped by `stop` for [`STOPPED`] of them. The counter
/// never goes back.
fn largest_step(accel: &str, stop: Signal) -> f64 {
    let kernel = file(&pvh_elf(STEPS));
    let mut command = gearshift(&["run", "--accel", accel, "--mem", "16M", "--kernel", path(&kernel)]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut console = child.stdout.take().unwrap();
    let mut begun = [0];
    console.read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"!");

    signal(&child, stop);
    while state(child.id()) != 'T' {
        std::thread::sleep(Duration::from_millis(5));
    }
    let stopped = Instant::now();
    let millis = STOPPED * Lease::TICKS / u64::from(TscFrequency::of_host().khz);
    while stopped.elapsed() < Duration::from_millis(millis) {
        std::thread::sleep(Duration::from_millis(50));
    }
    signal(&child, Signal::CONT);

    child.stdin.take().unwrap().write_all(b"x").unwrap();
    let mut letters = String::new();
    console.read_to_string(&mut letters).unwrap();
    assert!(child.wait().unwrap().success());
    let digits = letters.bytes().enumerate().map(|(n, letter)| u64::from(letter - b'a') << (4 * n));
    let step = digits.sum::<u64>();
    assert_ne!(step, 0xffff_ffff, "{accel}: the counter went back");
    (step << 16) as f64 / Lease::TICKS as f64
}

fn stopped_by(stop: Signal, most: f64) {
    let count = accelerators::each("a process that is stopped", |id, _| {
        let mut seen = Vec::new();
        while !seen.iter().any(|step| *step < most) {
            assert!(seen.len() < TRIES as usize, "{id}: steps, in leases, in stops of {STOPPED}: {seen:?}");
            seen.push(largest_step(id.0, stop));
        }
    });
    assert!(count > 0);
}

/// The machine is paused, so its clock stands: what remains is how long a busy host lets it wait for its turn. Without the
/// pause it would be a lease less the fifth of a second that a pulse is old at most.
#[test]
fn a_stop_that_is_seen_costs_the_guest_no_time() {
    stopped_by(Signal::TSTP, 0.5);
}

#[test]
fn a_stop_that_cannot_be_seen_costs_the_guest_one_lease() {
    stopped_by(Signal::STOP, 2.0);
}
