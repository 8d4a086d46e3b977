//! The input of a translation.

use iced_x86::{Decoder, DecoderError};
use x86_core::{DECODER_OPTIONS, MAX_INSTRUCTION};

use super::plan::lazy_flags::LazyFlags;
use crate::block_mode::BlockMode;

pub(super) const PAGE: usize = accel_api::PAGE_SIZE as usize;

/// Guest code to translate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// The page, true from `offset` and in its last [`MAX_INSTRUCTION`] bytes; and the start of the next one, for an instruction
    /// that crosses into it.
    pub bytes: &'a [u8],
    /// Linear address of the page.
    pub page: u64,
    /// Offset of the first instruction in the page.
    pub offset: u16,
    pub mode: BlockMode,
    /// Each memory access is checked on its own.
    pub ungrouped: bool,
    /// Offsets in the page of instructions that are to have no inline TLB entry.
    pub no_inline_tlb: &'a [u16],
    /// The recipe for the flags at the start; without one they are in the host's.
    pub known: Option<LazyFlags>,
}

impl<'a> Source<'a> {
    /// The bytes of the page itself.
    fn first_page(&self) -> &'a [u8] {
        &self.bytes[..self.bytes.len().min(PAGE)]
    }

    /// Whether there is an instruction at `offset` of the page that crosses into the next.
    pub(super) fn crosses(&self, offset: u64) -> bool {
        let near_end = PAGE - MAX_INSTRUCTION..PAGE;
        let Some(at) = usize::try_from(offset).ok().filter(|at| near_end.contains(at)) else { return false };
        let mut decoder = Decoder::with_ip(64, &self.first_page()[at..], offset, DECODER_OPTIONS);
        decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
    }
}

/// Properties of all translations of a vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// The host has RORX.
    pub bmi2: bool,
    /// Instructions are counted.
    pub counting: bool,
}
