//! Tests against the waveforms of the 8254 datasheet, "Mode Definitions".

use super::*;
use crate::testing::{Rig, Rng, TestClock, TestLine, TestTimers, device_tests, pio_access};

struct Timer {
    pit: Arc<Pit>,
    clock: Arc<TestClock>,
    irq: Arc<TestLine>,
    timers: Arc<TestTimers>,
}

impl Timer {
    fn at_tick_zero() -> Self {
        Self::new(TestClock::at(0))
    }
    fn owed(&self) -> u64 {
        lock(&self.pit.state).owed
    }
    fn out(&self, port: u16, v: u8) {
        self.pit.pio_write(port, 1, v.into());
    }
    fn inb(&self, port: u16) -> u8 {
        self.pit.pio_read(port, 1) as u8
    }
    fn go(&self, tick: u64) {
        self.clock.set(ns_of_tick(tick, PIT_HZ));
    }
    /// Sets counter 2 to `mode` and two-byte `count` with the gate open.
    fn program_2(&self, mode: u8, count: u16) {
        self.out(0x61, 1);
        self.out(0x43, 0xb0 | mode << 1);
        let [low, high] = count.to_le_bytes();
        self.out(0x42, low);
        self.out(0x42, high);
    }
    fn program_0(&self, mode: u8, count: u16) {
        self.out(0x43, 0x30 | mode << 1);
        let [low, high] = count.to_le_bytes();
        self.out(0x40, low);
        self.out(0x40, high);
    }
    fn read(&self, counter: u16) -> u16 {
        u16::from_le_bytes([self.inb(0x40 + counter), self.inb(0x40 + counter)])
    }
    fn status(&self, counter: u8) -> u8 {
        self.out(0x43, 0xe0 | 2 << counter);
        self.inb(0x40 + u16::from(counter))
    }
    fn out_2(&self) -> u8 {
        self.inb(0x61) >> 5 & 1
    }
    /// Counts and OUT of counter 2 over the given ticks.
    fn wave(&self, ticks: std::ops::Range<u64>) -> (Vec<u16>, String) {
        ticks
            .map(|t| {
                self.go(t);
                (self.read(2), if self.out_2() == 1 { 'H' } else { '.' })
            })
            .unzip()
    }
    /// Serves the timer as a punctual thread would until `end` ns; returns when each tick came.
    fn run(&self, end: u64) -> Vec<u64> {
        let mut at = Vec::new();
        while let Some(deadline) = self.pit.deadline().filter(|&d| d <= end) {
            self.clock.set(deadline.max(self.clock.now()));
            let before = self.irq.rises();
            self.pit.expire(self.clock.now());
            assert_eq!(self.irq.rises(), before + 1, "a deadline is a tick");
            at.push(self.clock.now());
        }
        self.clock.set(end);
        at
    }
}

impl Rig for Timer {
    type Device = Pit;

    fn new(clock: Arc<TestClock>) -> Self {
        let (irq, timers) = (Arc::new(TestLine::default()), Arc::new(TestTimers::default()));
        Self { pit: Pit::new(clock.clone(), irq.clone(), timers.clone()), clock, irq, timers }
    }
    fn device(&self) -> &Pit {
        &self.pit
    }
    fn access(&self, rng: &mut Rng) -> u64 {
        if let Some(deadline) = self.pit.deadline() {
            let before = self.owed();
            assert!(before > 0 || deadline > self.clock.now(), "nothing is owed, yet it is late");
        }
        let seen = pio_access(&*self.pit, &[0x40, 0x41, 0x42, 0x43, 0x43, 0x61], rng);
        seen << 1 | u64::from(self.irq.level())
    }
    fn timed(&self) -> Option<&dyn TimedDevice> {
        Some(&*self.pit)
    }
}

device_tests!(Timer);

#[test]
fn mode_0_interrupt_on_terminal_count() {
    let t = Timer::at_tick_zero();
    t.program_2(0, 4);
    // Loaded at tick 1: OUT rises N + 1 ticks after the write, the count goes on.
    let (counts, out) = t.wave(0..8);
    assert_eq!(counts, [4, 4, 3, 2, 1, 0, 0xffff, 0xfffe]);
    assert_eq!(out, ".....HHH");
}

#[test]
fn mode_0_gate_pauses_and_first_byte_stops() {
    let t = Timer::at_tick_zero();
    t.program_2(0, 10);
    t.go(4);
    t.out(0x61, 0);
    assert_eq!(t.wave(4..7).0, [7, 7, 7]);
    t.out(0x61, 1);
    assert_eq!(t.wave(7..14), (vec![6, 5, 4, 3, 2, 1, 0], "......H".into()));
    t.out(0x42, 3);
    assert_eq!(t.out_2(), 0, "first byte: OUT low, counting disabled");
    t.go(100);
    assert_eq!(t.out_2(), 0);
    t.out(0x42, 0);
    assert_eq!(t.wave(100..105), (vec![3, 3, 2, 1, 0], "....H".into()));
}

#[test]
fn mode_1_one_shot_triggers_on_gate() {
    let t = Timer::at_tick_zero();
    t.program_2(1, 3);
    assert_eq!(t.wave(0..5).1, "HHHHH", "the gate was high before: no trigger");
    t.out(0x61, 0);
    t.out(0x61, 1);
    assert_eq!(t.wave(4..11).1, "....HHH");
}

#[test]
fn mode_1_retriggers_and_takes_new_count_then() {
    let t = Timer::at_tick_zero();
    t.program_2(1, 5);
    t.out(0x61, 0);
    t.out(0x61, 1);
    t.go(3);
    t.out(0x42, 2);
    t.out(0x42, 0);
    assert_eq!(t.wave(3..8).1, "...HH", "a new count does not touch the running pulse");
    t.out(0x61, 0);
    t.out(0x61, 1);
    assert_eq!(t.wave(7..12).1, "...HH");
}

#[test]
fn mode_2_rate_generator() {
    let t = Timer::at_tick_zero();
    t.program_2(2, 3);
    let (counts, out) = t.wave(1..8);
    assert_eq!(counts, [3, 2, 1, 3, 2, 1, 3]);
    assert_eq!(out, "HH.HH.H");
    t.out(0x61, 0);
    t.go(20);
    assert_eq!((t.read(2), t.out_2()), (3, 1), "held, OUT high");
    t.out(0x61, 1);
    assert_eq!(t.wave(21..25).0, [3, 2, 1, 3], "the gate reloads");
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_the_cycle() {
    let t = Timer::at_tick_zero();
    t.program_2(2, 4);
    t.go(2);
    t.out(0x42, 5);
    t.out(0x42, 0);
    assert_eq!(t.status(2) & 0x40, 0x40, "null count");
    assert_eq!(t.wave(2..11).0, [3, 2, 1, 5, 4, 3, 2, 1, 5]);
    assert_eq!(t.status(2) & 0x40, 0);
}

#[test]
fn mode_3_square_wave() {
    let t = Timer::at_tick_zero();
    t.program_2(3, 4);
    assert_eq!(t.wave(1..9), (vec![4, 2, 4, 2, 4, 2, 4, 2], "HH..HH..".into()));
    let t = Timer::at_tick_zero();
    t.program_2(3, 5);
    assert_eq!(t.wave(1..11), (vec![4, 2, 0, 4, 2, 4, 2, 0, 4, 2], "HHH..HHH..".into()));
}

#[test]
fn mode_3_takes_a_new_count_at_the_end_of_the_half_cycle() {
    let t = Timer::at_tick_zero();
    t.program_2(3, 8);
    t.go(2);
    t.out(0x42, 4);
    t.out(0x42, 0);
    assert_eq!(t.wave(2..14).1, "HHH..HH..HH.");
    t.go(14); // low half
    t.out(0x42, 6);
    t.out(0x42, 0);
    assert_eq!(t.wave(14..22).1, ".HHH...H");
}

#[test]
fn mode_4_and_5_strobe() {
    let t = Timer::at_tick_zero();
    t.program_2(4, 3);
    assert_eq!(t.wave(0..7), (vec![3, 3, 2, 1, 0, 0xffff, 0xfffe], "HHHH.HH".into()));
    t.program_2(5, 3);
    assert_eq!(t.wave(7..12).1, "HHHHH");
    t.out(0x61, 0);
    t.out(0x61, 1);
    assert_eq!(t.wave(11..18).1, "HHHH.HH");
}

#[test]
fn bcd_counts() {
    let t = Timer::at_tick_zero();
    t.out(0x61, 1);
    t.out(0x43, 0xb1); // counter 2, mode 0, BCD
    t.out(0x42, 0x00);
    t.out(0x42, 0x10);
    assert_eq!(t.wave(1..4).0, [0x1000, 0x0999, 0x0998]);
    t.go(1 + 1001);
    assert_eq!((t.read(2), t.out_2()), (0x9999, 1));
    t.out(0x42, 0);
    t.out(0x42, 0);
    t.go(1002 + 1 + 10_000);
    assert_eq!((t.read(2), t.out_2()), (0, 1), "0 means 10000");
    t.go(1002 + 10_000);
    assert_eq!((t.read(2), t.out_2()), (1, 0));
}

/// "Read/Write Operations", "Counter Latch Command", "Read-Back Command".
#[test]
fn access_modes_and_latches() {
    let t = Timer::at_tick_zero();
    t.out(0x61, 1);
    t.out(0x43, 0x94); // counter 2, low byte only, mode 2
    t.out(0x42, 200);
    t.go(11);
    assert_eq!((t.inb(0x42), t.inb(0x42)), (190, 190));
    t.out(0x43, 0xa4); // high byte only
    t.out(0x42, 0x12);
    t.go(12);
    assert_eq!(t.inb(0x42), 0x12);
    t.program_2(2, 1000);
    t.go(113);
    t.out(0x43, 0x80);
    t.go(500);
    t.out(0x43, 0x80); // ignored: one is latched
    assert_eq!(t.read(2), 900);
    assert_eq!(t.read(2), 513, "unlatched again");
    t.out(0x43, 0xc8); // count and status of counter 2
    t.go(600);
    assert_eq!(t.inb(0x42), 0b1011_0100, "status first: OUT, both bytes, mode 2");
    assert_eq!(t.read(2), 513);
    t.out(0x43, 0xb6);
    assert_eq!(t.status(2), 0b1111_0110, "null count until a count is written");
    assert_eq!(t.inb(0x43), 0xff, "the control port cannot be read");
}

/// What Linux does in quick_pit_calibrate and pit_calibrate_tsc: counter 2 must tell VM time to the tick.
#[test]
fn counter_2_is_an_exact_clock() {
    let t = Timer::new(TestClock::at(123_456_789_012_345));
    t.program_2(0, 0xffff);
    let start = ticks_at(t.clock.now(), PIT_HZ) + 1;
    let mut rng = Rng::new(7);
    let end = ns_of_tick(start + 0xffff, PIT_HZ);
    while t.clock.now() < end {
        t.clock.advance(1 + rng.below(300_000));
        let elapsed = ticks_at(t.clock.now(), PIT_HZ) - start;
        assert_eq!(u64::from(t.read(2)), 0xffffu64.wrapping_sub(elapsed) & 0xffff);
        assert_eq!(t.out_2() == 1, elapsed >= 0xffff);
    }
    // OUT rises in the very nanosecond.
    t.program_2(0, 59_659); // 50 ms
    let rise = ns_of_tick(ticks_at(t.clock.now(), PIT_HZ) + 1 + 59_659, PIT_HZ);
    t.clock.set(rise - 1);
    assert_eq!(t.out_2(), 0);
    t.clock.set(rise);
    assert_eq!(t.out_2(), 1);
}

#[test]
fn refresh_bit_toggles_every_15_microseconds() {
    let t = Timer::at_tick_zero();
    let bits: Vec<u8> = (0..6).map(|i| (t.go(18 * i), t.inb(0x61) >> 4 & 1).1).collect();
    assert_eq!(bits, [0, 1, 0, 1, 0, 1]);
    t.out(0x61, 0xff);
    assert_eq!(t.inb(0x61) & 0x0f, 0x0f);
}

#[test]
fn periodic_ticks_do_not_drift() {
    let t = Timer::at_tick_zero();
    assert_eq!(t.pit.deadline(), None);
    t.program_0(2, 4773); // Linux, HZ=250
    assert!(t.timers.rearmed() > 0);
    let rises = t.irq.rises();
    let at = t.run(3_600_000_000_000);
    assert_eq!(at.len() as u64, (3600 * PIT_HZ - 1) / 4773);
    assert_eq!(t.irq.rises() - rises, at.len() as u32);
    for (i, &ns) in at.iter().enumerate() {
        assert_eq!(ns, ns_of_tick(1 + (i as u64 + 1) * 4773, PIT_HZ));
    }
    assert!(t.irq.level(), "rests high");
}

#[test]
fn late_thread_pays_all_ticks_spaced() {
    let t = Timer::at_tick_zero();
    t.program_0(2, 11_932); // 100 Hz
    let period = ns_of_tick(11_932, PIT_HZ);
    t.clock.set(20 * period + period / 10);
    let at = t.run(60 * period);
    assert_eq!(at.len(), 59, "60 periods less the load tick");
    assert!(at.windows(2).all(|w| w[1] - w[0] >= period / 2));
    // Nineteen extra ticks at double rate: caught up after some twenty periods more.
    let last = &at[at.len() - 15..];
    assert!(last.windows(2).all(|w| w[1] - w[0] >= period - 1 && w[1] - w[0] <= period + 1), "{last:?}");
}

#[test]
fn debt_is_bounded() {
    let t = Timer::at_tick_zero();
    t.program_0(2, 11_932);
    t.clock.set(3_600_000_000_000);
    t.pit.expire(t.clock.now());
    assert_eq!(t.owed(), 98, "one second's worth, one of it paid");
    t.out(0x43, 0x34);
    assert_eq!((t.owed(), t.pit.deadline()), (0, None), "a new program owes nothing");
}

#[test]
fn shortest_period_does_not_flood_the_host() {
    for (mode, count) in [(2, 1), (2, 2), (3, 1), (3, 3)] {
        let t = Timer::at_tick_zero();
        t.program_0(mode, count);
        let at = t.run(100_000_000);
        assert!(at.len() as u64 <= 100_000_000 / MIN_GAP + 1);
        assert!(at.len() > 900);
    }
}

#[test]
fn one_shots_fire_once_and_again_when_rewritten() {
    // Linux uses mode 4 for its one-shot clock event: the edge is the end of the strobe, N + 1 ticks after load.
    for (mode, ticks) in [(4, 1001), (0, 1000)] {
        let t = Timer::at_tick_zero();
        t.program_0(mode, 1000);
        let before = t.irq.rises();
        assert_eq!(t.run(1_000_000_000), [ns_of_tick(1 + ticks, PIT_HZ)]);
        t.out(0x40, 0xe8);
        t.out(0x40, 0x03);
        assert_eq!(t.run(2_000_000_000).len(), 1);
        assert_eq!(t.irq.rises() - before, 2);
        assert_eq!(t.pit.deadline(), None);
    }
}

#[test]
fn tick_that_is_due_is_not_lost_to_a_new_program() {
    let t = Timer::at_tick_zero();
    t.program_0(4, 1000);
    let before = t.irq.rises();
    t.go(5000); // the thread is late, the guest writes first
    t.out(0x40, 0xe8);
    assert_eq!(t.irq.rises(), before + 1);
}

#[test]
fn linux_shutdown_lowers_the_line() {
    let t = Timer::at_tick_zero();
    t.program_0(2, 4773);
    assert!(t.irq.level());
    t.program_0(0, 0);
    assert!(!t.irq.level());
}

/// The state of `timer` with a change.
fn changed(timer: &Timer, change: impl FnOnce(&mut PitState)) -> Section {
    let mut state = lock(&timer.pit.state).clone();
    change(&mut state);
    Section::of(&SavedPit::from(&state))
}

#[test]
fn the_farthest_states_are_harmless() {
    let t = Timer::at_tick_zero();
    for mode in 0..6 {
        for (at, held) in [(-FAR, None), (FAR, None), (FAR, Some(FAR as u64)), (0, Some(0))] {
            let section = changed(&t, |state| {
                for counter in &mut state.counters {
                    counter.mode = mode;
                    (counter.loaded, counter.held) = (Some(at), held);
                    counter.next = Some(NextCount { count: 1, at: Some(at) });
                    (counter.edges_taken, counter.edges_left) = (u64::MAX, u64::MAX);
                }
                (state.owed, state.last_tick) = (MAX_OWED, Some(u64::MAX));
            });
            t.pit.restore(&section).unwrap();
            let mut rng = Rng::new(mode.into());
            for _ in 0..200 {
                crate::testing::step(&t, &t.clock, &mut rng);
            }
        }
    }
}

#[test]
fn impossible_states_are_refused_by_field() {
    let t = Timer::at_tick_zero();
    let refused = |change: fn(&mut PitState)| t.pit.restore(&changed(&t, change)).unwrap_err().to_string();
    assert_eq!(refused(|s| s.counters[2].mode = 6), "mode is 6, which must be 0 to 5");
    assert_eq!(refused(|s| s.counters[0].access = 0), "access is 0, which must be 1 to 3");
    assert_eq!(refused(|s| s.counters[1].initial = 0), "initial is 0, which must be 1 to 65536");
    assert!(refused(|s| s.counters[0].loaded = Some(i64::MIN)).starts_with("tick is -9223372036854775808"));
    assert!(refused(|s| s.counters[0].held = Some(u64::MAX)).starts_with("held is"));
    assert!(
        refused(|s| s.counters[0].next = Some(NextCount { count: 0, at: None }))
            .starts_with("next.count is 0")
    );
    assert!(refused(|s| s.owed = MAX_OWED + 1).starts_with("owed is 1001"));
}
