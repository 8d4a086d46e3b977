//! The real-time clock and CMOS memory (Motorola MC146818 datasheet; ICH9 datasheet 13.6), ports 0x70 and 0x71.
//!
//! 1. The time of day is VM time plus an offset that the host's UTC gives at start and the guest changes when it
//!    sets the clock. Seconds change exactly where the sum does; the registers are computed when read.
//! 2. While the guest holds SET, or keeps the divider in reset, the time registers are plain bytes; letting go
//!    makes the offset from them. After a divider reset the first update follows half a second later.
//! 3. PF, AF and UF are set when their moment has passed since the last look, enabled or not. IRQ 8 is the level of
//!    IRQF, from an enabled flag's moment until the guest reads register C; until then no timer runs.
//! 4. The other bytes are battery-backed memory. Firmware and old code find memory sizes in it.
//!
//! DEVNOTE: daylight saving (DSE) and the square wave do not exist on PC chipsets; the bits are stored. Update in
//! progress is shown for the 244 µs before the second; the update itself takes no time.

mod calendar;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use state::{RestoreError, Section, StateUnit, check};

use crate::saved::rtc::SavedRtc;
use crate::traits::{Clock, IrqLine, PioDevice, TimedDevice, TimerHost};
use crate::util::{NS, lock, ns_of_tick, read_bytes, ticks_at, write_bytes};
use calendar::{B_24H, Moment};

/// First of the two ports: index, then data.
pub const RTC_PORT: u16 = 0x70;
/// ISA interrupt of the clock.
pub const RTC_IRQ: u8 = 8;
/// CMOS byte of the century, for the FADT's `CENTURY`.
pub const RTC_CENTURY: u8 = 0x32;

const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REG_A: usize = 0x0a;
const REG_B: usize = 0x0b;
const REG_C: usize = 0x0c;
const REG_D: usize = 0x0d;
const CENTURY: usize = RTC_CENTURY as usize;

const A_UIP: u8 = 0x80;
/// Divider chain running from a 32768 Hz crystal.
const A_DIVIDER_ON: u8 = 0x20;
const A_DIVIDER: u8 = 0x70;
const A_RATE: u8 = 0x0f;

const B_SET: u8 = 0x80;
/// Interrupt enables sit in register B where their flags sit in register C.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const FLAGS: u8 = PERIODIC | ALARM | UPDATE;
const B_SQWE: u8 = 0x08;
const C_IRQF: u8 = 0x80;
const D_VRT: u8 = 0x80;

/// Bytes of memory.
pub(crate) const CMOS: usize = 128;

const CRYSTAL_HZ: u64 = 32_768;
const UIP_NS: u64 = 244_000;

/// What the memory-size bytes of the CMOS shall say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmosConfig {
    /// Bytes of RAM that end below 4 GiB, those below 1 MiB included.
    pub ram_below_4g: u64,
    /// Bytes of RAM from 4 GiB on.
    pub ram_above_4g: u64,
    /// Number of processors, at least 1.
    pub cpus: u8,
}

/// The state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RtcState {
    /// Index register, 0..=127.
    pub index: u8,
    /// The 128 bytes. Those of the time are current only while `halted`.
    pub cmos: Vec<u8>,
    /// The time registers are held by SET or by the divider.
    pub halted: bool,
    /// Unix time of the RTC less VM time: whole seconds.
    pub offset_seconds: i64,
    /// And the rest in ns, 0..10^9.
    pub offset_nanos: u32,
    /// The guest's weekday less the calendar's, 0..=6.
    pub weekday_shift: u8,
    /// VM time up to which the flags are set.
    pub looked: u64,
}

impl RtcState {
    fn new(config: &CmosConfig, utc: Duration, now: u64) -> Self {
        let mut cmos = vec![0; CMOS];
        cmos[REG_A] = A_DIVIDER_ON | 6;
        cmos[REG_B] = B_24H;
        cmos[REG_D] = D_VRT;
        let mut put = |at: usize, value: u64| cmos[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        put(0x15, 640);
        let extended = (config.ram_below_4g.saturating_sub(MIB) / KIB).min(0xffff);
        put(0x17, extended);
        put(0x30, extended);
        put(0x34, (config.ram_below_4g.saturating_sub(16 * MIB) / (64 * KIB)).min(0xffff));
        // Above 4 GiB in units of 64 KiB, three bytes.
        let high = (config.ram_above_4g / (64 * KIB)).min(0xff_ffff);
        put(0x5b, high);
        cmos[0x5d] = (high >> 16) as u8;
        cmos[0x5f] = config.cpus.saturating_sub(1);
        cmos[0x14] = 0x02; // equipment: FPU, no diskette
        let sum = cmos[0x10..=0x2d].iter().fold(0u16, |sum, &b| sum.wrapping_add(b.into()));
        cmos[0x2e..=0x2f].copy_from_slice(&sum.to_be_bytes());
        let mut state = Self {
            index: 0,
            cmos,
            halted: false,
            offset_seconds: 0,
            offset_nanos: 0,
            weekday_shift: 0,
            looked: now,
        };
        state.set_utc(utc, now);
        state
    }

    /// Whether no value contradicts another.
    ///
    /// # Errors
    /// One does.
    pub(crate) fn consistent(&self) -> Result<(), RestoreError> {
        let [a, b, c, d] = [REG_A, REG_B, REG_C, REG_D].map(|register| self.cmos[register]);
        check(a & A_UIP == 0, "register A", a, "without UIP")?;
        check(d == D_VRT, "register D", d, D_VRT)?;
        check(self.halted == self.held(), "halted", self.halted, "as registers A and B say")?;
        let irqf = if c & b & FLAGS != 0 { C_IRQF } else { 0 };
        check(c & !FLAGS == irqf, "register C", c, "as its flags and register B say")
    }

    fn set_utc(&mut self, utc: Duration, now: u64) {
        let vm = Duration::from_nanos(now);
        let seconds = i64::try_from(utc.as_secs()).unwrap_or(i64::MAX / 2).min(i64::MAX / 2);
        let borrow = utc.subsec_nanos() < vm.subsec_nanos();
        self.offset_nanos = if borrow { NS as u32 } else { 0 } + utc.subsec_nanos() - vm.subsec_nanos();
        self.offset_seconds = seconds - vm.as_secs() as i64 - i64::from(borrow);
    }

    /// VM time shifted so that its whole seconds are the RTC's.
    fn phased(&self, now: u64) -> u64 {
        now.saturating_add(self.offset_nanos.into())
    }

    fn unphased(&self, at: u64) -> u64 {
        at.saturating_sub(self.offset_nanos.into())
    }

    fn unix(&self, now: u64) -> i64 {
        self.offset_seconds.saturating_add_unsigned(self.phased(now) / NS)
    }

    fn alarm(&self) -> [u8; 3] {
        [self.cmos[HOURS_ALARM], self.cmos[MINUTES_ALARM], self.cmos[SECONDS_ALARM]]
    }

    /// Period of the periodic interrupt in crystal ticks (MC146818 table 5).
    fn period(&self) -> Option<u64> {
        let a = self.cmos[REG_A];
        match a & A_RATE {
            _ if a & A_DIVIDER != A_DIVIDER_ON => None,
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Sets the flags whose moments have passed.
    fn look(&mut self, now: u64) {
        let before = std::mem::replace(&mut self.looked, now);
        if now <= before {
            return;
        }
        let mut flags = 0;
        if let Some(period) = self.period() {
            let edges = |at| ticks_at(self.phased(at), CRYSTAL_HZ) / period;
            if edges(now) != edges(before) {
                flags |= PERIODIC;
            }
        }
        let (from, to) = (self.unix(before), self.unix(now));
        if !self.halted && to > from {
            flags |= UPDATE;
            let next = calendar::next_alarm(from, self.alarm(), self.cmos[REG_B]);
            if next.is_some_and(|d| d <= to - from) {
                flags |= ALARM;
            }
        }
        self.cmos[REG_C] |= flags;
        self.update_irqf();
    }

    fn update_irqf(&mut self) {
        let c = self.cmos[REG_C] & FLAGS;
        self.cmos[REG_C] = if c & self.cmos[REG_B] != 0 { c | C_IRQF } else { c };
    }

    fn irq(&self) -> bool {
        self.cmos[REG_C] & C_IRQF != 0
    }

    /// When the next enabled flag will be set, counted from `looked`.
    fn deadline(&self) -> Option<u64> {
        if self.irq() {
            return None;
        }
        let (b, phased) = (self.cmos[REG_B], self.phased(self.looked));
        let second = |n: u64| self.unphased((phased / NS).saturating_add(n).saturating_mul(NS));
        let mut first = None::<u64>;
        let mut consider = |at: u64| first = Some(first.map_or(at, |f| f.min(at)));
        if b & PERIODIC != 0
            && let Some(period) = self.period()
        {
            let next = (ticks_at(phased, CRYSTAL_HZ) / period + 1).saturating_mul(period);
            consider(self.unphased(ns_of_tick(next, CRYSTAL_HZ)));
        }
        if b & UPDATE != 0 && !self.halted {
            consider(second(1));
        }
        if b & ALARM != 0
            && !self.halted
            && let Some(d) = calendar::next_alarm(self.unix(self.looked), self.alarm(), b)
        {
            consider(second(d as u64));
        }
        first
    }

    /// The time as register bytes.
    fn time_byte(&self, register: usize, now: u64) -> u8 {
        let b = self.cmos[REG_B];
        let m = calendar::from_unix(self.unix(now));
        let value = match register {
            HOURS => return calendar::encode_hour(m.hour, b),
            SECONDS => m.second,
            MINUTES => m.minute,
            WEEKDAY => (m.weekday - 1 + self.weekday_shift) % 7 + 1,
            DAY => m.day,
            MONTH => m.month,
            YEAR => (m.year % 100) as u8,
            _ => (m.year / 100) as u8,
        };
        calendar::encode(value, b)
    }

    fn halt(&mut self, now: u64) {
        if !self.halted {
            for register in [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY] {
                self.cmos[register] = self.time_byte(register, now);
            }
            self.halted = true;
        }
    }

    /// Lets the clock run from the time in the registers.
    fn run(&mut self, now: u64) {
        if !std::mem::replace(&mut self.halted, false) {
            return;
        }
        let b = self.cmos[REG_B];
        let get = |register: usize| calendar::decode(self.cmos[register], b);
        let moment = Moment {
            second: get(SECONDS),
            minute: get(MINUTES),
            hour: calendar::decode_hour(self.cmos[HOURS], b),
            weekday: get(WEEKDAY).clamp(1, 7),
            day: get(DAY),
            month: get(MONTH),
            year: u16::from(get(CENTURY)) * 100 + u16::from(get(YEAR)),
        };
        let unix = calendar::to_unix(&moment);
        let calendar_day = calendar::from_unix(unix).weekday;
        self.weekday_shift = (moment.weekday + 7 - calendar_day) % 7;
        self.offset_seconds = unix.saturating_sub_unsigned(self.phased(now) / NS);
    }

    fn held(&self) -> bool {
        self.cmos[REG_B] & B_SET != 0 || self.cmos[REG_A] & A_DIVIDER != A_DIVIDER_ON
    }

    fn read(&mut self, now: u64) -> u8 {
        let register = usize::from(self.index & 0x7f);
        match register {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY if !self.halted => {
                self.time_byte(register, now)
            }
            REG_A => {
                let soon = !self.halted && self.phased(now) % NS >= NS - UIP_NS;
                self.cmos[REG_A] | if soon { A_UIP } else { 0 }
            }
            REG_C => std::mem::take(&mut self.cmos[REG_C]),
            _ => self.cmos[register],
        }
    }

    fn write(&mut self, value: u8, now: u64) {
        let register = usize::from(self.index & 0x7f);
        match register {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                self.halt(now);
                self.cmos[register] = value;
                if !self.held() {
                    self.run(now);
                }
            }
            REG_A => {
                let was_off = self.cmos[REG_A] & A_DIVIDER != A_DIVIDER_ON;
                let off = value & A_DIVIDER != A_DIVIDER_ON;
                if off {
                    self.halt(now);
                }
                self.cmos[REG_A] = value & !A_UIP;
                if was_off && !off {
                    // MC146818 "Divider control": the first update cycle begins half a second later.
                    self.offset_nanos = ((NS + NS / 2 - now % NS) % NS) as u32;
                    if !self.held() {
                        self.run(now);
                    }
                }
            }
            REG_B => {
                if value & B_SET != 0 {
                    self.halt(now);
                    self.cmos[REG_B] = value & !UPDATE;
                } else {
                    self.cmos[REG_B] = value;
                    if !self.held() {
                        self.run(now);
                    }
                }
                self.update_irqf();
            }
            REG_C | REG_D => {}
            _ => self.cmos[register] = value,
        }
    }
}

/// The clock and its memory at ports 0x70 and 0x71.
#[derive(Debug)]
pub struct Rtc {
    state: Mutex<RtcState>,
    clock: Arc<dyn Clock>,
    irq: Arc<dyn IrqLine>,
    timers: Arc<dyn TimerHost>,
}

impl Rtc {
    /// A clock that shows `utc` (since 1970) now, with memory sizes from `config`; `irq` is IRQ 8.
    pub fn new(
        config: &CmosConfig,
        utc: Duration,
        clock: Arc<dyn Clock>,
        irq: Arc<dyn IrqLine>,
        timers: Arc<dyn TimerHost>,
    ) -> Arc<Self> {
        let state = Mutex::new(RtcState::new(config, utc, clock.now()));
        Arc::new(Self { state, clock, irq, timers })
    }

    /// Sets the clock to the host's time, after a restore or a long pause. A clock the guest holds is left alone.
    pub fn set_utc(&self, utc: Duration) {
        self.with(|s, now| {
            if !s.halted {
                s.set_utc(utc, now);
            }
        });
        self.timers.rearm();
    }

    fn with<T>(&self, f: impl FnOnce(&mut RtcState, u64) -> T) -> T {
        let mut state = lock(&self.state);
        let now = self.clock.now();
        state.look(now);
        let result = f(&mut state, now);
        self.irq.set(state.irq());
        result
    }
}

impl PioDevice for Rtc {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        let mut rearm = false;
        let value = self.with(|s, now| {
            read_bytes(port, size, |p| {
                if p != RTC_PORT + 1 {
                    return 0xff; // the index is write only
                }
                rearm |= usize::from(s.index) == REG_C;
                s.read(now)
            })
        });
        if rearm {
            self.timers.rearm();
        }
        value
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        let mut rearm = false;
        self.with(|s, now| {
            write_bytes(port, size, value, |p, v| match p.wrapping_sub(RTC_PORT) {
                // Bit 7 is the NMI mask of the PC; nothing here raises NMIs.
                0 => s.index = v & 0x7f,
                1 => {
                    s.write(v, now);
                    rearm |= usize::from(s.index) <= REG_B;
                }
                _ => {}
            });
        });
        if rearm {
            self.timers.rearm();
        }
    }
}

impl TimedDevice for Rtc {
    fn deadline(&self) -> Option<u64> {
        lock(&self.state).deadline()
    }

    fn expire(&self, now: u64) {
        let mut state = lock(&self.state);
        state.look(now);
        self.irq.set(state.irq());
    }
}

impl StateUnit for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    fn save(&self) -> Section {
        Section::of(&SavedRtc::from(&*lock(&self.state)))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = RtcState::try_from(section.open::<SavedRtc>()?)?;
        {
            let mut state = lock(&self.state);
            *state = restored;
            self.irq.set(state.irq());
        }
        self.timers.rearm();
        Ok(())
    }

    /// MC146818 "RESET": clears the interrupt enables and flags. Time and memory are on the battery; so the
    /// shutdown status byte 0x0f survives, which is what it is for.
    fn reset(&self) {
        self.with(|s, _| {
            s.cmos[REG_B] &= !(FLAGS | B_SQWE);
            s.cmos[REG_C] = 0;
            s.index = 0;
        });
        self.timers.rearm();
    }
}
