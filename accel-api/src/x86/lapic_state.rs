//! The local APIC's state as backends exchange it (Intel SDM vol. 3, chapter 11).

use serde::{Deserialize, Serialize};

const DEFAULT_BASE: u64 = 0xfee0_0000;
const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
const SVR_MASK: u32 = 0x3ff;
const SVR_ENABLED: u32 = 1 << 8;
const SVR_SUPPRESS_EOI: u32 = 1 << 12;
const SVR_RESET: u32 = 0xff;
const DFR_RESET: u32 = 0xffff_ffff;
const DFR_FIXED: u32 = 0x0fff_ffff;
const LDR_MASK: u32 = 0xff00_0000;
const ESR_MASK: u32 = 0xe0;
/// ICR bits 31:20, 17:16 and 13.
const ICR_RESERVED: u32 = 0xfff3_2000;
const ICR_BUSY: u32 = 1 << 12;
const TIMER_DIVIDE_MASK: u32 = 0b1011;
const LVT_MASKED: u32 = 1 << 16;
const LVT_REMOTE_IRR: u32 = 1 << 14;
const PERIODIC_MODE: u32 = 1;
const TSC_DEADLINE_MODE: u32 = 2;

/// A periodic timer interrupts at most this often, in nanoseconds (KVM's default limit). A guest that asks for
/// more gets its interrupts coalesced; the current count is not affected.
pub const MIN_PERIOD_NS: u64 = 200_000;

/// The whole state of a local APIC: its registers as the guest sees them, the timer's phase, and what waits for the
/// CPU. Not here: NMIs that wait, which are the CPU's ([`super::Events`]), and the levels of LINT0 and LINT1, which their
/// drivers set again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// The (x2APIC) ID, which is the vCPU's for its life.
    pub apic_id: u32,
    /// The ID register of xAPIC mode, which a guest may write; in other modes the low byte of the ID.
    pub xapic_id: u8,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Task priority.
    pub tpr: u8,
    /// Interrupt requests: 256 bits, vector 0 in bit 0 of word 0; likewise the next two.
    pub irr: [u64; 4],
    /// Interrupts in service.
    pub isr: [u64; 4],
    /// Which of the vectors accepted last were level-triggered.
    pub tmr: [u64; 4],
    /// Logical destination; in x2APIC mode the value derived from the ID.
    pub ldr: u32,
    /// Destination format; all ones in x2APIC mode, which has none.
    pub dfr: u32,
    /// Spurious vector and enable bits.
    pub svr: u32,
    /// Error status as reads show it.
    pub esr: u32,
    /// Errors since the last write of ESR.
    pub esr_new: u32,
    /// Interrupt command; the destination is in bits 63:56 in xAPIC mode and 63:32 in x2APIC mode.
    pub icr: u64,
    /// LVT timer.
    pub lvt_timer: u32,
    /// LVT thermal sensor.
    pub lvt_thermal: u32,
    /// LVT performance counters.
    pub lvt_perf: u32,
    /// LVT LINT0.
    pub lvt_lint0: u32,
    /// LVT LINT1.
    pub lvt_lint1: u32,
    /// LVT error.
    pub lvt_error: u32,
    /// Timer initial count.
    pub timer_initial: u32,
    /// Timer divide configuration.
    pub timer_divide: u32,
    /// Nanoseconds of VM time until the timer reaches zero; 0 if it stands still. Finer than the current count,
    /// which follows from it: [`Self::timer_current`].
    pub timer_remaining_ns: u64,
    /// IA32_TSC_DEADLINE in TSC-deadline mode, 0 if disarmed.
    pub tsc_deadline: u64,
    /// An INIT waits.
    pub init: bool,
    /// A start-up message waits, with this vector.
    pub sipi: Option<u8>,
    /// An ExtINT message waits.
    pub extint: bool,
}

impl LapicState {
    /// The state after power-up.
    pub fn reset(apic_id: u32, bsp: bool) -> Self {
        Self {
            apic_id,
            xapic_id: apic_id as u8,
            apic_base: DEFAULT_BASE | BASE_ENABLED | if bsp { BASE_BSP } else { 0 },
            tpr: 0,
            irr: [0; 4],
            isr: [0; 4],
            tmr: [0; 4],
            ldr: 0,
            dfr: DFR_RESET,
            svr: SVR_RESET,
            esr: 0,
            esr_new: 0,
            icr: 0,
            lvt_timer: LVT_MASKED,
            lvt_thermal: LVT_MASKED,
            lvt_perf: LVT_MASKED,
            lvt_lint0: LVT_MASKED,
            lvt_lint1: LVT_MASKED,
            lvt_error: LVT_MASKED,
            timer_initial: 0,
            timer_divide: 0,
            timer_remaining_ns: 0,
            tsc_deadline: 0,
            init: false,
            sipi: None,
            extint: false,
        }
    }

    /// What firmware leaves for the bootstrap processor's boot loader: software-enabled, the 8259 on LINT0 and NMI
    /// on LINT1 (virtual wire mode; MultiProcessor Specification 1.4, 3.6.2.2).
    pub fn with_virtual_wire(mut self) -> Self {
        self.svr |= SVR_ENABLED;
        self.lvt_lint0 = 7 << 8;
        self.lvt_lint1 = 4 << 8;
        self
    }

    /// The timer's current-count register.
    pub fn timer_current(&self) -> u32 {
        let period = u64::from(self.timer_initial) << divide_shift(self.timer_divide);
        let left = match self.timer_remaining_ns {
            0 => return 0,
            _ if period == 0 => return 0,
            left if self.lvt_timer >> 17 & 3 == 1 => (left - 1) % period + 1,
            left => left.min(period),
        };
        current_count(left, self.timer_divide)
    }

    /// Sets the timer's phase from a current count, for a backend that knows no more than that; 0 stops the timer.
    pub fn set_timer_current(&mut self, count: u32) {
        self.timer_remaining_ns = u64::from(count) << divide_shift(self.timer_divide);
    }

    /// Brings the state into the form that `save` gives: no bits that do not exist, derived values derived. The
    /// guest sees no difference.
    pub fn normalise(&mut self) {
        if self.apic_base & (BASE_ENABLED | BASE_X2APIC) == 0 {
            // A disabled local APIC has no state of its own but CR8 and what waits for the CPU itself.
            let Self { apic_id, apic_base, tpr, init, sipi, .. } = *self;
            *self = Self { apic_base, tpr, init, sipi, ..Self::reset(apic_id, false) };
        }
        for set in [&mut self.irr, &mut self.isr, &mut self.tmr] {
            set[0] &= !0xffff; // vectors 0 to 15 are never accepted
        }
        if self.apic_base & BASE_X2APIC != 0 {
            self.xapic_id = self.apic_id as u8;
            self.ldr = x2apic_logical_id(self.apic_id);
            self.dfr = DFR_RESET;
            self.icr &= !u64::from(ICR_RESERVED | ICR_BUSY);
        } else {
            self.ldr &= LDR_MASK;
            self.dfr |= DFR_FIXED;
            self.icr &= 0xff00_0000_0000_0000 | u64::from(!(ICR_RESERVED | ICR_BUSY));
        }
        self.svr &= SVR_MASK | SVR_SUPPRESS_EOI;
        self.esr &= ESR_MASK;
        self.esr_new &= ESR_MASK;
        let masked = if self.svr & SVR_ENABLED == 0 { LVT_MASKED } else { 0 };
        let lint = 0x0001_a7ff;
        for (bits, lvt) in [
            (0x0007_00ff, &mut self.lvt_timer),
            (0x0001_07ff, &mut self.lvt_thermal),
            (0x0001_07ff, &mut self.lvt_perf),
            (lint | LVT_REMOTE_IRR, &mut self.lvt_lint0),
            (lint, &mut self.lvt_lint1),
            (0x0001_00ff, &mut self.lvt_error),
        ] {
            *lvt = *lvt & bits | masked;
        }
        self.timer_divide &= TIMER_DIVIDE_MASK;
        // What the timer's mode does not use reads as zero.
        let mode = self.lvt_timer >> 17 & 3;
        if mode != TSC_DEADLINE_MODE {
            self.tsc_deadline = 0;
        }
        if mode > PERIODIC_MODE || self.timer_initial == 0 {
            self.timer_remaining_ns = 0;
        }
        let period = u64::from(self.timer_initial) << divide_shift(self.timer_divide);
        let longest = period.max(2 * MIN_PERIOD_NS);
        self.timer_remaining_ns = self.timer_remaining_ns.min(longest);
    }
}

/// The x2APIC's LDR, derived from its ID: cluster in bits 31:16, one bit of 16 below (Intel SDM vol. 3, 11.12.10.2).
const fn x2apic_logical_id(apic_id: u32) -> u32 {
    apic_id >> 4 << 16 | 1 << (apic_id & 0xf)
}

/// The power of two that a divide configuration register divides by: bits 3, 1 and 0 (Intel SDM vol. 3,
/// figure 11-10).
pub const fn divide_shift(divide: u32) -> u32 {
    ((divide & 3 | divide >> 1 & 4) + 1) & 7
}

/// The current count of a timer that has `remaining_ns` left: it goes down at the end of each divided tick.
pub fn current_count(remaining_ns: u64, divide: u32) -> u32 {
    let ticks = remaining_ns.div_ceil(1 << divide_shift(divide));
    u32::try_from(ticks).unwrap_or(u32::MAX)
}
