//! The parts of a machine, and what is done with all of them: run, pause, reset, close.
//!
//! One lock covers the life of a machine; who holds it sees a phase through to the next. Requests that must not wait (the
//! guest's end, a reset that it asks for) are posted to [`Control`] and carried out by the *lifecycle thread*.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use accel_api::x86::{CpuModel, CpuState};
use accel_api::{AccelId, AccelVm, GuestRam, VcpuStats};

use crate::board::Board;
use crate::boot_source::BootSource;
use crate::clock::{TscFrequency, VmClock};
use crate::control::{Control, GuestEnd};
use crate::dirty::DirtyLog;
use crate::lifecycle::{Command, Phase, Request};
use crate::timers::Timers;
use crate::vcpu_thread::{VcpuThread, VcpuThreadError};
use crate::vm::MachineError;

/// How long the end of a machine waits for a console that does not take its last output.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// An accelerator with the guest in it.
#[derive(Clone, Debug)]
pub(crate) struct Gear {
    pub(crate) vm: Arc<dyn AccelVm>,
    pub(crate) accel: AccelId,
}

/// All parts of a machine.
#[derive(Debug)]
pub(crate) struct Core {
    /// The vCPUs' threads, until the machine is closed. First, hence dropped first: vCPUs use everything below.
    pub(crate) vcpus: Mutex<Vec<VcpuThread>>,
    /// Who executes the guest.
    pub(crate) gear: Mutex<Gear>,
    /// Held by whoever changes it, before the lock of the machine's life.
    pub(crate) switching: Mutex<()>,
    /// States are read back when it changes.
    pub(crate) verify: AtomicBool,
    /// Counters of vCPUs that another accelerator has taken over: none before the first time.
    pub(crate) past: Mutex<Vec<VcpuStats>>,
    pub(crate) name: String,
    pub(crate) model: Arc<CpuModel>,
    pub(crate) dirty: Arc<DirtyLog>,
    pub(crate) board: Box<dyn Board>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) clock: Arc<VmClock>,
    pub(crate) control: Arc<Control>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) boot: BootSource,
    pub(crate) tsc: TscFrequency,
}

impl Core {
    /// The lock of the machine's life.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<VcpuThread>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_gear(&self) -> MutexGuard<'_, Gear> {
        self.gear.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who executes the guest.
    pub(crate) fn gear(&self) -> Gear {
        self.lock_gear().clone()
    }

    /// The phase that `command` leads to from the present one. With the lock held.
    pub(crate) fn next(&self, command: Command) -> Result<(Phase, Phase), MachineError> {
        let now = self.control.phase();
        match (now.after(command), self.control.end()) {
            (Some(next), None) => Ok((now, next)),
            (_, Some(end)) => Err(MachineError::Ended(end)),
            (None, None) => Err(MachineError::Phase(now)),
        }
    }

    pub(crate) fn resume(&self) -> Result<(), MachineError> {
        self.change(Command::Resume, Self::run)
    }

    pub(crate) fn pause(&self) -> Result<(), MachineError> {
        self.change(Command::Pause, Self::park)
    }

    /// Follows `command` into the phase that it leads to, by `work`, unless it is fulfilled already.
    fn change(
        &self,
        command: Command,
        work: impl FnOnce(&Self, &[VcpuThread]) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let vcpus = self.lock();
        let (now, next) = self.next(command)?;
        if now != next {
            work(self, &vcpus)?;
            self.control.enter(next);
        }
        Ok(())
    }

    pub(crate) fn run(&self, vcpus: &[VcpuThread]) -> Result<(), MachineError> {
        let offset = self.clock.thaw();
        let acks: Vec<_> = vcpus.iter().map(|vcpu| vcpu.run(offset)).collect();
        for ack in acks {
            ack.wait_ok().inspect_err(|error| {
                // Some may run and some not: there is no way back.
                self.control.post(GuestEnd::HostError { reason: error.to_string(), dump: None });
            })?;
        }
        self.board.parts().units.release();
        self.timers.resume();
        Ok(())
    }

    pub(crate) fn park(&self, vcpus: &[VcpuThread]) -> Result<(), MachineError> {
        // All are asked before any is waited for: the pause of many takes no longer than that of the slowest.
        let acks: Vec<_> = vcpus.iter().map(VcpuThread::pause).collect();
        for ack in acks {
            ack.wait()?;
        }
        self.timers.pause();
        self.board.parts().units.quiesce();
        self.clock.freeze();
        Ok(())
    }

    /// Resets the machine: memory, devices and vCPUs are what they were when it was built; time goes on. Then it runs or
    /// stands as before.
    fn reset(&self) -> Result<(), MachineError> {
        let vcpus = self.lock();
        let (now, next) = self.next(Command::Reset)?;
        self.control.enter(next);
        if now == Phase::Running {
            self.park(&vcpus)?;
        }
        // All are quiet: a machine that does not run was parked, or never ran.
        self.board.parts().units.reset();
        self.board.program();
        let states = self.boot.load(&self.ram, self.board.acpi())?;
        self.load(&vcpus, states)?;
        self.control.enter(now);
        self.control.reset_over();
        if now == Phase::Running {
            self.run(&vcpus)?;
        }
        Ok(())
    }

    /// States of `vcpus`, which go on as before.
    pub(crate) fn save(&self, vcpus: &[VcpuThread]) -> Result<Vec<CpuState>, VcpuThreadError> {
        let acks: Vec<_> = vcpus.iter().map(VcpuThread::save).collect();
        acks.into_iter().map(|ack| ack.wait_ok()).collect()
    }

    /// Counters of `vcpus`, on top of those of the vCPUs that were there before them.
    pub(crate) fn stats(&self, vcpus: &[VcpuThread]) -> Result<Vec<VcpuStats>, VcpuThreadError> {
        let acks: Vec<_> = vcpus.iter().map(VcpuThread::stats).collect();
        let now = acks.into_iter().map(|ack| ack.wait()).collect::<Result<Vec<_>, _>>()?;
        let mut past = self.past().clone();
        if past.is_empty() {
            return Ok(now);
        }
        past.iter_mut().zip(now).for_each(|(past, now)| past.add(now));
        Ok(past)
    }

    pub(crate) fn past(&self) -> MutexGuard<'_, Vec<VcpuStats>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn load(&self, vcpus: &[VcpuThread], states: Vec<CpuState>) -> Result<(), VcpuThreadError> {
        let acks: Vec<_> = vcpus.iter().zip(states).map(|(vcpu, state)| vcpu.load(state)).collect();
        acks.into_iter().try_for_each(|ack| ack.wait_ok())
    }

    /// What the lifecycle thread does, until the guest ends.
    pub(crate) fn serve_requests(&self) {
        while self.control.next_request() == Request::Reset {
            match self.reset() {
                Ok(()) => tracing::info!("the machine was reset, for the {}. time", self.control.resets()),
                Err(MachineError::Ended(_)) => {}
                Err(error) => {
                    let reason = format!("the machine cannot start again: {error}");
                    self.control.post(GuestEnd::HostError { reason, dump: None });
                }
            }
        }
    }

    /// Joins the vCPUs and the timers. The end has been posted, so vCPUs are parked or on their way there.
    pub(crate) fn close(&self) {
        self.board.close(LAST_OUTPUT);
        let mut vcpus = self.lock();
        for vcpu in &*vcpus {
            vcpu.stop();
        }
        for vcpu in &mut *vcpus {
            vcpu.join();
        }
        self.timers.stop();
        self.board.parts().detach();
    }
}
