//! Test support: a clock that stands still, recorders for every seam, and one macro that gives a device its
//! save/restore/reset and random-access tests.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use state::StateUnit;
use state::testing::UnitRig;

use crate::traits::*;
use crate::util::lock;

/// VM time that moves only when told to.
#[derive(Debug, Default)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn at(ns: u64) -> Arc<Self> {
        let clock = Self::default();
        clock.set(ns);
        Arc::new(clock)
    }
    pub(crate) fn set(&self, ns: u64) {
        self.0.store(ns, SeqCst);
    }
    pub(crate) fn advance(&self, ns: u64) {
        self.set(self.now().saturating_add(ns));
    }
}

impl Clock for TestClock {
    fn now(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

/// A wire that remembers its level and counts rising edges.
#[derive(Debug, Default)]
pub(crate) struct TestLine {
    level: AtomicBool,
    rises: AtomicU32,
}

impl TestLine {
    pub(crate) fn level(&self) -> bool {
        self.level.load(SeqCst)
    }
    pub(crate) fn rises(&self) -> u32 {
        self.rises.load(SeqCst)
    }
}

impl IrqLine for TestLine {
    fn set(&self, level: bool) {
        if level && !self.level.swap(level, SeqCst) {
            self.rises.fetch_add(1, SeqCst);
        }
        self.level.store(level, SeqCst);
    }
}

/// Counts the calls of [`TimerHost::rearm`].
#[derive(Debug, Default)]
pub(crate) struct TestTimers(AtomicU32);

impl TestTimers {
    pub(crate) fn rearmed(&self) -> u32 {
        self.0.load(SeqCst)
    }
}

impl TimerHost for TestTimers {
    fn rearm(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Remembers what the guest asked of the machine.
#[derive(Debug, Default)]
pub(crate) struct TestControl(Mutex<Vec<Request>>);

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Request {
    PowerOff,
    Reset,
    DebugExit(u8),
    Panicked(bool),
    Watchdog,
}

impl TestControl {
    pub(crate) fn take(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl MachineControl for TestControl {
    fn power_off(&self) {
        lock(&self.0).push(Request::PowerOff);
    }
    fn reset(&self) {
        lock(&self.0).push(Request::Reset);
    }
    fn debug_exit(&self, value: u8) {
        lock(&self.0).push(Request::DebugExit(value));
    }
    fn panicked(&self, crash_kernel: bool) {
        lock(&self.0).push(Request::Panicked(crash_kernel));
    }
    fn watchdog(&self) {
        lock(&self.0).push(Request::Watchdog);
    }
}

/// Marsaglia's xorshift64*: the same sequence on every run.
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A device with everything it is wired to, built the same way each time.
pub(crate) trait Rig {
    type Device: StateUnit;
    /// `RESET` leaves nothing of the past (false for battery-backed memory).
    const RESET_FORGETS: bool = true;

    fn new(clock: Arc<TestClock>) -> Self;
    fn device(&self) -> &Self::Device;
    /// One random access; returns what the guest saw.
    fn access(&self, rng: &mut Rng) -> u64;
    fn timed(&self) -> Option<&dyn TimedDevice> {
        None
    }
}

/// A rig with its clock, for the tests that every unit must pass.
pub(crate) struct Clocked<R>(R, Arc<TestClock>);

impl<R: Rig> UnitRig for Clocked<R> {
    const RESET_FORGETS: bool = R::RESET_FORGETS;

    fn new() -> Self {
        let clock = TestClock::at(1 << 40);
        Self(R::new(clock.clone()), clock)
    }
    fn another(&self) -> Self {
        let clock = TestClock::at(self.1.now());
        Self(R::new(clock.clone()), clock)
    }
    fn unit(&self) -> &dyn StateUnit {
        self.0.device()
    }
    fn disturb(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        for _ in 0..300 {
            step(&self.0, &self.1, &mut rng);
        }
    }
}

/// A random access to one of `ports` of a PIO device.
pub(crate) fn pio_access(device: &dyn PioDevice, ports: &[u16], rng: &mut Rng) -> u64 {
    let (port, size) = (rng.pick(ports), rng.pick(&[1, 1, 1, 1, 2, 4]));
    if rng.below(2) == 0 {
        device.pio_read(port, size).into()
    } else {
        // Small values and single bits reach more states than noise does.
        let value = match rng.below(3) {
            0 => rng.below(16),
            1 => 1 << rng.below(8),
            _ => rng.next(),
        };
        device.pio_write(port, size, value as u32);
        0
    }
}

/// Lets time pass and serves the timers as the machine's thread would, sometimes late.
pub(crate) fn step<R: Rig>(rig: &R, clock: &TestClock, rng: &mut Rng) -> u64 {
    if rng.below(3) == 0 {
        let ns = match rng.below(8) {
            0..=3 => rng.below(2_000),
            4..=5 => rng.below(3_000_000),
            6 => rng.below(2_000_000_000),
            _ => rng.below(100) * 86_400_000_000_000,
        };
        clock.advance(ns);
    }
    if let Some(timed) = rig.timed()
        && rng.below(4) != 0
    {
        for _ in 0..4 {
            match timed.deadline() {
                Some(at) if at <= clock.now() => timed.expire(clock.now()),
                _ => break,
            }
        }
    }
    rig.access(rng)
}

/// A copy made by save and restore behaves the same from there on.
pub(crate) fn copy_behaves_the_same<R: Rig>() {
    for seed in 1..=24 {
        let mut rng = Rng::new(seed);
        let clock = TestClock::at(rng.below(1 << 40));
        let one = R::new(clock.clone());
        for _ in 0..rng.below(600) {
            step(&one, &clock, &mut rng);
        }
        let section = one.device().save();
        let clock_two = TestClock::at(clock.now());
        let two = R::new(clock_two.clone());
        two.device().restore(&section).expect("what a device has saved, another takes");
        let mut rng_two = rng.clone();
        for i in 0..400 {
            let (a, b) = (step(&one, &clock, &mut rng), step(&two, &clock_two, &mut rng_two));
            assert_eq!(a, b, "seed {seed}: reads differ {i} accesses after restore");
        }
        assert_eq!(one.device().save(), two.device().save(), "seed {seed}: states part after restore");
    }
}

pub(crate) fn hammer<R: Rig>() {
    for seed in 100..108 {
        let mut rng = Rng::new(seed);
        let clock = TestClock::at(0);
        let rig = R::new(clock.clone());
        for i in 0..20_000u32 {
            step(&rig, &clock, &mut rng);
            if i % 1000 == 999 {
                let section = rig.device().save();
                rig.device().restore(&section).expect("what a device has saved, it takes");
                assert_eq!(
                    rig.device().save(),
                    section,
                    "seed {seed}: restoring a device onto itself changed it"
                );
            }
        }
    }
}

/// Writes the tests every device must pass, for a type that implements [`Rig`].
macro_rules! device_tests {
    ($rig:ty) => {
        state::unit_tests!(crate::testing::Clocked<$rig>);

        #[test]
        fn a_copy_behaves_the_same() {
            crate::testing::copy_behaves_the_same::<$rig>();
        }
        #[test]
        fn random_accesses_do_no_harm() {
            crate::testing::hammer::<$rig>();
        }
    };
}
pub(crate) use device_tests;
