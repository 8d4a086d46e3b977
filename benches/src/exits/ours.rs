//! The hidden command `exits-guest`: what `c/kvm_exits.c` does, through one of our backends.
//!
//! The vCPU, its bus and its interrupts are the backend's, by `accel-api`; there is no machine around them, as there is
//! none in the C program.

use std::io::{self, BufRead as _, PipeReader, PipeWriter, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use accel_api::x86::{CpuModel, CpuState};
use accel_api::{
    AccelVm, Access, Exit, GpFault, GuestRam, IoSize, Kick, MsiMessage, SlotId, Vcpu, VcpuBus, VcpuConfig,
    VmSpec,
};
use clap::Args;
use machine::boot::{BootSpec, load};
use machine::memory_map::{ACPI_AREA, MIB, MemoryMap};
use machine::{AccelChoice, DEFAULT_MODEL, Registry, Source, TscFrequency};

use super::code::{COUNT, DONE, VECTOR};
use super::{Event, PAUSE};
use crate::say;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long)]
    accel: AccelChoice,
    /// What the guest does
    event: Event,
    /// The guest
    guest: PathBuf,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Reads lines with a number of events, and answers each with the nanoseconds that these took.
pub(crate) fn main(options: &Options) -> ExitCode {
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), Failed> {
    let mut events = events(options)?;
    let mut answers = io::stdout();
    for line in io::stdin().lock().lines() {
        let took = events(line?.trim().parse()?)?;
        writeln!(answers, "{}", took.as_nanos())?;
        answers.flush()?;
    }
    Ok(())
}

/// What takes a number of events and gives their time.
type Events = Box<dyn FnMut(u32) -> Result<Duration, Failed>>;

fn events(options: &Options) -> Result<Events, Failed> {
    let vm = Vm::new(options)?;
    Ok(match options.event {
        Event::Port | Event::Mmio => Box::new(rounds(&vm)?),
        Event::Halt => {
            let other = Other::new(vm)?;
            let port = other.vm.vm.interrupts();
            let message = MsiMessage { address: 0xfee0_0000, data: VECTOR.into() };
            Box::new(move |events| other.events(events, || Ok(port.signal_msi(message)?)))
        }
        Event::Kick => {
            let other = Other::new(vm)?;
            Box::new(move |events| {
                other.events(events, || {
                    other.vm.bus.asked.store(true, Ordering::Relaxed);
                    other.kick.kick();
                    Ok(())
                })
            })
        }
    })
}

/// A few events.
#[cfg(test)]
pub(super) fn once(accel: &str, event: Event, guest: &std::path::Path) -> Result<Duration, Failed> {
    events(&Options { accel: accel.parse()?, event, guest: guest.to_owned() })?(3)
}

/// A VM with the guest loaded.
struct Vm {
    vm: Arc<dyn AccelVm>,
    bus: Arc<Bus>,
    state: CpuState,
}

impl Vm {
    fn new(options: &Options) -> Result<Self, Failed> {
        let chosen = Registry::builtin().choose(&options.accel)?;
        let map = MemoryMap::new(4 * MIB)?;
        let ram = Arc::new(GuestRam::new(&map.ram_regions())?);
        let kernel = Source::from(options.guest.clone());
        let spec = BootSpec::new(&kernel, ACPI_AREA);
        let state = load(&ram, &map, &spec)?;
        let mut model = CpuModel::named(DEFAULT_MODEL, 1, TscFrequency::of_host().khz)?;
        // The guests need no feature, and a provider of KVM without hardware may lack some.
        model.fit(chosen.accelerator.caps());
        let spec = VmSpec { model: Arc::new(model), ram: ram.clone(), vcpus: 1 };
        let vm = chosen.accelerator.create_vm(&spec)?;
        for (slot, region) in (0..).zip(ram.regions()) {
            vm.map(SlotId(slot), region, Access::ReadWrite)?;
        }
        Ok(Self { vm, bus: Arc::new(Bus::default()), state })
    }

    /// The vCPU, for the calling thread.
    fn vcpu(&self) -> Result<Box<dyn Vcpu>, Failed> {
        let mut vcpu = self.vm.bind_vcpu(&VcpuConfig { id: 0 }, self.bus.clone())?;
        vcpu.load(&self.state)?;
        Ok(vcpu)
    }
}

/// Events of this thread: the time of so many of them.
fn rounds(vm: &Vm) -> Result<impl FnMut(u32) -> Result<Duration, Failed> + 'static, Failed> {
    let mut vcpu = vm.vcpu()?;
    let bus = vm.bus.clone();
    // The guest's end of a batch has to end `run`.
    let kick = vcpu.kicker();
    let _ = bus.kick.set(kick);
    Ok(move |events| {
        bus.count.store(events, Ordering::Relaxed);
        bus.done.store(false, Ordering::Relaxed);
        let start = Instant::now();
        while !bus.done.load(Ordering::Relaxed) {
            kicked(vcpu.run()?)?;
        }
        Ok(start.elapsed())
    })
}

/// A vCPU on a thread of its own, and events that come to it from this one.
struct Other {
    vm: Vm,
    kick: Arc<dyn Kick>,
    told: Mutex<PipeReader>,
}

impl Other {
    fn new(vm: Vm) -> Result<Self, Failed> {
        let (told, tell) = io::pipe()?;
        let _ = vm.bus.tell.set(Mutex::new(tell));
        let (sender, kicker) = mpsc::channel();
        let theirs = Vm { vm: vm.vm.clone(), bus: vm.bus.clone(), state: vm.state.clone() };
        std::thread::spawn(move || {
            let run = || -> Result<(), Failed> {
                let mut vcpu = theirs.vcpu()?;
                sender.send(vcpu.kicker())?;
                loop {
                    kicked(vcpu.run()?)?;
                    if theirs.bus.asked.swap(false, Ordering::Relaxed) {
                        theirs.bus.tell();
                    }
                }
            };
            if let Err(error) = run() {
                say(&format!("{error}"));
                std::process::exit(1);
            }
        });
        let kick = kicker.recv()?;
        Ok(Self { vm, kick, told: Mutex::new(told) })
    }

    /// The time from each event to when the vCPU's thread tells of it, summed up.
    fn events(&self, events: u32, event: impl Fn() -> Result<(), Failed>) -> Result<Duration, Failed> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Duration::ZERO;
        for _ in 0..events {
            std::thread::sleep(PAUSE);
            let start = Instant::now();
            event()?;
            told.read_exact(&mut [0])?;
            sum += start.elapsed();
        }
        Ok(sum)
    }
}

fn kicked(exit: Exit) -> Result<(), Failed> {
    match exit {
        Exit::Kicked => Ok(()),
        other => Err(format!("the guest ended: {other:?}").into()),
    }
}

/// The guest's two ports.
#[derive(Debug, Default)]
struct Bus {
    count: AtomicU32,
    done: AtomicBool,
    kick: OnceLock<Arc<dyn Kick>>,
    /// A kick that is to be told.
    asked: AtomicBool,
    tell: OnceLock<Mutex<PipeWriter>>,
}

impl Bus {
    fn tell(&self) {
        if let Some(pipe) = self.tell.get() {
            let mut pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody reads it any more: the process is ending.
            let _ = pipe.write_all(&[0]);
        }
    }
}

impl VcpuBus for Bus {
    fn mmio_read(&self, _: u64, size: IoSize) -> u64 {
        size.ones()
    }
    fn mmio_write(&self, _: u64, _: IoSize, _: u64) {}
    fn pio_read(&self, port: u16, size: IoSize) -> u32 {
        if port == COUNT { self.count.load(Ordering::Relaxed) } else { size.ones() as u32 }
    }
    fn pio_write(&self, port: u16, _: IoSize, _: u32) {
        if port != DONE {
            return;
        }
        match self.kick.get() {
            Some(kick) => {
                self.done.store(true, Ordering::Relaxed);
                kick.kick();
            }
            None => self.tell(),
        }
    }
    fn msr_read(&self, _: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }
    fn msr_write(&self, _: u32, _: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }
    fn ack_extint(&self) -> Option<u8> {
        None
    }
    fn eoi(&self, _: u8) {}
}
