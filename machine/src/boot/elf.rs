//! ELF kernels: loadable segments and the PVH note.

use accel_api::GuestRam;
use linux_loader::bootparam::setup_header;
use linux_loader::elf::{Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::ByteValued;

use super::BootError;
use super::image::Image;
use super::linux::{Entry, LinuxKernel};
use crate::memory_map::{EXTENDED, MemoryMap};

/// More program headers than any kernel has.
const MAX_SEGMENTS: u16 = 128;
/// Bytes of notes looked at.
const MAX_NOTES: u64 = 1 << 20;
const EM_X86_64: u16 = 62;
/// XEN_ELFNOTE_PHYS32_ENTRY: the PVH entry point.
const PVH_ENTRY: u32 = 18;
/// Linux's COMMAND_LINE_SIZE on x86, less the NUL: an ELF kernel does not tell its own.
const CMDLINE_MAX: u64 = 2047;

/// An ELF kernel in guest memory.
pub(super) struct LoadedElf {
    entry: u64,
    pub(super) pvh_entry: Option<u32>,
    pub(super) end: u64,
    low_end: u64,
}

impl LoadedElf {
    /// The kernel as the 64-bit protocol sees it: a `vmlinux` has no setup header.
    pub(super) fn as_linux(&self) -> LinuxKernel {
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
            entry: Entry::Long(self.entry),
            end: self.end,
            initrd_limit: self.low_end,
            cmdline_max: CMDLINE_MAX,
        }
    }
}

pub(super) fn is_elf(image: &Image) -> Result<bool, BootError> {
    let mut magic = [0; 4];
    if image.len() < 4 {
        return Ok(false);
    }
    image.read(0, &mut magic)?;
    Ok(&magic == b"\x7fELF")
}

pub(super) fn load(ram: &GuestRam, map: &MemoryMap, image: &Image) -> Result<LoadedElf, BootError> {
    let headers = read_headers(image)?;
    let (mut end, mut pvh_entry, mut entry_loaded) = (0, None, false);
    let (entry, segments) = headers;
    for segment in &segments {
        match segment.p_type {
            PT_LOAD if segment.p_memsz > 0 => {
                let stop = load_segment(ram, map, image, segment)?;
                end = end.max(stop);
                entry_loaded |= (segment.p_paddr..stop).contains(&entry);
            }
            PT_NOTE if pvh_entry.is_none() => pvh_entry = find_pvh_note(image, segment)?,
            _ => {}
        }
    }
    if end == 0 {
        return Err(image.damaged("it has no loadable segment"));
    }
    if pvh_entry.is_none() && !entry_loaded {
        return Err(image.unsupported(
            "it has no PVH note, and its entry point is not a physical address within it; give a Linux vmlinux or \
             bzImage, or an ELF file with a PVH note",
        ));
    }
    Ok(LoadedElf { entry, pvh_entry, end, low_end: map.low_end() })
}

/// The entry point and the program headers.
fn read_headers(image: &Image) -> Result<(u64, Vec<Elf64_Phdr>), BootError> {
    let mut header = Elf64_Ehdr::default();
    image.read(0, header.as_mut_slice())?;
    let [.., class, data, _, _, _, _, _, _, _, _, _, _] = header.e_ident;
    if (class, data) != (2, 1) || header.e_machine != EM_X86_64 {
        return Err(image.unsupported("it is an ELF file for another processor; give a 64-bit x86 kernel"));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(image.damaged("its program headers have a size that cannot be"));
    }
    if header.e_phnum == 0 {
        return Err(image.unsupported("it has no program headers: an object file, not a linked kernel"));
    }
    if header.e_phnum > MAX_SEGMENTS {
        return Err(image.damaged("it has more program headers than a kernel can have"));
    }
    let mut segments = vec![Elf64_Phdr::default(); usize::from(header.e_phnum)];
    let mut at = header.e_phoff;
    for segment in &mut segments {
        image.read(at, segment.as_mut_slice())?;
        // The read succeeded, so `at` is within the file.
        at += size_of::<Elf64_Phdr>() as u64;
    }
    Ok((header.e_entry, segments))
}

/// Loads one segment; gives the first address after it. Its unfilled rest stays as the fresh RAM is, zero.
fn load_segment(
    ram: &GuestRam,
    map: &MemoryMap,
    image: &Image,
    segment: &Elf64_Phdr,
) -> Result<u64, BootError> {
    let (gpa, room) = (segment.p_paddr, map.low_end());
    if segment.p_filesz > segment.p_memsz {
        return Err(image.damaged("a segment has more bytes in the file than in memory"));
    }
    if gpa < EXTENDED {
        return Err(image
            .unsupported("a segment wants memory below 1 MiB, which is taken; link it at 1 MiB or above"));
    }
    let end =
        gpa.checked_add(segment.p_memsz).ok_or_else(|| image.damaged("a segment's address overflows"))?;
    if end > room {
        return Err(BootError::KernelTooLarge { name: image.name().to_owned(), end, room });
    }
    image.copy_to(ram, gpa, segment.p_offset, segment.p_filesz)?;
    Ok(end)
}

/// Looks for the PVH entry point among the notes of `segment`. Name, descriptor and next note are each aligned to 4
/// bytes, or to 8 where the segment is.
fn find_pvh_note(image: &Image, segment: &Elf64_Phdr) -> Result<Option<u32>, BootError> {
    let align = if segment.p_align == 8 { 8 } else { 4 };
    let len = segment.p_filesz;
    if len > MAX_NOTES {
        return Err(image.damaged("its notes are larger than a kernel's can be"));
    }
    image.check(segment.p_offset, len)?;
    let mut notes = vec![0; len as usize];
    image.read(segment.p_offset, &mut notes)?;
    let mut at = 0usize;
    const FIXED: usize = size_of::<Elf64_Nhdr>();
    while let Some(fixed) = notes.get(at..).and_then(|rest| rest.get(..FIXED)) {
        let mut note = Elf64_Nhdr::default();
        note.as_mut_slice().copy_from_slice(fixed);
        // 32-bit sizes on top of at most 1 MiB: no overflow in 64 bits.
        let name = at + FIXED;
        let desc = (name + note.n_namesz as usize).next_multiple_of(align);
        let next = (desc + note.n_descsz as usize).next_multiple_of(align);
        if note.n_type == PVH_ENTRY && notes.get(name..name + note.n_namesz as usize) == Some(b"Xen\0") {
            let entry = notes.get(desc..desc + 4).filter(|_| note.n_descsz >= 4);
            let Some(&[a, b, c, d]) = entry else {
                return Err(image.damaged("its PVH note has no entry point"));
            };
            return Ok(Some(u32::from_le_bytes([a, b, c, d])));
        }
        at = next;
    }
    Ok(None)
}
