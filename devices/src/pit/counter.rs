//! One counter of the 8254 as a function of time.
//!
//! Nothing is decremented. The counter keeps the tick at which its counting element was loaded; count and OUT at
//! any later tick follow from the difference ("Mode Definitions" of the datasheet, modes 0 to 5). As on the chip,
//! a count written at tick *t* is loaded at *t* + 1.

/// Access modes of the control word, bits 5:4.
const ACCESS_LOW: u8 = 1;
const ACCESS_HIGH: u8 = 2;
const ACCESS_BOTH: u8 = 3;

/// Ticks no state may lie beyond: more than a thousand years.
pub(crate) const FAR: i64 = 1 << 56;

/// A count that waits for the end of the running (half-)cycle of mode 2 or 3, or for the trigger of mode 1 or 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextCount {
    /// Initial count, 1..=65536.
    pub count: u32,
    /// Tick at which it is loaded; `None`: at the next trigger.
    pub at: Option<i64>,
}

/// State of one counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counter {
    /// Mode, 0..=5.
    pub mode: u8,
    /// Counts in BCD.
    pub bcd: bool,
    /// Access mode: 1 low byte, 2 high byte, 3 both.
    pub access: u8,
    /// Level of the GATE input.
    pub gate: bool,
    /// Initial count of the counting element, 1..=65536.
    pub initial: u32,
    /// Tick at which `initial` was (or will be) loaded; `None` before the first count or trigger.
    pub loaded: Option<i64>,
    /// Ticks counted so far while GATE holds the counter.
    pub held: Option<u64>,
    /// Count that is not loaded yet.
    pub next: Option<NextCount>,
    /// First byte of a two-byte count.
    pub low: Option<u8>,
    /// The next read of a two-byte count gives the high byte.
    pub read_high: bool,
    /// Latched count.
    pub count_latch: Option<u16>,
    /// Latched status.
    pub status_latch: Option<u8>,
    /// Rising edges of OUT since `loaded` that were taken.
    pub edges_taken: u64,
    /// Rising edges of OUT from before `loaded` that were not taken.
    pub edges_left: u64,
}

impl Counter {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: ACCESS_BOTH,
            gate,
            initial: 0x1_0000,
            loaded: None,
            held: None,
            next: None,
            low: None,
            read_high: false,
            count_latch: None,
            status_latch: None,
            edges_taken: 0,
            edges_left: 0,
        }
    }

    pub(super) fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Ticks of a whole cycle of modes 2 and 3. A count of 1 is illegal there; it counts as 2.
    pub(super) fn period(&self) -> u64 {
        period_of(self.initial)
    }

    fn elapsed(&self, tick: i64) -> u64 {
        self.held.unwrap_or_else(|| u64::try_from(tick - self.loaded.unwrap_or(tick)).unwrap_or(0))
    }

    /// Rising edges of OUT from `loaded` to `tick`.
    fn rises(&self, tick: i64) -> u64 {
        if self.loaded.is_none() {
            return 0;
        }
        let (e, n) = (self.elapsed(tick), u64::from(self.initial));
        match self.mode {
            0 | 1 => u64::from(e >= n),
            2 | 3 => e / self.period(),
            _ => u64::from(e > n),
        }
    }

    /// Brings a new count into force if its time has come.
    pub(super) fn sync(&mut self, tick: i64) {
        let Some(NextCount { count, at: Some(at) }) = self.next else { return };
        if tick < at || self.held.is_some() {
            return;
        }
        let middle = self.mode == 3 && !self.elapsed(at).is_multiple_of(self.period());
        self.next = None;
        // The half-cycle that starts at `at` in mode 3 may be the low one: then the cycle began before it.
        let start = if middle { at - high_ticks(count) as i64 } else { at };
        self.load(count, start, at);
    }

    fn load(&mut self, count: u32, start: i64, tick: i64) {
        self.edges_left = self.edges_left.saturating_add(self.rises(tick).saturating_sub(self.edges_taken));
        self.edges_taken = 0;
        self.initial = count;
        self.loaded = Some(start);
        self.held = None;
    }

    /// Rising edges of OUT up to `tick` since the last call.
    pub(super) fn take_edges(&mut self, tick: i64) -> u64 {
        self.sync(tick);
        let rises = self.rises(tick);
        let new = rises.saturating_sub(self.edges_taken).saturating_add(self.edges_left);
        self.edges_taken = rises;
        self.edges_left = 0;
        new
    }

    /// Tick of the first rising edge of OUT after `tick`.
    pub(super) fn next_rise(&self, tick: i64) -> Option<i64> {
        if self.held.is_some() {
            return None;
        }
        let loaded = self.loaded?;
        let (e, n) = (self.elapsed(tick), u64::from(self.initial));
        let at = match self.mode {
            0 | 1 => n,
            2 | 3 => (e / self.period() + 1) * self.period(),
            _ => n + 1,
        };
        let at = loaded.saturating_add_unsigned(at);
        match self.next {
            // Only mode 3 can change count before the edge: in the middle of a cycle.
            Some(NextCount { count, at: Some(change) }) if change < at => {
                Some(change.saturating_add_unsigned(period_of(count) - high_ticks(count)))
            }
            _ => (at > tick).then_some(at),
        }
    }

    pub(super) fn out(&mut self, tick: i64) -> bool {
        self.sync(tick);
        if self.loaded.is_none() {
            return self.mode != 0;
        }
        let (e, n) = (self.elapsed(tick), u64::from(self.initial));
        match self.mode {
            0 | 1 => e >= n,
            2 | 3 if !self.gate => true,
            2 => e % self.period() != self.period() - 1,
            3 => e % self.period() < high_ticks(self.initial),
            _ => e != n,
        }
    }

    /// The count as the guest reads it.
    pub(super) fn count(&mut self, tick: i64) -> u16 {
        self.sync(tick);
        let (e, n) = (self.elapsed(tick), u64::from(self.initial));
        let modulus: u64 = if self.bcd { 10_000 } else { 0x1_0000 };
        let count = match self.mode {
            2 => n - (e % self.period()).min(n),
            3 => {
                // Counts by two, even counts only; an odd one is loaded less one ("Mode 3", implementation).
                let (r, high) = (e % self.period(), high_ticks(self.initial));
                (n & !1).saturating_sub(2 * if r < high { r } else { r - high })
            }
            _ => (n + modulus - e % modulus) % modulus,
        } % modulus;
        if self.bcd { to_bcd(count as u16) } else { count as u16 }
    }

    fn status(&mut self, tick: i64) -> u8 {
        let out = u8::from(self.out(tick)) << 7;
        let null = self.next.is_some() || self.loaded.is_none_or(|at| tick < at);
        out | u8::from(null) << 6 | self.access << 4 | self.mode << 1 | u8::from(self.bcd)
    }

    /// Control word, not one of the latch commands.
    pub(super) fn write_control(&mut self, value: u8) {
        let mode = value >> 1 & 7;
        *self = Self {
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd: value & 1 != 0,
            access: (value >> 4 & 3).max(ACCESS_LOW),
            initial: self.initial,
            ..Self::new(self.gate)
        };
    }

    pub(super) fn latch_count(&mut self, tick: i64) {
        if self.count_latch.is_none() {
            self.count_latch = Some(self.count(tick));
        }
    }

    pub(super) fn latch_status(&mut self, tick: i64) {
        if self.status_latch.is_none() {
            self.status_latch = Some(self.status(tick));
        }
    }

    pub(super) fn write(&mut self, value: u8, tick: i64) {
        self.sync(tick);
        let count = match (self.access, self.low.take()) {
            (ACCESS_LOW, _) => u16::from(value),
            (ACCESS_HIGH, _) => u16::from(value) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, value]),
            (_, None) => {
                self.low = Some(value);
                if self.mode == 0 {
                    // "Writing the first byte disables counting. OUT is set low immediately."
                    self.loaded = None;
                    self.held = None;
                    self.edges_taken = 0;
                }
                return;
            }
        };
        self.write_count(self.decode(count), tick);
    }

    fn decode(&self, count: u16) -> u32 {
        let count = if self.bcd { from_bcd(count) } else { u32::from(count) };
        match (count, self.bcd) {
            (0, true) => 10_000,
            (0, false) => 0x1_0000,
            (n, _) => n,
        }
    }

    fn write_count(&mut self, count: u32, tick: i64) {
        match self.mode {
            1 | 5 => self.next = Some(NextCount { count, at: None }),
            2 | 3 if self.loaded.is_some() => {
                let at = match self.next {
                    _ if !self.gate => None,
                    Some(next) => next.at,
                    None => Some(self.cycle_end(tick)),
                };
                self.next = Some(NextCount { count, at });
            }
            _ => {
                self.load(count, tick + 1, tick);
                if !self.gate {
                    self.held = Some(0);
                }
            }
        }
    }

    /// End of the cycle (mode 2) or half-cycle (mode 3) that runs at `tick`.
    fn cycle_end(&self, tick: i64) -> i64 {
        let (e, p) = (self.elapsed(tick), self.period());
        let high = high_ticks(self.initial);
        let end = if self.mode == 3 && e % p < high { e - e % p + high } else { e - e % p + p };
        self.loaded.unwrap_or(tick).saturating_add_unsigned(end)
    }

    /// Drives GATE ("Gate Pin Operations Summary").
    pub(super) fn set_gate(&mut self, gate: bool, tick: i64) {
        self.sync(tick);
        if std::mem::replace(&mut self.gate, gate) == gate {
            return;
        }
        match (self.mode, gate) {
            (1 | 5, true) => {
                if let Some(next) = self.next.take() {
                    self.load(next.count, tick + 1, tick);
                } else if self.loaded.is_some() {
                    self.load(self.initial, tick + 1, tick);
                }
            }
            (1 | 5, false) => {}
            (_, false) => {
                if self.loaded.is_some() {
                    self.held = Some(self.elapsed(tick));
                    if let Some(next) = &mut self.next {
                        next.at = None;
                    }
                }
            }
            (2 | 3, true) => {
                if self.loaded.is_some() {
                    let count = self.next.take().map_or(self.initial, |n| n.count);
                    self.load(count, tick + 1, tick);
                }
            }
            (_, true) => {
                if let Some(held) = self.held.take() {
                    self.loaded = Some(tick.saturating_sub_unsigned(held));
                }
            }
        }
    }

    pub(super) fn read(&mut self, tick: i64) -> u8 {
        if let Some(status) = self.status_latch.take() {
            return status;
        }
        let count = match self.count_latch {
            Some(count) => count,
            None => self.count(tick),
        };
        let [low, high] = count.to_le_bytes();
        let (byte, last) = match self.access {
            ACCESS_LOW => (low, true),
            ACCESS_HIGH => (high, true),
            _ => {
                self.read_high = !self.read_high;
                if self.read_high { (low, false) } else { (high, true) }
            }
        };
        if last {
            self.count_latch = None;
        }
        byte
    }
}

fn period_of(count: u32) -> u64 {
    u64::from(count.max(2))
}

/// Ticks OUT is high in a cycle of mode 3.
fn high_ticks(count: u32) -> u64 {
    period_of(count).div_ceil(2)
}

fn from_bcd(v: u16) -> u32 {
    (0..4).rev().fold(0, |n, digit| n * 10 + u32::from(v >> (4 * digit) & 0xf))
}

fn to_bcd(v: u16) -> u16 {
    (0..4).fold(0, |bcd, digit| bcd | ((v / 10u16.pow(digit) % 10) << (4 * digit)))
}
