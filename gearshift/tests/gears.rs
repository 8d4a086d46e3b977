//! Running guests change accelerators: by key, by schedule, again and again; what they compute does not show it.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use accel_api::Accelerator;
use common::accelerators::{Console, each, end};
use common::guest::have;
use common::pty::Pty;
use common::{IDLE, file, gearshift, path, pvh_elf, stderr};
use guests::debian::{self, Flavour};
use guests::initramfs::Compression;
use guests::suite::{self, Line, Suite};
use machine::{GuestEnd, Machine, Source};

const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two changes.
const REST: Duration = Duration::from_millis(10);

/// All accelerators that work here.
fn all() -> Vec<Arc<dyn Accelerator>> {
    let found = Mutex::new(Vec::new());
    each("changes of accelerator", |_, make| found.lock().unwrap().push(make()));
    found.into_inner().unwrap()
}

/// Debian boots and runs our suite of checked classes (integer, floating point, AVX2, threads, processes, page faults, pipes, code
/// that writes code) while its two vCPUs are handed on every few milliseconds, states read back each time.
#[test]
fn a_suite_computes_the_same_on_whatever_runs_it() {
    if !have(Flavour::Cloud) {
        return;
    }
    let set = all();
    assert!(set.len() >= 2, "there is nothing to change to");
    let guest = debian::cached(Flavour::Cloud).expect("what was just there");
    let busybox = std::fs::read(&guest.busybox).unwrap();
    let program = suite::build(Suite::User, suite::source(), &mut |_| {}).unwrap();
    let classes = program.classes().unwrap();
    let initrd = program.initramfs(&busybox, "--millis 0").unwrap().build(Compression::None);
    let caps = set.iter().skip(1).fold(set[0].caps().clone(), |caps, other| caps.common(other.caps()));
    let console = Console::default();
    let machine = Machine::builder()
        .accelerator(set[0].clone())
        .offered(caps)
        .cpus(2)
        .memory(512 << 20)
        .kernel(guest.kernel)
        .initrd(Source::bytes("initrd", initrd))
        .cmdline("console=ttyS0 panic=-1")
        .console(console.clone())
        .start()
        .unwrap();
    machine.verify_switches(true);
    let (over, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let end = std::thread::scope(|scope| {
        scope.spawn(|| {
            for next in set.iter().cycle().skip(1) {
                std::thread::sleep(REST);
                if over.load(SeqCst) || machine.ended().is_some() {
                    break;
                }
                match machine.switch(&**next) {
                    Ok(_) => _ = changes.fetch_add(1, SeqCst),
                    Err(machine::SwitchError::Machine(_)) => break,
                    Err(error) => panic!("after {} changes: {error}", changes.load(SeqCst)),
                }
            }
        });
        let end = end(&machine);
        over.store(true, SeqCst);
        end
    });
    let text = console.text();
    assert!(matches!(end, GuestEnd::PowerOff), "{end}\n{text}");
    assert!(text.contains("GUEST-DONE status: 0"), "{text}");
    for class in &classes {
        match suite::parse(&class.name, &text) {
            Some(Line::Measured { units: 3.., .. }) => {}
            Some(Line::Unavailable(_)) if class.name == "avx2" => {}
            other => panic!("{}: {other:?}\n{text}", class.name),
        }
    }
    for bad in ["BUG:", "WARNING:", "Oops", "unstable", "stuck for", "rcu: INFO", "time went backwards"] {
        assert!(!text.contains(bad), "{bad}\n{text}");
    }
    let changes = changes.load(SeqCst);
    assert!(changes >= 30, "{changes} changes only");
}

/// Prints as long as it runs.
const PRINTS: &[u8] = &[
    0xba, 0xf8, 0x03, 0, 0, // mov edx, 0x3f8
    0xb0, b'.', // mov al, '.'
    0xee, // again: out dx, al
    0xb9, 0, 0, 1, 0, // mov ecx, 0x10000
    0xe2, 0xfe, // loop $
    0xeb, 0xf6, // jmp again
];

#[test]
fn a_key_changes_gear() {
    let pty = Pty::new();
    let kernel = file(&pvh_elf(IDLE));
    let words = ["run", "--mem", "16M", "--accel", "jit,interp", "--kernel", path(&kernel)];
    let mut session = pty.spawn(&mut gearshift(&words));
    pty.expect("Ctrl-a h helps", PATIENCE);
    pty.send("\x01g");
    pty.expect("interp takes over from jit; the guest stood still for", PATIENCE);
    pty.send("\x01g");
    pty.expect("jit takes over from interp", PATIENCE);
    pty.send("\x01x");
    assert_eq!(session.wait(PATIENCE).code(), Some(18), "{}", pty.text());
    pty.expect("2 changes of accelerator, pause", PATIENCE);
    let pty = Pty::new();
    let mut session =
        pty.spawn(&mut gearshift(&["run", "--mem", "16M", "--accel", "interp", "--kernel", path(&kernel)]));
    pty.expect("Ctrl-a h helps", PATIENCE);
    pty.send("\x01g");
    pty.expect("there is no other accelerator that works here", PATIENCE);
    pty.send("\x01x");
    session.wait(PATIENCE);
}

#[test]
fn a_schedule_changes_gear() {
    let kernel = file(&pvh_elf(PRINTS));
    let words = [
        "run",
        "--mem",
        "16M",
        "--accel",
        "interp",
        "--verify-switches",
        "--kernel",
        path(&kernel),
        "--switch-at",
        "200ms=interpreter",
        "--switch-at",
        "100ms=dynasm",
        "--switch-every",
        "300ms",
    ];
    let mut child = gearshift(&words)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let told = common::lines_until(child.stderr.take().unwrap(), "jit takes over from interp", PATIENCE);
    assert!(told, "the first change was not told");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .unwrap();
    child.wait().unwrap();
}

#[test]
fn what_cannot_be_is_refused_in_a_line() {
    let kernel = file(&pvh_elf(IDLE));
    let run = |words: &[&str]| {
        let words: Vec<_> =
            ["run", "--mem", "16M", "--kernel", path(&kernel)].iter().chain(words).copied().collect();
        let output = gearshift(&words).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    for (words, code, part) in [
        (["--switch-at", "interp"], 2, "such as 2s=interp"),
        (["--switch-at", "x=interp"], 2, "such as 50ms or 2s"),
        (["--switch-every", "1d"], 2, "such as 50ms or 2s"),
        (["--switch-at", "1s=warp"], 4, "no accelerator `warp`"),
    ] {
        let (status, text) = run(&words);
        assert!(status == Some(code) && text.contains(part), "{words:?}: {status:?} {text}");
    }
}
