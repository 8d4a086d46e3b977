//! The watchdog of the Intel 6300ESB, 8086:25ab (datasheet 300641, 18): a driver that does not reset its timer in time has died.
//!
//! 1. Two stages of 20 bits each run one after the other, at 33 MHz divided by 2^15 or by 2^5. When the second one is over the
//!    machine is told ([`MachineControl::watchdog`]), unless WDT_OUTPUT is disabled.
//! 2. A register behind BAR 0 takes a write only behind 0x80 and 0x86, written to the reload register.
//! 3. That it was too late once is remembered (WDT_TIMEOUT) until the driver clears it, through resets, too.
//!
//! DEVNOTE: the first stage raises no interrupt, and the free-running mode (WDT_TOUT_CNF) runs like the other one.

use std::sync::{Arc, Mutex};

use state::{RestoreError, Section, StateUnit};

use crate::pci::{BarKind, Function, Identity, PciError, PciFunction, PciSlot};
use crate::saved::watchdog::SavedWatchdog;
use crate::traits::{Clock, MachineControl, MmioDevice, TimedDevice, TimerHost};
use crate::util::lock;

/// Configuration register, 2 bytes.
const CONFIG: u16 = 0x60;
/// CONFIG: the faster clock.
const FAST: u16 = 1 << 2;
/// CONFIG: nobody is told.
const NO_OUTPUT: u16 = 1 << 5;
/// Lock register, 1 byte.
const LOCK: u16 = 0x68;
/// LOCK: the register is as it is until reset.
const LOCKED: u8 = 1 << 0;
/// LOCK: the timer runs.
const ENABLE: u8 = 1 << 1;

/// Bits of a stage.
pub(crate) const PRELOAD: u32 = 0xf_ffff;
/// Behind BAR 0: the stages and the reload register.
const STAGES: [u64; 2] = [0x00, 0x04];
const INTERRUPT: u64 = 0x08;
const RELOAD: u64 = 0x0c;
/// RELOAD: the timer begins anew.
const RESTART: u16 = 1 << 8;
/// RELOAD: it was too late once; a write of one clears it.
const TIMEOUT: u16 = 1 << 9;
/// What unlocks a register.
const KEYS: [u16; 2] = [0x80, 0x86];

/// The state beside the configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WatchdogState {
    /// Lengths of the stages in ticks.
    pub preload: [u32; 2],
    /// VM time of the last restart.
    pub since: u64,
    /// Keys that have been written.
    pub keys: u8,
    /// WDT_TIMEOUT.
    pub timed_out: bool,
    /// It has told; it does not run until it is restarted.
    pub told: bool,
}

impl WatchdogState {
    fn new(now: u64) -> Self {
        Self { preload: [PRELOAD; 2], since: now, keys: 0, timed_out: false, told: false }
    }
}

/// The device.
#[derive(Debug)]
pub struct Watchdog {
    function: Arc<Function>,
    state: Mutex<WatchdogState>,
    clock: Arc<dyn Clock>,
    timers: Arc<dyn TimerHost>,
    control: Arc<dyn MachineControl>,
}

impl Watchdog {
    /// The device, for the place `slot`.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn new(
        slot: &PciSlot,
        clock: Arc<dyn Clock>,
        timers: Arc<dyn TimerHost>,
        control: Arc<dyn MachineControl>,
    ) -> Result<Arc<Self>, PciError> {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x25ab,
            revision: 2,
            class: 0x08_8000,
            subsystem_vendor: 0x8086,
            subsystem: 0x25ab,
        };
        let function = Function::builder("watchdog", &identity)
            .config(|config| {
                config.register(CONFIG, &[0, 0], &[0x27, 0]);
                config.register(LOCK, &[0], &[0x07]);
                config.lock_bit(LOCK, LOCKED, 0, [0x07, 0]);
                Ok(())
            })?
            .bar(0, BarKind::Memory32, 16)
            .build(slot)?;
        let state = Mutex::new(WatchdogState::new(clock.now()));
        let this = Arc::new(Self { function, state, clock, timers, control });
        this.function.connect(0, this.clone());
        Ok(this)
    }

    fn enabled(&self) -> bool {
        self.function.config_read(LOCK, 1) as u8 & ENABLE != 0
    }

    fn config(&self) -> u16 {
        self.function.config_read(CONFIG, 2) as u16
    }

    /// When the second stage is over.
    fn end(&self, state: &WatchdogState) -> Option<u64> {
        let ticks: u64 = state.preload.iter().map(|&stage| u64::from(stage)).sum();
        let cycles = ticks << if self.config() & FAST != 0 { 5 } else { 15 };
        (self.enabled() && !state.told).then(|| state.since.saturating_add(cycles * 1000 / 33))
    }

    fn restart(&self, state: &mut WatchdogState) {
        (state.since, state.told) = (self.clock.now(), false);
    }
}

impl PciFunction for Watchdog {
    fn function(&self) -> &Function {
        &self.function
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        let before = self.enabled();
        self.function.config_write(offset, size, value);
        if !before && self.enabled() {
            self.restart(&mut lock(&self.state));
        }
        self.timers.rearm();
    }
}

/// BAR 0.
impl MmioDevice for Watchdog {
    fn mmio_read(&self, offset: u64, size: u8) -> u64 {
        let state = lock(&self.state);
        let mut registers = [0; 16];
        let mut put = |at: u64, value: u32| {
            registers.iter_mut().skip(at as usize).zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        };
        STAGES.into_iter().zip(state.preload).for_each(|(at, stage)| put(at, stage));
        put(RELOAD, if state.timed_out { TIMEOUT.into() } else { 0 });
        let bytes = registers.iter().skip(offset as usize).take(size.into()).rev();
        bytes.fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    fn mmio_write(&self, offset: u64, _: u8, value: u64) {
        {
            let state = &mut *lock(&self.state);
            let word = value as u16;
            if offset == RELOAD && KEYS.get(usize::from(state.keys)) == Some(&word) {
                state.keys += 1;
                return;
            }
            let unlocked = usize::from(std::mem::take(&mut state.keys)) == KEYS.len();
            match offset {
                _ if !unlocked => return,
                RELOAD => {
                    if word & TIMEOUT != 0 {
                        state.timed_out = false;
                    }
                    if word & RESTART != 0 {
                        self.restart(state);
                    }
                }
                INTERRUPT => {}
                _ => {
                    let stage = STAGES.into_iter().zip(&mut state.preload).find(|(at, _)| *at == offset);
                    let Some((_, stage)) = stage else { return };
                    *stage = value as u32 & PRELOAD;
                }
            }
        }
        self.timers.rearm();
    }
}

impl TimedDevice for Watchdog {
    fn deadline(&self) -> Option<u64> {
        self.end(&lock(&self.state))
    }

    fn expire(&self, now: u64) {
        {
            let mut state = lock(&self.state);
            if self.end(&state).is_none_or(|end| end > now) {
                return;
            }
            (state.told, state.timed_out) = (true, true);
        }
        if self.config() & NO_OUTPUT == 0 {
            self.control.watchdog();
        }
    }
}

impl StateUnit for Watchdog {
    fn name(&self) -> &str {
        "watchdog"
    }

    fn save(&self) -> Section {
        let state = lock(&self.state);
        Section::of(&SavedWatchdog::new(&state, self.function.saved()))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let (restored, function) = section.open::<SavedWatchdog>()?.check()?;
        {
            let mut state = lock(&self.state);
            self.function.take(&function)?;
            *state = restored;
        }
        self.timers.rearm();
        Ok(())
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        self.function.reset();
        *state = WatchdogState { timed_out: state.timed_out, ..WatchdogState::new(self.clock.now()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::Board;
    use crate::pci::{DeviceFunction, command, reg};
    use crate::testing::{Request, Rig, Rng, TestClock, TestControl, TestTimers, device_tests};

    struct Dog {
        watchdog: Arc<Watchdog>,
        clock: Arc<TestClock>,
        control: Arc<TestControl>,
        _board: Board,
    }

    impl Rig for Dog {
        type Device = Watchdog;
        const RESET_FORGETS: bool = false; // WDT_TIMEOUT

        fn new(clock: Arc<TestClock>) -> Self {
            let (board, control) = (Board::new(), Arc::new(TestControl::default()));
            let slot = board.slot(DeviceFunction::new(3, 0));
            let timers = Arc::new(TestTimers::default());
            let watchdog = Watchdog::new(&slot, clock.clone(), timers, control.clone()).unwrap();
            Self { watchdog, clock, control, _board: board }
        }
        fn device(&self) -> &Watchdog {
            &self.watchdog
        }
        fn access(&self, rng: &mut Rng) -> u64 {
            let (offset, size) = (rng.pick(&[0, 4, 8, 12, 12, 12]), rng.pick(&[1, 2, 4]));
            match rng.below(8) {
                0 => self.watchdog.config_write(CONFIG, 2, rng.next() as u32),
                1 => self.watchdog.config_write(LOCK, 1, rng.pick(&[0, 0, 2, 2, 2, 3])),
                2 | 3 => self.key(),
                4 => self.watchdog.mmio_write(offset, size, rng.pick(&[0x80, 0x86, 0x100, 0x300])),
                5 => self.watchdog.mmio_write(offset, size, rng.next()),
                _ => {
                    let seen = self.watchdog.mmio_read(offset, size);
                    return seen << 8 | u64::from(self.watchdog.config_read(LOCK, 1));
                }
            }
            self.control.take().len() as u64
        }
        fn timed(&self) -> Option<&dyn TimedDevice> {
            Some(&*self.watchdog)
        }
    }

    device_tests!(Dog);

    impl Dog {
        fn key(&self) {
            self.watchdog.mmio_write(RELOAD, 2, 0x80);
            self.watchdog.mmio_write(RELOAD, 2, 0x86);
        }

        /// As Linux's driver does: two stages of half the time each.
        fn start(&self, seconds: u32) {
            self.watchdog.config_write(CONFIG, 2, 3);
            for stage in STAGES {
                self.key();
                self.watchdog.mmio_write(stage, 4, u64::from(seconds << 9));
            }
            self.reload();
            self.watchdog.config_write(LOCK, 1, ENABLE.into());
        }

        fn reload(&self) {
            self.key();
            self.watchdog.mmio_write(RELOAD, 2, RESTART.into());
        }

        /// What is told when so much time has passed.
        fn after(&self, ms: u64) -> Vec<Request> {
            self.clock.advance(ms * 1_000_000);
            if self.watchdog.deadline().is_some_and(|at| at <= self.clock.now()) {
                self.watchdog.expire(self.clock.now());
            }
            self.control.take()
        }
    }

    #[test]
    fn a_driver_that_is_too_late_is_told_once_and_finds_out() {
        let dog = Dog::new(TestClock::at(1 << 40));
        assert_eq!((dog.watchdog.config_read(0, 4), dog.watchdog.deadline()), (0x25ab_8086, None));
        dog.start(30);
        for _ in 0..5 {
            assert_eq!(dog.after(29_000), []);
            dog.reload();
        }
        // 2 * 30 * 512 ticks of 2^15 / 33 MHz.
        assert_eq!(dog.after(30_503), []);
        assert_eq!(dog.after(2), [Request::Watchdog]);
        assert_eq!((dog.after(100_000), dog.watchdog.deadline()), (vec![], None));
        dog.watchdog.reset();
        assert!(!dog.watchdog.enabled());
        assert_eq!(dog.watchdog.mmio_read(RELOAD, 2), u64::from(TIMEOUT));
        dog.key();
        dog.watchdog.mmio_write(RELOAD, 2, u64::from(TIMEOUT));
        assert_eq!(dog.watchdog.mmio_read(RELOAD, 2), 0);
    }

    #[test]
    fn registers_take_nothing_without_their_keys() {
        let dog = Dog::new(TestClock::at(0));
        for (offset, value) in [(0, 5), (RELOAD, 0x86), (0, 5), (RELOAD, 0x80), (0, 5), (RELOAD, 0x100)] {
            dog.watchdog.mmio_write(offset, 4, value);
        }
        assert_eq!(dog.watchdog.mmio_read(0, 4), u64::from(PRELOAD));
        dog.key();
        dog.watchdog.mmio_write(0, 4, 0xfff0_0005);
        dog.watchdog.mmio_write(4, 4, 7);
        assert_eq!((dog.watchdog.mmio_read(0, 4), dog.watchdog.mmio_read(4, 4)), (5, u64::from(PRELOAD)));
    }

    #[test]
    fn what_is_locked_stays_and_what_is_disabled_tells_nobody() {
        let dog = Dog::new(TestClock::at(0));
        dog.start(2);
        dog.watchdog.config_write(CONFIG, 2, (FAST | NO_OUTPUT).into());
        assert_eq!((dog.after(2_000), dog.watchdog.mmio_read(RELOAD, 4)), (vec![], u64::from(TIMEOUT)));
        dog.watchdog.config_write(LOCK, 1, (ENABLE | LOCKED).into());
        dog.watchdog.config_write(LOCK, 1, 0);
        assert!(dog.watchdog.enabled());
        dog.watchdog.config_write(CONFIG, 2, 0);
        dog.reload();
        assert_eq!((dog.after(2_000), dog.after(100)), (vec![], vec![Request::Watchdog]));
        dog.watchdog.config_write(reg::COMMAND, 2, command::MEMORY.into());
    }
}
