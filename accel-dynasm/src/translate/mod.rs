//! From guest code to host code.
//!
//! 1. `admit.rs` decides what the host executes in the guest's place, `plan.rs` looks at the block as a whole, `values.rs` at
//!    what registers hold in it, `flags.rs` and `flag_plan.rs` at what becomes of the flags.
//! 2. `emit.rs` goes through the instructions, `scratch.rs` knows what R10 and R11 hold, `access.rs` leads memory operands to the host's memory, `branch.rs` leaves the
//!    block, `cold.rs` has what is rare.
//! 3. `system.rs` has what kernels do to the vCPU's other state, `transfer.rs` changes of privilege, `string.rs` MOVS and STOS.
//! 4. `lazy.rs` has the flags as operations that can be done again, `flag_code.rs` does them where the block needs them.
//! 5. `encode.rs` takes machine code apart and puts it together.

mod access;
pub(crate) mod admit;
mod branch;
mod cold;
mod emit;
mod encode;
mod flag_code;
mod flag_plan;
mod flags;
mod lazy;
mod plan;
mod scratch;
mod string;
mod system;
mod transfer;
mod values;

use dynasmrt::{AssemblyOffset, DynamicLabel, VecAssembler, x64::X64Relocation};
use iced_x86::{Decoder, DecoderError, Instruction, InstructionInfoFactory};
use x86_core::{DECODER_OPTIONS, MAX_INSTRUCTION, lines};

use self::admit::{Action, Admission};
use self::emit::Emitter;
pub(crate) use self::lazy::LazyFlags;
use self::plan::Plan;
use crate::block_mode::BlockMode;
use crate::jit_context::addresses::Addresses;

const PAGE: usize = accel_api::PAGE_SIZE as usize;

/// Most instructions in a block.
pub(crate) const MAX_INSTRUCTIONS: usize = 40;

pub(crate) type Assembler = VecAssembler<X64Relocation>;

/// The guest code to translate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// Of the whole page; and some of the next one's, for an instruction that crosses into it.
    pub bytes: &'a [u8],
    /// Linear address of the page.
    pub page: u64,
    /// Of the first instruction in the page.
    pub offset: u16,
    pub mode: BlockMode,
    /// Each memory access is checked on its own.
    pub separate: bool,
    /// Offsets in the page of instructions that are to have no anchors.
    pub roaming: &'a [u16],
    /// How the flags can be had at its start; else they are in the host's.
    pub known: Option<LazyFlags>,
}

impl<'a> Source<'a> {
    /// The bytes of the page itself.
    fn first_page(&self) -> &'a [u8] {
        &self.bytes[..self.bytes.len().min(PAGE)]
    }

    /// Whether there is an instruction at `offset` of the page that crosses into the next.
    fn crosses(&self, offset: u64) -> bool {
        let near_end = PAGE - MAX_INSTRUCTION..PAGE;
        let Some(at) = usize::try_from(offset).ok().filter(|at| near_end.contains(at)) else { return false };
        let mut decoder = Decoder::with_ip(64, &self.first_page()[at..], offset, DECODER_OPTIONS);
        decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
    }
}

/// Where translated code hands over to Rust in the middle of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub kind: SiteKind,
    /// Of the instruction in its page.
    pub offset: u16,
    /// Instructions behind it that have been counted already.
    pub rest: u8,
    /// Where the access is tried again, and where the next instruction begins, if Rust may go back there; from the start of the
    /// block.
    pub retry: u32,
    pub next: u32,
    /// How the guest's flags can be had, as index in [`Output::recipes`], and later as number among those of all blocks; or
    /// [`NOTHING`](crate::dispatch::NOTHING), where they are in the host's.
    pub flags: u32,
}

/// See [`Site`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SiteKind {
    /// An access that can be executed by x86-core.
    Access { size: u16, write: bool },
    /// Anchors have been filled anew many times, the last time here.
    Refill,
    /// Accesses that can be left to the separate form of the block.
    Group { size: u16, write: bool },
    /// An instruction, by its index in [`Output::generics`].
    Generic(u32),
    /// The same, but the code has already overwritten the instruction's results.
    Begun(u32),
    /// Goes to the address in RIP, having moved RSP by so much.
    Indirect { moved: i32 },
    /// Goes to the address in RIP, behind the block's last instruction.
    Next,
    /// Requests have come.
    Poll,
}

/// A jump that can lead to a block once it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectJump {
    /// Of the 32-bit distance in the block.
    pub field: u32,
    /// Where it leads at first: to the code that asks. From the start of the block.
    pub ask: u32,
    /// To another page.
    pub far: bool,
    /// The guest's flags are in the host's.
    pub host_flags: bool,
    /// How they can be had, as in [`Site`], if they can.
    pub known: u32,
    /// Code that has them in the host's and jumps on, and the distance of that jump; from the start of the block.
    pub load: (u32, u32),
}

/// A host instruction that may fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MayFault {
    /// From the start of the block.
    pub at: u32,
    /// Of the guest's instruction in its page.
    pub offset: u16,
    /// Instructions behind it that have been counted already.
    pub rest: u8,
    /// As in [`Site`].
    pub flags: u32,
}

/// What a translation consists of besides code. Sites and links have the numbers that code hands over.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub sites: Vec<Site>,
    pub links: Vec<DirectJump>,
    pub generics: Vec<Instruction>,
    pub recipes: Vec<LazyFlags>,
    pub faults: Vec<MayFault>,
    /// Where it is entered from its page, and from elsewhere with the address in R10.
    pub entry: u32,
    pub far_entry: u32,
    /// Code that hands itself over to the dispatcher.
    pub retired: u32,
    pub instructions: u32,
    /// Bytes of guest code.
    pub length: u16,
    /// Lines of the page that it depends on.
    pub lines: u64,
    /// It makes a difference how the flags at its start can be had, and that they are right.
    pub flags_matter: bool,
    /// Where the code of each instruction begins.
    pub starts: Vec<(u32, u16)>,
}

impl Output {
    fn clear(&mut self) {
        self.sites.clear();
        self.links.clear();
        self.generics.clear();
        self.recipes.clear();
        self.faults.clear();
        self.starts.clear();
        self.flags_matter = false;
    }
}

/// What a translation came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Done,
    /// The first instruction crosses into another page, which the source does not have.
    Crosses,
    /// There is none.
    NoInstruction,
    /// The first instruction uses vector registers, and they are not in the host's.
    WantsVectors,
}

/// Numbers that go on from block to block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bases {
    pub site: u32,
    pub link: u32,
    pub generic: u32,
    /// Offset in the code cache at which the block is going to lie.
    pub code: usize,
}

/// Translates; kept between blocks for its allocations.
pub(crate) struct Translator {
    asm: Assembler,
    plan: Plan,
    info: InstructionInfoFactory,
    pub output: Output,
    pub bmi2: bool,
    /// Instructions are counted.
    pub counting: bool,
    anchors: [[usize; 2]; 3],
}

impl Translator {
    pub(crate) fn new(bmi2: bool, counting: bool) -> Self {
        Self {
            asm: Assembler::new_with_capacity(0, 4096, 16, 0, 64, 64, 64),
            plan: Plan::default(),
            info: InstructionInfoFactory::new(),
            output: Output::default(),
            bmi2,
            counting,
            anchors: Default::default(),
        }
    }

    /// Translates the block at the start of `source` into [`Self::code`] and [`Self::output`].
    pub(crate) fn translate(
        &mut self,
        source: &Source<'_>,
        admission: &Admission,
        addresses: &Addresses,
        bases: Bases,
        limit: usize,
    ) -> Outcome {
        self.plan.clear();
        self.output.clear();
        let rip = source.page.wrapping_add(u64::from(source.offset));
        let bytes = source.bytes.get(source.offset.into()..).unwrap_or_default();
        let mut decoder = Decoder::with_ip(64, bytes, rip, DECODER_OPTIONS);
        let mut switch = false;
        // An instruction that crosses into another page is alone.
        let limit = if source.bytes.len() > PAGE { 1 } else { limit };
        while (self.plan.steps.len() < limit || self.plan.holds_interrupts()) && decoder.can_decode() {
            let ins = decoder.decode();
            if ins.is_invalid() {
                break;
            }
            let at = decoder.position() - ins.len();
            let bytes = &bytes[at..at + ins.len()];
            let goes_on = self.plan.add(ins, bytes, source.page, admission, &mut self.info);
            let last = self.plan.steps.last();
            if last.is_some_and(|s| s.vector) && !source.mode.vectors() {
                self.plan.pop();
                switch = true;
                break;
            }
            if !goes_on {
                break;
            }
        }
        let Some(last) = self.plan.steps.last() else {
            return match decoder.last_error() {
                _ if switch => Outcome::WantsVectors,
                DecoderError::NoMoreBytes => Outcome::Crosses,
                _ => Outcome::NoInstruction,
            };
        };
        self.output.instructions = self.plan.steps.len() as u32;
        self.output.length = last.next_offset() - source.offset;
        self.plan.finish(source.separate, source.known.is_some());
        self.output.lines = lines(source.offset.into(), self.output.length.into());
        Emitter::new(
            &mut self.asm,
            &self.plan,
            addresses,
            source,
            bases,
            &mut self.output,
            self.bmi2,
            self.counting,
            &mut self.anchors,
        )
        .block();
        Outcome::Done
    }

    /// The code of the last translation. `None` if it could not be assembled, which is a mistake of ours.
    pub(crate) fn code(&mut self) -> Option<Vec<u8>> {
        self.asm.take().ok()
    }
}

fn at(offset: AssemblyOffset) -> u32 {
    offset.0 as u32
}

/// What lies behind the block's last instruction.
#[derive(Clone, Copy, Debug)]
enum Cold {
    /// An access the soft TLB does not know. `address`: R10 and R11 are the check's; else R10 is to be loaded with it.
    Miss { label: DynamicLabel, site: u32, address: Option<i64>, tag: i32 },
    /// An access that its anchor does not know.
    Refill {
        label: DynamicLabel,
        /// Behind the check.
        back: DynamicLabel,
        site: u32,
        full: u32,
        /// Where its tag and addend are.
        anchor: (i32, i32),
        access: plan::Access,
    },
    /// A direct jump that is not linked.
    Ask { label: DynamicLabel, link: usize, delta: i64, flags: Option<LazyFlags> },
    /// A jump to another page whose place can change.
    Far { label: DynamicLabel, delta: i64, site: u32, flags: Option<LazyFlags> },
    /// No entry in the jump table.
    Unknown { label: DynamicLabel, site: u32 },
    /// An instruction that x86-core has to execute after all.
    Generic { label: DynamicLabel, site: u32 },
    /// Requests have come. `dirty`: which of R10 and R11 memory does not have.
    Poll { label: DynamicLabel, site: u32, dirty: [bool; 2] },
}

impl Action {
    fn is_branch(self) -> bool {
        self.ends_block() || self == Self::Jcc
    }
}
