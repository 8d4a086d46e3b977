//! The vCPU: its run loop, state, debugging.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use accel_api::x86::{CpuState, EventKind, InjectedEvent, MpState};
use accel_api::{
    AccelError, DebugPlan, DebugStop, Exit, GuestRam, Kick, RamError, Vcpu, VcpuStats, stop_on_loss,
};

use super::alarm::Alarm;
use super::{CpuHome, Executor};
use crate::alu::flag;
use crate::exec::sse::mxcsr;
use crate::lapic::TimerDeadline;
use crate::shared::request;
use crate::{Fault, Shutdown, vector};

/// Instructions between looks at requests, timers and interrupts: some microseconds.
const SLICE: i64 = 2000;

/// Breakpoints in a [`DebugPlan`].
const MAX_BREAKPOINTS: usize = 4;

/// A vCPU that runs on `E`.
#[derive(Debug)]
pub struct SoftVcpu<E: Executor> {
    cpu: CpuHome,
    executor: E,
    alarm: Arc<Alarm>,
    plan: DebugPlan,
    /// Breakpoint the last run stopped at: going on must pass it.
    passing: Option<u64>,
    /// The timer deadline last seen, and the host's time it falls on.
    deadline: Option<(TimerDeadline, u64)>,
    bound: Arc<[AtomicBool]>,
    ram: Arc<GuestRam>,
    /// Bound to its thread.
    not_send: PhantomData<*const ()>,
}

impl<E: Executor> SoftVcpu<E> {
    pub(super) fn new(
        cpu: CpuHome,
        executor: E,
        alarm: Arc<Alarm>,
        bound: Arc<[AtomicBool]>,
        ram: Arc<GuestRam>,
    ) -> Self {
        Self {
            cpu,
            executor,
            alarm,
            plan: DebugPlan::default(),
            passing: None,
            deadline: None,
            bound,
            ram,
            not_send: PhantomData,
        }
    }

    fn run_loop(&mut self) -> Exit {
        let passing = self.passing.take();
        let mut first = true;
        loop {
            // A debug trap that MOV SS holds back is due behind the next instruction, and no part of a saved state.
            if self.cpu.pending_debug == 0 && self.serve_requests() {
                return Exit::Kicked;
            }
            self.expire_timer();
            // An event may have come by a task gate to a task with its debug trap flag set.
            if self.take_event().is_err() || self.cpu.take_debug_trap().is_err() {
                return self.triple_fault();
            }
            match self.cpu.mp {
                MpState::Running => {}
                MpState::Shutdown => return Exit::TripleFault,
                MpState::Halted | MpState::WaitForSipi => {
                    if !self.sleep() {
                        return Exit::Kicked;
                    }
                    continue;
                }
            }
            let cpu = &mut *self.cpu;
            cpu.leave = false;
            // The shadow is over after one instruction. If something waits for that, it must not have to wait for the rest
            // of the slice: code that leaves only behind its next STI would never be interrupted.
            let shadow = std::mem::take(&mut cpu.shadow);
            let start = cpu.rip;
            let waiting =
                shadow && (E::POLLS || cpu.nmi_due() || cpu.has(flag::IF) && cpu.lapic.has_interrupt());
            let stepping = waiting || self.plan.single_step || !self.plan.breakpoints.is_empty();
            let result = if cpu.virtual_interrupt_due() {
                Err(Fault::GP0)
            } else if stepping || cpu.armed || cpu.has(flag::TF) || cpu.pending_debug != 0 {
                let la = cpu.code_address(cpu.rip);
                if self.plan.breakpoints.contains(&la) && !(first && passing == Some(la)) {
                    cpu.shadow = shadow;
                    self.passing = Some(la);
                    return Exit::Debug(DebugStop::Breakpoint(la));
                }
                cpu.step()
            } else {
                // What these two are for, `Cpu::step` looks at.
                cpu.system_flags &= !flag::RF;
                cpu.debug_shadow = false;
                cpu.budget = SLICE;
                let result = self.executor.execute(cpu);
                cpu.instructions += (SLICE - cpu.budget) as u64;
                result
            };
            if result == Err(Fault::AGAIN) {
                // The kick is served first. What held back events for this instruction, and breakpoints, does so still.
                self.cpu.system_flags |= flag::RF;
                if self.cpu.rip == start {
                    self.cpu.shadow = shadow;
                    self.passing = passing.filter(|_| first);
                }
                continue;
            }
            first = false;
            if let Err(fault) = result
                && self.cpu.raise(fault).is_err()
            {
                return self.triple_fault();
            }
            if self.cpu.take_debug_trap().is_err() {
                return self.triple_fault();
            }
            if self.plan.single_step {
                return Exit::Debug(DebugStop::Step);
            }
        }
    }

    fn triple_fault(&mut self) -> Exit {
        self.cpu.mp = MpState::Shutdown;
        Exit::TripleFault
    }

    /// Serves what others asked for; whether one of them kicked.
    #[inline]
    fn serve_requests(&mut self) -> bool {
        let cpu = &mut *self.cpu;
        for stale in std::mem::take(&mut cpu.stale_code) {
            self.executor.code_stale(stale);
        }
        let told = cpu.vm.told();
        let kicked = cpu.shared.requested() != 0 && self.serve();
        self.cpu.told = told;
        kicked
    }

    #[cold]
    fn serve(&mut self) -> bool {
        const SERVED: u32 =
            request::CODE | request::INTERRUPT | request::TIMER | request::LEAVE | request::KICK;
        loop {
            let cpu = &mut *self.cpu;
            cpu.serve_memory_requests();
            let requests = cpu.shared.take(SERVED);
            if requests & request::CODE != 0 {
                match cpu.shared.take_stale_code().pages() {
                    Some(pages) => pages.for_each(|stale| self.executor.code_stale(stale)),
                    None => self.executor.all_code_stale(),
                }
            }
            if requests & (request::KICK | request::LEAVE) != request::LEAVE {
                return requests & request::KICK != 0;
            }
            cpu.shared.leave();
            if !self.come_in() {
                return true;
            }
            // Nobody has waited for us meanwhile, so there may be more to serve.
        }
    }

    /// Goes into guest code; false if a kick comes while another vCPU is alone there.
    fn come_in(&self) -> bool {
        let came = self.cpu.vm.enter(self.cpu.id as usize, request::KICK);
        if !came {
            self.cpu.shared.take(request::KICK);
        }
        came
    }

    /// Lets the local APIC's timer interrupt if it is due.
    #[inline]
    fn expire_timer(&mut self) {
        if self.timer_at().is_some_and(|at| self.cpu.host_time() >= at) {
            let now = self.cpu.now();
            self.cpu.lapic.expire(now);
            self.deadline = None;
            // The alarm has to know of the next one.
            self.timer_at();
        }
    }

    /// The host's time at which the timer is due.
    #[inline]
    fn timer_at(&mut self) -> Option<u64> {
        let next = self.cpu.lapic.next_deadline();
        match (next, self.deadline) {
            (None, _) => {
                self.deadline = None;
                None
            }
            (Some(next), Some((known, at))) if next == known => Some(at),
            (Some(next), _) => {
                let at = self.cpu.deadline_tsc(next);
                self.deadline = Some((next, at));
                if E::POLLS {
                    self.alarm.set(self.cpu.id, at);
                }
                Some(at)
            }
        }
    }

    /// Delivers the most urgent event that the CPU takes now (Intel SDM vol. 3, table 6-2).
    #[inline]
    fn take_event(&mut self) -> Result<(), Shutdown> {
        let cpu = &mut *self.cpu;
        if let Some(event) = cpu.injected.take() {
            return cpu.deliver(event);
        }
        cpu.lapic.pull();
        if cpu.lapic.take_init() {
            cpu.init_reset();
        }
        if let Some(vector) = cpu.lapic.take_sipi()
            && cpu.mp == MpState::WaitForSipi
        {
            cpu.start_up(vector);
        }
        if cpu.mp == MpState::WaitForSipi {
            return Ok(());
        }
        if !cpu.nmi_masked && !cpu.shadow && cpu.lapic.take_nmi() {
            cpu.mp = MpState::Running;
            return cpu.deliver(InjectedEvent {
                vector: vector::NMI,
                kind: EventKind::Nmi,
                error_code: None,
            });
        }
        if !cpu.interrupts_open() || !cpu.lapic.has_interrupt() {
            return Ok(());
        }
        let vector = if cpu.lapic.extint_pending() {
            cpu.lapic.accept_extint();
            cpu.device(|bus| bus.ack_extint())
        } else {
            cpu.lapic.pending_vector().map(|v| cpu.lapic.accept(v))
        };
        let Some(vector) = vector else { return Ok(()) };
        cpu.mp = MpState::Running;
        cpu.deliver(InjectedEvent { vector, kind: EventKind::ExternalInterrupt, error_code: None })
    }

    /// Fails if guest RAM has been lost.
    fn whole(&self) -> Result<(), AccelError> {
        self.ram.loss().map_or(Ok(()), |gpa| Err(RamError::Lost { gpa }.into()))
    }

    /// Sleeps until something is requested or the timer is due. False if that was a kick, and is served.
    fn sleep(&mut self) -> bool {
        let cpu = &mut *self.cpu;
        let timeout = self.deadline.map(|(_, at)| {
            let ticks = at.saturating_sub(cpu.host_time());
            Duration::from_nanos(cpu.tsc_to_ns(ticks))
        });
        if timeout.is_some_and(|t| t.is_zero()) {
            return true;
        }
        cpu.shared.leave();
        cpu.shared.sleep(timeout);
        self.come_in()
    }
}

impl<E: Executor> Vcpu for SoftVcpu<E> {
    fn run(&mut self) -> Result<Exit, AccelError> {
        self.whole()?;
        if !self.come_in() {
            return Ok(Exit::Kicked);
        }
        let shared = self.cpu.shared.clone();
        mxcsr::enter(&mut self.cpu);
        let exit = stop_on_loss(shared.word(), request::KICK, || self.run_loop());
        mxcsr::leave(&mut self.cpu);
        shared.leave();
        // Whatever else has happened may be for want of that memory.
        self.whole()?;
        self.executor.failure().map_or(Ok(exit), Err)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.cpu.shared.clone()
    }

    fn save(&mut self) -> Result<CpuState, AccelError> {
        let now = self.cpu.now();
        let mut state = CpuState::reset(self.cpu.id);
        state.lapic = self.cpu.lapic.save(now);
        self.cpu.save_state(&mut state);
        Ok(state)
    }

    fn load(&mut self, state: &CpuState) -> Result<(), AccelError> {
        crate::state::check(state).map_err(|e| AccelError::InvalidState(e.to_owned()))?;
        let now = self.cpu.now();
        let lapic = self.cpu.lapic.load(&state.lapic, now);
        lapic.map_err(|e| AccelError::InvalidState(e.to_string()))?;
        self.cpu.load_state(state);
        self.deadline = None;
        self.passing = None;
        Ok(())
    }

    fn set_debug(&mut self, plan: &DebugPlan) -> Result<(), AccelError> {
        if plan.breakpoints.len() > MAX_BREAKPOINTS {
            return Err(AccelError::BadDebugPlan("at most 4 breakpoints"));
        }
        self.plan = plan.clone();
        Ok(())
    }

    fn stats(&self) -> VcpuStats {
        VcpuStats {
            instructions: self.executor.counts().then_some(self.cpu.instructions),
            counters: [self.executor.counters(), self.cpu.tlb.counters().into()].concat(),
            report: self.executor.report(&self.cpu),
        }
    }
}

impl<E: Executor> Drop for SoftVcpu<E> {
    fn drop(&mut self) {
        // Where a panic came out of `run`, the others must not wait for this vCPU.
        self.cpu.shared.leave();
        if let Some(bound) = self.bound.get(self.cpu.id as usize) {
            bound.store(false, Ordering::Release);
        }
    }
}
