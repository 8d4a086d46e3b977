//! Listings of blocks: guest code and host code, instruction by instruction.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iced_x86::{Decoder, DecoderOptions, Formatter as _, Instruction, NasmFormatter};

use crate::store::blocks::Block;

/// Translations that one [`BlockDump`] shows: code that changes is translated again and again.
const MOST: usize = 64;

/// Shows the translations of the code at one address.
pub struct BlockDump {
    address: u64,
    tell: Arc<dyn Fn(String) + Send + Sync>,
    told: AtomicUsize,
}

impl BlockDump {
    /// Calls `tell` for each translation of a block that holds the instruction at guest linear address `address`, with
    /// a text of several lines; for the first 64.
    pub fn new(address: u64, tell: Arc<dyn Fn(String) + Send + Sync>) -> Self {
        Self { address, tell, told: AtomicUsize::new(0) }
    }

    /// Shows a new block, whose host code lies at a host address, if it holds the instruction.
    pub(crate) fn show(&self, block: &Block, code: (u64, &[u8])) {
        let start = block.page + block.key.offset();
        let inside = start <= self.address && self.address - start < u64::from(block.length);
        if inside && self.told.fetch_add(1, Ordering::Relaxed) < MOST {
            (self.tell)(describe(block, code));
        }
    }
}

impl std::fmt::Debug for BlockDump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockDump").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A block with its host code, which lies at a host address; each guest instruction before the code that it became.
pub(crate) fn describe(block: &Block, (address, code): (u64, &[u8])) -> String {
    let mut text = String::new();
    // A String takes all that is written.
    let _ = writeln!(
        text,
        "block {:#018x}: {} instructions at {:#x} (RAM page {:#x}), {} bytes of host code at {address:#x}",
        block.key.hash(),
        block.instructions,
        block.page + block.key.offset(),
        block.key.ram_page(),
        block.code_len,
    );
    let Some(listing) = &block.listing else {
        for (_, line) in lines(code, address) {
            let _ = writeln!(text, "        {line}");
        }
        return text;
    };
    let mut guest = lines(&listing.guest, block.page + block.key.offset()).into_iter().peekable();
    let mut starts = listing.starts.iter().peekable();
    for (at, line) in lines(code, address) {
        let distance = (at - address) as u32;
        while let Some(&&(_, offset)) = starts.peek().filter(|(start, _)| *start <= distance) {
            starts.next();
            let end = if offset == u16::MAX { u64::MAX } else { block.page + u64::from(offset) };
            if end == u64::MAX && guest.peek().is_none() {
                let _ = writeln!(text, "  (ways out)");
            }
            while let Some((_, line)) = guest.next_if(|(at, _)| *at <= end) {
                let _ = writeln!(text, "  {line}");
            }
        }
        let _ = writeln!(text, "        {line}");
    }
    text
}

/// The instructions of `bytes`, which lie at `address`: where each is, and a line for it.
fn lines(bytes: &[u8], address: u64) -> Vec<(u64, String)> {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let mut formatter = NasmFormatter::new();
    let mut list = Vec::new();
    let mut ins = Instruction::default();
    while decoder.can_decode() {
        let at = decoder.position();
        decoder.decode_out(&mut ins);
        let hex: String = bytes[at..decoder.position()].iter().map(|b| format!("{b:02x}")).collect();
        let mut line = format!("{:016x}  {hex:<24}  ", ins.ip());
        formatter.format(&ins, &mut line);
        list.push((ins.ip(), line));
    }
    list
}
