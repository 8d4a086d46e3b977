//! Changing gear: another accelerator takes a running guest over.
//!
//! 1. While the guest runs, the new accelerator is asked whether it can give the guest's processor, and makes its VM and vCPUs, on
//!    threads of their own.
//! 2. The machine is parked. Interrupts queue, states and written pages are taken from the old vCPUs, memory is mapped, the states
//!    are loaded, and read back where [`Machine::verify_switches`](crate::Machine::verify_switches) wants it.
//! 3. Doorbells and interrupts go over, the queue is replayed, the new vCPUs run. The old ones are dropped behind that.
//!
//! Whatever fails before 3 leaves the old accelerator as it was: it runs on, and the caller learns why. Time stands still in between,
//! for the guest's TSC and its devices alike.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use accel_api::x86::{CpuState, LapicState};
use accel_api::{AccelError, AccelId, Accelerator, VmSpec};

use crate::lifecycle::{Command, Phase};
use crate::operations::{Core, Gear};
use crate::vcpu_thread::{VcpuThread, VcpuThreadError};
use crate::vm::MachineError;

/// What a switch took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwitchReport {
    /// Who executed the guest.
    pub from: AccelId,
    /// Who does now.
    pub to: AccelId,
    /// Making VM and vCPUs, while the guest ran.
    pub prepared: Duration,
    /// Until vCPUs, timers and devices stood still.
    pub quiesced: Duration,
    /// Taking the states from the old vCPUs.
    pub saved: Duration,
    /// Mapping memory, loading the states, and all else until the new vCPUs had been told to run.
    pub loaded: Duration,
}

impl SwitchReport {
    /// How long the guest stood still.
    pub fn pause(&self) -> Duration {
        self.quiesced + self.saved + self.loaded
    }
}

/// Why the accelerator was not changed. The one before goes on.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The new one lacks what the guest has been promised.
    #[error("{to} cannot give what the guest's processor has: {}", missing.join(", "))]
    Lacks {
        /// The new one.
        to: AccelId,
        /// Features, or what IA32_ARCH_CAPABILITIES says.
        missing: Vec<String>,
    },
    /// The new one cannot have so many vCPUs.
    #[error("{to} has {max} vCPUs at most, the machine has {vcpus}")]
    Vcpus {
        /// The new one.
        to: AccelId,
        /// Of the machine.
        vcpus: u32,
        /// Of the new one.
        max: u32,
    },
    /// The new one refuses, or fails.
    #[error("{to}: {source}")]
    Accel {
        /// The new one.
        to: AccelId,
        /// What it says.
        #[source]
        source: AccelError,
    },
    /// A vCPU refuses, or fails.
    #[error(transparent)]
    Vcpu(#[from] VcpuThreadError),
    /// What was loaded was not what came back.
    #[error("{to} does not give back vCPU {vcpu} as it was loaded: {}", differences.join("; "))]
    Differs {
        /// The new one.
        to: AccelId,
        /// Which vCPU.
        vcpu: usize,
        /// Field by field.
        differences: Vec<String>,
    },
    /// The machine is not in a phase for it.
    #[error(transparent)]
    Machine(Box<MachineError>),
}

impl From<MachineError> for SwitchError {
    fn from(error: MachineError) -> Self {
        Self::Machine(Box::new(error))
    }
}

/// An accelerator that is ready to take over.
struct Next {
    gear: Gear,
    vcpus: Vec<VcpuThread>,
}

impl Core {
    /// Has `accelerator` execute the guest from now on. One that does already is left alone.
    pub(crate) fn switch(&self, accelerator: &dyn Accelerator) -> Result<SwitchReport, SwitchError> {
        // One at a time, without keeping anybody from pausing the machine in the meantime.
        let _turn = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (self.gear().accel, accelerator.id());
        let mut report = SwitchReport {
            from,
            to,
            prepared: Duration::ZERO,
            quiesced: Duration::ZERO,
            saved: Duration::ZERO,
            loaded: Duration::ZERO,
        };
        if from == to {
            return Ok(report);
        }
        let mut lap = lap();
        let mut next = self.prepare(accelerator)?;
        report.prepared = lap();

        let mut vcpus = self.lock();
        let (now, switching) = self.next(Command::Switch)?;
        self.control.enter(switching);
        lap();
        let running = now == Phase::Running;
        let outcome = self.hand_over(&vcpus, &next, running, &mut report, &mut lap);
        if outcome.is_ok() {
            if let Ok(stats) = self.stats(&vcpus) {
                *self.past() = stats;
            }
            std::mem::swap(&mut *vcpus, &mut next.vcpus);
            *self.lock_gear() = next.gear;
        }
        self.control.enter(now);
        // Either way somebody has to go on.
        let resumed = if running { self.run(&vcpus) } else { Ok(()) };
        report.loaded = lap();
        drop(vcpus);
        outcome?;
        resumed?;
        Ok(report)
    }

    /// What can be done while the guest runs.
    fn prepare(&self, accelerator: &dyn Accelerator) -> Result<Next, SwitchError> {
        let to = accelerator.id();
        let (caps, vcpus) = (accelerator.caps(), self.model.vcpus);
        let missing = self.model.missing_from(caps);
        if !missing.is_empty() {
            return Err(SwitchError::Lacks { to, missing });
        }
        if vcpus > caps.max_vcpus {
            return Err(SwitchError::Vcpus { to, vcpus, max: caps.max_vcpus });
        }
        let refused = |source| SwitchError::Accel { to, source };
        let spec = VmSpec { model: self.model.clone(), ram: self.ram.clone(), vcpus };
        let vm = accelerator.create_vm(&spec).map_err(refused)?;
        let vcpus = (0..vcpus).map(|id| {
            let state = CpuState::reset(id);
            VcpuThread::spawn(&self.name, vm.clone(), id, self.board.as_ref(), state, self.control.clone())
        });
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        Ok(Next { gear: Gear { vm, accel: to }, vcpus })
    }

    /// Gives all that `old` has to `next`; on an error all is with `old` again.
    fn hand_over(
        &self,
        old: &[VcpuThread],
        next: &Next,
        running: bool,
        report: &mut SwitchReport,
        lap: &mut impl FnMut() -> Duration,
    ) -> Result<(), SwitchError> {
        if running {
            self.park(old)?;
        }
        report.quiesced = lap();
        let parts = self.board.parts();
        parts.interrupts.detach();
        let states = self.save(old);
        report.saved = lap();
        let outcome = states.map_err(Into::into).and_then(|states| self.load_into(next, states, running));
        if outcome.is_err() {
            let vm = &self.gear().vm;
            self.clock.freeze();
            self.dirty.stay_with(vm);
            parts.put_back(vm)?;
        }
        outcome
    }

    fn load_into(&self, next: &Next, mut states: Vec<CpuState>, running: bool) -> Result<(), SwitchError> {
        if running {
            // They run with the offset that they are loaded with.
            let offset = self.clock.thaw();
            states.iter_mut().for_each(|state| state.tsc_offset = offset);
        }
        let Gear { vm, accel: to } = &next.gear;
        let refused = |source| SwitchError::Accel { to: *to, source };
        let parts = self.board.parts();
        parts.memory.attach(vm.clone()).map_err(refused)?;
        self.dirty.follow(vm).map_err(refused)?;
        self.load(&next.vcpus, states.clone())?;
        if self.verify.load(Ordering::Relaxed) {
            self.verify(*to, &next.vcpus, states)?;
        }
        parts.doorbells.attach(vm.clone());
        parts.interrupts.attach(vm.interrupts()).map_err(refused)
    }

    /// Reads the states back, and compares.
    fn verify(&self, to: AccelId, vcpus: &[VcpuThread], states: Vec<CpuState>) -> Result<(), SwitchError> {
        for ((vcpu, mut read), mut loaded) in self.save(vcpus)?.into_iter().enumerate().zip(states) {
            loaded.normalise();
            read.normalise();
            let_time_pass(&mut loaded.lapic, &read.lapic);
            let differences: Vec<_> = loaded.diff(&read).iter().map(ToString::to_string).collect();
            if !differences.is_empty() {
                return Err(SwitchError::Differs { to, vcpu, differences });
            }
        }
        Ok(())
    }
}

/// The local APIC's timer runs on between loading and reading back: it has come nearer to its end, or has expired.
fn let_time_pass(loaded: &mut LapicState, read: &LapicState) {
    if loaded.tsc_deadline == 0 && loaded.timer_remaining_ns == 0 {
        return;
    }
    let vector = loaded.lvt_timer as usize & 0xff;
    let (word, bit) = (vector / 64, 1 << (vector % 64));
    loaded.irr[word] |= read.irr[word] & bit;
    loaded.tmr[word] = loaded.tmr[word] & !bit | read.tmr[word] & bit;
    loaded.timer_remaining_ns = read.timer_remaining_ns;
    if read.tsc_deadline == 0 {
        loaded.tsc_deadline = 0;
    }
}

/// A function that gives the time since it was called last, or made.
fn lap() -> impl FnMut() -> Duration {
    let mut last = Instant::now();
    move || {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut last, now))
    }
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;
