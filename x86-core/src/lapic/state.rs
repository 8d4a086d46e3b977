//! Saving and loading a local APIC.

use std::fmt;

use accel_api::x86::LapicState;

use super::local::Lapic;
use super::timer::{Now, Timer};
use super::vectors::VectorSet;

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

impl Lapic {
    /// The state, normalised. Takes over the inbox and lets a due timer interrupt first, so that nothing is lost;
    /// the local APIC goes on unchanged. NMIs that wait are the CPU's ([`accel_api::x86::Events`]).
    pub fn save(&mut self, now: Now) -> LapicState {
        self.expire(now);
        self.pull();
        let [lvt_timer, lvt_thermal, lvt_perf, lvt_lint0, lvt_lint1, lvt_error] = self.lvt;
        let mut state = LapicState {
            apic_id: self.apic_id(),
            xapic_id: self.xapic_id,
            apic_base: self.base,
            tpr: self.tpr,
            irr: self.irr.0,
            isr: self.isr.0,
            tmr: self.tmr.0,
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
            init: self.init,
            sipi: self.sipi,
            extint: self.extint,
        };
        state.normalise();
        state
    }

    /// Replaces the whole state, dropping what the inbox holds, and NMIs that wait: load every vCPU of a VM before any of them, or any
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
        self.timer = Timer::restore(
            state.lvt_timer,
            state.timer_initial,
            state.timer_divide,
            state.timer_remaining_ns,
            state.tsc_deadline,
            now,
        );
        let LapicState {
            apic_id: _,
            xapic_id,
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
            init,
            sipi,
            extint,
        } = state;
        self.inbox.drain();
        self.base = apic_base;
        self.tpr = tpr;
        self.irr = VectorSet(irr);
        self.isr = VectorSet(isr);
        self.tmr = VectorSet(tmr);
        self.xapic_id = xapic_id;
        self.ldr = ldr;
        self.dfr = dfr;
        self.svr = svr & self.svr_mask();
        self.esr = esr;
        self.esr_new = esr_new;
        self.icr = icr;
        self.lvt = [lvt_timer, lvt_thermal, lvt_perf, lvt_lint0, lvt_lint1, lvt_error];
        self.nmis = 0;
        self.init = init;
        self.sipi = sipi;
        self.extint = extint;
        self.update_ppr();
        self.publish();
        if xapic_id != self.apic_id() as u8 {
            self.bus.renumber();
        }
        Ok(())
    }
}
