//! The translator: guest code in, host code and metadata out.
//!
//! It is a function of the guest's bytes, the [mode](crate::block_mode::BlockMode) of the vCPU, the features of guest
//! and host ([`Classifier`]) and the addresses of the vCPU's state. It knows neither the code store nor the dispatcher,
//! and where a block names something of theirs, [`output`] has a relocation.
//!
//! 1. `plan/` looks at the block as a whole before any code is emitted: how each instruction is translated, which
//!    values registers have, which accesses share a check, and how the guest's flags can be had where checks change the
//!    host's.
//! 2. `emit/` goes through the instructions and emits host code.
//! 3. `encode.rs` takes instructions apart and puts them together around another memory operand.

pub(crate) mod emit;
pub(crate) mod encode;
pub(crate) mod output;
pub(crate) mod plan;
pub(crate) mod source;

use iced_x86::{Decoder, DecoderError, InstructionInfoFactory};
use x86_core::{DECODER_OPTIONS, lines};

use self::emit::{Assembler, Emitter};
use self::output::{Outcome, Output};
use self::plan::Plan;
use self::plan::classify::Classifier;
use self::source::{Options, PAGE, Source};
use crate::jit_context::addresses::Addresses;

/// Most instructions in a block.
pub(crate) const MAX_INSTRUCTIONS: usize = 40;

/// Translates; kept between blocks for its allocations.
pub(crate) struct Translator {
    asm: Assembler,
    plan: Plan,
    info: InstructionInfoFactory,
    pub output: Output,
    options: Options,
    /// The inline TLB entries given out last, by privilege and by whether they are for stores.
    inline_tlb: [[usize; 2]; 3],
}

impl Translator {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            asm: Assembler::new_with_capacity(0, 4096, 16, 0, 64, 64, 64),
            plan: Plan::default(),
            info: InstructionInfoFactory::new(),
            output: Output::default(),
            options,
            inline_tlb: Default::default(),
        }
    }

    /// Translates the block at the start of `source`, of at most `limit` instructions, into [`Self::code`] and
    /// [`Self::output`].
    pub(crate) fn translate(
        &mut self,
        source: &Source<'_>,
        classifier: &Classifier,
        addresses: &Addresses,
        limit: usize,
    ) -> Outcome {
        self.plan.clear();
        self.output.clear();
        let rip = source.page.wrapping_add(u64::from(source.offset));
        let bytes = source.bytes.get(source.offset.into()..).unwrap_or_default();
        let mut decoder = Decoder::with_ip(64, bytes, rip, DECODER_OPTIONS);
        let mut wants_vectors = false;
        // An instruction that crosses into another page is alone.
        let limit = if source.bytes.len() > PAGE { 1 } else { limit };
        while (self.plan.steps.len() < limit || self.plan.holds_interrupts()) && decoder.can_decode() {
            let ins = decoder.decode();
            if ins.is_invalid() {
                break;
            }
            let at = decoder.position() - ins.len();
            let bytes = &bytes[at..at + ins.len()];
            let goes_on = self.plan.add(ins, bytes, source.page, classifier, &mut self.info);
            let last = self.plan.steps.last();
            if last.is_some_and(|s| s.vector) && !source.mode.vectors() {
                self.plan.pop();
                wants_vectors = true;
                break;
            }
            if !goes_on {
                break;
            }
        }
        let Some(last) = self.plan.steps.last() else {
            return match decoder.last_error() {
                _ if wants_vectors => Outcome::WantsVectors,
                DecoderError::NoMoreBytes => Outcome::Crosses,
                _ => Outcome::NoInstruction,
            };
        };
        self.output.instructions = self.plan.steps.len() as u32;
        self.output.length = last.next_offset() - source.offset;
        self.plan.finish(source.ungrouped, source.known.is_some());
        self.output.lines = lines(source.offset.into(), self.output.length.into());
        Emitter::new(
            &mut self.asm,
            &self.plan,
            addresses,
            source,
            &mut self.output,
            self.options,
            &mut self.inline_tlb,
        )
        .block();
        Outcome::Done
    }

    /// The code of the last translation, in which the fields that relocations name are still to be filled. `None` if a
    /// distance in it does not fit; code of a single instruction has none that is so long.
    pub(crate) fn code(&mut self) -> Option<Vec<u8>> {
        self.asm.take().ok()
    }
}
