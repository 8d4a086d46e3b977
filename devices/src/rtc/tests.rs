//! Tests against the MC146818 datasheet.

use super::calendar::{B_BINARY, from_unix, next_alarm, to_unix};
use super::*;
use crate::testing::{Rig, Rng, TestClock, TestLine, TestTimers, device_tests, pio_access};

/// 2024-02-29 23:59:58 UTC, a Thursday, a quarter of a second past.
const START: Duration = Duration::from_millis(1_709_251_198_250);

struct Clockwork {
    rtc: Arc<Rtc>,
    clock: Arc<TestClock>,
    irq: Arc<TestLine>,
    timers: Arc<TestTimers>,
}

impl Rig for Clockwork {
    type Device = Rtc;
    const RESET_FORGETS: bool = false; // battery

    fn new(clock: Arc<TestClock>) -> Self {
        let (irq, timers) = (Arc::new(TestLine::default()), Arc::new(TestTimers::default()));
        let config = CmosConfig { ram_below_4g: 3 << 30, ram_above_4g: 5 << 30, cpus: 4 };
        let rtc = Rtc::new(&config, START, clock.clone(), irq.clone(), timers.clone());
        Self { rtc, clock, irq, timers }
    }
    fn device(&self) -> &Rtc {
        &self.rtc
    }
    fn access(&self, rng: &mut Rng) -> u64 {
        if rng.below(2) == 0 {
            self.rtc.pio_write(0x70, 1, rng.below(16) as u32);
        }
        pio_access(&*self.rtc, &[0x70, 0x71, 0x71, 0x71], rng) << 1 | u64::from(self.irq.level())
    }
    fn timed(&self) -> Option<&dyn TimedDevice> {
        Some(&*self.rtc)
    }
}

device_tests!(Clockwork);

impl Clockwork {
    fn start() -> Self {
        Self::new(TestClock::at(0))
    }
    fn read(&self, register: usize) -> u8 {
        self.rtc.pio_write(0x70, 1, register as u32);
        self.rtc.pio_read(0x71, 1) as u8
    }
    fn write(&self, register: usize, value: u8) {
        self.rtc.pio_write(0x70, 1, 0x80 | register as u32);
        self.rtc.pio_write(0x71, 1, value.into());
    }
    /// Century, year, month, day, weekday, hours, minutes, seconds.
    fn time(&self) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|r| self.read(r))
    }
    fn ms(&self, ms: u64) {
        self.clock.set(ms * 1_000_000);
    }
    /// Runs the timer thread until `end` ms; returns the times of interrupts, each answered by reading C.
    fn run(&self, end: u64) -> Vec<(u64, u8)> {
        let mut seen = Vec::new();
        while let Some(at) = self.rtc.deadline().filter(|&at| at <= end * 1_000_000) {
            assert!(at > self.clock.now() || self.clock.now() == 0);
            self.clock.set(at);
            self.rtc.expire(at);
            assert!(self.irq.level());
            assert_eq!(self.rtc.deadline(), None, "quiet until C is read");
            seen.push((at, self.read(REG_C)));
            assert!(!self.irq.level());
        }
        seen
    }
}

#[test]
fn shows_host_time_and_crosses_leap_day() {
    let c = Clockwork::start();
    assert_eq!(c.time(), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
    c.clock.set(1_749_999_999);
    assert_eq!(c.read(SECONDS), 0x59);
    c.clock.set(1_750_000_000);
    assert_eq!(c.time(), [0x20, 0x24, 0x03, 0x01, 6, 0, 0, 0]);
}

/// MC146818 table 2: binary or BCD, 24 or 12 hours.
#[test]
fn formats() {
    let c = Clockwork::start();
    let hours: Vec<u8> = [0, B_24H, B_BINARY, B_BINARY | B_24H]
        .map(|b| {
            c.write(REG_B, b);
            c.read(HOURS)
        })
        .to_vec();
    assert_eq!(hours, [0x91, 0x23, 0x8b, 23]);
    c.write(REG_B, B_BINARY | B_24H);
    assert_eq!(c.time(), [20, 24, 2, 29, 5, 23, 59, 58]);
    c.write(REG_B, 0);
    c.ms(1750);
    assert_eq!(c.read(HOURS), 0x12, "midnight is 12 AM");
    c.ms(1750 + 12 * 3_600_000);
    assert_eq!(c.read(HOURS), 0x92, "noon is 12 PM");
}

/// MC146818 "Initialisation": SET holds the update.
#[test]
fn set_mode_holds_and_takes_the_time() {
    let c = Clockwork::start();
    c.write(REG_B, B_24H | B_SET | UPDATE);
    assert_eq!(c.read(REG_B) & UPDATE, 0, "SET clears UIE");
    c.ms(60_000);
    assert_eq!(c.read(SECONDS), 0x58, "held");
    for (register, value) in [
        (YEAR, 0x31),
        (MONTH, 0x12),
        (DAY, 0x31),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x59),
        (WEEKDAY, 2),
    ] {
        c.write(register, value);
    }
    c.write(REG_B, B_24H);
    assert_eq!(c.time(), [0x20, 0x31, 0x12, 0x31, 2, 0x23, 0x59, 0x59]);
    c.ms(61_000);
    assert_eq!(c.time(), [0x20, 0x32, 0x01, 0x01, 3, 0, 0, 0], "the weekday is the guest's");
}

/// What Linux' `mc146818_set_time` does, with the divider reset.
#[test]
fn divider_reset_starts_half_a_second_before_the_update() {
    let c = Clockwork::start();
    c.write(REG_B, B_24H | B_SET);
    c.write(REG_A, 0x70 | 6);
    c.write(SECONDS, 0x10);
    c.write(REG_B, B_24H);
    c.ms(5_123);
    assert_eq!(c.read(SECONDS), 0x10);
    c.write(REG_A, 0x20 | 6);
    c.ms(5_622);
    assert_eq!(c.read(SECONDS), 0x10);
    c.ms(5_623);
    assert_eq!(c.read(SECONDS), 0x11);
}

#[test]
fn a_register_written_on_the_run_takes_effect() {
    let c = Clockwork::start();
    c.write(MINUTES, 0x10);
    assert_eq!(c.time()[5..], [0x23, 0x10, 0x58]);
    c.ms(1750);
    assert_eq!(c.time()[5..], [0x23, 0x11, 0x00], "the phase stays");
}

#[test]
fn update_in_progress_announces_the_second() {
    let c = Clockwork::start();
    assert_eq!(c.read(REG_A), 0x26);
    c.clock.set(750_000_000 - UIP_NS - 1);
    assert_eq!(c.read(REG_A), 0x26);
    c.clock.set(750_000_000 - UIP_NS);
    assert_eq!(c.read(REG_A), 0xa6);
    c.clock.set(750_000_000);
    assert_eq!(c.read(REG_A), 0x26);
}

#[test]
fn update_ended_interrupt() {
    let c = Clockwork::start();
    assert_eq!(c.rtc.deadline(), None);
    c.write(REG_B, B_24H | UPDATE);
    assert!(c.timers.rearmed() > 0);
    let seen = c.run(3_000);
    assert_eq!(seen.iter().map(|s| s.0 / 1_000_000).collect::<Vec<_>>(), [750, 1750, 2750]);
    // PF is set as well: 1024 Hz is selected, though not enabled. So is AF at midnight, where the alarm bytes stand.
    let flags = C_IRQF | UPDATE | PERIODIC;
    assert_eq!(seen.iter().map(|s| s.1).collect::<Vec<_>>(), [flags, flags | ALARM, flags]);
}

/// MC146818 table 5.
#[test]
fn periodic_rates() {
    for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (4, 4096), (6, 1024), (13, 8), (15, 2)] {
        let c = Clockwork::start();
        c.write(REG_A, 0x20 | rate);
        c.write(REG_B, B_24H | PERIODIC);
        assert_eq!(c.run(10_000).len(), 10 * hz, "rate {rate}");
    }
    let c = Clockwork::start();
    c.write(REG_A, 0x20);
    c.write(REG_B, B_24H | PERIODIC);
    assert_eq!(c.rtc.deadline(), None, "rate 0 is off");
}

#[test]
fn alarm_interrupt() {
    let c = Clockwork::start();
    for (register, value) in [(HOURS_ALARM, 0x00), (MINUTES_ALARM, 0x01), (SECONDS_ALARM, 0x30)] {
        c.write(register, value);
    }
    c.write(REG_B, B_24H | ALARM);
    assert_eq!(c.rtc.deadline(), Some(91_750_000_000));
    assert_eq!(c.run(100_000).len(), 1);
    assert_eq!(c.rtc.deadline(), Some(91_750_000_000 + 86_400 * NS), "again tomorrow");
    c.write(HOURS_ALARM, 0xff);
    c.write(MINUTES_ALARM, 0xc0);
    assert_eq!(c.run(220_000).len(), 2, "every minute");
}

#[test]
fn alarm_matches() {
    let b = B_24H | B_BINARY;
    let midnight = 1_709_251_200;
    let any = 0xff;
    let cases = [
        (midnight, [0, 0, 0], Some(86_400)),
        (midnight - 1, [0, 0, 0], Some(1)),
        (midnight, [any, any, any], Some(1)),
        (midnight, [any, any, 0], Some(60)),
        (midnight + 59, [any, 1, 0], Some(1)),
        (midnight + 61, [any, 1, 0], Some(3599)),
        (midnight, [any, 30, any], Some(1800)),
        (midnight, [23, any, 59], Some(23 * 3600 + 59)),
        (midnight - 1, [23, 59, 59], Some(86_400)),
        (midnight, [24, 0, 0], None),
        (midnight, [0, 60, 0], None),
        (midnight, [0, 0, 99], None),
    ];
    for (unix, alarm, want) in cases {
        assert_eq!(next_alarm(unix, alarm, b), want, "{alarm:?}");
    }
    assert_eq!(next_alarm(midnight, [0x81, 0, 0], 0), Some(13 * 3600), "1 PM");
    // Against a search through the day.
    let mut rng = Rng::new(3);
    for _ in 0..300 {
        let from = rng.below(1 << 33) as i64;
        let alarm =
            [rng.pick(&[any, 0, 5, 23]), rng.pick(&[any, any, 0, 59, 17]), rng.pick(&[any, 0, 59, 42])];
        let hit = |raw: u8, v: i64| raw >= 0xc0 || i64::from(raw) == v;
        let slow = (1..=86_400).find(|d| {
            let s = (from + d) % 86_400;
            hit(alarm[0], s / 3600) && hit(alarm[1], s / 60 % 60) && hit(alarm[2], s % 60)
        });
        assert_eq!(next_alarm(from, alarm, b), slow, "{from} {alarm:?}");
    }
}

#[test]
fn flags_are_set_without_enables_and_cleared_by_reading() {
    let c = Clockwork::start();
    c.ms(1_000);
    assert_eq!(c.read(REG_C), PERIODIC | UPDATE);
    assert_eq!(c.read(REG_C), 0);
    c.write(REG_C, 0xff);
    c.write(REG_D, 0);
    assert_eq!((c.read(REG_C), c.read(REG_D)), (0, 0x80));
    // Enabling a flag that is set raises the interrupt at once.
    c.ms(2_000);
    c.write(REG_B, B_24H | UPDATE);
    assert!(c.irq.level());
    c.write(REG_B, B_24H);
    assert!(!c.irq.level());
}

#[test]
fn memory_sizes() {
    let c = Clockwork::start();
    let word = |at: usize| u16::from_le_bytes([c.read(at), c.read(at + 1)]);
    assert_eq!((word(0x15), word(0x17), word(0x30)), (640, 0xffff, 0xffff));
    assert_eq!(u64::from(word(0x34)) * 65_536, (3 << 30) - (16 << 20));
    assert_eq!((word(0x5b), c.read(0x5d), c.read(0x5f)), ((5u64 << 14) as u16, 1, 3));
    let sum: u16 = (0x10..=0x2d).map(|r| u16::from(c.read(r))).sum();
    assert_eq!(u16::from_be_bytes([c.read(0x2e), c.read(0x2f)]), sum);
}

#[test]
fn memory_and_shutdown_status_survive_reset() {
    let c = Clockwork::start();
    c.write(0x0f, 0x0a);
    c.write(0x7f, 0x77);
    c.write(REG_B, B_24H | UPDATE | PERIODIC);
    c.ms(1_000);
    c.rtc.expire(c.clock.now());
    assert!(c.irq.level());
    c.rtc.reset();
    assert!(!c.irq.level());
    assert_eq!((c.read(0x0f), c.read(0x7f), c.read(REG_B)), (0x0a, 0x77, B_24H));
    assert_eq!(c.time()[..4], [0x20, 0x24, 0x02, 0x29]);
    assert_eq!(c.rtc.pio_read(0x70, 1), 0xff);
}

#[test]
fn resynchronises_with_the_host() {
    let c = Clockwork::start();
    c.ms(10_400);
    c.rtc.set_utc(Duration::from_millis(1_000_000_000_900));
    assert_eq!(c.time(), [0x20, 0x01, 0x09, 0x09, 1, 0x01, 0x46, 0x40]);
    c.ms(10_500);
    assert_eq!(c.read(SECONDS), 0x41);
}

#[test]
fn calendar_is_its_own_inverse() {
    let mut rng = Rng::new(11);
    for _ in 0..20_000 {
        let unix = rng.below(253_402_300_800) as i64;
        assert_eq!(to_unix(&from_unix(unix)), unix);
    }
    let m = from_unix(-1);
    assert_eq!((m.year, m.month, m.day, m.hour, m.second, m.weekday), (1969, 12, 31, 23, 59, 4));
    let m = from_unix(951_782_400);
    assert_eq!((m.year, m.month, m.day), (2000, 2, 29));
}

/// The state of `clock` with a change.
fn changed(clock: &Clockwork, change: impl FnOnce(&mut RtcState)) -> Section {
    let mut state = lock(&clock.rtc.state).clone();
    change(&mut state);
    Section::of(&SavedRtc::from(&state))
}

#[test]
fn the_farthest_states_are_harmless() {
    let c = Clockwork::start();
    for fill in [0x00, 0x7f, 0x99, 0xff] {
        for seconds in [-1 << 50, 1 << 50] {
            let section = changed(&c, |state| {
                let registers = [REG_A, REG_B, REG_C, REG_D];
                (0..CMOS).filter(|n| !registers.contains(n)).for_each(|n| state.cmos[n] = fill);
                (state.index, state.offset_seconds, state.offset_nanos) = (0x7f, seconds, NS as u32 - 1);
                (state.weekday_shift, state.looked) = (6, u64::MAX);
            });
            c.rtc.restore(&section).unwrap();
            let mut rng = Rng::new(fill.into());
            for _ in 0..300 {
                crate::testing::step(&c, &c.clock, &mut rng);
            }
        }
    }
}

#[test]
fn impossible_states_are_refused_by_field() {
    let c = Clockwork::start();
    let refused = |change: fn(&mut RtcState)| c.rtc.restore(&changed(&c, change)).unwrap_err().to_string();
    assert_eq!(refused(|s| s.index = 0x80), "index is 128, which must be 0 to 127");
    assert_eq!(refused(|s| s.cmos.truncate(3)), "cmos is 3, which must be 128 bytes");
    assert!(refused(|s| s.offset_seconds = i64::MIN).starts_with("offset_seconds is"));
    assert!(refused(|s| s.offset_nanos = u32::MAX).starts_with("offset_nanos is"));
    assert!(refused(|s| s.weekday_shift = 7).starts_with("weekday_shift is 7"));
    assert!(refused(|s| s.halted = true).starts_with("halted is true"));
    assert!(refused(|s| s.cmos[REG_C] = C_IRQF).starts_with("register C is 128"));
    assert!(refused(|s| s.cmos[REG_D] = 0).starts_with("register D is 0"));
}
