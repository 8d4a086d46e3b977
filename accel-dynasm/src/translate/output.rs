//! The parts of a translation: host code, and all that the other parts of the JIT have to know of it.
//!
//! Code and metadata count from the start of the block: sites, jumps, helpers and recipes by index in [`Output`],
//! places in the code by distance. [`Relocation`] says where the code names something outside; the code store fills in
//! its own numbers and addresses.

use iced_x86::Instruction;

use super::plan::lazy_flags::LazyFlags;
use crate::jit_context::CLASSES;

/// No recipe, jump or block; as the argument of [`Stub::Lookup`], nothing to record.
pub(crate) const NOTHING: u32 = u32::MAX;
/// Of the argument of [`Stub::Lookup`]: with this bit it is a site that found nothing in the jump cache, else a jump.
pub(crate) const INDIRECT: u32 = 1 << 31;
/// The argument of [`Stub::Lookup`] in a block that was invalidated, to which the jump cache led.
pub(crate) const RETIRED: u32 = u32::MAX - 1;

/// Where host code leaves for Rust in the middle of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub kind: SiteKind,
    /// Offset of the guest instruction in its page.
    pub offset: u16,
    /// Instructions after it that have been counted already.
    pub rest: u8,
    /// Where the access is tried again, and where the next instruction begins, if Rust may go back there; distances
    /// from the start of the block.
    pub retry: u32,
    pub next: u32,
    /// The recipe for the guest's flags; or [`NOTHING`], where they are in the host's.
    pub flags: u32,
}

/// See [`Site`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SiteKind {
    /// An access that x86-core can execute.
    Access { size: u16, write: bool },
    /// Inline TLB entries have been filled many times, the last time here.
    Refill,
    /// Accesses that the ungrouped form of the block can make.
    Group { size: u16, write: bool },
    /// An instruction that x86-core executes, by its index in [`Output::helpers`].
    Helper(u32),
    /// The same, but the code has already overwritten the instruction's results.
    Begun(u32),
    /// Goes to the address in RIP, having moved RSP by so much.
    Indirect { moved: i32 },
    /// Goes to the address in RIP, after the block's last instruction.
    Next,
    /// Requests have come.
    Poll,
}

/// A direct jump, which can be chained to its target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectJump {
    /// Where its 32-bit distance is.
    pub field: u32,
    /// Where it leads while it is not chained: to the code that asks for its target.
    pub ask: u32,
    /// To another page.
    pub far: bool,
    /// The guest's flags are in the host's.
    pub host_flags: bool,
    /// The recipe for them, if there is one, else [`NOTHING`].
    pub known: u32,
    /// Code that puts them into the host's and jumps on, and where the distance of that jump is.
    pub load: (u32, u32),
}

/// A host instruction that may raise an exception in the place of the guest's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MayFault {
    /// Where it is.
    pub at: u32,
    /// Offset of the guest instruction in its page.
    pub offset: u16,
    /// Instructions after it that have been counted already.
    pub rest: u8,
    /// As in [`Site`].
    pub flags: u32,
}

/// Shared code, which the runtime emits once for each vCPU. Blocks jump to it with an argument in R11.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stub {
    /// Finds the block at RIP.
    Lookup,
    /// The soft TLB does not have the address of an access.
    TlbMiss,
    /// Executes an instruction by its function in x86-core.
    Helper,
    /// Something is requested.
    Poll,
    /// Changes of privilege.
    Syscall,
    Sysret,
    Iret,
    /// IRET of code that SMAP keeps from user data.
    IretSmap,
    /// Looks for the address in R10 in the second part of the jump cache.
    JumpCacheVictims,
}

/// Offsets of the stubs in the code cache.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct StubTable {
    /// Each without and with the guest's vector registers in the host's.
    pub lookup: [usize; 2],
    pub tlb_miss: [usize; 2],
    pub helper: [usize; 2],
    pub poll: [usize; 2],
    pub syscall: [usize; 2],
    pub sysret: [usize; 2],
    pub iret: [usize; 2],
    pub iret_smap: [usize; 2],
    /// By class of code.
    pub jump_cache_victims: [usize; CLASSES],
}

/// A 32-bit field of the code that holds something the translator does not know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relocation {
    /// Where the field is.
    pub field: u32,
    pub target: Target,
}

/// See [`Relocation`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// The distance to a stub, for code of this class.
    Stub { stub: Stub, class: usize, vectors: bool },
    /// The number of a site.
    Site(u32),
    /// The number of a site, with [`INDIRECT`].
    IndirectSite(u32),
    /// The number of a direct jump.
    Jump(u32),
}

impl StubTable {
    /// Where a block of `class`, with or without `vectors` in the host's registers, finds `stub`.
    pub(crate) fn offset(&self, stub: Stub, class: usize, vectors: bool) -> usize {
        let both = match stub {
            Stub::Lookup => &self.lookup,
            Stub::TlbMiss => &self.tlb_miss,
            Stub::Helper => &self.helper,
            Stub::Poll => &self.poll,
            Stub::Syscall => &self.syscall,
            Stub::Sysret => &self.sysret,
            Stub::Iret => &self.iret,
            Stub::IretSmap => &self.iret_smap,
            Stub::JumpCacheVictims => return self.jump_cache_victims[class],
        };
        both[usize::from(vectors)]
    }
}

/// Everything of a translation but the code.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub relocations: Vec<Relocation>,
    pub sites: Vec<Site>,
    pub jumps: Vec<DirectJump>,
    /// Instructions that x86-core executes.
    pub helpers: Vec<Instruction>,
    /// How the guest's flags can be had, where they are not in the host's.
    pub recipes: Vec<LazyFlags>,
    pub faults: Vec<MayFault>,
    /// Where the block is entered from its page, and from elsewhere with the address in R10.
    pub entry: u32,
    pub far_entry: u32,
    /// Code that asks for the block at its own address: the entry jumps here once the block is invalid.
    pub retired: u32,
    /// Guest instructions.
    pub instructions: u32,
    /// Bytes of guest code.
    pub length: u16,
    /// Lines of the page that the block was translated from.
    pub lines: u64,
    /// The block is not the same for all recipes of the flags at its start, or lets them be seen.
    pub flags_matter: bool,
    /// Where the code of each instruction begins, and its offset in the page; `u16::MAX` for code after the last.
    pub starts: Vec<(u32, u16)>,
}

impl Output {
    pub(super) fn clear(&mut self) {
        self.relocations.clear();
        self.sites.clear();
        self.jumps.clear();
        self.helpers.clear();
        self.recipes.clear();
        self.faults.clear();
        self.starts.clear();
        self.flags_matter = false;
    }
}

/// How a translation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Done,
    /// The first instruction crosses into another page, which the source does not have.
    Crosses,
    /// The bytes are no instruction.
    NoInstruction,
    /// The first instruction uses vector registers, and they are not in the host's.
    WantsVectors,
}
