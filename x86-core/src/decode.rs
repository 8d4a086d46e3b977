//! Instruction fetch and decode.
#![allow(unsafe_code)] // code bytes are copied out of guest RAM through the fetch TLB's host pointers

use accel_api::PAGE_SIZE;
use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::cpu::seg;
use crate::mode::Mode;
use crate::{AccessKind, Cpu, Exec, Fault, Translation, host_read};

/// Longest instruction in bytes (Intel SDM vol. 2A, 2.3.11).
pub const MAX_INSTRUCTION: usize = 15;

/// A page that code is fetched from.
#[derive(Clone, Copy, Debug)]
pub struct CodePage {
    /// Host address of its first byte.
    pub host: *const u8,
    /// RAM page index.
    pub index: usize,
    /// Its translation survives a CR3 load.
    pub global: bool,
}

impl Cpu {
    /// Linear address of `rip`.
    pub fn code_address(&self, rip: u64) -> u64 {
        match self.mode {
            Mode::Long => rip,
            _ => self.segs[seg::CS].base.wrapping_add(rip) & 0xffff_ffff,
        }
    }

    /// The RAM page that holds the code at linear address `la`, checked for fetching; `None` where there is no RAM.
    ///
    /// # Errors
    /// #PF, or #GP(0) for a non-canonical address.
    #[inline]
    pub fn code_page_at(&mut self, la: u64) -> Exec<Option<CodePage>> {
        let user = self.cpl == 3;
        if let Some(entry) = self.tlb.fetch(la, user) {
            return Ok(Some(CodePage { host: entry.host, index: entry.page, global: entry.global }));
        }
        self.walk_code(la, user)
    }

    #[cold]
    fn walk_code(&mut self, la: u64, user: bool) -> Exec<Option<CodePage>> {
        if self.mode == Mode::Long && !Self::canonical(la) {
            return Err(Fault::GP0);
        }
        let walked = self.walk(la, AccessKind::Fetch, user, false)?;
        let Some(page) = self.map.page(walked.gpa) else { return Ok(None) };
        let to = Translation {
            host: page.host,
            page: page.index,
            store: false,
            global: walked.global,
            large: walked.large,
        };
        if self.journal.is_none() {
            self.tlb.fill_fetch(la, user, &to);
        }
        Ok(Some(CodePage { host: page.host, index: page.index, global: walked.global }))
    }

    /// Copies code bytes at `rip` into `bytes`, up to the end of the page or of the segment, and on into the next page
    /// only if `all` asks. Returns how many there are; where there is no RAM they read as ones, like an empty bus.
    ///
    /// # Errors
    /// #PF or #GP(0) if the first byte cannot be fetched.
    pub fn fetch(&mut self, rip: u64, bytes: &mut [u8; MAX_INSTRUCTION]) -> Exec<usize> {
        let room = self.code_room(rip)?;
        let la = self.code_address(rip);
        let in_page = (PAGE_SIZE - (la & (PAGE_SIZE - 1))) as usize;
        let first = in_page.min(MAX_INSTRUCTION).min(room);
        self.fetch_piece(la, &mut bytes[..first])?;
        Ok(first)
    }

    /// Fetches and decodes the instruction at `rip`.
    ///
    /// # Errors
    /// #PF or #GP(0) of the fetch, #UD or #GP(0) of the decoding. A fault on the second page of an instruction that
    /// crosses into it is reported only if the instruction really needs that page.
    pub fn decode_at(&mut self, rip: u64) -> Exec<Instruction> {
        let mut bytes = [0; MAX_INSTRUCTION];
        let have = self.fetch(rip, &mut bytes)?;
        let ins = self.decode_bytes(&bytes[..have], rip);
        if !ins.is_invalid() {
            return Ok(ins);
        }
        if have == MAX_INSTRUCTION {
            return Err(invalid(&bytes, self.mode));
        }
        // Cut off by the end of the page or of the segment.
        if !self.truncated(&bytes[..have], rip) {
            return Err(Fault::UD);
        }
        let room = self.code_room(rip)?;
        if room <= have {
            return Err(Fault::GP0);
        }
        let la = self.code_address(rip);
        let more = MAX_INSTRUCTION.min(room);
        let next = la.wrapping_add(have as u64);
        let next = if self.long_mode() { next } else { next & 0xffff_ffff };
        self.fetch_piece(next, &mut bytes[have..more])?;
        let ins = self.decode_bytes(&bytes[..more], rip);
        if ins.is_invalid() {
            return Err(if more < MAX_INSTRUCTION && self.truncated(&bytes[..more], rip) {
                Fault::GP0
            } else {
                invalid(&bytes, self.mode)
            });
        }
        Ok(ins)
    }

    /// Decodes and executes the instruction at RIP, which stays; [`Cpu::next_rip`] is then where to go on. Breakpoints and
    /// single steps are [`Cpu::step`]'s.
    ///
    /// # Errors
    /// The fault of the fetch, the decoding or the instruction.
    pub fn execute_one(&mut self) -> Exec<Instruction> {
        let ins = self.decode_at(self.rip)?;
        self.next_rip = ins.next_ip();
        crate::exec::lookup(ins.code())(self, &ins)?;
        Ok(ins)
    }

    /// Bytes from `rip` to the end of the code segment, at most the longest instruction.
    fn code_room(&self, rip: u64) -> Exec<usize> {
        if self.mode == Mode::Long {
            return Ok(MAX_INSTRUCTION);
        }
        match u64::from(self.segs[seg::CS].limit).checked_sub(rip) {
            Some(rest) => Ok((rest.saturating_add(1)).min(MAX_INSTRUCTION as u64) as usize),
            None => Err(Fault::GP0),
        }
    }

    fn fetch_piece(&mut self, la: u64, out: &mut [u8]) -> Exec {
        match self.code_page_at(la)? {
            Some(page) => {
                let offset = (la & (PAGE_SIZE - 1)) as usize;
                // SAFETY: `out` ends at or before the end of the RAM page, which lives as long as the memory map.
                unsafe { host_read(page.host.add(offset), out) };
            }
            None => out.fill(0xff),
        }
        Ok(())
    }

    fn decode_bytes(&self, bytes: &[u8], rip: u64) -> Instruction {
        Decoder::with_ip(self.mode.bitness(), bytes, rip, DECODER_OPTIONS).decode()
    }

    /// Whether more bytes could make an instruction of these.
    fn truncated(&self, bytes: &[u8], rip: u64) -> bool {
        let mut decoder = Decoder::with_ip(self.mode.bitness(), bytes, rip, DECODER_OPTIONS);
        let _ = decoder.decode();
        decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
    }
}

/// Options for every decoder of guest code.
pub const DECODER_OPTIONS: u32 = DecoderOptions::NONE;

/// What fifteen bytes that are no instruction raise: #GP(0) if it is only their length (Intel SDM vol. 2A, 2.3.11),
/// so that without the first prefix they are the start of an instruction.
fn invalid(bytes: &[u8; MAX_INSTRUCTION], mode: Mode) -> Fault {
    let mut decoder = Decoder::new(mode.bitness(), &bytes[1..], DECODER_OPTIONS);
    let _ = decoder.decode();
    let truncated = decoder.last_error() == iced_x86::DecoderError::NoMoreBytes;
    if is_prefix(bytes[0], mode) && truncated { Fault::GP0 } else { Fault::UD }
}

fn is_prefix(byte: u8, mode: Mode) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
        || mode == Mode::Long && matches!(byte, 0x40..=0x4f)
}
