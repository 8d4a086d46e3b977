//! Memory below 2 GiB for what translated code addresses by constants: the vCPU's state, the translator's own state of
//! it, and the jump tables.
//!
//! An absolute address of 32 bits needs neither a base register, of which the guest leaves none, nor a segment base,
//! which would cost a system call or FSGSBASE on each thread and a cycle on each access.
#![allow(unsafe_code)] // maps memory and hands out pointers into it

use std::mem::size_of;
use std::ptr::NonNull;

use accel_api::AccelError;
use x86_core::Cpu;
use x86_core::soft::CpuHome;

use crate::translate::KEPT;

/// Jump tables: one for each kind of code that can be jumped to without a change of mode.
pub(crate) const CLASSES: usize = 6;
/// Entries of a jump table: by the low 16 bits of the address.
pub(crate) const JUMPS: usize = 1 << 16;
/// Entries behind those, for what another one has taken the place of: by [`crate::jumps::elsewhere`].
pub(crate) const DISPLACED: usize = 1 << 14;
/// Places for addends that accesses behind the first of a group use.
pub(crate) const SLOTS: usize = 16;

/// Blocks by the linear address of their first byte.
#[repr(C)]
pub(crate) struct JumpTable {
    /// The address, negated: adding an address to it gives zero without touching a flag if they are equal.
    pub negated: [u64; JUMPS + DISPLACED],
    /// Where its translation is entered, with the address in R10.
    pub code: [u64; JUMPS + DISPLACED],
}

/// State that translated code and the functions it calls share.
#[repr(C, align(64))]
#[derive(Default)]
pub(crate) struct Context {
    /// RSP of the host while translated code runs.
    pub host_rsp: u64,
    /// Where to go on after a call.
    pub target: u64,
    /// Not 0: the guest's vector registers are to be loaded before going on.
    pub vectors: u64,
    /// RAX, while AX holds the flags.
    pub rax: u64,
    /// Linear address of an access that the soft TLB did not know.
    pub ea: u64,
    /// The engine of this vCPU, while translated code runs.
    pub engine: u64,
    /// Host instruction that faulted.
    pub fault_pc: u64,
    /// Instructions executed, where they are counted.
    pub instructions: u64,
    /// A value on its way between the two halves of an instruction.
    pub temporary: u64,
    /// Not 0: an interrupt waits for IF, or an NMI.
    pub waiting: u64,
    /// Site of an instruction that is being executed by shared code.
    pub site: u64,
    /// Not 0: user code has used vector registers, so that it is given them in the host's.
    pub user_vectors: u64,
    /// Not 0: user code was executed last, as far as Rust has seen.
    pub was_user: u64,
    /// Times that anchors may be filled before Rust is asked.
    pub refills: i64,
    /// Arithmetic flags that checks would have changed, as [`x86_core::alu::ArithFlags`].
    pub flags: u64,
    /// Operands of the instruction that has set them, which no register has any more.
    pub kept: [u64; KEPT],
    /// Addends of groups of accesses.
    pub slots: [u64; SLOTS],
}

#[repr(C)]
pub(crate) struct Home {
    pub cpu: std::mem::MaybeUninit<Cpu>,
    pub context: Context,
    pub jumps: [JumpTable; CLASSES],
}

/// Bytes to map: whole pages.
const LEN: usize = size_of::<Home>().next_multiple_of(4096);

/// Maps memory below 2 GiB. Pages cost nothing until they are touched.
pub(crate) fn map_low(len: usize) -> std::io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_32BIT;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let at =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}

pub(crate) fn unmap(at: NonNull<u8>, len: usize) {
    // SAFETY: the caller maps it by `map_low` and does not use it any more.
    unsafe { libc::munmap(at.as_ptr().cast(), len) };
}

/// Whether there is room for a home.
pub(crate) fn check() -> Result<(), AccelError> {
    unmap(map_home()?, LEN);
    Ok(())
}

fn map_home() -> Result<NonNull<u8>, AccelError> {
    map_low(LEN)
        .map_err(|e| AccelError::Host { what: "map memory below 2 GiB for translated code", source: e })
}

/// Moves a vCPU to its home.
pub(crate) fn place(cpu: Box<Cpu>) -> Result<CpuHome, AccelError> {
    let at = map_home()?;
    unsafe fn release(cpu: NonNull<Cpu>) {
        unmap(cpu.cast(), LEN);
    }
    let _ = at.as_ptr().expose_provenance();
    // SAFETY: fresh memory that is large enough and ours until it is released; pages are aligned enough.
    Ok(unsafe { CpuHome::at(at.cast(), cpu, release) })
}

/// The home of a vCPU that [`place`] moved.
pub(crate) fn of(cpu: &mut Cpu) -> *mut Home {
    // By its address: the pointer reaches further than the reference.
    std::ptr::with_exposed_provenance_mut(std::ptr::from_mut(cpu).addr())
}
