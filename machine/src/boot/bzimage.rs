//! bzImage files (Linux, Documentation/arch/x86/boot.rst).

use accel_api::GuestRam;
use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::image::Image;
use super::layout::Handover;
use super::linux::{Entry, LinuxKernel};
use super::{BootError, InitrdReach};
use crate::memory_map::{EXTENDED, HIGH_RAM, MemoryMap};

/// Where the setup header is in the file.
const HEADER: u64 = 0x1f1;
/// Where its magic is in the file.
const MAGIC: u64 = 0x202;
/// LOADED_HIGH in loadflags: the kernel proper goes to 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// XLF_KERNEL_64 in xloadflags: there is a 64-bit entry at 0x200.
const KERNEL_64: u16 = 1;
/// XLF_CAN_BE_LOADED_ABOVE_4G there: the initrd, too, may be anywhere in memory.
const ABOVE_4G: u16 = 2;
/// Boot protocol 2.12, Linux 3.8: the first with xloadflags.
const WITH_XLOADFLAGS: u16 = 0x20c;
/// Boot protocol 2.10, Linux 2.6.31: the first that says where the kernel wants to be and how much memory it needs.
const WITH_INIT_SIZE: u16 = 0x20a;

pub(super) fn is_bzimage(image: &Image<'_>) -> Result<bool, BootError> {
    let mut magic = [0; 4];
    if image.check(MAGIC, 4).is_err() {
        return Ok(false);
    }
    image.read(MAGIC, &mut magic)?;
    Ok(&magic == b"HdrS")
}

/// Loads the protected-mode part and gives the setup header, completed but for what depends on the machine.
///
/// A kernel with a 64-bit entry is entered there. Any other has a 32-bit one, at its start; that is so for 32-bit
/// kernels of any age, and for 64-bit ones from before the flag that tells.
pub(super) fn load(ram: &GuestRam, map: &MemoryMap, image: &Image<'_>) -> Result<LinuxKernel, BootError> {
    let header = read_header(image)?;
    let sectors = match header.setup_sects {
        0 => 4,
        n => u64::from(n),
    };
    let offset = (sectors + 1) * 512;
    let promised = u64::from(header.syssize) * 16;
    // Signatures may follow. The size is in paragraphs, so the last one may be short of up to 15 bytes.
    image.check(offset, promised.saturating_sub(15))?;
    let len = image.len().saturating_sub(offset).min(promised);
    if len <= 0x200 {
        return Err(image.damaged("it holds no code"));
    }
    let need = len.max(u64::from(header.init_size));
    let gpa = place(&header, need, map.low_end()).ok_or_else(|| BootError::KernelTooLarge {
        name: image.name().to_owned(),
        end: EXTENDED.saturating_add(need),
        room: map.low_end(),
    })?;
    image.copy_to(ram, gpa, offset, len)?;
    let header = setup_header { code32_start: gpa as u32, ..header };
    let flags = if header.version >= WITH_XLOADFLAGS { header.xloadflags } else { 0 };
    let long = flags & KERNEL_64 != 0;
    // A kernel with that flag names a limit only for loaders that do not know it; earlier kernels mean it.
    let initrd =
        InitrdReach { limit: u64::from(header.initrd_addr_max) + 1, anywhere: long && flags & ABOVE_4G != 0 };
    Ok(LinuxKernel {
        header,
        entry: if long { Entry::Long(gpa + 0x200) } else { Entry::Protected(gpa) },
        end: gpa + need,
        preferred_end: header.pref_address.saturating_add(need).min(HIGH_RAM),
        handover: Handover::LOW,
        initrd,
        cmdline_max: u64::from(header.cmdline_size),
    })
}

fn read_header(image: &Image<'_>) -> Result<setup_header, BootError> {
    let mut header = setup_header::default();
    // The byte before the magic is the second of a short jump over the header: so it tells the header's end.
    let mut jump = [0];
    image.read(MAGIC - 1, &mut jump)?;
    let room = header.as_slice().len();
    let len = (usize::from(jump[0]) + (MAGIC - HEADER) as usize).min(room);
    image.read(HEADER, &mut header.as_mut_slice()[..len])?;
    if header.boot_flag != 0xaa55 {
        return Err(image.damaged("its boot sector has no signature"));
    }
    if header.version < WITH_INIT_SIZE {
        return Err(image.unsupported("its boot protocol is older than 2.10; give Linux 2.6.31 or later"));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(image.unsupported("it is a zImage; give a bzImage"));
    }
    Ok(header)
}

/// Where `need` bytes go: where the kernel prefers, else as low as its alignment lets it.
fn place(header: &setup_header, need: u64, low_end: u64) -> Option<u64> {
    let fits = |gpa: &u64| *gpa >= EXTENDED && gpa.checked_add(need).is_some_and(|end| end <= low_end);
    let preferred = Some(header.pref_address).filter(fits);
    preferred.or_else(|| {
        let alignment = u64::from(header.kernel_alignment);
        let movable = header.relocatable_kernel != 0 && alignment.is_power_of_two();
        movable.then(|| EXTENDED.next_multiple_of(alignment)).filter(fits)
    })
}
