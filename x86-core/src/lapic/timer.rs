//! The APIC timer (Intel SDM vol. 3, 11.5.4).
//!
//! Nothing counts here. A running timer is the moment at which it will reach zero; the current count is computed
//! when it is read. The input clock is 1 GHz, so that a tick before the divider is a nanosecond of VM time, as in
//! KVM's local APIC. TSC-deadline mode compares with the guest's TSC instead and knows no nanoseconds.

use accel_api::x86::{MIN_PERIOD_NS, current_count, divide_shift};

/// The time at which something happens to a local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// VM time in nanoseconds. It must not step back while a timer runs (a step back only delays the timer).
    pub ns: u64,
    /// The guest's TSC.
    pub tsc: u64,
}

/// When [`super::Lapic::expire`] has to be called next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerDeadline {
    /// At this VM time in nanoseconds.
    Ns(u64),
    /// At this value of the guest's TSC.
    Tsc(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// LVT bits 18:17 = 11b: the timer stands still.
    Reserved,
}

impl Mode {
    const fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Timer {
    mode: Mode,
    initial: u32,
    divide: u32,
    /// When a one-shot or periodic timer reaches zero; `None` if it stands still.
    expiry_ns: Option<u64>,
    /// 0 is disarmed.
    tsc_deadline: u64,
}

impl Timer {
    pub(super) const RESET: Self =
        Self { mode: Mode::OneShot, initial: 0, divide: 0, expiry_ns: None, tsc_deadline: 0 };

    /// A timer in the mode of `lvt` that reaches zero in `remaining_ns` (0: stands still).
    pub(super) fn restore(
        lvt: u32,
        initial: u32,
        divide: u32,
        remaining_ns: u64,
        tsc_deadline: u64,
        now: Now,
    ) -> Self {
        let mut timer = Self { mode: Mode::from_lvt(lvt), initial, divide, expiry_ns: None, tsc_deadline: 0 };
        match timer.mode {
            Mode::OneShot | Mode::Periodic if initial != 0 && remaining_ns != 0 => {
                let longest = timer.period_ns().max(MIN_PERIOD_NS.saturating_mul(2));
                timer.expiry_ns = Some(now.ns.saturating_add(remaining_ns.min(longest)));
            }
            Mode::TscDeadline => timer.tsc_deadline = tsc_deadline,
            _ => {}
        }
        timer
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Nanoseconds until the timer reaches zero, 0 if it stands still.
    pub(super) fn remaining_ns(&self, now: Now) -> u64 {
        // A timer that is due and was not asked yet must not look as if it stood still.
        self.expiry_ns.map_or(0, |at| at.saturating_sub(now.ns).max(1))
    }

    fn shift(&self) -> u32 {
        divide_shift(self.divide)
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial) << self.shift()
    }

    /// Nanoseconds until the count next reaches zero: less than `remaining_ns` where interrupts are coalesced.
    fn count_ns(&self, now: Now) -> u64 {
        let (Some(at), period @ 1..) = (self.expiry_ns, self.period_ns()) else { return 0 };
        match self.mode {
            Mode::Periodic if at > now.ns => (at - now.ns - 1) % period + 1,
            Mode::Periodic => period - (now.ns - at) % period,
            _ => at.saturating_sub(now.ns).min(period),
        }
    }

    /// The current-count register.
    pub(super) fn current(&self, now: Now) -> u32 {
        current_count(self.count_ns(now), self.divide)
    }

    /// Starts so that the count reaches zero in `first_ns`.
    fn arm(&mut self, first_ns: u64, now: Now) {
        let at = now.ns.saturating_add(first_ns);
        self.expiry_ns = Some(self.coalesce(at, now));
    }

    /// Moves a zero crossing of a fast periodic timer by whole periods, far enough from now.
    fn coalesce(&self, at: u64, now: Now) -> u64 {
        let period = self.period_ns();
        let away = at.saturating_sub(now.ns);
        if self.mode != Mode::Periodic || period == 0 || period >= MIN_PERIOD_NS || away >= MIN_PERIOD_NS {
            return at;
        }
        at.saturating_add((MIN_PERIOD_NS - away).div_ceil(period) * period)
    }

    /// Follows a write of the LVT entry. Going to or from TSC-deadline mode disarms (11.5.4.1); between one-shot
    /// and periodic the count goes on.
    pub(super) fn set_lvt(&mut self, lvt: u32) {
        let mode = Mode::from_lvt(lvt);
        if mode == self.mode {
            return;
        }
        if mode == Mode::TscDeadline || self.mode == Mode::TscDeadline {
            self.initial = 0;
            self.expiry_ns = None;
            self.tsc_deadline = 0;
        }
        if mode == Mode::Reserved {
            self.expiry_ns = None;
        }
        self.mode = mode;
    }

    /// Writes the initial count: restarts the timer, 0 stops it. Ignored in TSC-deadline mode.
    pub(super) fn write_initial(&mut self, value: u32, now: Now) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = value;
        self.expiry_ns = None;
        if value != 0 && self.mode != Mode::Reserved {
            self.arm(self.period_ns(), now);
        }
    }

    /// Writes the divide configuration: a running timer keeps its count and goes on at the new speed.
    pub(super) fn write_divide(&mut self, value: u32, now: Now) {
        let left = self.count_ns(now);
        let old = self.shift();
        self.divide = value;
        if self.expiry_ns.is_some() && old != self.shift() {
            // At most 2^39 before, so that no bit is lost.
            self.arm((left << self.shift() >> old).max(1), now);
        }
    }

    /// Writes IA32_TSC_DEADLINE: 0 disarms. Ignored in the other modes.
    pub(super) fn write_tsc_deadline(&mut self, value: u64) {
        if self.mode == Mode::TscDeadline {
            self.tsc_deadline = value;
        }
    }

    /// True if the timer has reached zero since the last call. However late the call is, a periodic timer fires
    /// once and goes on in its old rhythm.
    pub(super) fn expire(&mut self, now: Now) -> bool {
        if self.tsc_deadline != 0 && now.tsc >= self.tsc_deadline {
            self.tsc_deadline = 0;
            return true;
        }
        let Some(at) = self.expiry_ns else { return false };
        if now.ns < at {
            return false;
        }
        let period = self.period_ns();
        self.expiry_ns = (self.mode == Mode::Periodic && period != 0).then(|| {
            let next = ((now.ns - at) / period + 1).saturating_mul(period).saturating_add(at);
            self.coalesce(next, now)
        });
        true
    }

    pub(super) fn deadline(&self) -> Option<TimerDeadline> {
        if self.tsc_deadline != 0 {
            return Some(TimerDeadline::Tsc(self.tsc_deadline));
        }
        self.expiry_ns.map(TimerDeadline::Ns)
    }
}
