//! The machine: built from a [`MachineBuilder`], started, paused, waited for.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use accel_api::x86::{CpuModel, CpuState};
use accel_api::{AccelError, AccelId, AccelVm, Accelerator, GuestRam, RamError, VcpuId, VcpuStats};
use devices::uart::Uart;
use devices::virtio::balloon::{Balloon, BalloonStatus};
use state::Units;

use crate::board::Board;
use crate::boot::BootError;
use crate::boot_source::BootSource;
use crate::builder::MachineBuilder;
use crate::chipset::ChipsetError;
use crate::clock::{TscFrequency, VmClock};
use crate::control::{Control, GuestEnd};
use crate::dirty::{DirtyConsumer, DirtyLog};
use crate::host;
use crate::interrupts::InterruptCell;
use crate::lifecycle::Phase;
use crate::memory_map::MemorySizeError;
use crate::operations::{Core, Gear};
use crate::switch::{SwitchError, SwitchReport};
use crate::timers::Timers;
use crate::vcpu_thread::{VcpuThread, VcpuThreadError};

/// Why a machine could not be built, or did not do as told.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A memory size that cannot be.
    #[error(transparent)]
    MemorySize(#[from] MemorySizeError),
    /// The host cannot provide the memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A number of vCPUs that cannot be.
    #[error("{asked} vCPUs asked for: a machine has 1 to {max}")]
    Vcpus {
        /// Number asked for.
        asked: u32,
        /// The most there can be.
        max: u32,
    },
    /// No CPU model of that name.
    #[error(transparent)]
    Model(#[from] accel_api::x86::UnknownModel),
    /// Nothing to boot.
    #[error("no kernel given: a machine needs one to boot, or a memory image")]
    NoKernel,
    /// A memory image, with what only a kernel takes.
    #[error("a memory image takes no {0}: leave it away, or give a kernel")]
    NotForImage(&'static str),
    /// No backend given.
    #[error("no accelerator given: choose one from a Registry")]
    NoAccelerator,
    /// The guest cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The backend refuses.
    #[error(transparent)]
    Accel(#[from] AccelError),
    /// A vCPU does not start or answer.
    #[error(transparent)]
    Vcpu(#[from] VcpuThreadError),
    /// The chipset could not be built.
    #[error(transparent)]
    Chipset(#[from] ChipsetError),
    /// The host has no thread for the timers.
    #[error("no thread for the timers: {0}")]
    Timers(#[source] io::Error),
    /// The host has no thread for resets.
    #[error("no thread for resets: {0}")]
    Lifecycle(#[source] io::Error),
    /// What was asked does not fit the phase that the machine is in.
    #[error("the machine is {0}; try again later")]
    Phase(Phase),
    /// The guest has ended; there is nothing left to do that to.
    #[error("the guest has ended: {0}")]
    Ended(GuestEnd),
}

/// One virtual machine. All methods may be called from any thread; dropping it stops the guest.
#[derive(Debug)]
pub struct Machine {
    core: Arc<Core>,
    lifecycle: Mutex<Option<JoinHandle<()>>>,
    balloon: Option<Arc<Balloon>>,
}

/// What the builder has prepared.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) vm: Arc<dyn AccelVm>,
    pub(crate) accel: AccelId,
    pub(crate) model: Arc<CpuModel>,
    pub(crate) board: Box<dyn Board>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) clock: Arc<VmClock>,
    pub(crate) control: Arc<Control>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) boot: BootSource,
    pub(crate) tsc: TscFrequency,
    /// First states, by vCPU.
    pub(crate) states: Vec<CpuState>,
    pub(crate) balloon: Option<Arc<Balloon>>,
}

impl Machine {
    /// A machine to be described.
    pub fn builder() -> MachineBuilder {
        MachineBuilder::default()
    }

    /// Maps the memory, attaches the interrupts, binds the vCPUs. They are parked, time stands at 0.
    pub(crate) fn assemble(parts: Parts) -> Result<Self, MachineError> {
        let Parts { name, vm, accel, model, board, timers, clock, control, ram, boot, tsc, states, balloon } =
            parts;
        board.parts().attach(&vm)?;
        timers.start(&name, board.parts().timed.clone()).map_err(MachineError::Timers)?;
        let mut vcpus = Vec::new();
        for (id, state) in (0..).zip(states) {
            vcpus.push(VcpuThread::spawn(&name, vm.clone(), id, board.as_ref(), state, control.clone())?);
        }
        let vcpus = Mutex::new(vcpus);
        let dirty = DirtyLog::new(vm.clone());
        let core = Core {
            vcpus,
            gear: Mutex::new(Gear { vm, accel }),
            switching: Mutex::default(),
            verify: AtomicBool::new(cfg!(debug_assertions)),
            past: Mutex::default(),
            name,
            model,
            dirty,
            board,
            timers,
            clock,
            control,
            ram,
            boot,
            tsc,
        };
        let lifecycle_name = host::thread_name("lifecycle", &core.name);
        let machine = Self { core: Arc::new(core), lifecycle: Mutex::default(), balloon };
        let lifecycle = thread::Builder::new().name(lifecycle_name).spawn({
            let core = machine.core.clone();
            move || {
                host::block_signals();
                core.serve_requests();
            }
        });
        *machine.lock_lifecycle() = Some(lifecycle.map_err(MachineError::Lifecycle)?);
        Ok(machine)
    }

    fn lock_lifecycle(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.lifecycle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the guest run, the first time or after [`pause`](Self::pause): time goes on where it stood. A running
    /// guest is left alone.
    ///
    /// # Errors
    /// The guest has ended, or a backend cannot go on.
    pub fn resume(&self) -> Result<(), MachineError> {
        self.core.resume()
    }

    /// Parks all vCPUs at an instruction boundary and stops time. Nothing of the guest moves when this returns. A
    /// paused guest is left alone.
    ///
    /// # Errors
    /// The guest has ended, or a vCPU's thread is gone.
    pub fn pause(&self) -> Result<(), MachineError> {
        self.core.pause()
    }

    /// Resets the machine as its reset button does: it starts again with what it was built with, whatever
    /// [`MachineBuilder::on_reset`] says. One that is paused stays paused. Waits until that is done.
    ///
    /// # Errors
    /// The guest has ended, maybe because it cannot be started again.
    pub fn reset(&self) -> Result<(), MachineError> {
        self.core.control.request_reset();
        self.core.control.wait_reset();
        self.core.control.end().map_or(Ok(()), |end| Err(MachineError::Ended(end)))
    }

    /// Times that the machine was reset, by its guest or by [`reset`](Self::reset).
    pub fn resets(&self) -> u64 {
        self.core.control.resets()
    }

    /// Where the machine is in its life. Does not wait.
    pub fn phase(&self) -> Phase {
        self.core.control.phase()
    }

    /// All that has state beside the vCPUs: devices, clock, timers, interrupts on their way, memory. To be saved and restored
    /// while the machine is paused, the vCPUs before the units.
    pub fn units(&self) -> &Units {
        &self.core.board.parts().units
    }

    /// Waits until the guest ends, ends the threads, writes out what is left for the console.
    ///
    /// May be called again, and from several threads: all get the same answer.
    pub fn wait(&self) -> GuestEnd {
        let end = self.core.control.wait();
        self.close();
        end
    }

    /// Waits until the guest ends and leaves the vCPUs parked: their states and counters can still be read.
    pub fn wait_end(&self) -> GuestEnd {
        self.core.control.wait()
    }

    /// How the guest ended, if it has. Does not wait.
    pub fn ended(&self) -> Option<GuestEnd> {
        self.core.control.end()
    }

    /// Ends the guest: [`wait`](Self::wait) returns [`GuestEnd::Stopped`], unless it has ended by itself. Does not
    /// wait.
    pub fn stop(&self) {
        self.core.control.post(GuestEnd::Stopped);
    }

    /// States of all vCPUs, each at an instruction boundary; of one and the same moment if the machine is paused.
    ///
    /// # Errors
    /// The machine is closed, or the backend cannot give a state.
    pub fn save_vcpus(&self) -> Result<Vec<CpuState>, MachineError> {
        Ok(self.core.save(&self.core.lock())?)
    }

    /// Counters of all vCPUs, those on other accelerators before included.
    ///
    /// # Errors
    /// The machine is closed.
    pub fn stats(&self) -> Result<Vec<VcpuStats>, MachineError> {
        Ok(self.core.stats(&self.core.lock())?)
    }

    /// Tells which pages of memory are written from now on. As many as are wanted; each sees every page.
    ///
    /// # Errors
    /// The accelerator cannot record stores.
    pub fn dirty_consumer(&self) -> Result<DirtyConsumer, MachineError> {
        Ok(self.core.dirty.consumer()?)
    }

    /// Where to put the console's input. Outlives the machine; input is then refused.
    pub fn console_input(&self) -> ConsoleInput {
        ConsoleInput { uart: self.core.board.console().clone() }
    }

    /// Presses the power button: a guest that listens shuts down.
    pub fn press_power_button(&self) {
        self.core.board.press_power_button();
    }

    /// Wants `pages` pages of 4 KiB of the guest's memory back. False: the machine has no balloon.
    pub fn set_balloon(&self, pages: u32) -> bool {
        self.balloon.as_ref().map(|balloon| balloon.set_target(pages)).is_some()
    }

    /// How the balloon stands, if there is one. The guest is asked for new statistics, which a later call shows.
    pub fn balloon(&self) -> Option<BalloonStatus> {
        let balloon = self.balloon.as_ref()?;
        balloon.ask_for_stats();
        Some(balloon.status())
    }

    /// Raises NMI on one vCPU; Linux then prints where it is. Numbers beyond the last are ignored.
    pub fn inject_nmi(&self, vcpu: VcpuId) {
        self.core.board.parts().interrupts.inject_nmi(vcpu);
    }

    /// Where interrupts enter.
    pub fn interrupts(&self) -> &Arc<InterruptCell> {
        &self.core.board.parts().interrupts
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.core.ram
    }

    /// The guest's clock.
    pub fn clock(&self) -> &Arc<VmClock> {
        &self.core.clock
    }

    /// Frequency of the guest's TSC, and how it was found.
    pub fn tsc(&self) -> TscFrequency {
        self.core.tsc
    }

    /// Has `accelerator` execute the guest from now on, in whatever phase of its life it is; what the guest computes, and its
    /// clocks, do not show it. One that does already is left alone: the report is all zero.
    ///
    /// # Errors
    /// It cannot: the one before goes on as if nothing had happened.
    pub fn switch(&self, accelerator: &dyn Accelerator) -> Result<SwitchReport, SwitchError> {
        self.core.switch(accelerator)
    }

    /// Whether [`switch`](Self::switch) reads each vCPU's state back from the new accelerator and compares, while the guest
    /// stands. Debug builds do unless told.
    pub fn verify_switches(&self, wanted: bool) {
        self.core.verify.store(wanted, Ordering::Relaxed);
    }

    /// The backend's name.
    pub fn accelerator(&self) -> AccelId {
        self.core.gear().accel
    }

    /// The backend's machine.
    pub fn accel_vm(&self) -> Arc<dyn AccelVm> {
        self.core.gear().vm
    }

    /// Joins all threads. The end has been posted.
    fn close(&self) {
        let lifecycle = self.lock_lifecycle().take();
        if let Some(thread) = lifecycle {
            // It has nothing to panic about; if it does, the machine is closed all the same.
            let _ = thread.join();
        }
        self.core.close();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        self.close();
    }
}

/// Where the console's input is put.
#[derive(Clone, Debug)]
pub struct ConsoleInput {
    uart: Arc<Uart>,
}

impl ConsoleInput {
    /// Gives all of `bytes` to the guest, waiting while it does not read. False: the machine ended before it took
    /// them all.
    pub fn push(&self, bytes: &[u8]) -> bool {
        self.uart.feed(bytes)
    }

    /// Gives what the guest has room for, without waiting: the number of bytes taken.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        self.uart.offer(bytes)
    }
}
