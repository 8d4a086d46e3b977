//! The ELF64 container: one loadable segment and the PVH note.

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the note whose descriptor is the 32-bit entry point.
const PHYS32_ENTRY: u32 = 18;

const EHDR: usize = 64;
const PHDR: usize = 56;
const NOTE_AT: usize = EHDR + 2 * PHDR;
/// Name size, descriptor size, type, "Xen\0", 8 bytes of descriptor.
const NOTE_LEN: usize = 12 + 4 + 8;
/// File offset of the segment, congruent to its address modulo the page size.
const SEGMENT_AT: usize = 0x1000;

/// Wraps `image`, to be loaded at physical `load` with `memory` bytes (the rest zeroed), entered at `entry`.
pub(super) fn pvh(image: &[u8], load: u64, memory: u64, entry: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEGMENT_AT + image.len());
    // e_ident: class 64, little-endian, version 1.
    out.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    half(&mut out, 2); // ET_EXEC
    half(&mut out, 62); // EM_X86_64
    word(&mut out, 1);
    xword(&mut out, entry);
    xword(&mut out, EHDR as u64); // e_phoff
    xword(&mut out, 0); // no section headers
    word(&mut out, 0);
    half(&mut out, EHDR as u16);
    half(&mut out, PHDR as u16);
    half(&mut out, 2); // e_phnum
    half(&mut out, 0);
    half(&mut out, 0);
    half(&mut out, 0);

    // PT_LOAD, read + write + execute: guests patch their own code.
    program_header(&mut out, 1, 7, SEGMENT_AT, load, image.len() as u64, memory, 0x1000);
    // PT_NOTE
    program_header(&mut out, 4, 4, NOTE_AT, 0, NOTE_LEN as u64, NOTE_LEN as u64, 4);

    word(&mut out, 4);
    word(&mut out, 8);
    word(&mut out, PHYS32_ENTRY);
    out.extend(b"Xen\0");
    xword(&mut out, entry);

    out.resize(SEGMENT_AT, 0);
    out.extend(image);
    out
}

#[expect(clippy::too_many_arguments, reason = "one argument a field of Elf64_Phdr")]
fn program_header(
    out: &mut Vec<u8>,
    kind: u32,
    flags: u32,
    offset: usize,
    addr: u64,
    file: u64,
    memory: u64,
    align: u64,
) {
    word(out, kind);
    word(out, flags);
    xword(out, offset as u64);
    xword(out, addr);
    xword(out, addr);
    xword(out, file);
    xword(out, memory);
    xword(out, align);
}

fn half(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_le_bytes());
}

fn word(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn xword(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_le_bytes());
}
