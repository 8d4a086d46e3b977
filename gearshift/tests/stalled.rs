//! Standard output, or a console of an embedder's, that takes nothing: the machine is paused, looked at, saved and stopped all
//! the same, and nothing is lost or out of order when the output goes on.

mod common;

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use accel_api::x86::gpr;
use common::pty::Pty;
use common::{accelerators, file, gearshift, path, pvh_elf};
use machine::{GuestEnd, Machine, Source};
use rustix::process::Signal;

/// For a host that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends 0, 1, 2 and so on to the serial port, and counts in ECX.
#[rustfmt::skip]
const COUNTER: &[u8] = &[
    0xba, 0xf8, 0x03, 0, 0, // mov edx, 0x3f8
    0x31, 0xc9,             // xor ecx, ecx
    0x88, 0xc8,             // again: mov al, cl
    0xee, 0x41,             // out dx, al; inc ecx
    0xeb, 0xfa,             // jmp again
];

/// Sends its own first 16 bytes again and again, by REP OUTSB, and counts in EBX.
#[rustfmt::skip]
const STRING: &[u8] = &[
    0xba, 0xf8, 0x03, 0, 0,    // mov edx, 0x3f8
    0xbe, 0, 0, 0x10, 0,       // again: mov esi, 0x100000
    0xb9, 16, 0, 0, 0,         // mov ecx, 16
    0xfc, 0xf3, 0x6e,          // cld; rep outsb
    0x43, 0xeb, 0xf0,          // inc ebx; jmp again
];

/// A sink that takes nothing until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Taken>, Condvar)>);

/// Whether it is open, and what it has taken.
type Taken = (bool, Vec<u8>);

impl Gate {
    fn open(&self) {
        self.0.0.lock().unwrap().0 = true;
        self.0.1.notify_all();
    }

    /// What has come, at least `len` bytes.
    fn bytes(&self, len: usize) -> Vec<u8> {
        let wait = self.0.1.wait_timeout_while(self.0.0.lock().unwrap(), PATIENCE, |s| s.1.len() < len);
        let state = wait.unwrap().0;
        assert!(state.1.len() >= len, "only {} bytes of {len}", state.1.len());
        state.1.clone()
    }
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.1.wait_while(self.0.0.lock().unwrap(), |state| !state.0).unwrap();
        state.1.extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The answer to a question that must not wait for the console.
fn answered<R: Send + 'static>(
    machine: &Arc<Machine>,
    what: &str,
    ask: impl FnOnce(&Machine) -> R + Send + 'static,
) -> R {
    let (tell, answer) = mpsc::channel();
    let machine = machine.clone();
    std::thread::spawn(move || tell.send(ask(&machine)));
    answer.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what} waits for the console"))
}

#[test]
fn a_console_that_takes_nothing_keeps_nobody_waiting() {
    let tested = accelerators::each("a stalled console", |id, make| {
        for (code, expected) in
            [(COUNTER, &(|n: usize| n as u8) as &dyn Fn(usize) -> u8), (STRING, &|n: usize| STRING[n % 16])]
        {
            let gate = Gate::default();
            let machine = Machine::builder()
                .accelerator(make())
                .memory(16 << 20)
                .kernel(Source::bytes("stalled", pvh_elf(code)))
                .console(gate.clone());
            let machine = Arc::new(machine.start().unwrap());
            // How far it has come, by up to 16 bytes too much where a string has ended; asking lets one access go.
            let sent = || {
                let state = answered(&machine, "save", |m| m.save_vcpus()).unwrap().remove(0);
                let bytes = match code {
                    STRING => 16 * state.gpr[gpr::RBX] + 16 - state.gpr[gpr::RCX].min(16),
                    _ => state.gpr[gpr::RCX],
                };
                bytes as usize
            };
            // Until it is stalled: it has filled the queue, and what the writer has taken.
            let (mut last, mut still) = (0, 0);
            while still < 20 {
                let now = sent();
                still = if now > devices_capacity() && now <= last + 16 { still + 1 } else { 0 };
                last = now;
            }
            answered(&machine, "pause", |m| m.pause()).unwrap();
            let paused = sent();
            assert_eq!(answered(&machine, "stats", |m| m.stats()).unwrap().len(), 1, "{id}");
            assert_eq!(sent(), paused, "{id}");
            answered(&machine, "resume", |m| m.resume()).unwrap();
            answered(&machine, "stats", |m| m.stats()).unwrap();
            let collect = |m: &Machine| m.accel_vm().take_dirty();
            answered(&machine, "take_dirty", collect).unwrap();
            assert!(gate.0.0.lock().unwrap().1.is_empty());

            gate.open();
            let bytes = gate.bytes(last + 1000);
            assert!(bytes.iter().enumerate().all(|(n, byte)| *byte == expected(n)), "{id}");
            machine.stop();
            assert_eq!(answered(&machine, "the end", |m| m.wait()), GuestEnd::Stopped);
        }
    });
    assert!(tested >= 2);
}

/// Bytes that are queued before a vCPU waits.
const fn devices_capacity() -> usize {
    64 << 10
}

/// A machine whose console never takes a byte is stopped.
#[test]
fn a_stalled_machine_can_be_stopped() {
    accelerators::each("a stalled console", |_, make| {
        let machine = Machine::builder()
            .accelerator(make())
            .memory(16 << 20)
            .kernel(Source::bytes("stalled", pvh_elf(COUNTER)))
            .console(Gate::default());
        let machine = Arc::new(machine.start().unwrap());
        while answered(&machine, "save", |m| m.save_vcpus()).unwrap()[0].gpr[gpr::RCX] < 66_000 {}
        machine.stop();
        assert_eq!(answered(&machine, "the end", |m| m.wait()), GuestEnd::Stopped);
    });
}

/// Whether a write to a pipe would not block.
fn has_room(writer: &io::PipeWriter) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(writer, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

/// The program, with a pipe that nobody reads for its standard output, and for its standard error too: Ctrl-a s and Ctrl-a x
/// answer, and SIGTERM ends it.
#[test]
fn keys_and_signals_work_while_a_pipe_is_full() {
    let kernel = file(&pvh_elf(COUNTER));
    for accel in ["interp", "jit"] {
        for errors_too in [false, true] {
            for signal in [false, true] {
                let pty = Pty::new();
                let (reader, writer) = io::pipe().unwrap();
                let mut command =
                    gearshift(&["run", "--mem", "16M", "--accel", accel, "--kernel", path(&kernel)]);
                let errors = if errors_too { writer.try_clone().unwrap().into() } else { pty.stream() };
                command.stdin(pty.stream()).stdout(Stdio::from(writer.try_clone().unwrap())).stderr(errors);
                let mut session = pty.start(&mut command);
                drop(command);
                pty.wait_for_raw(PATIENCE);
                let end = std::time::Instant::now() + PATIENCE;
                while has_room(&writer) {
                    assert!(std::time::Instant::now() < end, "the pipe never fills");
                    std::thread::sleep(Duration::from_millis(5));
                }
                pty.send("\x01s\x01h\x01s");
                if !errors_too {
                    pty.expect("vCPU 0", PATIENCE);
                }
                if signal {
                    session.signal(Signal::TERM);
                    assert_eq!(session.wait(PATIENCE).signal(), Some(Signal::TERM.as_raw()));
                } else {
                    pty.send("\x01x");
                    assert_eq!(session.wait(PATIENCE).code(), Some(18));
                }
                assert!(!pty.is_raw());
                drop(reader);
            }
        }
    }
}
