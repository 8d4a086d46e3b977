//! ELF kernels: loadable segments, the PVH note, and Linux's banner.

use accel_api::GuestRam;
use elf::abi::{EI_NIDENT, EM_386, EM_X86_64, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::parse::ParseError;
use elf::segment::{ProgramHeader, SegmentTable};
use linux_loader::bootparam::setup_header;
use memchr::memmem;

use super::image::Image;
use super::layout::Handover;
use super::linux::{Entry, LinuxKernel};
use super::{BootError, InitrdReach, notes};
use crate::memory_map::{ACPI_AREA, EXTENDED, HIGH_RAM, MemoryMap, ROM_AREA, VGA_HOLE};

/// More program headers than any kernel has.
const MAX_SEGMENTS: u16 = 128;
/// Bytes of notes looked at in one segment.
const MAX_NOTES: u64 = 1 << 20;
/// Owner of Xen's notes.
const XEN: &[u8] = b"Xen\0";
/// XEN_ELFNOTE_PHYS32_ENTRY: the PVH entry point.
const PVH_ENTRY: u32 = 18;
/// What every Linux says of itself first (`linux_banner`); its version, which starts with a digit, follows.
const BANNER: &[u8] = b"Linux version ";
/// Linux's COMMAND_LINE_SIZE on x86, less the NUL: an ELF kernel does not tell its own.
const LINUX_CMDLINE_MAX: u64 = 2047;
/// First address that 32-bit Linux does not map at once, as its bzImages tell (`initrd_addr_max`).
const LINUX32_INITRD_LIMIT: u64 = 0x3800_0000;

/// An ELF file that can be loaded and entered.
pub(super) struct ElfKernel<'a> {
    image: &'a Image<'a>,
    class: Class,
    entry: u64,
    segments: Vec<ProgramHeader>,
}

/// How a loaded ELF kernel is entered.
pub(super) enum Protocol {
    Pvh(PvhKernel),
    Linux(LinuxKernel),
}

/// A kernel in guest memory, to be entered as PVH says.
pub(super) struct PvhKernel {
    /// Address of its entry.
    pub(super) entry: u32,
    /// First address after it.
    pub(super) end: u64,
    /// Where it leaves room for what it is handed.
    pub(super) handover: Handover,
    /// Longest command line in bytes, without the NUL, if it is known.
    pub(super) cmdline_max: Option<u64>,
}

pub(super) fn is_elf(image: &Image<'_>) -> Result<bool, BootError> {
    let mut magic = [0; 4];
    if image.len() < 4 {
        return Ok(false);
    }
    image.read(0, &mut magic)?;
    Ok(&magic == b"\x7fELF")
}

/// Loads the segments of a kernel that can be entered here. A PVH entry comes first; a kernel without is entered by
/// Linux's protocol of its word size, if it is Linux.
pub(super) fn load(
    ram: &GuestRam,
    map: &MemoryMap,
    image: &Image<'_>,
    cmdline_len: u64,
) -> Result<Protocol, BootError> {
    let kernel = ElfKernel::open(image)?;
    let pvh_entry = kernel.pvh_entry()?;
    if pvh_entry.is_none() && !kernel.is_linux()? {
        return Err(image.unsupported(
            "it is an ELF file without a PVH note and not Linux; give a Linux vmlinux or bzImage, or an ELF file with a \
             PVH note",
        ));
    }
    let entry = pvh_entry.unwrap_or(kernel.entry);
    let (end, handover) = kernel.place(map, entry)?;
    for segment in kernel.loadable() {
        image.copy_to(ram, segment.p_paddr, segment.p_offset, segment.p_filesz)?;
    }
    // The place is below 4 GiB, so the entry within is.
    match (pvh_entry, kernel.class) {
        (Some(entry), _) => {
            // Only Linux is known to have a limit, and only a long line is worth looking.
            let short = cmdline_len <= LINUX_CMDLINE_MAX;
            let cmdline_max = if short || !kernel.is_linux()? { None } else { Some(LINUX_CMDLINE_MAX) };
            Ok(Protocol::Pvh(PvhKernel { entry: entry as u32, end, handover, cmdline_max }))
        }
        (None, Class::ELF64) => Ok(Protocol::Linux(linux(Entry::Long(entry), end, handover, HIGH_RAM))),
        (None, Class::ELF32) => {
            Ok(Protocol::Linux(linux(Entry::Protected(entry), end, handover, LINUX32_INITRD_LIMIT)))
        }
    }
}

/// A `vmlinux`, which has no setup header.
fn linux(entry: Entry, end: u64, handover: Handover, initrd_limit: u64) -> LinuxKernel {
    let header = setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x20f,
        loadflags: 1,
        kernel_alignment: 0x20_0000,
        ..Default::default()
    };
    LinuxKernel {
        header,
        entry,
        end,
        preferred_end: end,
        handover,
        initrd: InitrdReach { limit: initrd_limit, anywhere: false },
        cmdline_max: LINUX_CMDLINE_MAX,
    }
}

impl<'a> ElfKernel<'a> {
    /// Reads the headers.
    fn open(image: &'a Image<'a>) -> Result<Self, BootError> {
        let foreign = || image.unsupported("it is an ELF file for another processor; give an x86 kernel");
        let mut ident = [0; EI_NIDENT];
        image.read(0, &mut ident)?;
        let ident = parse_ident::<LittleEndian>(&ident).map_err(|error| match error {
            ParseError::UnsupportedElfEndianness(_) => foreign(),
            _ => image.damaged("its ELF identification is of no known kind"),
        })?;
        let class = ident.1;
        let (header_len, segment_len) = match class {
            Class::ELF32 => (52, 32),
            Class::ELF64 => (64, 56),
        };
        let mut tail = vec![0; header_len - EI_NIDENT];
        image.read(EI_NIDENT as u64, &mut tail)?;
        let header =
            FileHeader::parse_tail(ident, &tail).map_err(|_| image.damaged("its ELF header is short"))?;
        match (class, header.e_machine) {
            (Class::ELF64, EM_X86_64) | (Class::ELF32, EM_386 | EM_X86_64) => {}
            _ => return Err(foreign()),
        }
        if header.e_phnum == 0 {
            return Err(image.unsupported("it has no program headers: an object file, not a linked kernel"));
        }
        if usize::from(header.e_phentsize) != segment_len {
            return Err(image.damaged("its program headers have a size that cannot be"));
        }
        if header.e_phnum > MAX_SEGMENTS {
            return Err(image.damaged("it has more program headers than a kernel can have"));
        }
        let mut table = vec![0; segment_len * usize::from(header.e_phnum)];
        image.read(header.e_phoff, &mut table)?;
        let segments = SegmentTable::new(LittleEndian, class, &table).iter().collect();
        Ok(Self { image, class, entry: header.e_entry, segments })
    }

    fn loadable(&self) -> impl Iterator<Item = &ProgramHeader> {
        self.segments.iter().filter(|segment| segment.p_type == PT_LOAD && segment.p_memsz > 0)
    }

    /// The PVH entry point, if there is a note of it.
    fn pvh_entry(&self) -> Result<Option<u64>, BootError> {
        let image = self.image;
        for segment in self.segments.iter().filter(|segment| segment.p_type == PT_NOTE) {
            if segment.p_filesz > MAX_NOTES {
                return Err(image.damaged("its notes are larger than a kernel's can be"));
            }
            image.check(segment.p_offset, segment.p_filesz)?;
            let mut bytes = vec![0; segment.p_filesz as usize];
            image.read(segment.p_offset, &mut bytes)?;
            let Some(entry) = notes::find(&bytes, XEN, PVH_ENTRY) else { continue };
            // As large as a pointer of the kernel's.
            let mut address = [0; 8];
            if !matches!(entry.len(), 4 | 8) {
                return Err(image.damaged("its PVH note has no entry point"));
            }
            address[..entry.len()].copy_from_slice(entry);
            return Ok(Some(u64::from_le_bytes(address)));
        }
        Ok(None)
    }

    /// Whether it is Linux: looks for its banner in what is loaded.
    fn is_linux(&self) -> Result<bool, BootError> {
        const STEP: u64 = 1 << 20;
        let finder = memmem::Finder::new(BANNER);
        let mut bytes = Vec::new();
        for segment in self.loadable() {
            self.image.check(segment.p_offset, segment.p_filesz)?;
            let end = segment.p_offset + segment.p_filesz;
            let mut at = segment.p_offset;
            while at < end {
                // A banner across two steps is found whole in the first.
                let len = (end - at).min(STEP + BANNER.len() as u64);
                bytes.resize(len as usize, 0);
                self.image.read(at, &mut bytes)?;
                let versions = finder.find_iter(&bytes).map(|found| bytes.get(found + BANNER.len()));
                if versions.flatten().any(u8::is_ascii_digit) {
                    return Ok(true);
                }
                at += STEP;
            }
        }
        Ok(false)
    }

    /// Checks where the segments go; gives the first address after all of them, and where they leave room for what the
    /// kernel is handed. What a segment has no bytes for stays as fresh RAM is, zero.
    fn place(&self, map: &MemoryMap, entry: u64) -> Result<(u64, Handover), BootError> {
        let image = self.image;
        let (mut ranges, mut last) = (Vec::new(), 0);
        for segment in self.loadable() {
            if segment.p_filesz > segment.p_memsz {
                return Err(image.damaged("a segment has more bytes in the file than in memory"));
            }
            let start = segment.p_paddr;
            let end = start
                .checked_add(segment.p_memsz)
                .ok_or_else(|| image.damaged("a segment's address overflows"))?;
            if end > map.low_end() {
                return Err(BootError::KernelTooLarge {
                    name: image.name().to_owned(),
                    end,
                    room: map.low_end(),
                });
            }
            let overlaps = |from, to| start < to && from < end;
            if overlaps(VGA_HOLE, ROM_AREA) {
                return Err(image.unsupported(
                    "a segment lies at 0xa0000 to 0xbffff, where no RAM is; link it at 1 MiB or above",
                ));
            }
            if overlaps(ACPI_AREA, EXTENDED) {
                return Err(image.unsupported(
                    "a segment lies at 0xe0000 to 0xfffff, where the ACPI tables are; link it at 1 MiB or above",
                ));
            }
            ranges.push(start..end);
            last = last.max(end);
        }
        if ranges.is_empty() {
            return Err(image.damaged("it has no loadable segment"));
        }
        if !ranges.iter().any(|range| range.contains(&entry)) {
            return Err(image.unsupported(
                "its entry point is not a physical address within it; give a Linux vmlinux or bzImage, or an ELF file \
                 whose PVH note has one",
            ));
        }
        let handover = Handover::beside(&ranges, map).ok_or_else(|| BootError::KernelTooLarge {
            name: image.name().to_owned(),
            end: last + Handover::LEN,
            room: map.low_end(),
        })?;
        Ok((last.max(handover.end()), handover))
    }
}
