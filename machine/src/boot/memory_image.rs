//! Memory contents that an embedder brings along, in the place of a kernel.

use accel_api::x86::CpuState;
use accel_api::{GuestRam, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};

use super::image::Image;
use super::{BootError, Role, Source};
use crate::memory_map::{HIGH_RAM, MemoryMap};

/// What a machine starts with in the place of a kernel: bytes at guest-physical addresses, and the state of vCPU 0.
///
/// Unless told otherwise vCPU 0 has the state that processors have after RESET (Intel SDM vol. 3, table 10-1): real mode,
/// the first instruction at FFFF_FFF0h, which a [ROM below 4 GiB](Self::rom_below_4_gib) answers. Other vCPUs wait for
/// INIT and SIPI in that state, with the MTRRs of vCPU 0.
///
/// The machine's ACPI tables are at [`ACPI_AREA`](crate::memory_map::ACPI_AREA), where a guest looks for them, unless
/// RAM contents overwrite them.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct MemoryImage {
    pieces: Vec<(Place, Source)>,
    vcpu: Option<Box<CpuState>>,
}

/// Where a piece lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    Ram(u64),
    Rom(u64),
    /// ROM whose last byte is the last below 4 GiB.
    RomBelow4Gib,
}

impl MemoryImage {
    /// Nothing in memory yet, and the reset state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Contents of RAM from the guest-physical address `gpa` on. Of pieces that overlap the later one wins.
    pub fn ram(mut self, gpa: u64, contents: impl Into<Source>) -> Self {
        self.pieces.push((Place::Ram(gpa), contents.into()));
        self
    }

    /// ROM from the guest-physical address `gpa` on, where neither RAM nor devices are. The guest's stores are ignored;
    /// what its contents leave of its first and last page reads as ones.
    pub fn rom(mut self, gpa: u64, contents: impl Into<Source>) -> Self {
        self.pieces.push((Place::Rom(gpa), contents.into()));
        self
    }

    /// ROM that ends at 4 GiB, as firmware does: the reset vector is 16 bytes before its end.
    pub fn rom_below_4_gib(mut self, contents: impl Into<Source>) -> Self {
        self.pieces.push((Place::RomBelow4Gib, contents.into()));
        self
    }

    /// The state in which vCPU 0 starts. Its TSC is the machine's: `tsc_offset` is not looked at. See
    /// [`firmware_state`](super::firmware_state) for the reset state with memory types set.
    pub fn vcpu(mut self, state: CpuState) -> Self {
        self.vcpu = Some(Box::new(state));
        self
    }

    /// The same with its files opened, for whoever needs them again later.
    pub(crate) fn kept(self) -> Result<Self, BootError> {
        let kept = |(place, source): (Place, Source)| Ok((place, source.kept(Role::Piece)?));
        let pieces = self.pieces.into_iter().map(kept).collect::<Result<_, BootError>>()?;
        Ok(Self { pieces, ..self })
    }

    /// Opens the files and looks whether all has a place in a machine with this map.
    pub(crate) fn open(&self, map: &MemoryMap) -> Result<OpenImage<'_>, BootError> {
        let mut pieces: Vec<OpenPiece<'_>> = Vec::new();
        for (place, source) in &self.pieces {
            let contents = Image::open(Role::Piece, source)?;
            let len = contents.len();
            let (gpa, is_rom) = match *place {
                Place::Ram(gpa) => (gpa, false),
                Place::Rom(gpa) => (gpa, true),
                Place::RomBelow4Gib => (HIGH_RAM.saturating_sub(len), true),
            };
            let misplaced = |why| BootError::Misplaced { name: source.name(), gpa, len, why };
            let end = gpa.checked_add(len).filter(|&end| end <= u64::MAX - PAGE_SIZE);
            let end = end.ok_or_else(|| misplaced("it ends beyond the last address; put it lower"))?;
            if len == 0 {
                return Err(misplaced("it is empty; leave it away"));
            }
            let rom = is_rom.then(|| gpa & !(PAGE_SIZE - 1)..end.next_multiple_of(PAGE_SIZE));
            if let Some(rom) = &rom {
                if !map.is_free(rom) {
                    return Err(misplaced("ROM goes where neither RAM nor devices are; put it below 4 GiB"));
                }
                let overlaps = |other: &OpenPiece<'_>| {
                    other.rom.as_ref().is_some_and(|other| other.start < rom.end && rom.start < other.end)
                };
                if pieces.iter().any(overlaps) {
                    return Err(misplaced("another ROM has a part of its pages; join the two"));
                }
            } else if !map.ram_regions().iter().any(|&(start, len)| start <= gpa && end <= start + len) {
                return Err(misplaced("the machine has no RAM there; give it more, or put it elsewhere"));
            }
            pieces.push(OpenPiece { gpa, contents, rom });
        }
        Ok(OpenImage { pieces, vcpu: self.vcpu.as_deref() })
    }
}

/// A [`MemoryImage`] with its files opened, and a place for everything.
pub(crate) struct OpenImage<'a> {
    pieces: Vec<OpenPiece<'a>>,
    vcpu: Option<&'a CpuState>,
}

struct OpenPiece<'a> {
    gpa: u64,
    contents: Image<'a>,
    /// Its pages, if it is ROM.
    rom: Option<std::ops::Range<u64>>,
}

impl OpenImage<'_> {
    /// ROM regions `(guest-physical address, bytes)`, which the machine's memory has beside its RAM.
    pub(crate) fn roms(&self) -> impl Iterator<Item = (u64, u64)> {
        self.pieces.iter().filter_map(|piece| piece.rom.as_ref()).map(|rom| (rom.start, rom.end - rom.start))
    }

    /// Fills memory that has RAM and the ROM regions, and gives the state of vCPU 0.
    pub(crate) fn load(&self, ram: &GuestRam) -> Result<CpuState, BootError> {
        for OpenPiece { gpa, contents, rom } in &self.pieces {
            let len = contents.len();
            contents.copy_to(ram, *gpa, 0, len)?;
            if let Some(rom) = rom {
                for (from, to) in [(rom.start, *gpa), (gpa + len, rom.end)] {
                    ram.memory()
                        .write_slice(&vec![0xff; (to - from) as usize], GuestAddress(from))
                        .map_err(|_| BootError::NoRam { gpa: from })?;
                }
            }
            contents.check_unchanged()?;
        }
        Ok(self.vcpu.cloned().unwrap_or_else(|| CpuState::reset(0)))
    }
}
