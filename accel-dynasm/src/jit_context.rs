//! Memory below 2 GiB for what translated code addresses by constants: the vCPU's state, the translator's own state of
//! it, and the jump tables.
//!
//! An absolute address of 32 bits needs neither a base register, of which the guest leaves none, nor a segment base,
//! which would cost a system call or FSGSBASE on each thread and a cycle on each access.

pub(crate) mod addresses;
pub(crate) mod memory;

use x86_core::Cpu;

/// Jump tables: one for each kind of code that can be jumped to without a change of mode.
pub(crate) const CLASSES: usize = 6;
/// Entries of a jump table: by the low 16 bits of the address.
pub(crate) const JUMP_ENTRIES: usize = 1 << 16;
/// Entries behind those, for what another one has taken the place of: by [`crate::store::jump_cache::elsewhere`].
pub(crate) const VICTIMS: usize = 1 << 14;
/// Operands of lazy flags that can be kept in memory at a time.
pub(crate) const KEPT: usize = 6;
/// Places for addends that accesses behind the first of a group use.
pub(crate) const SLOTS: usize = 16;

/// Blocks by the linear address of their first byte.
#[repr(C)]
pub(crate) struct JumpTable {
    /// The address, negated: adding an address to it gives zero without touching a flag if they are equal.
    pub negated: [u64; JUMP_ENTRIES + VICTIMS],
    /// Where its translation is entered, with the address in R10.
    pub code: [u64; JUMP_ENTRIES + VICTIMS],
}

/// State that translated code and the functions it calls share.
#[repr(C, align(64))]
#[derive(Default)]
pub(crate) struct JitContext {
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
    /// Host instruction that faulted, and the signal.
    pub fault_pc: u64,
    pub fault_signal: u64,
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
pub(crate) struct VcpuMemory {
    pub cpu: std::mem::MaybeUninit<Cpu>,
    pub context: JitContext,
    pub jumps: [JumpTable; CLASSES],
}
