//! What a loader of the Multiboot Specification (version 0.6.96) leaves in memory, as a [`MemoryImage`]: the kernel's
//! segments, modules, the information structure, and what is looked for in the BIOS data area.

use std::error::Error;

use accel_api::x86::{Segment, gpr};
use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use machine::boot::firmware_state;
use machine::memory_map::{EBDA, EXTENDED, MIB, MapRange, MemoryMap};
use machine::{MemoryImage, Source};

/// What EAX tells the kernel of who loaded it.
pub(crate) const MAGIC: u32 = 0x2bad_b002;
/// Bits of the first word: memory sizes, command line, modules, memory map (3.3).
pub(crate) const FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6;

/// Words of the BIOS data area: the segment of the EBDA, and KiB of memory below it.
const BDA_EBDA: u64 = 0x40e;
const BDA_MEMORY: u64 = 0x413;

/// A file for the kernel, and its command line.
pub(crate) struct Module<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) cmdline: &'a str,
}

/// Starts `kernel`, an ELF file, in a machine with this map: 32-bit protected mode, flat, no paging (3.2).
pub(crate) fn image(
    kernel: &[u8],
    cmdline: &str,
    modules: &[Module<'_>],
    map: &MemoryMap,
) -> Result<MemoryImage, Box<dyn Error>> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(kernel)?;
    let mut image = MemoryImage::new();
    let mut end = EXTENDED;
    for segment in elf.segments().ok_or("no program headers")?.iter().filter(|s| s.p_type == PT_LOAD) {
        end = end.max(segment.p_paddr + segment.p_memsz);
        image = image.ram(segment.p_paddr, Source::bytes("a segment", elf.segment_data(&segment)?.to_vec()));
    }

    // Behind the kernel the structure with what it points to, then the modules, each on a page of its own.
    let mut info = Info::at(end.next_multiple_of(MIB));
    let mut at = info.base + MIB;
    let mut list = Vec::new();
    for Module { bytes, cmdline } in modules {
        let stop = at + bytes.len() as u64;
        list.extend([at as u32, stop as u32, info.text(cmdline), 0]);
        image = image.ram(at, Source::bytes("a module", bytes.to_vec()));
        at = stop.next_multiple_of(MIB);
    }
    let ranges: Vec<u32> = map.guest_ranges().iter().flat_map(range).collect();
    let cmdline = info.text(cmdline);
    let (list_at, ranges_at) = (info.words(&list), info.words(&ranges));
    let (lower, upper) = (EBDA >> 10, (map.low_end() - EXTENDED) >> 10);
    let count = modules.len() as u32;
    let head = [FLAGS, lower as u32, upper as u32, 0, cmdline, count, list_at, 0, 0, 0, 0];
    info.head(&[&head[..], &[4 * ranges.len() as u32, ranges_at]].concat());

    let mut state = firmware_state(0);
    let data = Segment::flat(0x18, 0xc093);
    let segments = &mut state.segments;
    segments.cs = Segment::flat(0x10, 0xc09b);
    (segments.ds, segments.es, segments.fs, segments.gs, segments.ss) = (data, data, data, data, data);
    state.control.cr0 = 0x11; // PE, ET
    state.rip = elf.ehdr.e_entry;
    state.gpr[gpr::RAX] = MAGIC.into();
    state.gpr[gpr::RBX] = info.base;
    let word = |value: u64| Source::bytes("BIOS data", (value as u16).to_le_bytes().to_vec());
    Ok(image
        .ram(BDA_EBDA, word(EBDA >> 4))
        .ram(BDA_MEMORY, word(EBDA >> 10))
        .ram(info.base, Source::bytes("multiboot information", info.bytes))
        .vcpu(state))
}

/// An entry of the memory map: its size without this word, address, length, kind.
fn range(range: &MapRange) -> [u32; 6] {
    let high = |n: u64| (n >> 32) as u32;
    [20, range.start as u32, high(range.start), range.len as u32, high(range.len), range.kind as u32]
}

/// The information structure and what it points to.
struct Info {
    base: u64,
    bytes: Vec<u8>,
}

impl Info {
    fn at(base: u64) -> Self {
        Self { base, bytes: vec![0; 128] }
    }

    /// Adds bytes; gives their address.
    fn add(&mut self, bytes: &[u8]) -> u32 {
        let at = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        at as u32
    }

    fn text(&mut self, text: &str) -> u32 {
        self.add(&[text.as_bytes(), &[0]].concat())
    }

    fn words(&mut self, words: &[u32]) -> u32 {
        self.add(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Fills in the structure itself.
    fn head(&mut self, words: &[u32]) {
        for (slot, word) in self.bytes.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
    }
}
