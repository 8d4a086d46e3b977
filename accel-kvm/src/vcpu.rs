//! The vCPU: the contract of `run` around KVM_RUN.
//!
//! KVM returns in the middle of an instruction that accesses a device, and completes it when it is entered again. `run`
//! promises an instruction boundary with no I/O owed, so before it returns it enters once more, with `immediate_exit`
//! set: KVM then completes the instruction (or asks for its next piece) and executes no other.

use std::marker::PhantomData;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError};

use accel_api::host_time::Lease;
use accel_api::x86::{CpuState, Msrs};
use accel_api::{
    AccelError, DebugPlan, DebugStop, Exit, IoSize, Kick, RamError, UnsupportedDetail, Vcpu, VcpuBus, VcpuId,
    VcpuStats, VmSpec,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::exit::{Stop, answer_msr, enter, mmio_data, port_data};
use crate::msr::index;
use crate::requests::VcpuRequests;
use crate::sys::{almost_enter, host, rdtsc, set_tsc_offset, tsc_offset};
use crate::vm::ParkedVcpu;
use crate::{debug, state};

/// RFLAGS.RF: no breakpoint at the next instruction (Intel SDM vol. 3, 18.3.1.1).
const RF: u64 = 1 << 16;

/// Device accesses between two instruction boundaries: KVM reads up to 1024 elements of a repeated string instruction without
/// a boundary, each in up to a few pieces. An instruction that wants more starts over and over again.
const MAX_PIECES: u32 = 8192;

/// A vCPU bound to a thread.
pub(crate) struct KvmVcpu {
    pub(crate) id: VcpuId,
    /// `None` only while it is dropped.
    fd: Option<VcpuFd>,
    pub(crate) vm: Arc<VmFd>,
    parked: Arc<[ParkedVcpu]>,
    pub(crate) requests: Arc<VcpuRequests>,
    pub(crate) spec: VmSpec,
    bus: Arc<dyn VcpuBus>,
    /// MSRs that KVM does not hold for us.
    pub(crate) msrs: Msrs,
    /// Shut down by a triple fault, which KVM does not remember.
    pub(crate) shutdown: bool,
    /// Under which KVM's offset of the guest's TSC is right.
    pub(crate) lease: Lease,
    /// What [`state::lapic`] had to keep back from KVM.
    pub(crate) expired_timer: Option<u32>,
    plan: DebugPlan,
    /// The breakpoint the last run stopped at: going on must pass it.
    passing: Option<u64>,
    /// The guest waits for the answer to its last device access.
    owing: bool,
    /// The 8259 is worth asking again when the guest takes interrupts.
    awaits_window: bool,
    /// KVM_RUN was called since the state was loaded, so that KVM may have put something off.
    entered: bool,
    exits: Exits,
    /// Bound to its thread.
    not_send: PhantomData<*const ()>,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default)]
struct Exits {
    entries: u64,
    port: u64,
    mmio: u64,
    msr: u64,
    eoi: u64,
    interrupt_window: u64,
    interrupted: u64,
}

impl KvmVcpu {
    pub(crate) fn new(
        id: VcpuId,
        mut fd: VcpuFd,
        vm: Arc<VmFd>,
        parked: Arc<[ParkedVcpu]>,
        requests: Arc<VcpuRequests>,
        spec: VmSpec,
        bus: Arc<dyn VcpuBus>,
    ) -> Result<Self, AccelError> {
        requests.bind(&mut fd)?;
        let reset = CpuState::reset(id);
        let mut vcpu = Self {
            id,
            fd: Some(fd),
            vm,
            parked,
            requests,
            spec,
            bus,
            msrs: reset.msrs.clone(),
            shutdown: false,
            lease: Lease::take(),
            expired_timer: None,
            plan: DebugPlan::default(),
            passing: None,
            owing: false,
            awaits_window: false,
            entered: false,
            exits: Exits::default(),
            not_send: PhantomData,
        };
        vcpu.load(&reset)?;
        Ok(vcpu)
    }

    /// KVM's vCPU.
    pub(crate) fn fd(&mut self) -> &mut VcpuFd {
        self.fd.as_mut().expect("only drop takes it")
    }

    /// Takes a new lease of time, if the old one has ended, and has the guest's counter go on where it was to stand.
    ///
    /// A signal that stops the process makes KVM_RUN return first, so that this comes before the guest goes on: unless the
    /// signal comes between this and KVM_RUN. And a guest that runs on while a pulse is late by seconds, as on a core where it
    /// has priority over all else, may see its counter go back by what that was late.
    fn keep_time(&mut self) -> Result<(), AccelError> {
        if self.lease.time(rdtsc()).is_some() {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.lease, Lease::take());
        match self.lease.removed().wrapping_sub(before.removed()) {
            0 => Ok(()),
            stood => {
                let offset = tsc_offset(self.fd())?;
                set_tsc_offset(self.fd(), offset.wrapping_sub(stood))
            }
        }
    }

    /// Enters the guest and does what it asks of its devices, until there is something to return, or to look at.
    fn step(&mut self) -> Result<Option<Exit>, AccelError> {
        self.entered = true;
        let stop = enter(self.fd())?;
        self.handle(stop)
    }

    /// Whether KVM may have put something off since the state was loaded.
    pub(crate) fn entered(&self) -> bool {
        self.entered
    }

    /// Has KVM do what it has put off to the next entry: a timer that has expired makes its request, the EOI of a
    /// level-triggered vector reaches the bus. No register would show either.
    pub(crate) fn settle_kernel(&mut self) -> Result<(), AccelError> {
        if self.shutdown {
            return Ok(());
        }
        // Each kind once, and a last time to see that there is no more; a guest cannot make more of them here.
        for _ in 0..4 {
            match almost_enter(self.fd(), enter)? {
                Stop::Interrupted => break,
                stop => drop(self.handle(stop)?),
            }
        }
        Ok(())
    }

    fn handle(&mut self, stop: Stop) -> Result<Option<Exit>, AccelError> {
        self.exits.entries += 1;
        self.owing = false;
        match stop {
            Stop::Interrupted => self.exits.interrupted += 1,
            Stop::Again => {}
            Stop::WindowOpen => {
                self.exits.interrupt_window += 1;
                // Told once: the request may have gone away, and KVM would return again and again.
                self.fd().get_kvm_run().request_interrupt_window = 0;
            }
            Stop::Port { port, size, write } => self.port(port, size, write),
            Stop::Mmio { gpa, len, write } => self.mmio(gpa, len, write),
            Stop::ReadMsr(index) => {
                let answer = self.read_msr(index)?;
                self.answer_msr(answer);
            }
            Stop::WriteMsr(index, value) => {
                let answer = self.write_msr(index, value)?.then_some(value);
                self.answer_msr(answer);
            }
            Stop::Eoi(vector) => {
                self.exits.eoi += 1;
                self.bus.eoi(vector);
            }
            Stop::Shutdown => {
                self.shutdown = true;
                return Ok(Some(Exit::TripleFault));
            }
            Stop::Debug { dr6, pc } => {
                let stop = debug::stop(&self.plan, dr6, pc);
                if let DebugStop::Breakpoint(address) = stop {
                    self.passing = Some(address);
                }
                return Ok(Some(Exit::Debug(stop)));
            }
            Stop::Stuck { why, bytes } => return Ok(Some(Exit::Unsupported(self.unsupported(why, bytes)?))),
        }
        Ok(None)
    }

    fn port(&mut self, port: u16, size: usize, write: bool) {
        (self.owing, self.exits.port) = (true, self.exits.port + 1);
        let Some(width) = IoSize::from_bytes(size) else { return };
        let bus = self.bus.clone();
        for item in port_data(self.fd()).chunks_exact_mut(size) {
            if write {
                bus.pio_write(port, width, number(item) as u32);
            } else {
                item.copy_from_slice(&bus.pio_read(port, width).to_le_bytes()[..size]);
            }
        }
    }

    fn mmio(&mut self, gpa: u64, len: usize, write: bool) {
        (self.owing, self.exits.mmio) = (true, self.exits.mmio + 1);
        let bus = self.bus.clone();
        let data = &mut mmio_data(self.fd())[..len];
        // An access that crosses a page comes in pieces of any length.
        let mut at = 0;
        while at < len {
            let size = 1 << (len - at).ilog2();
            let Some(width) = IoSize::from_bytes(size) else { return };
            let (item, gpa) = (&mut data[at..at + size], gpa.wrapping_add(at as u64));
            if write {
                bus.mmio_write(gpa, width, number(item));
            } else {
                item.copy_from_slice(&bus.mmio_read(gpa, width).to_le_bytes()[..size]);
            }
            at += size;
        }
    }

    fn answer_msr(&mut self, answer: Option<u64>) {
        (self.owing, self.exits.msr) = (true, self.exits.msr + 1);
        answer_msr(self.fd(), answer);
    }

    /// The value of an MSR that is not KVM's; `None` for #GP(0).
    fn read_msr(&mut self, index: u32) -> Result<Option<u64>, AccelError> {
        if index == index::TSC_ADJUST {
            return Ok(Some(self.msrs.tsc_adjust));
        }
        let held = self.msrs.read_held(&self.spec.model, index);
        Ok(held.unwrap_or_else(|| self.bus.msr_read(index)).ok())
    }

    /// Writes an MSR that is not KVM's; false for #GP(0).
    fn write_msr(&mut self, index: u32, value: u64) -> Result<bool, AccelError> {
        if matches!(index, index::TSC | index::TSC_ADJUST) {
            self.move_tsc(index, value)?;
            return Ok(true);
        }
        let held = self.msrs.write_held(&self.spec.model, index, value);
        Ok(held.unwrap_or_else(|| self.bus.msr_write(index, value)).is_ok())
    }

    /// A write to the TSC or to its adjustment moves both (Intel SDM vol. 3, 18.17.3).
    fn move_tsc(&mut self, index: u32, value: u64) -> Result<(), AccelError> {
        let offset = tsc_offset(self.fd())?;
        let by = match index {
            index::TSC => value.wrapping_sub(rdtsc()).wrapping_sub(offset),
            _ => value.wrapping_sub(self.msrs.tsc_adjust),
        };
        self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(by);
        set_tsc_offset(self.fd(), offset.wrapping_add(by))
    }

    fn unsupported(&mut self, what: String, mut bytes: Vec<u8>) -> Result<UnsupportedDetail, AccelError> {
        let rip = self.fd().get_regs().map_err(host("KVM_GET_REGS"))?.rip;
        if bytes.is_empty() {
            bytes = self.code(rip)?;
        }
        Ok(UnsupportedDetail { what, rip, bytes })
    }

    /// Up to 15 bytes of the instruction at `rip`, as far as they are in RAM.
    fn code(&mut self, rip: u64) -> Result<Vec<u8>, AccelError> {
        let base = self.fd().get_sregs().map_err(host("KVM_GET_SREGS"))?.cs.base;
        let mut bytes = Vec::new();
        for la in (0..15).map(|n| base.wrapping_add(rip).wrapping_add(n)) {
            let place = self.fd().translate_gva(la).map_err(host("KVM_TRANSLATE"))?;
            let byte = self.spec.ram.memory().read_obj::<u8>(GuestAddress(place.physical_address));
            match byte {
                Ok(byte) if place.valid != 0 => bytes.push(byte),
                _ => break,
            }
        }
        Ok(bytes)
    }

    /// Completes the instruction that waits for a device's answer. What else it asks for is answered too.
    fn settle(&mut self) -> Result<Option<Exit>, AccelError> {
        for _ in 0..MAX_PIECES {
            if !self.owing {
                return Ok(None);
            }
            self.fd().set_kvm_immediate_exit(1);
            if let Some(exit) = self.step()? {
                return Ok(Some(exit));
            }
        }
        let why = "KVM does not come to the end of an instruction that accesses a device".to_owned();
        Ok(Some(Exit::Unsupported(self.unsupported(why, Vec::new())?)))
    }

    /// Has KVM forget an instruction that waits for a device's answer, which would else be completed on the registers that are
    /// loaded next.
    fn abandon(&mut self) -> Result<(), AccelError> {
        for _ in 0..MAX_PIECES {
            if !self.owing {
                break;
            }
            self.fd().set_kvm_immediate_exit(1);
            self.owing = !matches!(enter(self.fd())?, Stop::Interrupted);
        }
        Ok(())
    }

    /// Delivers the 8259's interrupt if the guest takes it now; else has KVM return when it does.
    fn deliver_intr(&mut self) -> Result<Option<Exit>, AccelError> {
        // KVM tells whether it would take one only of an instruction boundary that it has just left.
        self.owing = true;
        if let Some(exit) = self.settle()? {
            return Ok(Some(exit));
        }
        let ready = self.fd().get_kvm_run().ready_for_interrupt_injection != 0;
        if ready {
            // Before the cycle: a message that comes during it asks for another one.
            self.requests.set_extint_message(false);
        }
        let vector = if ready { self.bus.ack_extint() } else { None };
        if let Some(vector) = vector {
            state::inject_interrupt(self, vector)?;
        }
        // A line that is up without a vector behind it would open the window at each entry.
        self.awaits_window = !ready || vector.is_some();
        Ok(None)
    }

    fn set_guest_debug(&mut self) -> Result<(), AccelError> {
        let debug = debug::guest_debug(&self.plan);
        self.fd().set_guest_debug(&debug).map_err(host("KVM_SET_GUEST_DEBUG"))
    }

    /// A breakpoint that the last run stopped at must not stop this one again.
    fn pass_breakpoint(&mut self) -> Result<(), AccelError> {
        if let Some(address) = self.passing.take() {
            let mut regs = self.fd().get_regs().map_err(host("KVM_GET_REGS"))?;
            let base = self.fd().get_sregs().map_err(host("KVM_GET_SREGS"))?.cs.base;
            if base.wrapping_add(regs.rip) == address {
                regs.rflags |= RF;
                self.fd().set_regs(&regs).map_err(host("KVM_SET_REGS"))?;
            }
        }
        Ok(())
    }
}

/// Little-endian bytes, at most 8, as a number.
fn number(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(all)
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit, AccelError> {
        if self.shutdown {
            return Ok(Exit::TripleFault);
        }
        self.pass_breakpoint()?;
        if self.plan.single_step {
            // KVM keeps TF through the delivery of an event only at the place where it was told to step.
            self.set_guest_debug()?;
        }
        loop {
            // A device access may have found it.
            if let Some(gpa) = self.spec.ram.loss() {
                return Err(RamError::Lost { gpa }.into());
            }
            // In this order: a request that comes after the flags were looked at makes the next entry return at once.
            self.fd().set_kvm_immediate_exit(0);
            if self.requests.take_kick() {
                let settled = self.settle()?;
                if settled.is_some() {
                    // The kick is still owed.
                    self.requests.rearm_kick();
                }
                return Ok(settled.unwrap_or(Exit::Kicked));
            }
            for _ in 0..self.requests.take_nmis() {
                self.fd().nmi().map_err(host("KVM_NMI"))?;
            }
            if self.requests.wants_inta() {
                if let Some(exit) = self.deliver_intr()? {
                    return Ok(exit);
                }
                self.fd().set_kvm_immediate_exit(0);
                // That may have undone what a request has done in the meantime, so the flags are looked at again; not before the
                // processor has made the store visible.
                fence(Ordering::SeqCst);
                let wants = self.requests.wants_inta() && self.awaits_window;
                self.fd().get_kvm_run().request_interrupt_window = wants.into();
                if self.requests.pending() {
                    continue;
                }
            }
            self.keep_time()?;
            if let Some(exit) = self.step()? {
                return Ok(exit);
            }
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.requests.clone()
    }

    fn save(&mut self) -> Result<CpuState, AccelError> {
        state::save(self)
    }

    fn load(&mut self, state: &CpuState) -> Result<(), AccelError> {
        self.abandon()?;
        (self.owing, self.entered) = (false, false);
        self.passing = None;
        state::load(self, state)
    }

    fn set_debug(&mut self, plan: &DebugPlan) -> Result<(), AccelError> {
        debug::check(plan)?;
        self.plan = plan.clone();
        self.set_guest_debug()
    }

    fn stats(&self) -> VcpuStats {
        let Exits { entries, port, mmio, msr, eoi, interrupt_window, interrupted } = self.exits;
        let counters = vec![
            ("entries", entries),
            ("port_exits", port),
            ("mmio_exits", mmio),
            ("msr_exits", msr),
            ("eoi_exits", eoi),
            ("interrupt_window_exits", interrupt_window),
            ("interrupted_entries", interrupted),
        ];
        VcpuStats { counters, ..VcpuStats::default() }
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.requests.unbind();
        // Its state is loaded anew when it is bound again.
        let place = &self.parked[self.id as usize];
        *place.lock().unwrap_or_else(PoisonError::into_inner) = self.fd.take();
    }
}
