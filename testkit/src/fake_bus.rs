//! A machine of one vCPU that records what the guest asks of it.
//!
//! 1. Every access is logged with address, size and value. A read returns, in this order: the answer scripted for the
//!    address, or [`pattern`] of the address, which makes every byte of the device space different and known.
//! 2. Ports can be given an action of the host ([`FakeBus::on_out`]), which then happens at an exact place of the
//!    guest's program.
//! 3. All that is logged can be watched ([`FakeBus::on_event`]), also by who wants to hold it up.
//! 4. [`EXIT_PORT`] ends the guest: the vCPU is kicked. [`FAULT_PORT`] ends it as failed.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel_api::{GpFault, IoSize, Kick, VcpuBus};

/// OUT here ends the guest; the value is kept.
pub const EXIT_PORT: u16 = 0xf4;
/// OUT here ends the guest: an exception nobody expected.
pub const FAULT_PORT: u16 = 0xf5;

/// One thing the guest asked of its machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the parameters of the [`VcpuBus`] methods
pub enum Event {
    MmioRead { gpa: u64, size: IoSize },
    MmioWrite { gpa: u64, size: IoSize, value: u64 },
    PioRead { port: u16, size: IoSize },
    PioWrite { port: u16, size: IoSize, value: u32 },
    MsrRead { index: u32 },
    MsrWrite { index: u32, value: u64 },
    AckExtint,
    Eoi { vector: u8 },
}

type Action = Arc<dyn Fn(u32) + Send + Sync>;
type Watcher = Arc<dyn Fn(&Event) + Send + Sync>;

#[derive(Default)]
struct Inner {
    log: Vec<Event>,
    mmio: HashMap<u64, VecDeque<u64>>,
    pio: HashMap<u16, VecDeque<u32>>,
    msrs: HashMap<u32, u64>,
    extint: VecDeque<Option<u8>>,
    out: HashMap<u16, Action>,
    watcher: Option<Watcher>,
    kick: Option<Arc<dyn Kick>>,
    exit: Option<Ending>,
}

/// How the guest ended itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Through [`EXIT_PORT`], with this value.
    Exit(u32),
    /// Through [`FAULT_PORT`].
    Fault,
}

/// See the module's description.
#[derive(Default)]
pub struct FakeBus {
    inner: Mutex<Inner>,
}

impl fmt::Debug for FakeBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeBus").field("log", &self.lock().log).finish_non_exhaustive()
    }
}

/// What a device byte at `address` reads as, if nothing is scripted.
pub const fn pattern_byte(address: u64) -> u8 {
    (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ address as u8
}

/// The `bytes` pattern bytes from `address`, as a little-endian number.
pub const fn pattern(address: u64, bytes: usize) -> u64 {
    let (mut value, mut i) = (0, 0);
    while i < bytes {
        value |= (pattern_byte(address.wrapping_add(i as u64)) as u64) << (8 * i);
        i += 1;
    }
    value
}

impl FakeBus {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom [`EXIT_PORT`] kicks.
    pub fn set_kick(&self, kick: Arc<dyn Kick>) {
        self.lock().kick = Some(kick);
    }

    /// Adds an answer for the next unanswered read at `gpa`.
    pub fn answer_mmio(&self, gpa: u64, value: u64) {
        self.lock().mmio.entry(gpa).or_default().push_back(value);
    }

    /// Adds an answer for the next unanswered IN from `port`.
    pub fn answer_pio(&self, port: u16, value: u32) {
        self.lock().pio.entry(port).or_default().push_back(value);
    }

    /// Makes the machine have an MSR.
    pub fn have_msr(&self, index: u32, value: u64) {
        self.lock().msrs.insert(index, value);
    }

    /// The machine's own MSR.
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.lock().msrs.get(&index).copied()
    }

    /// Adds an answer for the next INTA cycle. Without one there is no request.
    pub fn answer_extint(&self, vector: Option<u8>) {
        self.lock().extint.push_back(vector);
    }

    /// Does `action` with the value at each OUT to `port`, on the vCPU's thread, in the middle of the instruction.
    pub fn on_out(&self, port: u16, action: impl Fn(u32) + Send + Sync + 'static) {
        self.lock().out.insert(port, Arc::new(action));
    }

    /// Does `action` with each event, on the vCPU's thread, in the middle of the instruction and before it is answered.
    pub fn on_event(&self, action: impl Fn(&Event) + Send + Sync + 'static) {
        self.lock().watcher = Some(Arc::new(action));
    }

    /// Logs an event and shows it to who watches.
    fn note(&self, event: Event) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        inner.log.push(event);
        let Some(watcher) = inner.watcher.clone() else { return inner };
        drop(inner);
        watcher(&event);
        self.lock()
    }

    /// Everything logged so far, [`EXIT_PORT`] apart; the log is empty afterwards.
    pub fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().log)
    }

    /// How the guest ended, once.
    pub fn take_ending(&self) -> Option<Ending> {
        self.lock().exit.take()
    }

    /// How often something was logged that `wanted` says yes to.
    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.lock().log.iter().filter(|e| wanted(e)).count()
    }
}

impl VcpuBus for FakeBus {
    fn mmio_read(&self, gpa: u64, size: IoSize) -> u64 {
        let mut inner = self.note(Event::MmioRead { gpa, size });
        let scripted = inner.mmio.get_mut(&gpa).and_then(VecDeque::pop_front);
        scripted.unwrap_or_else(|| pattern(gpa, size.bytes()))
    }

    fn mmio_write(&self, gpa: u64, size: IoSize, value: u64) {
        drop(self.note(Event::MmioWrite { gpa, size, value }));
    }

    fn pio_read(&self, port: u16, size: IoSize) -> u32 {
        let mut inner = self.note(Event::PioRead { port, size });
        let scripted = inner.pio.get_mut(&port).and_then(VecDeque::pop_front);
        scripted.unwrap_or_else(|| pattern(u64::from(port), size.bytes()) as u32)
    }

    fn pio_write(&self, port: u16, size: IoSize, value: u32) {
        let mut inner = self.lock();
        let ending = match port {
            EXIT_PORT => Some(Ending::Exit(value)),
            FAULT_PORT => Some(Ending::Fault),
            _ => None,
        };
        if ending.is_some() {
            inner.exit = inner.exit.or(ending);
            let kick = inner.kick.clone();
            drop(inner);
            if let Some(kick) = kick {
                kick.kick();
            }
            return;
        }
        drop(inner);
        let inner = self.note(Event::PioWrite { port, size, value });
        let action = inner.out.get(&port).cloned();
        drop(inner);
        if let Some(action) = action {
            action(value);
        }
    }

    fn msr_read(&self, index: u32) -> Result<u64, GpFault> {
        let inner = self.note(Event::MsrRead { index });
        inner.msrs.get(&index).copied().ok_or(GpFault)
    }

    fn msr_write(&self, index: u32, value: u64) -> Result<(), GpFault> {
        let mut inner = self.note(Event::MsrWrite { index, value });
        *inner.msrs.get_mut(&index).ok_or(GpFault)? = value;
        Ok(())
    }

    fn ack_extint(&self) -> Option<u8> {
        let mut inner = self.note(Event::AckExtint);
        inner.extint.pop_front().flatten()
    }

    fn eoi(&self, vector: u8) {
        drop(self.note(Event::Eoi { vector }));
    }
}
