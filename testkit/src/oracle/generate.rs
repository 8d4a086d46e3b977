//! Inputs for an encoded instruction: registers and memory such that its operands lie where they are wanted.

use accel_api::x86::Segment;
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpKind, Register,
};

use super::case::{
    CODE, Case, CodeSize, MAX_BYTES, STUB, STUB_SIZE, State, WINDOW, WINDOW_SIZE, WRITABLE, seg,
};
use super::encode::{Place, encode, far_target};
use super::rng::Rng;
use super::segments::{
    self, ANY, CODE16, CODE32, CODE32_LIMITED, CODE64, DATA, DATA16, READABLE, STACKS, base,
};
use super::select::is_near_transfer;

/// Makes cases.
#[derive(Debug)]
pub struct Generator {
    /// Memory contents to begin with; each case takes a piece of it.
    pool: Vec<u8>,
    /// There is an LDT.
    ldt: bool,
    info: InstructionInfoFactory,
}

const POOL: usize = 256 << 10;

impl Generator {
    /// One whose cases depend on nothing but the numbers it is given. Without `ldt` they do with the GDT.
    pub fn new(ldt: bool) -> Self {
        let mut rng = Rng::new(0, 0);
        let pool = (0..POOL / 16).flat_map(|_| rng.memory()).collect();
        Self { pool, ldt, info: InstructionInfoFactory::new() }
    }

    /// A case with an encoding of `code` in a code segment of `size`; `None` when this time none came about. At times it
    /// is another instruction, or none: the caller looks at the bytes.
    pub fn case(&mut self, rng: &mut Rng, code: Code, size: CodeSize) -> Option<Case> {
        let mut state = State::with_selectors(selectors(rng, size, self.ldt));
        let data = state.base(seg::DS).wrapping_neg();
        let mut bytes = encode(rng, code, Place { size, ip: state.rip, data })?;
        for register in &mut state.gpr {
            *register = rng.integer();
        }
        state.gpr[4] = stack_address(rng).wrapping_sub(state.base(seg::SS));
        state.rflags = random_flags(rng);
        state.fpu = rng.fpu();
        let offset = rng.below((POOL - WINDOW_SIZE) as u64 / 8) as usize * 8;
        // If the bytes are no instruction, what stands behind them in memory belongs to them.
        bytes.resize(MAX_BYTES, 0xcc);
        let mut case = Case { bytes, state, memory: self.pool[offset..offset + WINDOW_SIZE].to_vec() };
        let ins = case.decode();
        if !ins.is_invalid() {
            case.bytes.truncate(ins.len());
            if harmful(&ins, &case) {
                return None;
            }
            self.prepare(rng, &ins, &mut case);
        }
        if size != CodeSize::Bits64 {
            case.state.gpr[8..].fill(0);
            case.state.gpr[..8].iter_mut().for_each(|register| *register &= 0xffff_ffff);
        }
        Some(case)
    }

    fn prepare(&mut self, rng: &mut Rng, ins: &Instruction, case: &mut Case) {
        operands(rng, ins, &mut case.state);
        for i in 0..ins.op_count() {
            let mut target = address(rng, ins.memory_size().size());
            if let Some(alignment) = image_alignment(ins).filter(|_| rng.percent(90)) {
                target &= !(alignment - 1);
            }
            match ins.op_kind(i) {
                OpKind::Memory if ins.is_vsib() => aim_lanes(rng, ins, &mut case.state),
                OpKind::Memory => aim(ins, &mut case.state, target),
                OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemorySegSI => {
                    case.state.gpr[6] = target.wrapping_sub(value(&case.state, ins.memory_segment()));
                }
                OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemorySegDI => {
                    case.state.gpr[7] = target.wrapping_sub(value(&case.state, ins.memory_segment()));
                }
                OpKind::MemoryESRDI | OpKind::MemoryESEDI | OpKind::MemoryESDI => {
                    case.state.gpr[7] = target.wrapping_sub(case.state.base(seg::ES));
                }
                _ => {}
            }
        }
        // What lies where the instruction looks: something that hurts.
        let state = &case.state;
        let used = self.info.info(ins).used_memory();
        let places: Vec<u64> =
            used.iter().filter_map(|m| m.virtual_address(0, |r, _, _| Some(value(state, r)))).collect();
        for place in places {
            patch(&mut case.memory, place, &rng.memory());
        }
        branch(rng, ins, case);
        far(rng, ins, case);
        selector_operands(rng, ins, case);
        compare_and_exchange(rng, ins, case);
        xsave(rng, ins, case);
    }
}

/// Segments: those of any program mostly, without 64-bit mode often some with limits.
fn selectors(rng: &mut Rng, size: CodeSize, ldt: bool) -> [u16; 6] {
    let (cs, usual) = match size {
        CodeSize::Bits64 => (CODE64, rng.pick(&[0, DATA])),
        CodeSize::Bits32 => (if rng.percent(85) { CODE32 } else { CODE32_LIMITED }, DATA),
        CodeSize::Bits16 => (CODE16, DATA16),
    };
    let stack = if usual == 0 { DATA } else { usual };
    if !ldt || rng.percent(if size == CodeSize::Bits64 { 90 } else { 60 }) {
        return [usual, cs, stack, usual, 0, 0];
    }
    let mut data = || if rng.percent(30) { usual } else { rng.pick(&READABLE) };
    let (es, ds, gs) = (data(), data(), data());
    let ss = if size == CodeSize::Bits64 || rng.percent(30) { stack } else { rng.pick(&STACKS) };
    [es, cs, ss, ds, 0, gs]
}

/// Values that make the instruction do something: small counts, divisions that do not overflow.
fn operands(rng: &mut Rng, ins: &Instruction, state: &mut State) {
    let (stack, data) = (state.base(seg::SS), state.base(seg::DS));
    let gpr = &mut state.gpr;
    if (ins.has_rep_prefix() || ins.has_repne_prefix()) && rng.percent(90) {
        gpr[1] = rng.below(40);
    }
    match ins.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv if rng.percent(70) => {
            gpr[2] = match rng.below(3) {
                0 => 0,
                1 => u64::MAX,
                _ => rng.below(100),
            };
        }
        Mnemonic::Enter | Mnemonic::Leave => gpr[5] = stack_address(rng).wrapping_sub(stack),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
            let register = ins.op1_register();
            if register.is_gpr() && rng.percent(80) {
                gpr[register.number()] = rng.below(512).wrapping_sub(256);
            }
        }
        Mnemonic::Xlatb => gpr[3] = address(rng, 1).wrapping_sub(data),
        _ => {}
    }
    if gpr[4].is_multiple_of(8) && ins.is_stack_instruction() && rng.percent(30) {
        gpr[4] = address(rng, 8).wrapping_sub(stack);
    }
}

fn random_flags(rng: &mut Rng) -> u64 {
    const ARITH: u64 = 0x8d5;
    const DF: u64 = 1 << 10;
    const NT: u64 = 1 << 14;
    const AC: u64 = 1 << 18;
    const ID: u64 = 1 << 21;
    let mut flags = 0x202 | rng.next() & ARITH;
    if rng.percent(25) {
        flags |= DF;
    }
    if rng.percent(5) {
        flags |= ID;
    }
    if rng.percent(2) {
        flags |= NT;
    }
    if rng.percent(2) {
        flags |= AC;
    }
    flags
}

fn stack_address(rng: &mut Rng) -> u64 {
    WINDOW + 1024 + rng.below(6 * 1024 / 8) * 8
}

/// An address for an operand of `size` bytes: mostly within the window, often across something.
fn address(rng: &mut Rng, size: usize) -> u64 {
    let size = size.max(1) as u64;
    let inside = WRITABLE as u64 - size.min(4096);
    match rng.below(100) {
        0..45 => WINDOW + (rng.below(inside) & !15),
        45..70 => WINDOW + rng.below(inside),
        // Across a cache line.
        70..76 => WINDOW + (rng.below(WRITABLE as u64 / 64 - 16) + 1) * 64 - rng.below(size.min(64)),
        // Across the two writable pages.
        76..84 => WINDOW + 4096 - rng.below(size),
        // Into the read-only page, and within it.
        84..88 => WINDOW + WRITABLE as u64 - rng.below(size),
        88..91 => WINDOW + WRITABLE as u64 + rng.below(2048),
        // Over the ends.
        91..94 => (WINDOW + WINDOW_SIZE as u64).wrapping_sub(rng.below(size)),
        94..96 => WINDOW - 1 - rng.below(size),
        96 => CODE + rng.below(2048 - 16),
        97 => WINDOW - 4096 - rng.below(1 << 20),
        // Not canonical, and on the edge to it.
        98 => rng.pick(&[1 << 47, 1 << 63, 0x8000_1234_5678_9abc]) | rng.below(64),
        _ => (1u64 << 47).wrapping_sub(rng.below(2 * size)),
    }
}

/// Sets base and index registers so that the memory operand lies at `target`, as nearly as they allow.
fn aim(ins: &Instruction, state: &mut State, target: u64) {
    let (base, index) = (ins.memory_base(), ins.memory_index());
    let scale = u64::from(ins.memory_index_scale());
    let offset = target.wrapping_sub(value(state, ins.memory_segment()));
    let rest = offset.wrapping_sub(ins.memory_displacement64());
    if !base.is_gpr() {
        if index.is_gpr() && index != Register::AL {
            state.gpr[index.full_register().number()] = rest / scale;
        }
        return;
    }
    let indexed = index.is_gpr();
    let wanted = if !indexed {
        rest
    } else if index.full_register() == base.full_register() {
        (rest as i64 / (scale as i64 + 1)) as u64
    } else {
        rest.wrapping_sub(value(state, index).wrapping_mul(scale))
    };
    let slot = &mut state.gpr[base.full_register().number()];
    // With short addresses the upper part must not matter.
    let mask = u64::MAX >> (64 - 8 * base.size());
    *slot = *slot & !mask | wanted & mask;
}

/// Sets base and index lanes of a gather so that most elements lie in the window, some of them over its ends.
fn aim_lanes(rng: &mut Rng, ins: &Instruction, state: &mut State) {
    let (base, index) = (ins.memory_base(), ins.memory_index());
    let middle = (WINDOW + 2048 + rng.below(4096)).wrapping_sub(ins.memory_displacement64());
    let middle = middle.wrapping_sub(value(state, ins.memory_segment()));
    if base.is_gpr() {
        state.gpr[base.number()] = middle;
    }
    let scale = u64::from(ins.memory_index_scale());
    let stray = rng.percent(30);
    let mut lane = || {
        let reach = if stray && rng.percent(15) { 8192 } else { 1500 };
        let distance = rng.below(2 * reach) as i64 - reach as i64;
        // Without a base the lanes alone must lead there, as nearly as their scale allows.
        let lane = if base.is_gpr() { distance } else { middle as i64 + distance };
        (lane / scale as i64) as u64
    };
    let wide = ins.vsib() == Some(true);
    for value in &mut state.fpu.ymm[index.number()] {
        *value = if wide { lane() } else { lane() & 0xffff_ffff | lane() << 32 };
    }
}

/// Alignment in bytes that an instruction demands of its state image.
fn image_alignment(ins: &Instruction) -> Option<u64> {
    use Mnemonic::*;
    match ins.mnemonic() {
        Fxsave | Fxsave64 | Fxrstor | Fxrstor64 => Some(16),
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64 => Some(64),
        _ => None,
    }
}

/// Asks XSAVE and its kin for components that both processors have, and XRSTOR with a header that is mostly valid.
fn xsave(rng: &mut Rng, ins: &Instruction, case: &mut Case) {
    if image_alignment(ins) != Some(64) {
        return;
    }
    let components = super::soft::XCR0;
    case.state.gpr[0] = rng.below(components + 1);
    case.state.gpr[2] &= !0xffff_ffff;
    let place = operand_address(ins, &case.state);
    let (mut present, mut format) = (rng.below(components + 1), 0);
    if rng.percent(40) {
        format = 1 << 63 | rng.next() & components;
        present &= format;
    }
    let mut header = [0; 64];
    header[..8].copy_from_slice(&present.to_le_bytes());
    header[8..16].copy_from_slice(&format.to_le_bytes());
    if rng.percent(10) {
        // Reserved bytes, and bits of components that nobody has.
        header[rng.pick(&[7, 15, 16, 20, 23, 24, 40, 63])] ^= 1 << rng.below(8);
    }
    patch(&mut case.memory, place.wrapping_add(512), &header);
    if rng.percent(90) {
        let mxcsr = case.state.fpu.mxcsr ^ rng.next() as u32 & 0xffff;
        patch(&mut case.memory, place.wrapping_add(24), &mxcsr.to_le_bytes());
    }
}

/// A register's value; for segment registers their bases.
pub(super) fn value(state: &State, register: Register) -> u64 {
    match register {
        // The one segment register of the test whose base counts in 64-bit mode.
        Register::GS => return base(state.selectors[seg::GS]),
        r if r.is_segment_register() => return state.base(r.number()),
        r if !r.is_gpr() => return 0,
        _ => {}
    }
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    let full = state.gpr[register.full_register().number()];
    match register.size() {
        1 if high => full >> 8 & 0xff,
        1 => full & 0xff,
        2 => full & 0xffff,
        4 => full & 0xffff_ffff,
        _ => full,
    }
}

/// Writes into the window's image at linear address `at`, as far as it lies in the window.
fn patch(memory: &mut [u8], at: u64, bytes: &[u8]) {
    for (i, &byte) in bytes.iter().enumerate() {
        let offset = at.wrapping_add(i as u64).wrapping_sub(WINDOW);
        if let Some(slot) = usize::try_from(offset).ok().and_then(|offset| memory.get_mut(offset)) {
            *slot = byte;
        }
    }
}

/// Gives indirect near branches and returns a target that is not the instruction itself.
fn branch(rng: &mut Rng, ins: &Instruction, case: &mut Case) {
    let indirect = matches!(
        ins.flow_control(),
        FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return
    );
    if !indirect {
        return;
    }
    let code = case.state.base(seg::CS);
    let target = match rng.below(8) {
        0..5 => CODE + rng.below(0x700) - code,
        5 => (WINDOW + rng.below(WINDOW_SIZE as u64)).wrapping_sub(code),
        6 => rng.below(1 << 32) & !(0xf << 26),
        _ => rng.pick(&[1 << 47, 1 << 63, 0x1234_5678_9abc_def0]),
    };
    let place = if ins.flow_control() == FlowControl::Return {
        stack_top(&case.state)
    } else if ins.op0_kind() == OpKind::Register {
        let register = ins.op0_register().full_register().number();
        case.state.gpr[register] = target;
        return;
    } else {
        operand_address(ins, &case.state)
    };
    patch(&mut case.memory, place, &target.to_le_bytes());
}

fn operand_address(ins: &Instruction, state: &State) -> u64 {
    ins.virtual_address(0, 0, |r, _, _| Some(value(state, r))).unwrap_or(0)
}

/// Linear address of what is popped first.
fn stack_top(state: &State) -> u64 {
    let sp = match state.size() {
        CodeSize::Bits64 => state.gpr[4],
        _ if segments::segment(state.selectors[seg::SS]).attributes & Segment::DB == 0 => {
            state.gpr[4] & 0xffff
        }
        _ => state.gpr[4] & 0xffff_ffff,
    };
    state.base(seg::SS).wrapping_add(sp)
}

/// Gives far branches a pointer and far returns a frame.
fn far(rng: &mut Rng, ins: &Instruction, case: &mut Case) {
    use Mnemonic::*;
    let (selector, offset) = far_target(rng);
    if ins.mnemonic() == Call && calls_64_bits(case, selector) {
        return;
    }
    let (place, size) = match ins.mnemonic() {
        Retf | Iret | Iretd | Iretq => (stack_top(&case.state), ins.op_code().operand_size() as usize / 8),
        Jmp | Call if ins.op0_kind() == OpKind::Memory => match ins.memory_size() {
            MemorySize::SegPtr16 => (operand_address(ins, &case.state), 2),
            MemorySize::SegPtr32 => (operand_address(ins, &case.state), 4),
            _ => return,
        },
        _ => return,
    };
    let mut frame = [0; 40];
    let flags = random_flags(rng) | rng.next() & 0x27_0000;
    let stack = if rng.percent(70) { case.state.selectors[seg::SS] } else { rng.pick(&ANY) };
    let values = [offset.into(), selector.into(), flags, stack_address(rng), stack.into()];
    for (slot, value) in frame.chunks_mut(size.max(2)).zip(values) {
        slot.copy_from_slice(&u64::to_le_bytes(value)[..slot.len()]);
    }
    let items = if ins.mnemonic() == Retf || ins.op0_kind() == OpKind::Memory { 2 } else { 5 };
    patch(&mut case.memory, place, &frame[..items * size.max(2)]);
}

/// Whether a far call to `selector` would lead from compatibility mode into 64-bit mode, where its pushes may fault at
/// addresses that Linux does not believe (see `native`'s watchdog).
fn calls_64_bits(case: &Case, selector: u16) -> bool {
    case.state.size() != CodeSize::Bits64 && selector & !3 == CODE64 & !3
}

/// Gives instructions that look at selectors good and bad ones.
fn selector_operands(rng: &mut Rng, ins: &Instruction, case: &mut Case) {
    use Mnemonic::*;
    let (operand, behind) = match ins.mnemonic() {
        Lar | Lsl => (1, 0),
        Verr | Verw => (0, 0),
        Mov if ins.op0_register().is_segment_register() => (1, 0),
        Lds | Les | Lss | Lgs => (1, ins.memory_size().size() - 2),
        Pop if ins.op0_register().is_segment_register() => {
            patch(&mut case.memory, stack_top(&case.state), &rng.pick(&ANY).to_le_bytes());
            return;
        }
        _ => return,
    };
    let selector = rng.pick(&ANY);
    if ins.op_kind(operand) == OpKind::Register {
        let register = &mut case.state.gpr[ins.op_register(operand).full_register().number()];
        *register = *register & !0xffff | u64::from(selector);
    } else {
        let place = ins.virtual_address(operand, 0, |r, _, _| Some(value(&case.state, r))).unwrap_or(0);
        patch(&mut case.memory, place.wrapping_add(behind as u64), &selector.to_le_bytes());
    }
}

/// Makes the comparison of CMPXCHG and its kin come out equal half of the time.
fn compare_and_exchange(rng: &mut Rng, ins: &Instruction, case: &mut Case) {
    let half = match ins.mnemonic() {
        Mnemonic::Cmpxchg => 0,
        Mnemonic::Cmpxchg8b => 4,
        Mnemonic::Cmpxchg16b => 8,
        _ => return,
    };
    if rng.percent(50) {
        return;
    }
    if ins.op0_kind() == OpKind::Register {
        case.state.gpr[0] = case.state.gpr[ins.op0_register().full_register().number()];
        return;
    }
    let state = &case.state;
    let place = operand_address(ins, state);
    let (rax, rdx) = (state.gpr[0].to_le_bytes(), state.gpr[2].to_le_bytes());
    if half == 0 {
        patch(&mut case.memory, place, &rax);
    } else {
        patch(&mut case.memory, place, &rax[..half]);
        patch(&mut case.memory, place.wrapping_add(half as u64), &rdx[..half]);
    }
}

/// What must not run natively, or behaves differently by vendor.
fn harmful(ins: &Instruction, case: &Case) -> bool {
    let long = case.state.size() == CodeSize::Bits64;
    // FS is the base of the host's thread-local storage.
    let loads_fs = ins.op0_register() == Register::FS && ins.mnemonic() != Mnemonic::Push
        || ins.op1_register() == Register::FS && ins.mnemonic() != Mnemonic::Mov;
    if loads_fs || long && ins.segment_prefix() == Register::FS {
        return true;
    }
    match ins.mnemonic() {
        // Vectors that programs may call: breakpoint, overflow, the kernel's old entry.
        Mnemonic::Int if matches!(ins.immediate8(), 3 | 4 | 0x80) => return true,
        Mnemonic::Call if calls_64_bits(case, ins.far_branch_selector()) => return true,
        // A trap: RIP is behind the instruction, as if it had finished.
        Mnemonic::Into if case.state.rflags & 1 << 11 != 0 => return true,
        _ => {}
    }
    let near = matches!(ins.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    // A branch into itself may never end.
    let target = ins.near_branch_target().wrapping_sub(case.state.rip);
    if near && target < ins.len() as u64 {
        return true;
    }
    // The stub is code on the host alone.
    let linear = ins.near_branch_target().wrapping_add(case.state.base(seg::CS));
    if near && (STUB..STUB + STUB_SIZE as u64).contains(&linear) {
        return true;
    }
    // Intel ignores an operand-size prefix on near branches in 64-bit mode, AMD does not (Intel SDM vol. 2A, Jcc).
    long && is_near_transfer(ins.code()) && case.bytes.iter().take(4).any(|&byte| byte == 0x66)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Instruction {
        Case { bytes: bytes.to_vec(), state: State::new(), memory: Vec::new() }.decode()
    }

    #[test]
    fn cases_follow_from_seed_and_number() {
        use super::super::select::{codes, features};
        let codes = CodeSize::ALL.map(|size| codes(&features(), size));
        assert!(codes.iter().all(|codes| codes.len() > 1000));
        let case = |generator: &mut Generator, index| {
            let mut rng = Rng::new(5, index);
            let size = rng.pick(&CodeSize::ALL);
            let code = rng.pick(&codes[size as usize]);
            generator.case(&mut rng, code, size)
        };
        let (mut a, mut b) = (Generator::new(true), Generator::new(true));
        let made: Vec<_> = (0..2000).map(|index| case(&mut a, index)).collect();
        assert!(made.iter().flatten().count() > 1500);
        for index in (0..2000).rev() {
            assert_eq!(case(&mut b, index), made[index as usize]);
        }
    }

    #[test]
    fn gathers_look_into_the_window() {
        // vpgatherdd ymm0, [rbx+ymm1*4-8], ymm2, and without a base vpgatherqq xmm0, [xmm1*8], xmm2.
        let gathers: [&[u8]; 2] =
            [&[0xc4, 0xe2, 0x6d, 0x90, 0x44, 0x8b, 0xf8], &[0xc4, 0xe2, 0xe9, 0x91, 0x04, 0xcd, 0, 0, 0, 0]];
        for bytes in gathers {
            let ins = decode(bytes);
            assert!(ins.is_vsib());
            let mut rng = Rng::new(1, 0);
            let mut inside = 0;
            for _ in 0..1000 {
                let mut state = State::new();
                aim_lanes(&mut rng, &ins, &mut state);
                let lane = state.fpu.ymm[1][0];
                let lane = if ins.is_vsib64() { lane } else { i64::from(lane as i32) as u64 };
                let offset = lane.wrapping_mul(ins.memory_index_scale().into());
                let base = value(&state, ins.memory_base()).wrapping_add(ins.memory_displacement64());
                inside +=
                    u32::from((WINDOW..WINDOW + WINDOW_SIZE as u64).contains(&base.wrapping_add(offset)));
            }
            assert!((900..1000).contains(&inside), "{inside}");
        }
    }

    #[test]
    fn addresses_are_what_was_aimed_at() {
        // mov eax, [rbx+rcx*4-8], and [ebx]
        for bytes in [&[0x8b, 0x44, 0x8b, 0xf8][..], &[0x67, 0x8b, 0x03]] {
            let ins = decode(bytes);
            let mut state = State { gpr: [u64::MAX / 3; 16], ..State::new() };
            aim(&ins, &mut state, WINDOW + 5);
            assert_eq!(ins.virtual_address(1, 0, |r, _, _| Some(value(&state, r))), Some(WINDOW + 5));
        }
    }
}
