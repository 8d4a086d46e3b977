//! The process's LDT.

use std::io;

use crate::oracle::segments::{CODE32, Descriptor, GDT, LDT};

/// Linux's `struct user_desc`.
#[repr(C)]
#[derive(Default)]
struct UserDescriptor {
    entry: u32,
    base: u32,
    limit: u32,
    /// From bit 0: 32 bits, contents (2 bits), no write or read, limit in pages, not present, AVL.
    flags: u32,
}

/// Installs [`LDT`].
pub(super) fn install() -> io::Result<()> {
    (0..).zip(LDT).try_for_each(|(entry, descriptor)| write(&describe(entry, descriptor)))
}

/// Empties it.
pub(super) fn remove() -> io::Result<()> {
    // Nothing but these two flags is the kernel's way to say "empty".
    const EMPTY: u32 = 1 << 3 | 1 << 5;
    (0..LDT.len() as u32)
        .try_for_each(|entry| write(&UserDescriptor { entry, flags: EMPTY, ..UserDescriptor::default() }))
}

fn describe(entry: u32, Descriptor { base, limit, attributes }: Descriptor) -> UserDescriptor {
    let bit = |n: u32| u32::from(attributes >> n & 1);
    let contents = u32::from(attributes >> 2 & 3);
    let flags = bit(14) | contents << 1 | (bit(1) ^ 1) << 3 | bit(15) << 4 | (bit(7) ^ 1) << 5 | bit(12) << 6;
    UserDescriptor { entry, base, limit, flags }
}

fn write(descriptor: &UserDescriptor) -> io::Result<()> {
    const WRITE: i32 = 0x11;
    let (at, size): (*const UserDescriptor, _) = (descriptor, size_of::<UserDescriptor>());
    // SAFETY: modify_ldt reads the descriptor; no code of ours uses the LDT but that under test.
    let result = unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, at, size) };
    // The kernel gives the error as a 32-bit number, which libc does not take for one.
    match result as i32 {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Whether the kernel has a 32-bit code segment for programs where Linux has it.
pub(super) fn has_code32() -> bool {
    let expected = GDT[usize::from(CODE32 >> 3)].attributes;
    let (rights, found): (u32, u8);
    // SAFETY: LAR asks for a descriptor's access rights.
    unsafe {
        std::arch::asm!(
            "lar {rights:e}, {selector:e}", "setz {found}",
            rights = lateout(reg) rights, selector = in(reg) u32::from(CODE32), found = lateout(reg_byte) found,
            options(nomem, nostack)
        );
    }
    // Bits of the limit lie between the attributes; the accessed flag is set by the first use.
    found != 0 && (rights >> 8) as u16 & 0xf0ff | 1 == expected
}
