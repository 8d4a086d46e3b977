//! A line for whoever looks at an empty screen.
//!
//! A guest that says nothing may have died before its console was there, may have another console, or may be slow. When
//! nothing has come some seconds of the guest's time after its start, one line says so, where vCPU 0 is, and what may
//! help. It is said once, and never after the guest has said something.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use accel_api::x86::{CpuState, MpState};
use machine::Machine;

use crate::stdio::say;

/// Seconds of silence, unless [`VARIABLE`] says otherwise; 0 is for ever.
const SECONDS: u64 = 10;
const VARIABLE: &str = "GEARSHIFT_SILENCE";
/// How often vCPU 0 is looked at, and how long between.
const LOOKS: usize = 8;
const BETWEEN: Duration = Duration::from_millis(5);
/// Code of so many bytes that a vCPU does not leave is a loop in which it spins.
const LOOP: u64 = 256;

/// Whether the guest has said something, or there is nobody left who could.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    over: Mutex<bool>,
    changed: Condvar,
}

impl Silence {
    /// There is nothing to be said any more.
    pub(crate) fn end(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until `now` is `limit` or later; false if the silence ends before.
    fn lasts(&self, limit: Duration, now: impl Fn() -> Duration) -> bool {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        while !*over {
            let left = limit.saturating_sub(now());
            if left.is_zero() {
                return true;
            }
            let waited = self.changed.wait_timeout(over, left);
            over = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// Says the line, if it comes to that, on a thread of its own.
    ///
    /// # Errors
    /// The host has no thread to give.
    pub(crate) fn watch(self: &Arc<Self>, machine: Arc<Machine>, cmdline: String) -> io::Result<()> {
        let limit = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
        if limit == 0 {
            return Ok(());
        }
        let limit = Duration::from_secs(limit);
        let silence = self.clone();
        let work = move || {
            // Of the guest's time: while it is paused it cannot say anything.
            let clock = machine.clock();
            if !silence.lasts(limit, || Duration::from_millis(clock.ticks() / u64::from(clock.khz()))) {
                return;
            }
            let looks: Vec<CpuState> = (0..LOOKS)
                .map_while(|n| {
                    if n > 0 {
                        thread::sleep(BETWEEN);
                    }
                    machine.save_vcpus().ok()?.into_iter().next()
                })
                .collect();
            // It may have ended or spoken while it was looked at.
            if machine.ended().is_none() && silence.lasts(Duration::ZERO, || Duration::ZERO) {
                say(line(limit, &looks, &cmdline));
            }
        };
        thread::Builder::new().name("silence".into()).spawn(work).map(drop)
    }
}

/// The whole line.
fn line(limit: Duration, looks: &[CpuState], cmdline: &str) -> String {
    let place = match looks.last() {
        Some(last) => format!("vCPU 0 {}", activity(looks, last)),
        None => "vCPU 0 does not answer".to_owned(),
    };
    format!("nothing has come from the console for {} s: {place}; {}", limit.as_secs(), advice(cmdline))
}

/// What the vCPU does, and where.
fn activity(looks: &[CpuState], last: &CpuState) -> String {
    let (rip, mode) = (last.rip, mode(last));
    if looks.iter().all(|state| state.mp == MpState::Halted) {
        const IF: u64 = 1 << 9;
        let wake = if last.rflags & IF == 0 { ", with interrupts off" } else { "" };
        return format!("is halted at {rip:#x} ({mode}){wake}");
    }
    let rips = || looks.iter().map(|state| state.rip);
    let (low, high) = (rips().min().unwrap_or(rip), rips().max().unwrap_or(rip));
    match looks.iter().all(|state| state.mp == MpState::Running) {
        true if low == high => format!("spins at {rip:#x} ({mode})"),
        true if high - low < LOOP => format!("spins between {low:#x} and {high:#x} ({mode})"),
        _ => format!("is at work, last seen at {rip:#x} ({mode})"),
    }
}

/// In which mode it is (Intel SDM vol. 3, 2.2).
fn mode(state: &CpuState) -> &'static str {
    const PE: u64 = 1;
    const LMA: u64 = 1 << 10;
    const VM: u64 = 1 << 17;
    /// Of a code segment's attributes, as VMX keeps them.
    const L: u16 = 1 << 13;
    const DB: u16 = 1 << 14;
    let code = state.segments.cs.attributes;
    if state.control.cr0 & PE == 0 {
        "real mode"
    } else if state.rflags & VM != 0 {
        "virtual-8086 mode"
    } else if state.msrs.efer & LMA != 0 && code & L != 0 {
        "64-bit mode"
    } else if code & DB != 0 {
        "32-bit mode"
    } else {
        "16-bit mode"
    }
}

/// What may help, by the kernel's command line.
fn advice(cmdline: &str) -> String {
    let words = || cmdline.split_whitespace();
    let serial = |word: &str| word == "console=ttyS0" || word.starts_with("console=ttyS0,");
    if !words().any(serial) {
        return "the command line has no `console=ttyS0`, without which Linux does not use this console: add it to \
                --cmdline"
            .to_owned();
    }
    if !words().any(|word| word.starts_with("earlyprintk") || word.starts_with("earlycon")) {
        let quiet = if words().any(|word| word == "quiet") { " in place of `quiet`" } else { "" };
        return format!("`earlyprintk=ttyS0` on the command line{quiet} shows what Linux says first");
    }
    "the kernel may be another one than it should be, or wait for what this machine does not have".to_owned()
}

/// A console that ends the silence with its first byte.
pub(crate) struct Heard<W> {
    sink: W,
    silence: Option<Arc<Silence>>,
}

impl<W> Heard<W> {
    pub(crate) fn new(sink: W, silence: &Arc<Silence>) -> Self {
        Self { sink, silence: Some(silence.clone()) }
    }
}

impl<W: Write> Write for Heard<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(silence) = self.silence.take() {
            silence.end();
        }
        self.sink.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn at(rip: u64, mp: MpState) -> CpuState {
        CpuState { rip, mp, ..CpuState::reset(0) }
    }

    #[test]
    fn it_lasts_until_the_guests_clock_says_so() {
        let silence = Silence::default();
        // The wait itself is short: what counts is the clock, which goes by halves of what is left.
        let clock = AtomicU64::new(0);
        let now = || Duration::from_micros(clock.fetch_add(500, Ordering::SeqCst));
        assert!(silence.lasts(Duration::from_millis(1), now));
        assert_eq!(clock.load(Ordering::SeqCst), 1500);
    }

    #[test]
    fn a_byte_ends_it_for_good() {
        let silence = Arc::new(Silence::default());
        let mut console = Heard::new(Vec::new(), &silence);
        console.write_all(b"L").unwrap();
        assert!(!silence.lasts(Duration::ZERO, || Duration::ZERO));
        console.write_all(b"inux").unwrap();
        assert_eq!(console.sink, b"Linux");
        // Also while somebody waits.
        let silence = Arc::new(Silence::default());
        let mut console = Heard::new(Vec::new(), &silence);
        let waiting = {
            let silence = silence.clone();
            thread::spawn(move || silence.lasts(Duration::from_secs(3600), || Duration::ZERO))
        };
        console.write_all(b"L").unwrap();
        assert!(!waiting.join().unwrap());
    }

    #[test]
    fn what_the_vcpu_does_is_told_by_several_looks() {
        let of = |looks: &[CpuState]| activity(looks, looks.last().unwrap());
        let halted = at(0x1000, MpState::Halted);
        assert_eq!(of(std::slice::from_ref(&halted)), "is halted at 0x1000 (real mode), with interrupts off");
        let open = CpuState { rflags: 0x202, ..halted.clone() };
        assert_eq!(of(&[open.clone(), open]), "is halted at 0x1000 (real mode)");
        let running = |rip| at(rip, MpState::Running);
        assert_eq!(of(&[running(16), running(16)]), "spins at 0x10 (real mode)");
        assert_eq!(of(&[running(20), running(16), running(18)]), "spins between 0x10 and 0x14 (real mode)");
        assert_eq!(of(&[running(16), running(0x5000)]), "is at work, last seen at 0x5000 (real mode)");
        assert_eq!(of(&[running(16), at(16, MpState::Halted)]), "is at work, last seen at 0x10 (real mode)");
    }

    #[test]
    fn modes_are_told_apart() {
        let mut state = CpuState::reset(0);
        assert_eq!(mode(&state), "real mode");
        state.control.cr0 |= 1;
        assert_eq!(mode(&state), "16-bit mode");
        state.segments.cs.attributes = 0xc09b;
        assert_eq!(mode(&state), "32-bit mode");
        state.rflags |= 1 << 17;
        assert_eq!(mode(&state), "virtual-8086 mode");
        state.rflags = 2;
        state.msrs.efer = 0x500;
        assert_eq!(mode(&state), "32-bit mode", "compatibility mode");
        state.segments.cs.attributes = 0xa09b;
        assert_eq!(mode(&state), "64-bit mode");
    }

    #[test]
    fn the_advice_fits_the_command_line() {
        for cmdline in ["", "quiet", "console=tty0 xconsole=ttyS0", "console=ttyS01"] {
            assert!(advice(cmdline).contains("no `console=ttyS0`"), "{cmdline}");
        }
        assert!(advice("console=ttyS0").contains("`earlyprintk=ttyS0` on the command line shows"));
        assert!(advice("quiet console=ttyS0,115200n8").contains("in place of `quiet`"));
        assert!(!advice("console=ttyS0 earlyprintk=ttyS0").contains("`earlyprintk"));
        let whole = line(Duration::from_secs(10), &[], "");
        assert!(whole.starts_with("nothing has come from the console for 10 s: vCPU 0 does not answer; "));
        assert_eq!(whole.lines().count(), 1);
    }
}
