//! Registers a backend that this program brings along: it lets another one do the work and counts how often the vCPUs
//! leave their `run`. Boots KERNEL on it: `cargo run --release -p machine --example own_backend -- KERNEL`.

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use accel_api::x86::*;
use accel_api::*;
use machine::{AccelChoice, Descriptor, Machine, Registry};

/// Exits of all vCPUs of this program.
static EXITS: AtomicU64 = AtomicU64::new(0);

/// `inner`, counted.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Accelerator>,
}

#[derive(Debug)]
struct CountingVm(Arc<dyn AccelVm>);

struct CountingVcpu(Box<dyn Vcpu>);

impl Accelerator for Counting {
    fn id(&self) -> AccelId {
        AccelId("counting")
    }
    fn caps(&self) -> &AccelCaps {
        self.inner.caps()
    }
    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn AccelVm>, AccelError> {
        Ok(Arc::new(CountingVm(self.inner.create_vm(spec)?)))
    }
}

impl AccelVm for CountingVm {
    fn map(&self, slot: SlotId, region: &RamRegion, access: Access) -> Result<(), AccelError> {
        self.0.map(slot, region, access)
    }
    fn unmap(&self, slot: SlotId) -> Result<(), AccelError> {
        self.0.unmap(slot)
    }
    fn bind_vcpu(&self, cfg: &VcpuConfig, bus: Arc<dyn VcpuBus>) -> Result<Box<dyn Vcpu>, AccelError> {
        Ok(Box::new(CountingVcpu(self.0.bind_vcpu(cfg, bus)?)))
    }
    fn interrupts(&self) -> Arc<dyn InterruptPort> {
        self.0.interrupts()
    }
    fn start_dirty_log(&self) -> Result<(), AccelError> {
        self.0.start_dirty_log()
    }
    fn take_dirty(&self) -> Result<DirtyPages, AccelError> {
        self.0.take_dirty()
    }
}

impl Vcpu for CountingVcpu {
    fn run(&mut self) -> Result<Exit, AccelError> {
        EXITS.fetch_add(1, Ordering::Relaxed);
        self.0.run()
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        self.0.kicker()
    }
    fn save(&mut self) -> Result<CpuState, AccelError> {
        self.0.save()
    }
    fn load(&mut self, state: &CpuState) -> Result<(), AccelError> {
        self.0.load(state)
    }
    fn set_debug(&mut self, plan: &DebugPlan) -> Result<(), AccelError> {
        self.0.set_debug(plan)
    }
    fn stats(&self) -> VcpuStats {
        self.0.stats()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let kernel = std::env::args_os().nth(1).ok_or("usage: own_backend KERNEL")?;
    let mut registry = Registry::builtin();
    registry.register(Descriptor {
        id: AccelId("counting"),
        aliases: Vec::new(),
        summary: "counts the exits of the best other backend",
        promise: Quality::Degraded,
        probe: Arc::new(|| Probe::Available(Available::of(Quality::Degraded, "always there"))),
        create: Arc::new(|| {
            let chosen = Registry::builtin().choose(&AccelChoice::Auto);
            let inner = chosen.map_err(|e| AccelError::Host {
                what: "choosing the backend to count",
                source: io::Error::other(e),
            })?;
            Ok(Arc::new(Counting { inner: inner.accelerator }))
        }),
    })?;

    let chosen = registry.choose(&"counting".parse()?)?;
    let machine = Machine::builder()
        .accelerator(chosen.accelerator)
        .kernel(kernel)
        .cmdline("console=ttyS0 panic=-1")
        .console(io::stdout())
        .start()?;
    let end = machine.wait();
    writeln!(io::stderr(), "{end}; {} exits", EXITS.load(Ordering::Relaxed))?;
    Ok(())
}
