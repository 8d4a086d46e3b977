//! Random guests that are just sensible enough to get somewhere.
//!
//! The low 1 MiB is cut into pages of each kind, chosen at random: code (random bytes, or random valid instructions),
//! page tables (entries to any page of RAM, to themselves, to devices), descriptors and gates, data. CR3, GDTR, IDTR, TR
//! and the general registers point anywhere, most often to pages of the right kind.

use accel_api::x86::*;
use accel_api::*;
use iced_x86::{Decoder, DecoderOptions};
use vm_memory::{Bytes, GuestAddress};

use super::{LOW, MOVING, ROM};

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators), or a fuzzer's bytes first.
#[derive(Debug)]
pub(super) struct Random {
    state: u64,
    /// Words to give out before random ones, the last one first.
    given: Vec<u64>,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed, given: Vec::new() }
    }

    /// One whose first numbers are `data`, so that whoever chose the bytes chooses what they decide.
    pub(super) fn from_data(data: &[u8]) -> Self {
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let given: Vec<u64> = data.chunks(8).rev().map(word).collect();
        Self { state: given.iter().fold(0, |hash: u64, word| hash.rotate_left(7) ^ word), given }
    }

    pub(super) fn next(&mut self) -> u64 {
        if let Some(word) = self.given.pop() {
            return word;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One of `list`, chosen by a random number.
pub(super) fn pick<T: Copy, const N: usize>(random: u64, list: [T; N]) -> T {
    list[(random % N as u64) as usize]
}

const PAGES: u64 = LOW.1 / PAGE_SIZE;

/// Kinds of pages, by page number.
const fn kind(page: u64) -> u64 {
    page % 5
}

const CODE16: u64 = 0;
const CODE32: u64 = 1;
const CODE64: u64 = 2;
pub(super) const TABLE: u64 = 3;
const DESCRIPTORS: u64 = 4;

/// Tables that work, until somebody stores to them: 4-level paging, 32-bit paging, IDTs for 64-bit and 32-bit mode, GDT,
/// TSSs.
pub(super) const SANE_PML4: u64 = 0xf_0000;
pub(super) const SANE_DIRECTORY: u64 = 0xf_2000;
const SANE_IDT: u64 = 0xf_4000;
const SANE_GDT: u64 = 0xf_5000;
const SANE_IDT32: u64 = 0xf_6000;
const SANE_TSS: u64 = 0xf_7000;
const SANE_TSS32: u64 = 0xf_8000;
const SANE_STACK: u64 = 0xf_a000;

/// Address of a random page of a kind.
pub(super) fn page_of(random: &mut Random, wanted: u64) -> u64 {
    (random.below(PAGES / 5) * 5 + wanted) * PAGE_SIZE
}

/// Fills all RAM.
pub(super) fn fill(ram: &GuestRam, random: &mut Random) {
    for page in 0..PAGES {
        let mut bytes = vec![0; PAGE_SIZE as usize];
        match kind(page) {
            CODE16 => code(&mut bytes, 16, random),
            CODE32 => code(&mut bytes, 32, random),
            CODE64 => code(&mut bytes, 64, random),
            TABLE => words(&mut bytes, || table_entry(random)),
            _ => words(&mut bytes, || descriptor(random)),
        }
        ram.memory().write_slice(&bytes, GuestAddress(page * PAGE_SIZE)).expect("RAM");
    }
    let write = |at: u64, value: u64| ram.memory().write_obj(value, GuestAddress(at)).expect("RAM");
    write(SANE_PML4, SANE_PML4 + 0x1007);
    for n in 0..4 {
        write(SANE_PML4 + 0x1000 + 8 * n, n << 30 | 0xe7);
    }
    for n in 0..512u64 {
        write(SANE_DIRECTORY + 8 * n, (n << 23 | 0xe7) | (n << 23 | 1 << 22 | 0xe7) << 32);
    }
    for n in 0..256 {
        let offset = page_of(random, CODE64) + random.below(0x800);
        // On a stack that works, so that not every fault ends as a triple fault.
        let ist = random.below(2);
        write(SANE_IDT + 16 * n, offset & 0xffff | 8 << 16 | ist << 32 | 0x8e << 40 | offset >> 16 << 48);
        write(SANE_IDT + 16 * n + 8, 0);
        let offset = page_of(random, CODE32) + random.below(0x800);
        write(SANE_IDT32 + 8 * n, offset & 0xffff | 0x10 << 16 | 0x8e << 40 | offset >> 16 << 48);
    }
    write(SANE_TSS + 4, SANE_STACK);
    write(SANE_TSS + 0x24, SANE_STACK);
    write(SANE_TSS32 + 4, SANE_STACK | 0x18 << 32);
    // 64-bit code, 32-bit code, data; user's 64-bit code and data.
    let gdt = [0x00af_9b00_0000_ffff, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (n, entry) in (1..).zip(gdt.into_iter().chain([0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff])) {
        write(SANE_GDT + 8 * n, entry);
    }
    for (at, len) in [MOVING, ROM, super::OUTSIDE] {
        let mut bytes = vec![0; len as usize];
        code(&mut bytes, 64, random);
        ram.memory().write_slice(&bytes, GuestAddress(at)).expect("RAM");
    }
}

fn words(bytes: &mut [u8], mut word: impl FnMut() -> u64) {
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word().to_le_bytes());
    }
}

/// Random bytes, of which every other stretch is valid instructions.
fn code(out: &mut [u8], bits: u32, random: &mut Random) {
    let mut at = 0;
    while at < out.len() {
        let mut bytes = [0; 16];
        words(&mut bytes, || random.next());
        if random.one_in(3) {
            // Two-byte opcodes would be rare otherwise.
            bytes[0] = 0x0f;
        }
        let mut decoder = Decoder::new(bits, &bytes, DecoderOptions::NONE);
        let ins = decoder.decode();
        let len = match ins.is_invalid() {
            // Few: the guest would only run in its handlers.
            true if random.one_in(50) => 1,
            true => continue,
            false => ins.len(),
        };
        let len = len.min(out.len() - at);
        out[at..at + len].copy_from_slice(&bytes[..len]);
        at += len;
    }
}

pub(super) fn table_entry(random: &mut Random) -> u64 {
    let target = match random.below(16) {
        0 => random.next() & 0xff_ffff_f000,
        1 => 0xfee0_0000,
        2 => 0xd000_0000 | random.next() & 0xf000,
        3 => MOVING.0,
        4 => ROM.0,
        5..=8 => page_of(random, TABLE),
        _ => random.below(PAGES) * PAGE_SIZE,
    };
    let mut flags = 0x7 | random.next() & 0x160;
    if random.one_in(8) {
        flags ^= 1 << random.below(9);
    }
    if random.one_in(64) {
        flags |= 1 << 63;
    }
    if random.one_in(64) {
        flags |= 1 << 51;
    }
    target | flags
}

fn descriptor(random: &mut Random) -> u64 {
    let base = pick(random.next(), [0, 0, 0, page_of(random, CODE32), random.below(LOW.1)]);
    let limit = pick(random.next(), [0xf_ffff, 0xf_ffff, 0xffff, 0, random.below(0x10_0000)]);
    // Code, data, system segments, gates: gates use the same words in another way.
    let access = pick(
        random.next(),
        [0x9b, 0x93, 0xfb, 0xf3, 0x89, 0x8b, 0x82, 0x8e, 0x8f, 0xee, 0x8c, 0x85, random.next() & 0xff],
    );
    let flags = pick(random.next(), [0xa, 0xc, 0x4, 0x0, random.next() & 0xf]);
    if random.one_in(3) {
        // A gate to a code page.
        let offset = page_of(random, CODE64) | random.below(64);
        let selector = 8 * random.below(512);
        return offset & 0xffff | selector << 16 | random.below(8) << 32 | 0x8e << 40 | offset >> 16 << 48;
    }
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// An address that may mean something.
pub(super) fn address(random: &mut Random) -> u64 {
    match random.below(12) {
        0 => random.next(),
        1 => 0x7fff_ffff_f000 + random.below(0x2000),
        2 => 0xffff_8000_0000_0000 - 16 + random.below(32),
        3 => 0xfee0_0000 + random.below(0x400),
        4 => MOVING.0 + random.below(MOVING.1),
        5 => ROM.0 + random.below(ROM.1),
        6 => LOW.1 - random.below(16),
        7 => random.below(PAGES) * PAGE_SIZE + PAGE_SIZE - random.below(16),
        8 => random.below(16),
        _ => random.below(LOW.1),
    }
}

fn segment(random: &mut Random, attributes: u16) -> Segment {
    let mut s = Segment::flat((8 * random.below(512)) as u16, attributes);
    if random.one_in(6) {
        s.base = address(random) & 0xffff_ffff;
    }
    if random.one_in(6) {
        s.limit = pick(random.next(), [0, 0xffff, 0xfff, random.next() as u32]);
    }
    if random.one_in(12) {
        s.attributes = (random.next() & 0xf0ff) as u16;
    }
    s.unusable = random.one_in(20);
    s
}

/// A state of vCPU `id` in any mode.
pub(super) fn state(id: VcpuId, random: &mut Random) -> CpuState {
    let mut state = CpuState::reset(id);
    state.mp = MpState::Running;
    for r in &mut state.gpr {
        *r = address(random);
    }
    if !random.one_in(4) {
        state.gpr[gpr::RSP] = 0x1000 + random.below(LOW.1 - 0x1000);
    }
    if random.one_in(2) {
        state.gpr[gpr::RCX] = random.below(0x2000);
    }
    state.rflags = random.next() & 0x3d_0ad5 | 2;
    if !random.one_in(10) {
        state.rflags &= !0x100; // TF
    }
    state.gdtr = DescriptorTable { base: page_of(random, DESCRIPTORS), limit: random.next() as u16 | 0xff };
    state.idtr = DescriptorTable { base: page_of(random, DESCRIPTORS), limit: random.next() as u16 | 0xff };
    state.control.cr4 = 0x620 | random.next() & 0x35_009f;
    state.control.xcr0 = pick(random.next(), [1, 3, 7, 7]);
    for ymm in &mut state.fpu.ymm {
        *ymm = std::array::from_fn(|_| address(random));
    }
    state.msrs.kernel_gs_base = address(random) & 0x7fff_ffff_ffff;
    state.msrs.lstar = page_of(random, CODE64);
    state.msrs.star = random.next();
    state.lapic.svr = 0x1ff;
    mode(&mut state, random);
    details(&mut state, random);
    state.normalise();
    state
}

fn mode(state: &mut CpuState, random: &mut Random) {
    let data = |random: &mut Random, dpl: u16| segment(random, 0xc093 | dpl << 5);
    let dpl = if random.one_in(3) { 3 } else { 0 };
    let s = &mut state.segments;
    (s.ds, s.es, s.fs, s.gs) = (data(random, dpl), data(random, dpl), data(random, dpl), data(random, dpl));
    s.ss = Segment { unusable: false, ..data(random, dpl) };
    s.tr = Segment {
        selector: 0x40,
        base: page_of(random, DESCRIPTORS),
        limit: 0x67 + random.below(0x100) as u32,
        attributes: 0x8b,
        unusable: false,
    };
    s.ldtr = Segment {
        selector: 0x48,
        base: page_of(random, DESCRIPTORS),
        limit: 0xfff,
        attributes: 0x82,
        unusable: random.one_in(2),
    };
    let paging = if random.one_in(2) { 1 << 31 } else { 0 };
    let wp = (random.next() & 1) << 16;
    match random.below(6) {
        // Real mode and virtual-8086 mode.
        kind @ (0 | 1) => {
            for seg in [&mut s.es, &mut s.cs, &mut s.ss, &mut s.ds, &mut s.fs, &mut s.gs] {
                *seg = Segment::real((page_of(random, CODE16) >> 4) as u16);
            }
            state.rip = random.below(0x1000);
            if kind == 0 {
                s.cs.attributes = 0x9b;
                state.control.cr0 = 0x10;
            } else {
                for seg in [&mut s.es, &mut s.cs, &mut s.ss, &mut s.ds, &mut s.fs, &mut s.gs] {
                    seg.attributes = 0xf3;
                }
                state.rflags |= 1 << 17;
                state.control.cr0 = 0x31 | paging | wp;
            }
        }
        // Protected mode of 16 and 32 bits.
        2 | 3 => {
            let wide = random.one_in(3);
            s.cs = Segment::flat(8 | dpl, (if wide { 0x809b } else { 0xc09b }) | dpl << 5);
            state.rip = page_of(random, if wide { CODE16 } else { CODE32 });
            state.control.cr0 = 0x31 | paging | wp;
        }
        // Long mode; with the tables of the scene most fetches fault, so half the time there is an identity map.
        other => {
            let long = other == 4 || random.one_in(2);
            s.cs = Segment::flat(8 | dpl, (if long { 0xa09b } else { 0xc09b }) | dpl << 5);
            state.rip = page_of(random, if long { CODE64 } else { CODE32 });
            state.control.cr0 = 0x8000_0031 | wp;
            state.control.cr4 |= 0x20;
            state.msrs.efer = 0xd01;
        }
    }
    let sane = if state.msrs.efer == 0 { SANE_DIRECTORY } else { SANE_PML4 };
    state.control.cr3 = if random.one_in(4) { page_of(random, TABLE) } else { sane };
    if state.msrs.efer == 0 && !random.one_in(4) {
        state.control.cr4 = state.control.cr4 & !0x20 | 0x10; // PAE off, PSE on
    }
    if !random.one_in(4) {
        let (idt, limit) = if state.msrs.efer == 0 { (SANE_IDT32, 0x7ff) } else { (SANE_IDT, 0xfff) };
        (state.gdtr.base, state.idtr) = (SANE_GDT, DescriptorTable { base: idt, limit });
        state.segments.tr.base = if state.msrs.efer == 0 { SANE_TSS32 } else { SANE_TSS };
    }
    if state.control.cr0 & 1 == 0 && !random.one_in(8) {
        state.idtr = DescriptorTable { base: 0, limit: 0x3ff };
    }
}

fn details(state: &mut CpuState, random: &mut Random) {
    if random.one_in(2) {
        state.lapic.irr = [0, random.next(), random.next(), 0];
        state.lapic.tpr = random.next() as u8;
    }
    if random.one_in(4) {
        state.lapic.lvt_timer = (random.below(3) as u32) << 17 | 0x60;
        state.lapic.timer_initial = random.below(100_000) as u32;
        state.lapic.timer_remaining_ns = random.below(100_000);
        state.lapic.tsc_deadline = random.next() >> random.below(64);
    }
    if random.one_in(4) {
        state.lapic.apic_base |= 1 << 10;
    }
    if random.one_in(8) {
        state.mp =
            pick(random.next(), [MpState::Halted, MpState::WaitForSipi, MpState::Shutdown, MpState::Running]);
    }
    if random.one_in(4) {
        let kind = pick(
            random.next(),
            [
                EventKind::ExternalInterrupt,
                EventKind::Nmi,
                EventKind::Exception,
                EventKind::Software { length: random.below(16) as u8 },
            ],
        );
        let error_code = random.one_in(2).then(|| random.next() as u32 & 0xffff);
        state.events.injected = Some(InjectedEvent { vector: random.next() as u8, kind, error_code });
    }
    state.events.interrupt_shadow = random.one_in(8);
    state.events.nmi_pending = if random.one_in(8) { random.below(4) as u8 } else { 0 };
    state.events.nmi_masked = random.one_in(8);
    state.fpu.mxcsr = 0x1f80 & random.next() as u32 | random.next() as u32 & 0xe07f;
    state.fpu.fcw = random.next() as u16;
    state.fpu.fsw = random.next() as u16;
    state.fpu.ftw = random.next() as u8;
    for st in &mut state.fpu.st {
        for byte in st.iter_mut() {
            *byte = random.next() as u8;
        }
    }
    for ymm in &mut state.fpu.ymm {
        *ymm = [random.next(), random.next(), 0, 0];
    }
    state.debug.dr7 = random.next() & 0xffff_03ff;
    state.debug.dr = std::array::from_fn(|_| address(random));
    state.tsc_offset = random.next();
}
