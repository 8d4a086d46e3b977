//! Saving and loading a local APIC.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::local::{Lapic, Mode};
use super::registers::{self as reg, Lvt};
use super::timer::{Now, Timer, current_count, divide_shift};
use super::vectors::VectorSet;

/// The whole state of a local APIC: its registers as the guest sees them, the timer's phase, and what waits for the
/// CPU. Not here: the levels of LINT0 and LINT1, which their drivers set again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// The (x2APIC) ID.
    pub apic_id: u32,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Task priority.
    pub tpr: u8,
    /// Interrupt requests.
    pub irr: VectorSet,
    /// Interrupts in service.
    pub isr: VectorSet,
    /// Which of the vectors accepted last were level-triggered.
    pub tmr: VectorSet,
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
    /// An NMI waits.
    pub nmi: bool,
    /// An INIT waits.
    pub init: bool,
    /// A start-up message waits, with this vector.
    pub sipi: Option<u8>,
    /// An ExtINT message waits.
    pub extint: bool,
}

/// Why a state was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LapicStateError {
    /// The state is of the local APIC with the first ID, this one has the second.
    ApicId(u32, u32),
    /// IA32_APIC_BASE cannot hold this value here.
    ApicBase(u64),
}

impl fmt::Display for LapicStateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApicId(state, own) => {
                write!(f, "state of local APIC {state}, loaded into local APIC {own}")
            }
            Self::ApicBase(value) => write!(f, "IA32_APIC_BASE = {value:#x} is not valid on this CPU"),
        }
    }
}

impl std::error::Error for LapicStateError {}

impl LapicState {
    /// The state after power-up.
    pub fn reset(apic_id: u32, bsp: bool) -> Self {
        Self {
            apic_id,
            apic_base: reg::DEFAULT_BASE | reg::BASE_ENABLED | if bsp { reg::BASE_BSP } else { 0 },
            tpr: 0,
            irr: VectorSet::EMPTY,
            isr: VectorSet::EMPTY,
            tmr: VectorSet::EMPTY,
            ldr: 0,
            dfr: reg::DFR_RESET,
            svr: reg::SVR_RESET,
            esr: 0,
            esr_new: 0,
            icr: 0,
            lvt_timer: Lvt::MASKED,
            lvt_thermal: Lvt::MASKED,
            lvt_perf: Lvt::MASKED,
            lvt_lint0: Lvt::MASKED,
            lvt_lint1: Lvt::MASKED,
            lvt_error: Lvt::MASKED,
            timer_initial: 0,
            timer_divide: 0,
            timer_remaining_ns: 0,
            tsc_deadline: 0,
            nmi: false,
            init: false,
            sipi: None,
            extint: false,
        }
    }

    /// What firmware leaves for the bootstrap processor's boot loader: software-enabled, the 8259 on LINT0 and NMI
    /// on LINT1 (virtual wire mode; MultiProcessor Specification 1.4, 3.6.2.2).
    pub fn with_virtual_wire(mut self) -> Self {
        self.svr |= reg::SVR_ENABLED;
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
        if Mode::from_base(self.apic_base) == Some(Mode::Disabled) {
            // A disabled local APIC has no state of its own but CR8 and what waits for the CPU itself.
            let Self { apic_id, apic_base, tpr, nmi, init, sipi, .. } = *self;
            *self = Self { apic_base, tpr, nmi, init, sipi, ..Self::reset(apic_id, false) };
        }
        for set in [&mut self.irr, &mut self.isr, &mut self.tmr] {
            set.0[0] &= !0xffff; // vectors 0 to 15 are never accepted
        }
        if Mode::from_base(self.apic_base) == Some(Mode::X2Apic) {
            self.ldr = reg::x2apic_logical_id(self.apic_id);
            self.dfr = reg::DFR_RESET;
            self.icr &= !u64::from(reg::ICR_RESERVED | reg::ICR_BUSY);
        } else {
            self.ldr &= reg::LDR_MASK;
            self.dfr |= reg::DFR_FIXED;
            self.icr &= 0xff00_0000_0000_0000 | u64::from(!(reg::ICR_RESERVED | reg::ICR_BUSY));
        }
        self.svr &= reg::SVR_MASK | reg::SVR_SUPPRESS_EOI;
        self.esr &= reg::ESR_MASK;
        self.esr_new &= reg::ESR_MASK;
        let masked = if self.svr & reg::SVR_ENABLED == 0 { Lvt::MASKED } else { 0 };
        for (entry, lvt) in [
            (Lvt::Timer, &mut self.lvt_timer),
            (Lvt::Thermal, &mut self.lvt_thermal),
            (Lvt::Perf, &mut self.lvt_perf),
            (Lvt::Lint0, &mut self.lvt_lint0),
            (Lvt::Lint1, &mut self.lvt_lint1),
            (Lvt::Error, &mut self.lvt_error),
        ] {
            let remote_irr = if entry == Lvt::Lint0 { Lvt::REMOTE_IRR } else { 0 };
            *lvt = *lvt & (entry.writable() | remote_irr) | masked;
        }
        self.timer_divide &= reg::TIMER_DIVIDE_MASK;
        let at = Now::default();
        let timer = self.timer(at);
        self.timer_remaining_ns = timer.remaining_ns(at);
        self.tsc_deadline = timer.tsc_deadline();
    }

    fn timer(&self, now: Now) -> Timer {
        Timer::restore(
            self.lvt_timer,
            self.timer_initial,
            self.timer_divide,
            self.timer_remaining_ns,
            self.tsc_deadline,
            now,
        )
    }
}

impl Lapic {
    /// The state, normalised. Takes over the inbox and lets a due timer interrupt first, so that nothing is lost;
    /// the local APIC goes on unchanged.
    pub fn save(&mut self, now: Now) -> LapicState {
        self.expire(now);
        self.pull();
        let [lvt_timer, lvt_thermal, lvt_perf, lvt_lint0, lvt_lint1, lvt_error] = self.lvt;
        let mut state = LapicState {
            apic_id: self.apic_id(),
            apic_base: self.base,
            tpr: self.tpr,
            irr: self.irr,
            isr: self.isr,
            tmr: self.tmr,
            ldr: self.ldr,
            dfr: self.dfr,
            svr: self.svr,
            esr: self.esr,
            esr_new: self.esr_new,
            icr: self.icr,
            lvt_timer,
            lvt_thermal,
            lvt_perf,
            lvt_lint0,
            lvt_lint1,
            lvt_error,
            timer_initial: self.timer.initial(),
            timer_divide: self.timer.divide(),
            timer_remaining_ns: self.timer.remaining_ns(now),
            tsc_deadline: self.timer.tsc_deadline(),
            nmi: self.nmi,
            init: self.init,
            sipi: self.sipi,
            extint: self.extint,
        };
        state.normalise();
        state
    }

    /// Replaces the whole state, dropping what the inbox holds: load every vCPU of a VM before any of them, or any
    /// device, runs. The state may come from a file: what is not valid in it is refused or normalised.
    ///
    /// # Errors
    ///
    /// [`LapicStateError`]; the local APIC is unchanged then.
    pub fn load(&mut self, state: &LapicState, now: Now) -> Result<(), LapicStateError> {
        if state.apic_id != self.apic_id() {
            return Err(LapicStateError::ApicId(state.apic_id, self.apic_id()));
        }
        self.check_base(state.apic_base).ok_or(LapicStateError::ApicBase(state.apic_base))?;
        let mut state = state.clone();
        state.normalise();
        self.timer = state.timer(now);
        let LapicState {
            apic_id: _,
            apic_base,
            tpr,
            irr,
            isr,
            tmr,
            ldr,
            dfr,
            svr,
            esr,
            esr_new,
            icr,
            lvt_timer,
            lvt_thermal,
            lvt_perf,
            lvt_lint0,
            lvt_lint1,
            lvt_error,
            timer_initial: _,
            timer_divide: _,
            timer_remaining_ns: _,
            tsc_deadline: _,
            nmi,
            init,
            sipi,
            extint,
        } = state;
        self.inbox.drain();
        self.base = apic_base;
        self.tpr = tpr;
        self.irr = irr;
        self.isr = isr;
        self.tmr = tmr;
        self.ldr = ldr;
        self.dfr = dfr;
        self.svr = svr & self.svr_mask();
        self.esr = esr;
        self.esr_new = esr_new;
        self.icr = icr;
        self.lvt = [lvt_timer, lvt_thermal, lvt_perf, lvt_lint0, lvt_lint1, lvt_error];
        self.nmi = nmi;
        self.init = init;
        self.sipi = sipi;
        self.extint = extint;
        self.update_ppr();
        self.publish();
        Ok(())
    }
}
