//! What a machine starts with: kept from the first start, so that a reset starts it again.
//!
//! Files are opened once. A machine starts again from the same files, wherever their names lead by then; what they hold by
//! then is what is loaded.

use accel_api::x86::CpuState;
use accel_api::{Access, GuestRam, RamError};
use vm_memory::{Bytes, GuestAddress};

use crate::acpi::{self, AcpiHardware};
use crate::boot::{self, BootError, BootSpec, MemoryImage, Role, Source};
use crate::host;
use crate::memory_map::{ACPI_AREA, MemoryMap};
use crate::vm::MachineError;

/// A kernel, or contents of memory.
#[derive(Debug)]
pub(crate) enum Boot {
    Kernel(Source),
    Image(MemoryImage),
}

/// What a machine of `cpus` vCPUs with memory `map` starts with.
#[derive(Debug)]
pub(crate) struct BootSource {
    boot: Boot,
    initrd: Option<Source>,
    cmdline: String,
    map: MemoryMap,
    cpus: u32,
    /// Frequency of the TSC, where Linux has to be told.
    tsc_khz: Option<u32>,
}

impl BootSource {
    /// Opens the files.
    ///
    /// # Errors
    /// One cannot be opened, or parts do not go together.
    pub(crate) fn open(
        boot: Option<Boot>,
        initrd: Option<Source>,
        cmdline: String,
        map: MemoryMap,
        cpus: u32,
        tsc_khz: Option<u32>,
    ) -> Result<Self, MachineError> {
        let boot = match boot.ok_or(MachineError::NoKernel)? {
            Boot::Kernel(kernel) => Boot::Kernel(kernel.kept(Role::Kernel)?),
            Boot::Image(_) if initrd.is_some() => return Err(MachineError::NotForImage("initrd")),
            Boot::Image(_) if !cmdline.is_empty() => return Err(MachineError::NotForImage("command line")),
            Boot::Image(image) => Boot::Image(image.kept()?),
        };
        let initrd = initrd.map(|initrd| initrd.kept(Role::Initrd)).transpose()?;
        Ok(Self { boot, initrd, cmdline, map, cpus, tsc_khz })
    }

    /// Regions of memory `(guest-physical address, bytes, what the guest may do there)`, by address.
    ///
    /// # Errors
    /// A piece of a memory image has no place.
    pub(crate) fn regions(&self) -> Result<Vec<(u64, u64, Access)>, MachineError> {
        let ram = self.map.ram_regions();
        let mut regions: Vec<_> = ram.into_iter().map(|(gpa, len)| (gpa, len, Access::ReadWrite)).collect();
        if let Boot::Image(image) = &self.boot {
            let image = image.open(&self.map)?;
            regions.extend(image.roms().map(|(gpa, len)| (gpa, len, Access::ReadOnly)));
        }
        regions.sort_by_key(|&(gpa, ..)| gpa);
        Ok(regions)
    }

    /// Fills memory, which is all zero, for a board with ACPI `hardware`, and gives the states in which the vCPUs start.
    ///
    /// # Errors
    /// The files are not what they have to be, or the host lacks the memory.
    pub(crate) fn load(
        &self,
        ram: &GuestRam,
        hardware: &AcpiHardware,
    ) -> Result<Vec<CpuState>, MachineError> {
        // First, since an image may have contents of its own there.
        let tables = acpi::tables(ACPI_AREA, self.cpus, hardware, &self.map);
        ram.memory()
            .write_slice(&tables, GuestAddress(ACPI_AREA))
            .map_err(|_| BootError::NoRam { gpa: ACPI_AREA })?;
        let first = match &self.boot {
            Boot::Kernel(kernel) => {
                let spec = BootSpec {
                    kernel,
                    initrd: self.initrd.as_ref(),
                    cmdline: &self.cmdline,
                    rsdp: ACPI_AREA,
                    // Another one for each start.
                    seed: host::random(),
                    tsc_khz: self.tsc_khz,
                };
                boot::load(ram, &self.map, &spec)?
            }
            Boot::Image(image) => image.open(&self.map)?.load(ram)?,
        };
        if let Some(gpa) = ram.loss() {
            return Err(RamError::Lost { gpa }.into());
        }
        // Memory types are the same on all processors (Intel SDM vol. 3, 12.11.8).
        let others = (1..self.cpus).map(|id| {
            let mut state = CpuState::reset(id);
            state.msrs.mtrr = first.msrs.mtrr.clone();
            state
        });
        Ok([first.clone()].into_iter().chain(others).collect())
    }
}
