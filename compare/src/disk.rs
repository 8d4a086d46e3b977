//! A disk that boots a Linux kernel, for peers that cannot load one themselves.
//!
//! The image is a boot sector and, behind it, what the boot protocol wants in memory: the kernel's real-mode part with its
//! header filled in, the command line, the protected-mode part, the initial RAM disk (Linux
//! `Documentation/arch/x86/boot.rst`). The boot sector reads each piece with the BIOS's extended read (INT 13h, AH=42h) into
//! low memory, moves it to its place with the BIOS's move (INT 15h, AH=87h), and jumps to the kernel.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

const SECTOR: usize = 512;
/// Where the BIOS puts the boot sector.
const ORIGIN: u64 = 0x7c00;
/// The boot sector's data, at fixed places behind its code: descriptors, the read's packet, the table of pieces. The drive's
/// number is in a byte that no BIOS uses any more: the start of the sector, which has run.
const GDT: u16 = ORIGIN as u16 + 0x100;
const PACKET: u16 = GDT + 48;
const TABLE: u16 = PACKET + 16;
const DRIVE: u16 = ORIGIN as u16;
/// Where pieces are read to, and how many sectors at once.
const BUFFER_SEGMENT: u16 = 0x1000;
const AT_ONCE: u32 = 64;
/// The real-mode part, its stack and the command line behind it.
const REAL_MODE: u32 = 0x9_0000;
const REAL_MODE_MAX: usize = 0x8000;
const STACK: u32 = 0xe000;
const CMDLINE: u32 = REAL_MODE + STACK;
const CMDLINE_MAX: usize = 2048;
const PROTECTED_MODE: u32 = 0x10_0000;
/// Below the end of memory, where BIOSes keep tables.
const TOP_GAP: usize = 16 << 20;

/// Why no image can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("the kernel is no bzImage, which is what a boot from disk takes")]
    NoBzImage,
    #[error("{0} is too large for a boot from disk")]
    TooLarge(&'static str),
    #[error("the boot sector does not assemble: {0}")]
    Assembler(String),
}

impl From<IcedError> for DiskError {
    fn from(error: IcedError) -> Self {
        Self::Assembler(error.to_string())
    }
}

/// A piece of the image and the address it goes to.
struct Piece {
    bytes: Vec<u8>,
    address: u32,
}

/// The image; a whole number of sectors.
pub(crate) fn image(
    kernel: &[u8],
    initrd: &[u8],
    cmdline: &str,
    mebibytes: u32,
) -> Result<Vec<u8>, DiskError> {
    let pieces = pieces(kernel, initrd, cmdline, mebibytes)?;
    let mut table = Vec::new();
    let mut sector = 1;
    for piece in &pieces {
        let sectors = piece.bytes.len().div_ceil(SECTOR) as u32;
        table.push([sector, sectors, piece.address]);
        sector += sectors;
    }
    let mut image = boot_sector(&table)?;
    for piece in pieces {
        image.extend(piece.bytes);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    }
    Ok(image)
}

fn pieces(kernel: &[u8], initrd: &[u8], cmdline: &str, mebibytes: u32) -> Result<Vec<Piece>, DiskError> {
    // `HdrS`, and the flag of a kernel that is loaded high.
    if kernel.get(0x202..0x206) != Some(b"HdrS") || kernel.get(0x211).is_none_or(|flags| flags & 1 == 0) {
        return Err(DiskError::NoBzImage);
    }
    let setup = match kernel[0x1f1] {
        0 => 5,
        sectors => usize::from(sectors) + 1,
    } * SECTOR;
    if setup > REAL_MODE_MAX {
        return Err(DiskError::TooLarge("the kernel's real-mode part"));
    }
    let (real, protected) = kernel.split_at_checked(setup).ok_or(DiskError::NoBzImage)?;
    let mut real = real.to_vec();
    if real.len() < 0x22c {
        return Err(DiskError::NoBzImage);
    }
    if cmdline.len() >= CMDLINE_MAX {
        return Err(DiskError::TooLarge("the command line"));
    }
    let end = ((mebibytes as usize) << 20).saturating_sub(TOP_GAP);
    let initrd_at = end.saturating_sub(initrd.len()) & !0xfff;
    if initrd_at < (mebibytes as usize) << 19 {
        return Err(DiskError::TooLarge("the initial RAM disk"));
    }
    // type_of_loader, CAN_USE_HEAP, heap_end_ptr, ramdisk_image, ramdisk_size, cmd_line_ptr.
    real[0x210] = 0xff;
    real[0x211] |= 0x80;
    real[0x224..0x226].copy_from_slice(&((STACK - 0x200) as u16).to_le_bytes());
    real[0x218..0x21c].copy_from_slice(&(initrd_at as u32).to_le_bytes());
    real[0x21c..0x220].copy_from_slice(&(initrd.len() as u32).to_le_bytes());
    real[0x228..0x22c].copy_from_slice(&CMDLINE.to_le_bytes());
    let cmdline = [cmdline.as_bytes(), &[0]].concat();
    Ok(vec![
        Piece { bytes: real, address: REAL_MODE },
        Piece { bytes: cmdline, address: CMDLINE },
        Piece { bytes: protected.to_vec(), address: PROTECTED_MODE },
        Piece { bytes: initrd.to_vec(), address: initrd_at as u32 },
    ])
}

/// Loads sectors from, so many, to the address, for each entry of the table, and starts the kernel.
fn boot_sector(table: &[[u32; 3]]) -> Result<Vec<u8>, DiskError> {
    let mut a = CodeAssembler::new(16)?;
    let [mut next, mut part, mut less, mut go, mut failed] = std::array::from_fn(|_| a.create_label());

    a.cli()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, ORIGIN as u32)?;
    a.sti()?;
    a.cld()?;
    a.mov(bx, u32::from(DRIVE))?;
    a.mov(byte_ptr(bx), dl)?;
    a.mov(di, u32::from(TABLE))?;

    a.set_label(&mut next)?;
    a.mov(ecx, dword_ptr(di + 4))?;
    a.test(ecx, ecx)?;
    a.jz(go)?;
    a.set_label(&mut part)?;
    a.mov(eax, AT_ONCE)?;
    a.cmp(ecx, eax)?;
    a.jae(less)?;
    a.mov(eax, ecx)?;
    a.set_label(&mut less)?;
    a.mov(si, u32::from(PACKET))?;
    a.mov(word_ptr(si + 2), ax)?;
    a.mov(ebx, dword_ptr(di))?;
    a.mov(dword_ptr(si + 8), ebx)?;
    a.add(dword_ptr(di), eax)?;
    a.sub(dword_ptr(di + 4), eax)?;
    a.pushad()?;
    a.mov(bx, u32::from(DRIVE))?;
    a.mov(dl, byte_ptr(bx))?;
    a.mov(ah, 0x42)?;
    a.int(0x13)?;
    a.jc(failed)?;
    a.popad()?;
    // The destination's base, in its three places.
    a.mov(si, u32::from(GDT))?;
    a.mov(ebx, dword_ptr(di + 8))?;
    a.mov(word_ptr(si + 0x1a), bx)?;
    a.shr(ebx, 16)?;
    a.mov(byte_ptr(si + 0x1c), bl)?;
    a.mov(byte_ptr(si + 0x1f), bh)?;
    a.mov(cx, ax)?;
    a.shl(cx, 8)?;
    a.shl(eax, 9)?;
    a.add(dword_ptr(di + 8), eax)?;
    a.pushad()?;
    a.mov(ah, 0x87)?;
    a.int(0x15)?;
    a.jc(failed)?;
    a.popad()?;
    a.mov(ecx, dword_ptr(di + 4))?;
    a.test(ecx, ecx)?;
    a.jnz(part)?;
    a.add(di, 12)?;
    a.jmp(next)?;

    a.set_label(&mut go)?;
    a.cli()?;
    a.mov(ax, REAL_MODE >> 4)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(fs, ax)?;
    a.mov(gs, ax)?;
    a.mov(ss, ax)?;
    a.mov(esp, STACK)?;
    // JMP 9020:0000.
    a.db(&[0xea, 0, 0, 0x20, 0x90])?;

    a.set_label(&mut failed)?;
    a.mov(dx, 0x3f8u32)?;
    a.mov(al, u32::from(b'E'))?;
    a.out(dx, al)?;
    a.cli()?;
    a.hlt()?;
    a.jmp(failed)?;

    let mut sector = a.assemble(ORIGIN)?;
    // Two empty descriptors, source, destination, two that the BIOS fills in. A source's base is the buffer.
    let gdt: [u64; 6] = [0, 0, 0x0000_9301_0000_ffff, 0x0000_9300_0000_ffff, 0, 0];
    // Size, nothing, sectors, buffer; the first sector, in eight bytes.
    let packet = [16, 0, 0, BUFFER_SEGMENT, 0, 0, 0, 0];
    let entries = table.iter().chain([&[0; 3]]).flatten();
    let data = gdt.iter().flat_map(|word| word.to_le_bytes());
    let data = data.chain(packet.iter().flat_map(|word| word.to_le_bytes()));
    let data: Vec<u8> = data.chain(entries.flat_map(|word| word.to_le_bytes())).collect();
    let place = usize::from(GDT) - ORIGIN as usize;
    // A partition table begins at 446.
    if sector.len() > place || place + data.len() > 446 {
        return Err(DiskError::TooLarge("the boot sector"));
    }
    sector.resize(place, 0);
    sector.extend(data);
    sector.resize(SECTOR - 2, 0);
    sector.extend([0x55, 0xaa]);
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Vec<u8> {
        let mut kernel = vec![0; 8192];
        kernel[0x1f1] = 3;
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x211] = 1;
        kernel[4 * SECTOR..].fill(7);
        kernel
    }

    #[test]
    fn pieces_lie_behind_the_boot_sector_in_their_order() {
        let image = image(&kernel(), &[9; 700], "quiet", 64).unwrap();
        assert_eq!((image.len() % SECTOR, &image[510..512]), (0, &[0x55, 0xaa][..]));
        // 4 sectors of real mode, 1 of the command line, 12 of the kernel, 2 of the initial RAM disk.
        assert_eq!(image.len(), (1 + 4 + 1 + 12 + 2) * SECTOR);
        assert_eq!(&image[5 * SECTOR..5 * SECTOR + 6], b"quiet\0");
        assert!(image[6 * SECTOR..18 * SECTOR].iter().all(|byte| *byte == 7));
        assert!(image[18 * SECTOR..18 * SECTOR + 700].iter().all(|byte| *byte == 9));
        let word = |at: usize| u32::from_le_bytes(image[SECTOR + at..SECTOR + at + 4].try_into().unwrap());
        assert_eq!((word(0x21c), word(0x228)), (700, 0x9_e000));
        assert_eq!(word(0x218), ((48 << 20) - 700) & !0xfff);
    }

    #[test]
    fn what_cannot_be_booted_is_refused() {
        assert_eq!(image(&[0; 4096], &[], "", 64), Err(DiskError::NoBzImage));
        assert_eq!(image(&[], &[], "", 64), Err(DiskError::NoBzImage));
        assert_eq!(image(&kernel()[..1024], &[], "", 64), Err(DiskError::NoBzImage));
        let large =
            |initrd: usize, cmdline: usize| image(&kernel(), &vec![0; initrd], &"x".repeat(cmdline), 64);
        assert!(matches!(large(40 << 20, 0), Err(DiskError::TooLarge(_))));
        assert!(matches!(large(0, 2048), Err(DiskError::TooLarge(_))));
        let mut setup = kernel();
        setup[0x1f1] = 200;
        assert!(matches!(image(&setup, &[], "", 64), Err(DiskError::TooLarge(_))));
    }
}
