//! The interval timer: an 8254 (Intel datasheet, order 231164) and the gate and speaker port 0x61.
//!
//! 1. Three counters run at [`PIT_HZ`]. Tick *n* is reached at floor(now × 1193182 / 10⁹) = *n*, counted from the
//!    VM's start in 128-bit arithmetic: no drift, and a read is exact whatever the host does. Linux calibrates its
//!    TSC against counter 2, through its count and through OUT in port 0x61.
//! 2. OUT of counter 0 is IRQ 0. Its edges need the timer thread; each is due at the tick the datasheet says.
//! 3. **Late ticks.** A thread that wakes late owes the guest ticks, and a guest that counts jiffies by them would
//!    lose time. What is owed is delivered one tick at a time, half a period apart (so that the guest can take each
//!    before the next: an edge on a pending interrupt is lost), until none is left. At most one second's worth and
//!    at most [`MAX_OWED`] ticks are kept; a guest that was held up longer has other ways to find out.
//! 4. IRQ 0 never fires more often than once in [`MIN_GAP`]: a guest that sets a period of a microsecond must not
//!    take a host CPU for it.
//!
//! DEVNOTE: between ticks of modes 2, 3, 4 and 5 the IRQ 0 line rests high and a tick is a short low pulse. Mode
//! 3's half-period low and mode 2's single low tick are visible only in the status byte.

mod counter;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

pub(crate) use counter::{Counter, FAR, NextCount};

use state::{RestoreError, Section, StateUnit};

use crate::saved::pit::SavedPit;
use crate::traits::{Clock, IrqLine, PioDevice, TimedDevice, TimerHost};
use crate::util::{lock, ns_of_tick, read_bytes, ticks_at, write_bytes};

/// Input clock in Hz.
pub const PIT_HZ: u64 = 1_193_182;
/// First port of the 8254; four ports.
pub const PIT_PORT: u16 = 0x40;
/// The gate and speaker port, "NMI status and control" in the ICH9 datasheet, 13.7.1.
pub const PORT_61: u16 = 0x61;
/// ISA interrupt of counter 0.
pub const PIT_IRQ: u8 = 0;
/// Ticks owed at most.
pub const MAX_OWED: u64 = 1000;
/// Shortest time between two ticks, in ns.
pub const MIN_GAP: u64 = 100_000;

/// Counter 1 refreshed the memory of the first PCs every 18 ticks; port 0x61 still shows it.
const REFRESH_TICKS: u64 = 18;

/// The state. Ticks count from the VM's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PitState {
    /// Counters 0 to 2.
    pub counters: [Counter; 3],
    /// Writable bits 3:0 of port 0x61.
    pub port_61: u8,
    /// Level of IRQ 0.
    pub line: bool,
    /// Ticks of counter 0 that are due and not delivered.
    pub owed: u64,
    /// When the last tick was delivered, in ns.
    pub last_tick: Option<u64>,
}

impl PitState {
    fn new() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            port_61: 0,
            line: false,
            owed: 0,
            last_tick: None,
        }
    }

    /// Adds the ticks that fell due up to `now`.
    fn account(&mut self, now: u64) {
        let counter = &mut self.counters[0];
        let due = counter.take_edges(tick(now));
        let most = if counter.periodic() { (PIT_HZ / counter.period()).clamp(1, MAX_OWED) } else { 1 };
        self.owed = self.owed.saturating_add(due).min(most);
    }

    /// Earliest moment for the next tick, by points 3 and 4 of the module docs.
    fn earliest(&self) -> u64 {
        let counter = &self.counters[0];
        match self.last_tick {
            Some(at) if counter.periodic() => {
                at.saturating_add(MIN_GAP.max(ns_of_tick(counter.period(), PIT_HZ) / 2))
            }
            _ => 0,
        }
    }

    fn deadline(&mut self, now: u64) -> Option<u64> {
        self.account(now);
        if self.owed > 0 {
            return Some(self.earliest());
        }
        let rise = u64::try_from(self.counters[0].next_rise(tick(now))?).unwrap_or(0);
        Some(ns_of_tick(rise, PIT_HZ).max(self.earliest()))
    }
}

fn tick(now: u64) -> i64 {
    ticks_at(now, PIT_HZ) as i64
}

/// The 8254 and port 0x61.
#[derive(Debug)]
pub struct Pit {
    state: Mutex<PitState>,
    clock: Arc<dyn Clock>,
    irq: Arc<dyn IrqLine>,
    timers: Arc<dyn TimerHost>,
}

impl Pit {
    /// A timer after reset: no counter runs, IRQ 0 (`irq`) is low.
    pub fn new(clock: Arc<dyn Clock>, irq: Arc<dyn IrqLine>, timers: Arc<dyn TimerHost>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(PitState::new()), clock, irq, timers })
    }

    /// Delivers a tick if one is due.
    fn service(&self, state: &mut PitState, now: u64) {
        state.account(now);
        if state.owed > 0 && now >= state.earliest() {
            state.owed -= 1;
            state.last_tick = Some(now);
            state.line = true;
            self.irq.set(false);
            self.irq.set(true);
        }
    }

    /// Sets the level at which the line rests.
    fn rest(&self, state: &mut PitState, level: bool) {
        state.line = level;
        self.irq.set(level);
    }

    fn write_control(&self, state: &mut PitState, value: u8, tick: i64) {
        let select = usize::from(value >> 6);
        if let Some(counter) = state.counters.get_mut(select) {
            if value & 0x30 == 0 {
                counter.latch_count(tick);
                return;
            }
            counter.write_control(value);
            if select == 0 {
                state.owed = 0;
                let rest = state.counters[0].mode != 0;
                self.rest(state, rest);
            }
        } else {
            // Read-back command.
            for (n, counter) in state.counters.iter_mut().enumerate() {
                if value & 2 << n != 0 {
                    if value & 0x20 == 0 {
                        counter.latch_count(tick);
                    }
                    if value & 0x10 == 0 {
                        counter.latch_status(tick);
                    }
                }
            }
        }
    }

    fn read(&self, state: &mut PitState, port: u16, now: u64) -> u8 {
        match port {
            0x40..=0x42 => state.counters[usize::from(port - 0x40)].read(tick(now)),
            PORT_61 => {
                let refresh = ((ticks_at(now, PIT_HZ) / REFRESH_TICKS) & 1) as u8;
                let out = u8::from(state.counters[2].out(tick(now)));
                state.port_61 | refresh << 4 | out << 5
            }
            _ => 0xff,
        }
    }

    fn write(&self, state: &mut PitState, port: u16, value: u8, now: u64) {
        // A tick that is due belongs to the program the guest is about to replace: it goes first.
        if matches!(port, 0x40 | 0x43) {
            self.service(state, now);
        }
        match port {
            0x40..=0x42 => {
                state.counters[usize::from(port - 0x40)].write(value, tick(now));
                if port == 0x40 && state.counters[0].mode == 0 {
                    self.rest(state, false);
                }
            }
            0x43 => self.write_control(state, value, tick(now)),
            PORT_61 => {
                state.port_61 = value & 0x0f;
                state.counters[2].set_gate(value & 1 != 0, tick(now));
            }
            _ => {}
        }
    }
}

impl PioDevice for Pit {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        let mut state = lock(&self.state);
        let now = self.clock.now();
        read_bytes(port, size, |p| self.read(&mut state, p, now))
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        let mut rearm = false;
        {
            let mut state = lock(&self.state);
            let now = self.clock.now();
            write_bytes(port, size, value, |p, v| {
                self.write(&mut state, p, v, now);
                rearm |= p == 0x40;
            });
        }
        if rearm {
            self.timers.rearm();
        }
    }
}

impl TimedDevice for Pit {
    fn deadline(&self) -> Option<u64> {
        lock(&self.state).deadline(self.clock.now())
    }

    fn expire(&self, now: u64) {
        self.service(&mut lock(&self.state), now);
    }
}

impl StateUnit for Pit {
    fn name(&self) -> &str {
        "pit"
    }

    fn save(&self) -> Section {
        Section::of(&SavedPit::from(&*lock(&self.state)))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = PitState::try_from(section.open::<SavedPit>()?)?;
        {
            let mut state = lock(&self.state);
            *state = restored;
            self.irq.set(state.line);
        }
        self.timers.rearm();
        Ok(())
    }

    fn reset(&self) {
        {
            let mut state = lock(&self.state);
            *state = PitState::new();
            self.irq.set(false);
        }
        self.timers.rearm();
    }
}
