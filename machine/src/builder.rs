//! Describes a machine and builds it.

use std::io;
use std::sync::Arc;

use accel_api::x86::{CpuModel, Vendor};
use accel_api::{AccelCaps, AccelError, AccelId, Accelerator, GuestRam, VmSpec};

use backends::disk::BlockBackend;
use backends::net::NetBackend;
use backends::vsock::VsockHost;
use devices::pci::DeviceFunction;
use devices::pvpanic;
use devices::virtio::VirtioError;
use devices::virtio::balloon::Balloon;
use devices::virtio::blk::Blk;
use devices::virtio::net::Net;
use devices::virtio::rng::Rng;
use devices::virtio::vsock::Vsock;
use devices::watchdog::Watchdog;

use crate::MAX_VCPUS;
use crate::board::Board as _;
use crate::boot::{MemoryImage, Source};
use crate::boot_source::{Boot, BootSource};
use crate::chipset::{Chipset, ChipsetError, ChipsetSpec, Sink};
use crate::clock::{TscFrequency, VmClock};
use crate::control::Control;
use crate::host;
use crate::lifecycle::{Notice, NoticeListener, OnReset, OnWatchdog, Phase, PhaseListener};
use crate::memory_map::{self, MIB, MemoryMap};
use crate::timers::Timers;
use crate::vm::{Machine, MachineError, Parts};
use crate::wiring::Wiring;

/// The CPU model a machine has unless told otherwise: what the host and its backends have. The named ones are for guests that
/// are to move to other hosts.
pub const DEFAULT_MODEL: &str = "host";

/// Describes a machine. What is not given: one vCPU, 512 MiB, CPU model [`DEFAULT_MODEL`], no console output.
#[must_use]
pub struct MachineBuilder {
    name: String,
    cpus: u32,
    memory: u64,
    model: String,
    accelerator: Option<Arc<dyn Accelerator>>,
    offered: Option<AccelCaps>,
    boot: Option<Boot>,
    initrd: Option<Source>,
    cmdline: String,
    console: Sink,
    debug_console: Option<Sink>,
    on_reset: OnReset,
    on_triple_fault: OnReset,
    listener: Option<PhaseListener>,
    notices: Option<NoticeListener>,
    watchdog: Option<OnWatchdog>,
    disks: Vec<Arc<dyn BlockBackend>>,
    nets: Vec<(Arc<dyn NetBackend>, [u8; 6])>,
    vsock: Option<VsockHost>,
    balloon: Option<u32>,
    devices: Vec<AddDevices>,
    device_memory: u64,
}

/// Puts an embedder's devices on the board.
type AddDevices = Box<dyn FnOnce(&mut Wiring<'_>) -> Result<(), ChipsetError> + Send>;

impl Default for MachineBuilder {
    fn default() -> Self {
        Self {
            name: String::new(),
            cpus: 1,
            memory: 512 * MIB,
            model: DEFAULT_MODEL.to_owned(),
            accelerator: None,
            offered: None,
            boot: None,
            initrd: None,
            cmdline: String::new(),
            console: Box::new(io::sink()),
            debug_console: None,
            on_reset: OnReset::End,
            on_triple_fault: OnReset::End,
            listener: None,
            notices: None,
            watchdog: None,
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            balloon: None,
            devices: Vec::new(),
            device_memory: 64 * MIB,
        }
    }
}

impl MachineBuilder {
    /// What it is called, in the names of its threads (`vcpu0/NAME`), so that several machines in one process can be told
    /// apart.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Bytes of memory, a multiple of 1 MiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Name of the CPU model; see `accel_api::x86::MODEL_NAMES`.
    pub fn cpu_model(mut self, name: impl Into<String>) -> Self {
        self.model = name.into();
        self
    }

    /// The backend, for example from [`Registry::choose`](crate::Registry::choose).
    pub fn accelerator(mut self, accelerator: Arc<dyn Accelerator>) -> Self {
        self.accelerator = Some(accelerator);
        self
    }

    /// What the guest's processor may have, where that is less than the backend offers: see
    /// [`Chosen::caps`](crate::Chosen::caps).
    pub fn offered(mut self, caps: AccelCaps) -> Self {
        self.offered = Some(caps);
        self
    }

    /// The kernel: a path, or bytes. Takes the place of a memory image.
    pub fn kernel(mut self, kernel: impl Into<Source>) -> Self {
        self.boot = Some(Boot::Kernel(kernel.into()));
        self
    }

    /// Memory contents to start with in the place of a kernel: a ROM, or a program that no boot protocol of ours enters.
    pub fn memory_image(mut self, image: MemoryImage) -> Self {
        self.boot = Some(Boot::Image(image));
        self
    }

    /// The initial RAM disk: a path, or bytes.
    pub fn initrd(mut self, initrd: impl Into<Source>) -> Self {
        self.initrd = Some(initrd.into());
        self
    }

    /// The kernel's command line.
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline = cmdline.into();
        self
    }

    /// Where the output of the serial console goes. Written on a thread of its own; if it fails, the guest ends with
    /// [`GuestEnd::ConsoleLost`](crate::GuestEnd::ConsoleLost).
    pub fn console(mut self, sink: impl io::Write + Send + 'static) -> Self {
        self.console = Box::new(sink);
        self
    }

    /// Where bytes written to port 0xe9 go. Without this the port is not there.
    pub fn debug_console(mut self, sink: impl io::Write + Send + 'static) -> Self {
        self.debug_console = Some(Box::new(sink));
        self
    }

    /// What happens when the guest asks for a reset of the machine. Unless told, it ends.
    pub fn on_reset(mut self, then: OnReset) -> Self {
        self.on_reset = then;
        self
    }

    /// What happens when a vCPU shuts down by a triple fault, as some kernels do to reset the machine. Unless told, it ends.
    pub fn on_triple_fault(mut self, then: OnReset) -> Self {
        self.on_triple_fault = then;
        self
    }

    /// Tells `listener` of each phase of the machine's life as it begins.
    pub fn on_phase(mut self, listener: impl Fn(Phase) + Send + Sync + 'static) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// Tells `listener` of what happens in the guest and does not end it.
    pub fn on_notice(mut self, listener: impl Fn(Notice) + Send + Sync + 'static) -> Self {
        self.notices = Some(Box::new(listener));
        self
    }

    /// Adds a watchdog (Intel 6300ESB). `then` happens when its driver does not reset its timer in time.
    pub fn watchdog(mut self, then: OnWatchdog) -> Self {
        self.watchdog = Some(then);
        self
    }

    /// Most memory that devices can have besides the guest's RAM ([`Wiring::memory`]); 64 MiB unless told. It costs nothing until
    /// it is used.
    pub fn device_memory(mut self, bytes: u64) -> Self {
        self.device_memory = bytes;
        self
    }

    /// Adds a disk, as a virtio block device. May be called again; the guest finds them in this order.
    pub fn disk(mut self, backend: Arc<dyn BlockBackend>) -> Self {
        self.disks.push(backend);
        self
    }

    /// Adds a network card with the address `mac`, as a virtio network device plugged into `backend`. May be called again; the
    /// guest finds them in this order.
    pub fn net(mut self, backend: Arc<dyn NetBackend>, mac: [u8; 6]) -> Self {
        self.nets.push((backend, mac));
        self
    }

    /// Adds a balloon, of which `pages` pages of 4 KiB are wanted at first: [`Machine::set_balloon`] changes that.
    pub fn balloon(mut self, pages: u32) -> Self {
        self.balloon = Some(pages);
        self
    }

    /// Gives the guest a virtio socket device, at whose other end is `host`.
    pub fn vsock(mut self, host: VsockHost) -> Self {
        self.vsock = Some(host);
        self
    }

    /// Adds devices of the embedder's own: `add` puts them on the board when the machine's are there. May be called again.
    pub fn devices(
        mut self,
        add: impl FnOnce(&mut Wiring<'_>) -> Result<(), ChipsetError> + Send + 'static,
    ) -> Self {
        self.devices.push(Box::new(add));
        self
    }

    /// Checks all of the description but its files: memory, accelerator, vCPUs, CPU model.
    ///
    /// # Errors
    /// As [`build`](Self::build) would give.
    pub fn check(&self) -> Result<(), MachineError> {
        self.plan(1).map(drop)
    }

    /// Map, accelerator and CPU model, for a TSC of `tsc_khz`.
    fn plan(&self, tsc_khz: u32) -> Result<(MemoryMap, Arc<dyn Accelerator>, CpuModel), MachineError> {
        let map = MemoryMap::new(self.memory)?;
        memory_map::check_host(self.memory)?;
        let accelerator = self.accelerator.clone().ok_or(MachineError::NoAccelerator)?;
        let caps = self.offered.as_ref().unwrap_or(accelerator.caps());
        let model = cpu_model(&self.model, self.cpus, tsc_khz, accelerator.id(), caps)?;
        Ok((map, accelerator, model))
    }

    /// Builds the machine: memory, devices, kernel, vCPUs. Nothing runs until [`Machine::resume`].
    ///
    /// # Errors
    /// Whatever of the description cannot be had.
    pub fn build(self) -> Result<Machine, MachineError> {
        self.check()?;
        let tsc = TscFrequency::of_host();
        let (map, accelerator, model) = self.plan(tsc.khz)?;
        let model = Arc::new(model);
        // Linux reads it from CPUID on Intel's processors only.
        let tsc_khz = (model.vendor() == Vendor::Amd).then_some(model.tsc_khz);
        let boot = BootSource::open(self.boot, self.initrd, self.cmdline, map, self.cpus, tsc_khz)?;
        let regions = boot.regions()?;
        let layout: Vec<_> = regions.iter().map(|&(gpa, len, _)| (gpa, len)).collect();
        let ram = Arc::new(GuestRam::with_device_memory(&layout, self.device_memory)?);

        let clock = Arc::new(VmClock::new(tsc.khz));
        let timers = Timers::new(clock.clone());
        let control = Control::new(self.on_reset, self.on_triple_fault)
            .with_listener(self.listener)
            .with_notices(self.notices)
            .with_watchdog(self.watchdog.unwrap_or_default());
        let control = Arc::new(control);
        let mut chipset = Chipset::build(ChipsetSpec {
            name: &self.name,
            map: &map,
            vcpus: self.cpus,
            clock: clock.clone(),
            timers: timers.clone(),
            control: control.clone(),
            ram: ram.clone(),
            console: self.console,
            debug_console: self.debug_console,
        })?;
        for (region, (.., access)) in ram.regions().iter().zip(&regions) {
            chipset.parts.memory.fix(region.clone(), *access);
        }
        let mut wiring =
            Wiring { chipset: &mut chipset, clock: &clock, timers: &timers, control: &control, ram: &ram };
        wiring.add_virtio("rng0", made(Rng::new(host::thread_name("rng", &self.name)))?)?;
        // These two are where they do not change the places of what users add.
        let slot = wiring.pci_slot(Some(DeviceFunction::new(30, 0)))?;
        let pvpanic = pvpanic::new(&slot, wiring.control()).map_err(ChipsetError::from)?;
        wiring.add_pci(&slot, pvpanic.clone())?;
        wiring.add_unit(pvpanic)?;
        if self.watchdog.is_some() {
            let slot = wiring.pci_slot(Some(DeviceFunction::new(29, 0)))?;
            let watchdog = Watchdog::new(&slot, wiring.clock(), wiring.timers(), wiring.control())
                .map_err(ChipsetError::from)?;
            wiring.add_pci(&slot, watchdog.clone())?;
            wiring.add_timed(watchdog.clone());
            wiring.add_unit(watchdog)?;
        }
        for (n, disk) in self.disks.into_iter().enumerate() {
            let name = format!("disk{n}");
            wiring.add_virtio(&name, made(Blk::new(host::thread_name(&name, &self.name), disk, 1))?)?;
        }
        for (n, (backend, mac)) in self.nets.into_iter().enumerate() {
            let name = format!("net{n}");
            wiring.add_virtio(&name, made(Net::new(host::thread_name(&name, &self.name), backend, mac))?)?;
        }
        if let Some(host) = self.vsock {
            wiring.add_virtio("vsock0", made(Vsock::new(host::thread_name("vsock", &self.name), host))?)?;
        }
        let mut balloon = None;
        if let Some(pages) = self.balloon {
            let device = made(Balloon::new(host::thread_name("balloon", &self.name), ram.clone()))?;
            device.set_target(pages);
            wiring.add_virtio("balloon0", device.clone())?;
            wiring.add_unit(device.clone())?;
            balloon = Some(device);
        }
        self.devices.into_iter().try_for_each(|add| add(&mut wiring))?;
        chipset.program();
        let states = boot.load(&ram, chipset.acpi())?;
        let vm =
            accelerator.create_vm(&VmSpec { model: model.clone(), ram: ram.clone(), vcpus: self.cpus })?;
        let accel = accelerator.id();
        let (name, board) = (self.name, Box::new(chipset));
        Machine::assemble(Parts {
            name,
            vm,
            accel,
            model,
            board,
            timers,
            clock,
            control,
            ram,
            boot,
            tsc,
            states,
            balloon,
        })
    }

    /// Builds the machine and lets it run.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn start(self) -> Result<Machine, MachineError> {
        let machine = self.build()?;
        machine.resume()?;
        Ok(machine)
    }
}

/// A virtio device, if the host had what it needs.
fn made<D>(device: io::Result<D>) -> Result<D, ChipsetError> {
    Ok(device.map_err(VirtioError::from)?)
}

/// The CPU model called `name` for `cpus` vCPUs, as `accel`, which offers `caps`, can give it.
///
/// # Errors
/// No such model, or more than it can give.
pub(crate) fn cpu_model(
    name: &str,
    cpus: u32,
    tsc_khz: u32,
    accel: AccelId,
    caps: &AccelCaps,
) -> Result<CpuModel, MachineError> {
    let max = caps.max_vcpus.min(MAX_VCPUS);
    if !(1..=max).contains(&cpus) {
        return Err(MachineError::Vcpus { asked: cpus, max });
    }
    let mut model = CpuModel::named(name, cpus, tsc_khz)?;
    model.fit(caps);
    let missing = model.features.missing_from(&caps.features);
    if !missing.is_empty() {
        let missing = missing.into_iter().map(str::to_owned).collect();
        return Err(AccelError::MissingFeatures { accel, missing }.into());
    }
    Ok(model)
}

impl std::fmt::Debug for MachineBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachineBuilder")
            .field("name", &self.name)
            .field("cpus", &self.cpus)
            .field("memory", &self.memory)
            .field("model", &self.model)
            .field("accelerator", &self.accelerator)
            .field("boot", &self.boot)
            .field("cmdline", &self.cmdline)
            .finish_non_exhaustive()
    }
}
