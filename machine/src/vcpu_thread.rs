//! The thread of one vCPU.
//!
//! 1. The thread binds the vCPU, loads its first state and parks. What it does after that it is told through a channel;
//!    every command is acknowledged through a channel of its own. Neither side polls.
//! 2. A command to a running vCPU is followed by a kick. The kick is sticky, so that it does not matter whether it
//!    comes before, in or after `run`: the command is in the channel by then, and the channel is read after each return.
//! 3. A kick also ends the vCPU's wait for a device whose host side does not keep up ([`devices::waiting`]), so that
//!    nothing outside keeps a command from being answered.
//! 4. Whatever ends the guest is posted to one cell, which kicks all vCPUs; each finds the end and parks. A parked
//!    vCPU still answers commands, so that the state in which a guest died can be saved.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TryRecvError};
use std::thread::{self, JoinHandle};

use accel_api::x86::CpuState;
use accel_api::{AccelError, AccelVm, Exit, Kick, Vcpu, VcpuBus, VcpuConfig, VcpuId, VcpuStats};
use devices::waiting::Waiter;

use crate::board::Board;
use crate::control::{Control, GuestEnd};
use crate::dump::CpuDump;
use crate::host;

/// Why a vCPU thread did not start or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum VcpuThreadError {
    /// The host has no thread to give.
    #[error("no thread for vCPU {id}: {source}")]
    Spawn {
        /// The vCPU.
        id: VcpuId,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The backend refused to bind it, or to take or give its state.
    #[error("vCPU {id}: {source}")]
    Accel {
        /// The vCPU.
        id: VcpuId,
        /// What the backend said.
        #[source]
        source: AccelError,
    },
    /// The thread is gone: the machine was stopped, or the backend panicked.
    #[error("vCPU {id} has stopped")]
    Gone {
        /// The vCPU.
        id: VcpuId,
    },
}

/// What a vCPU thread is told. Each carries the channel for its acknowledgement.
enum Command {
    /// Run, with this TSC offset from now on.
    Run {
        tsc_offset: u64,
        done: SyncSender<Result<(), AccelError>>,
    },
    Pause {
        done: SyncSender<()>,
    },
    Save {
        done: SyncSender<Result<CpuState, AccelError>>,
    },
    Load {
        state: Box<CpuState>,
        done: SyncSender<Result<(), AccelError>>,
    },
    Stats {
        done: SyncSender<VcpuStats>,
    },
    Stop,
}

/// A vCPU and its thread.
#[derive(Debug)]
pub(crate) struct VcpuThread {
    id: VcpuId,
    commands: Sender<Command>,
    kick: Arc<dyn Kick>,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// Makes a vCPU leave the guest, also where it waits for a device.
#[derive(Debug)]
struct Leave {
    waiter: Arc<Waiter>,
    vcpu: Arc<dyn Kick>,
}

impl Kick for Leave {
    fn kick(&self) {
        self.waiter.kick(|| self.vcpu.kick());
    }
}

/// An acknowledgement on its way.
pub(crate) struct Ack<T> {
    id: VcpuId,
    reply: Receiver<T>,
}

impl<T> Ack<T> {
    /// Waits for it.
    pub(crate) fn wait(self) -> Result<T, VcpuThreadError> {
        self.reply.recv().map_err(|_| VcpuThreadError::Gone { id: self.id })
    }
}

impl<T> Ack<Result<T, AccelError>> {
    /// Waits for it and for what the backend says.
    pub(crate) fn wait_ok(self) -> Result<T, VcpuThreadError> {
        let id = self.id;
        self.wait()?.map_err(|source| VcpuThreadError::Accel { id, source })
    }
}

impl VcpuThread {
    /// Binds vCPU `id` of `vm`, which belongs to the machine called `machine`, on a thread of its own and loads `state`. It is parked when this returns.
    pub(crate) fn spawn(
        machine: &str,
        vm: Arc<dyn AccelVm>,
        id: VcpuId,
        board: &dyn Board,
        state: CpuState,
        control: Arc<Control>,
    ) -> Result<Self, VcpuThreadError> {
        let waiter = Arc::new(Waiter::default());
        let bus = board.bus(waiter.clone());
        let (commands, inbox) = mpsc::channel();
        let (ready, bound) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(host::thread_name(&format!("vcpu{id}"), machine))
            .spawn({
                let (control, waiter) = (control.clone(), waiter.clone());
                move || {
                    host::block_signals();
                    let _guard = PanicGuard { id, control: control.clone() };
                    match bind(vm.as_ref(), id, bus, &state) {
                        Ok(vcpu) => {
                            let _ = ready.send(Ok(vcpu.kicker()));
                            let tsc_offset = state.tsc_offset;
                            Runner { id, vcpu, waiter, inbox, control, tsc_offset, dead: false }.serve();
                        }
                        Err(error) => {
                            let _ = ready.send(Err(error));
                        }
                    }
                }
            })
            .map_err(|source| VcpuThreadError::Spawn { id, source })?;
        match bound.recv() {
            Ok(Ok(vcpu)) => {
                let kick: Arc<dyn Kick> = Arc::new(Leave { waiter, vcpu });
                control.add_kick(kick.clone());
                Ok(Self { id, commands, kick, control, thread: Some(thread) })
            }
            Ok(Err(source)) => Err(VcpuThreadError::Accel { id, source }),
            Err(_) => Err(VcpuThreadError::Gone { id }),
        }
    }

    fn command<T>(&self, make: impl FnOnce(SyncSender<T>) -> Command) -> Ack<T> {
        let (done, reply) = mpsc::sync_channel(1);
        // A thread that is gone drops the reply's sender, which the wait will tell.
        let _ = self.commands.send(make(done));
        self.kick.kick();
        Ack { id: self.id, reply }
    }

    /// Lets it run. Acknowledged before the first instruction.
    pub(crate) fn run(&self, tsc_offset: u64) -> Ack<Result<(), AccelError>> {
        self.command(|done| Command::Run { tsc_offset, done })
    }

    /// Parks it at an instruction boundary.
    pub(crate) fn pause(&self) -> Ack<()> {
        self.command(|done| Command::Pause { done })
    }

    /// Its state; it goes on as before.
    pub(crate) fn save(&self) -> Ack<Result<CpuState, AccelError>> {
        self.command(|done| Command::Save { done })
    }

    /// Replaces its state. It must be parked; a vCPU that had shut down may run again.
    pub(crate) fn load(&self, state: CpuState) -> Ack<Result<(), AccelError>> {
        self.command(|done| Command::Load { state: Box::new(state), done })
    }

    /// Its counters; it goes on as before.
    pub(crate) fn stats(&self) -> Ack<VcpuStats> {
        self.command(|done| Command::Stats { done })
    }

    /// Asks it to end; [`join`](Self::join) waits.
    pub(crate) fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        self.kick.kick();
    }

    /// Ends the thread and drops the vCPU on it.
    pub(crate) fn join(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic has been posted by the thread's guard.
            let _ = thread.join();
            self.control.remove_kick(&self.kick);
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.join();
    }
}

fn bind(
    vm: &dyn AccelVm,
    id: VcpuId,
    bus: Arc<dyn VcpuBus>,
    state: &CpuState,
) -> Result<Box<dyn Vcpu>, AccelError> {
    let mut vcpu = vm.bind_vcpu(&VcpuConfig { id }, bus)?;
    vcpu.load(state)?;
    Ok(vcpu)
}

/// Posts the end of the machine if the thread panics: otherwise nobody would ever hear of it.
struct PanicGuard {
    id: VcpuId,
    control: Arc<Control>,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            let reason = format!("the backend panicked on vCPU {}", self.id);
            self.control.post(GuestEnd::HostError { reason, dump: None });
        }
    }
}

struct Runner {
    id: VcpuId,
    vcpu: Box<dyn Vcpu>,
    waiter: Arc<Waiter>,
    inbox: Receiver<Command>,
    control: Arc<Control>,
    tsc_offset: u64,
    /// Triple-faulted or failed: must not run again.
    dead: bool,
}

impl Runner {
    fn serve(mut self) {
        let mut running = false;
        loop {
            let command = if running {
                match self.inbox.try_recv() {
                    Ok(command) => Some(command),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => return,
                }
            } else {
                match self.inbox.recv() {
                    Ok(command) => Some(command),
                    Err(_) => return,
                }
            };
            // An acknowledgement nobody waits for any more is no fault.
            match command {
                Some(Command::Stop) => return,
                Some(Command::Run { tsc_offset, done }) => {
                    let result = self.set_tsc_offset(tsc_offset);
                    running = result.is_ok();
                    let _ = done.send(result);
                }
                Some(Command::Pause { done }) => {
                    running = false;
                    let _ = done.send(());
                }
                Some(Command::Save { done }) => {
                    let _ = done.send(self.vcpu.save());
                }
                Some(Command::Load { state, done }) => {
                    let _ = done.send(self.load(&state));
                }
                Some(Command::Stats { done }) => {
                    let _ = done.send(self.vcpu.stats());
                }
                None if self.dead || self.control.halted() => running = false,
                None => self.run(),
            }
        }
    }

    fn load(&mut self, state: &CpuState) -> Result<(), AccelError> {
        self.vcpu.load(state)?;
        (self.tsc_offset, self.dead) = (state.tsc_offset, false);
        Ok(())
    }

    /// Frozen time has gone on: the guest's TSC must not show it.
    fn set_tsc_offset(&mut self, tsc_offset: u64) -> Result<(), AccelError> {
        if tsc_offset != self.tsc_offset {
            let mut state = self.vcpu.save()?;
            state.tsc_offset = tsc_offset;
            self.vcpu.load(&state)?;
            self.tsc_offset = tsc_offset;
        }
        Ok(())
    }

    fn run(&mut self) {
        match self.vcpu.run() {
            Ok(Exit::Kicked) => self.waiter.rearm(),
            Ok(Exit::TripleFault) => {
                self.dead = true;
                if self.control.triple_fault() {
                    return;
                }
                let dump = self.dump("triple fault".into());
                self.control.post(GuestEnd::TripleFault { dump });
            }
            Ok(Exit::Unsupported(detail)) => {
                self.dead = true;
                let bytes: Vec<_> = detail.bytes.iter().map(|b| format!("{b:02x}")).collect();
                let reason = format!("{} at {:#x} (bytes {})", detail.what, detail.rip, bytes.join(" "));
                let dump = self.dump(reason.clone());
                self.control.post(GuestEnd::Unsupported { reason, dump });
            }
            Ok(other) => self.fail(format!("the backend returned {other:?}, which nobody asked for")),
            Err(AccelError::Internal { summary, report }) => {
                self.dead = true;
                let dump = self.dump(summary.clone());
                self.control.post(GuestEnd::BackendBug { summary, report, dump });
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn fail(&mut self, reason: String) {
        self.dead = true;
        let dump = Some(self.dump(reason.clone()));
        self.control.post(GuestEnd::HostError { reason, dump });
    }

    fn dump(&mut self, reason: String) -> Box<CpuDump> {
        Box::new(CpuDump { vcpu: self.id, reason, state: self.vcpu.save().ok() })
    }
}
