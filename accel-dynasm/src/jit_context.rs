//! Memory of a vCPU that its host code addresses by constants: the vCPU's state, the JIT's own state, and the jump
//! caches.
//!
//! It lies below 2 GiB. An absolute address of 32 bits needs neither a base register, of which the guest leaves none,
//! nor a segment base, which would cost a system call or FSGSBASE on each thread and a cycle on each access.

pub(crate) mod addresses;
pub(crate) mod memory;

use std::ffi::c_void;
use std::ptr::NonNull;

use accel_api::x86::Ymm;
use x86_core::Cpu;

/// Classes of code: privilege, and whether vector registers are in the host's. Code can jump only within its class, and
/// each has a jump cache.
pub(crate) const CLASSES: usize = 6;
/// Entries of a jump cache, selected by the low 16 bits of the address.
pub(crate) const JUMP_ENTRIES: usize = 1 << 16;
/// Entries after those, for blocks that lost theirs to another address: a victim cache, selected by [`victim_index`].
pub(crate) const VICTIMS: usize = 1 << 14;
/// Operands of lazy flags that can be kept in memory at a time.
pub(crate) const KEPT: usize = 6;
/// Groups of accesses in a block.
pub(crate) const GROUPS: usize = 16;

/// An odd factor: it mixes the bits above those that select an entry.
pub(crate) const VICTIM_MIX: u32 = 0x2545;

/// The entry for `address` in the victim cache.
pub(crate) fn victim_index(address: u64) -> u32 {
    let mixed = ((address >> 16) as u32).wrapping_mul(VICTIM_MIX).wrapping_add(address as u32);
    JUMP_ENTRIES as u32 + mixed % VICTIMS as u32
}

/// Blocks by the linear address of their first byte.
#[repr(C)]
pub(crate) struct JumpTable {
    /// The address, negated: adding an address to it gives zero without touching a flag if they are equal.
    pub negated: [u64; JUMP_ENTRIES + VICTIMS],
    /// Where the block is entered, with the address in R10.
    pub code: [u64; JUMP_ENTRIES + VICTIMS],
}

/// State that host code and the functions it calls share.
#[repr(C, align(64))]
#[derive(Default)]
pub(crate) struct JitContext {
    /// RSP of the host while host code of blocks runs.
    pub host_rsp: u64,
    /// Where to go on after a call.
    pub target: u64,
    /// Not 0: the guest's vector registers are to be loaded before going on.
    pub vectors: u64,
    /// RAX, while AX holds the flags.
    pub rax: u64,
    /// Linear address of an access that missed the soft TLB.
    pub ea: u64,
    /// The pointer that stubs pass to the functions they call; valid while host code runs.
    pub dispatcher: Option<NonNull<c_void>>,
    /// Host instruction that raised an exception, and the signal.
    pub fault_pc: u64,
    pub fault_signal: u64,
    /// Instructions executed, where they are counted.
    pub instructions: u64,
    /// A value on its way between the two halves of an instruction.
    pub temporary: u64,
    /// Not 0: an interrupt waits for IF, or an NMI waits.
    pub waiting: u64,
    /// Site of an instruction that shared code executes.
    pub site: u64,
    /// Not 0: user code has used vector registers, so that it finds them in the host's when it is entered again.
    pub user_vectors: u64,
    /// Not 0: user code was executed last, as far as Rust has seen.
    pub was_user: u64,
    /// Times that inline TLB entries may be filled before Rust is asked.
    pub refills: i64,
    /// Arithmetic flags that checks would have changed, as [`x86_core::alu::ArithFlags`].
    pub flags: u64,
    /// Operands of the instruction that has set the flags, where no register has them any more.
    pub kept: [u64; KEPT],
    /// Addends of groups of accesses.
    pub groups: [u64; GROUPS],
    /// The host's vector registers when an instruction raised an exception. They are the guest's if its block says so.
    pub fault_vectors: [Ymm; 16],
}

/// All of it.
#[repr(C)]
pub(crate) struct VcpuMemory {
    pub cpu: std::mem::MaybeUninit<Cpu>,
    pub context: JitContext,
    pub jumps: [JumpTable; CLASSES],
}
