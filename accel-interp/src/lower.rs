//! From guest code to blocks.
#![allow(unsafe_code)] // copies code bytes out of guest RAM

mod simd;

use accel_api::PAGE_SIZE;
use accel_api::x86::CpuFeatures;
use iced_x86::{Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register};
use x86_core::{Cpu, DECODER_OPTIONS, Exec, Mode, exec, gpr_place, host_read, seg, segment_index};

use crate::engine::code_base;
use crate::handlers::alu::{self, Form};
use crate::handlers::{branch, data, end, generic, generic_end, sentinel, stack};
use crate::liveness::liveness;
use crate::op::{Generic, Handler, Op};
use crate::store::Store;

/// Most instructions in a block.
const MAX_INSTRUCTIONS: usize = 32;

/// A block being made; kept between blocks for its allocations.
#[derive(Default)]
pub(crate) struct Lowered {
    pub ops: Vec<Op>,
    pub instructions: usize,
    /// Where its bytes lie in the page.
    pub start: usize,
    pub bytes: usize,
    decoded: Vec<Instruction>,
    /// Whether the flags an instruction sets are read before they are set again.
    live: Vec<bool>,
}

/// Makes the block at RIP. It has no ops if even the first instruction cannot be in a block: it crosses into another
/// page, or is none.
///
/// # Errors
/// The fault of fetching the first byte.
pub(crate) fn block(cpu: &mut Cpu, store: &mut Store, out: &mut Lowered) -> Exec {
    out.ops.clear();
    out.decoded.clear();
    let rip = cpu.rip;
    let la = cpu.code_address(rip);
    let start = (la & (PAGE_SIZE - 1)) as usize;
    let mut bytes = [0u8; MAX_INSTRUCTIONS * x86_core::MAX_INSTRUCTION];
    let mut len = bytes.len().min(PAGE_SIZE as usize - start);
    if cpu.mode != Mode::Long {
        // Beyond the segment's limit nothing is code; at it, the slow path raises the fault.
        let room = u64::from(cpu.segs[seg::CS].limit).checked_sub(rip).map_or(0, |r| r + 1);
        len = len.min(usize::try_from(room).unwrap_or(usize::MAX));
    }
    let Some(page) = cpu.code_page_at(la)? else { return Ok(()) };
    // SAFETY: `start + len` is at most the size of the RAM page.
    unsafe { host_read(page.host.add(start), &mut bytes[..len]) };

    out.start = start;
    let mut decoder = Decoder::with_ip(cpu.mode.bitness(), &bytes[..len], rip, DECODER_OPTIONS);
    let mut ended = false;
    while out.decoded.len() < MAX_INSTRUCTIONS && decoder.can_decode() && !ended {
        let ins = decoder.decode();
        if ins.is_invalid() {
            break;
        }
        ended = ends_block(&ins);
        out.decoded.push(ins);
    }
    out.instructions = out.decoded.len();
    let Some(last) = out.decoded.last() else { return Ok(()) };
    let next_rip = last.next_ip();
    out.bytes = next_rip.wrapping_sub(rip) as usize;
    liveness(&out.decoded, &mut out.live);

    // As the handlers compute it, which is RIP's page modulo 4 GiB outside 64-bit mode.
    let page = (la & !(PAGE_SIZE - 1)).wrapping_sub(code_base(cpu));
    let mut lower = Lower { page, long: cpu.mode == Mode::Long, features: cpu.model.features, store };
    let mut at = 0;
    while at < out.decoded.len() {
        let ins = &out.decoded[at];
        if lower.long && ins.mnemonic() == Mnemonic::Nop && ins.op_count() == 0 {
            // Only counted, by the distance between the counts of its neighbours.
            at += 1;
            continue;
        }
        let follower = out.decoded.get(at + 1);
        let (op, used) = lower.op(ins, follower, out.live[at], at as u8);
        out.ops.push(op);
        at += used;
    }
    let offset = (start + out.bytes) as u16;
    let count = out.decoded.len() as u8;
    if ended {
        // An offset no instruction has.
        out.ops.push(sentinel(u16::MAX, count, end));
    } else {
        let mut op = sentinel(offset, count, if lower.long { branch::fall } else { branch::fall_legacy });
        op.disp = offset.into();
        out.ops.push(op);
        out.ops.push(sentinel(u16::MAX, count, end));
    }
    Ok(())
}

/// Whether what follows `ins` is not what executes next, or not by the same rules. A conditional branch does not end a
/// block: the block goes on with what it falls through to.
fn ends_block(ins: &Instruction) -> bool {
    match ins.flow_control() {
        FlowControl::Next | FlowControl::ConditionalBranch => false,
        // INT and SYSCALL go elsewhere, but XBEGIN's kind does not matter here.
        _ => true,
    }
}

/// A memory operand in the form ops have it.
struct Memory {
    base: u16,
    index: u16,
    scale: u8,
    disp: i32,
    indexed: bool,
}

struct Lower<'a> {
    /// RIP of the page's first byte.
    page: u64,
    long: bool,
    features: CpuFeatures,
    store: &'a mut Store,
}

const ZERO: u16 = std::mem::offset_of!(Cpu, zero) as u16;
const CODE_PAGE: u16 = std::mem::offset_of!(Cpu, code_page) as u16;

impl Lower<'_> {
    /// The op for `ins`, fused with `follower` if that pays; and how many instructions it stands for.
    fn op(
        &mut self,
        ins: &Instruction,
        follower: Option<&Instruction>,
        flags: bool,
        count: u8,
    ) -> (Op, usize) {
        if self.long && !ins.has_lock_prefix() {
            if let Some(op) = follower.and_then(|jcc| self.fused(ins, jcc, count)) {
                return (op, 2);
            }
            if let Some(op) = self.fast(ins, flags, count) {
                return (op, 1);
            }
        }
        (self.generic(ins, count), 1)
    }

    fn blank(&self, ins: &Instruction, handler: Handler, count: u8) -> Op {
        sentinel(ins.ip().wrapping_sub(self.page) as u16, count, handler)
    }

    fn generic(&mut self, ins: &Instruction, count: u8) -> Op {
        let handler: Handler = if ins.flow_control() == FlowControl::Next { generic } else { generic_end };
        let mut op = self.blank(ins, handler, count);
        let relative = ins.is_ip_rel_memory_operand() || ins.flow_control() != FlowControl::Next;
        op.imm = self.store.generic(Generic {
            instruction: *ins,
            function: exec::lookup(ins.code()),
            page: self.page,
            relative,
        });
        op
    }

    /// A comparison and the conditional branch behind it.
    fn fused(&self, ins: &Instruction, jcc: &Instruction, count: u8) -> Option<Op> {
        if !jcc.is_jcc_short_or_near() {
            return None;
        }
        let form = match (ins.op0_kind(), ins.op1_kind()) {
            (OpKind::Register, OpKind::Register) => Form::RegReg,
            (OpKind::Register, _) if ins.op1_kind() != OpKind::Memory => Form::RegImm,
            _ => return None,
        };
        if ins.op_count() != 2 || !matches!(ins.mnemonic(), Mnemonic::Cmp | Mnemonic::Test) {
            return None;
        }
        let (dst, size) = place(ins.op0_register())?;
        let handler = branch::compare_and_branch(ins.mnemonic(), form, size, condition(jcc))?;
        let mut op = self.blank(ins, handler, count);
        op.dst = dst;
        if form == Form::RegReg {
            op.src = place(ins.op1_register())?.0;
        } else {
            op.set_small(ins.try_immediate(1).ok()? as i32);
        }
        op.disp = self.target(jcc)?;
        Some(op)
    }

    /// A near branch target less the page.
    fn target(&self, ins: &Instruction) -> Option<i32> {
        i32::try_from(ins.near_branch_target().wrapping_sub(self.page) as i64).ok()
    }

    fn memory(&self, ins: &Instruction) -> Option<Memory> {
        let (base, index) = (ins.memory_base(), ins.memory_index());
        let reg = |r: Register| {
            if r == Register::None {
                Some(ZERO)
            } else if r.size() == 8 {
                Some(place(r)?.0)
            } else {
                None
            }
        };
        let mut disp = ins.memory_displacement64() as i64;
        let base_place = match base {
            Register::RIP => {
                disp = ins.memory_displacement64().wrapping_sub(self.page) as i64;
                CODE_PAGE
            }
            Register::EIP => return None,
            Register::None if ins.memory_displ_size() == 4 && index == Register::None => return None,
            _ => reg(base)?,
        };
        let disp = i32::try_from(disp).ok()?;
        let scale = ins.memory_index_scale().trailing_zeros() as u8;
        let segment = segment_index(ins.memory_segment())?;
        let plain = Memory { base: base_place, index: ZERO, scale: 0, disp, indexed: false };
        match (index, segment) {
            (Register::None, seg::FS | seg::GS) => {
                Some(Memory { index: Cpu::seg_base_offset(segment) as u16, indexed: true, ..plain })
            }
            (Register::None, _) => Some(plain),
            (_, seg::FS | seg::GS) => None,
            _ => Some(Memory { index: reg(index)?, scale, indexed: true, ..plain }),
        }
    }

    /// An op with a handler of its own.
    fn fast(&self, ins: &Instruction, flags: bool, count: u8) -> Option<Op> {
        use Mnemonic as M;
        let m = ins.mnemonic();
        let op = |handler| self.blank(ins, handler, count);
        match m {
            M::Add | M::Or | M::And | M::Sub | M::Xor | M::Adc | M::Sbb | M::Cmp | M::Test => {
                self.binary(ins, flags, count)
            }
            M::Mov => self.mov(ins, count),
            M::Movzx | M::Movsx | M::Movsxd => {
                let (dst, to) = place(ins.op0_register())?;
                let signed = m != M::Movzx;
                if ins.op1_kind() == OpKind::Register {
                    let (src, from) = place(ins.op1_register())?;
                    let mut op = op(data::extend_register(from, to, signed)?);
                    (op.dst, op.src) = (dst, src);
                    return Some(op);
                }
                let memory = self.memory(ins)?;
                let from = ins.memory_size().size();
                let mut op = op(data::extend_memory(from, to, signed, memory.indexed)?);
                op.dst = dst;
                Some(with_memory(op, &memory))
            }
            M::Lea => {
                // A segment prefix means nothing here, and an address size of 32 bits cuts the result.
                if ins.memory_segment() != Register::DS && ins.memory_segment() != Register::SS {
                    return None;
                }
                let memory = self.memory(ins)?;
                let (dst, size) = place(ins.op0_register())?;
                let mut op = op(data::lea_address(size, memory.indexed)?);
                op.dst = dst;
                Some(with_memory(op, &memory))
            }
            M::Inc | M::Dec | M::Neg | M::Not => {
                if ins.op0_kind() == OpKind::Memory {
                    let memory = self.memory(ins)?;
                    let handler = alu::unary_memory(m, ins.memory_size().size(), memory.indexed)?;
                    return Some(with_memory(op(handler), &memory));
                }
                let (dst, size) = place(ins.op0_register())?;
                let mut op = op(alu::unary(m, size, flags)?);
                op.dst = dst;
                Some(op)
            }
            M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror => {
                if ins.op0_kind() != OpKind::Register {
                    return None;
                }
                let (dst, size) = place(ins.op0_register())?;
                let by_cl = ins.op1_kind() == OpKind::Register;
                let mut op = op(alu::shift(m, size, flags, by_cl)?);
                op.dst = dst;
                op.imm = ins.try_immediate(1).unwrap_or(0);
                Some(op)
            }
            M::Imul if ins.op_count() > 1 => self.imul(ins, flags, count),
            M::Bt if ins.op0_kind() == OpKind::Register => {
                let (dst, size) = place(ins.op0_register())?;
                let mut op = if ins.op1_kind() == OpKind::Register {
                    let mut op = op(match size {
                        4 => alu::bt_reg::<u32>,
                        8 => alu::bt_reg::<u64>,
                        _ => return None,
                    });
                    op.src = place(ins.op1_register())?.0;
                    op
                } else {
                    let mut op = op(match size {
                        4 => alu::bt_imm::<u32>,
                        8 => alu::bt_imm::<u64>,
                        _ => return None,
                    });
                    op.imm = ins.try_immediate(1).ok()?;
                    op
                };
                op.dst = dst;
                Some(op)
            }
            M::Xchg if ins.op0_kind() == OpKind::Register && ins.op1_kind() == OpKind::Register => {
                let (dst, size) = place(ins.op0_register())?;
                let mut op = op(data::exchange(size)?);
                (op.dst, op.src) = (dst, place(ins.op1_register())?.0);
                Some(op)
            }
            M::Cdqe | M::Cwde => {
                let (from, to) = if m == M::Cdqe { (4, 8) } else { (2, 4) };
                let mut op = op(data::extend_register(from, to, true)?);
                (op.dst, op.src) = (Cpu::gpr_offset(0) as u16, Cpu::gpr_offset(0) as u16);
                Some(op)
            }
            M::Cdq => Some(op(data::sign_extend_rdx(4)?)),
            M::Cqo => Some(op(data::sign_extend_rdx(8)?)),
            M::Push => self.push(ins, count),
            M::Pop if ins.op0_kind() == OpKind::Register && ins.op0_register().is_gpr64() => {
                let mut op = op(stack::pop_reg);
                op.dst = place(ins.op0_register())?.0;
                Some(op)
            }
            M::Leave if ins.code() == iced_x86::Code::Leaveq => Some(op(stack::leave)),
            M::Jmp | M::Call | M::Ret => self.branch(ins, count),
            _ if ins.is_jcc_short_or_near() => {
                let mut op = op(branch::conditional(condition(ins))?);
                op.disp = self.target(ins)?;
                Some(op)
            }
            _ if ins.condition_code() != iced_x86::ConditionCode::None => self.conditional_data(ins, count),
            _ => self.vector(ins, count).or_else(|| self.avx(ins, count)),
        }
    }

    fn binary(&self, ins: &Instruction, flags: bool, count: u8) -> Option<Op> {
        let m = ins.mnemonic();
        let (k0, k1) = (ins.op0_kind(), ins.op1_kind());
        let handler = |form, size| alu::binary(m, form, size, flags);
        if k0 == OpKind::Memory || k1 == OpKind::Memory {
            let memory = self.memory(ins)?;
            let size = ins.memory_size().size();
            let mut op = self.blank(ins, end, count);
            if k0 == OpKind::Register {
                op.handler = handler(Form::RegMem(memory.indexed), size)?;
                op.dst = place(ins.op0_register())?.0;
            } else if k1 == OpKind::Register {
                op.handler = handler(Form::MemReg(memory.indexed), size)?;
                op.src = place(ins.op1_register())?.0;
            } else {
                op.handler = handler(Form::MemImm(memory.indexed), size)?;
                op.imm = ins.try_immediate(1).ok()?;
            }
            return Some(with_memory(op, &memory));
        }
        let (dst, size) = place(ins.op0_register())?;
        let mut op = self.blank(ins, end, count);
        op.dst = dst;
        if k1 == OpKind::Register {
            op.handler = handler(Form::RegReg, size)?;
            op.src = place(ins.op1_register())?.0;
        } else {
            op.handler = handler(Form::RegImm, size)?;
            op.imm = ins.try_immediate(1).ok()?;
        }
        Some(op)
    }

    fn mov(&self, ins: &Instruction, count: u8) -> Option<Op> {
        let mut op = self.blank(ins, end, count);
        match (ins.op0_kind(), ins.op1_kind()) {
            (OpKind::Register, OpKind::Register) => {
                let ((dst, size), (src, other)) = (place(ins.op0_register())?, place(ins.op1_register())?);
                if size != other {
                    return None;
                }
                (op.dst, op.src, op.handler) = (dst, src, data::mov_registers(size)?);
            }
            (OpKind::Register, OpKind::Memory) => {
                let memory = self.memory(ins)?;
                let (dst, size) = place(ins.op0_register())?;
                (op.dst, op.handler) = (dst, data::load_memory(size, memory.indexed)?);
                op = with_memory(op, &memory);
            }
            (OpKind::Memory, OpKind::Register) => {
                let memory = self.memory(ins)?;
                let (src, size) = place(ins.op1_register())?;
                (op.src, op.handler) = (src, data::store_register(size, memory.indexed)?);
                op = with_memory(op, &memory);
            }
            (OpKind::Memory, _) => {
                let memory = self.memory(ins)?;
                op.imm = ins.try_immediate(1).ok()?;
                op.handler = data::store_immediate(ins.memory_size().size(), memory.indexed)?;
                op = with_memory(op, &memory);
            }
            (OpKind::Register, _) => {
                let (dst, size) = place(ins.op0_register())?;
                (op.dst, op.imm, op.handler) = (dst, ins.try_immediate(1).ok()?, data::mov_immediate(size)?);
            }
            _ => return None,
        }
        Some(op)
    }

    /// IMUL with two or three operands.
    fn imul(&self, ins: &Instruction, flags: bool, count: u8) -> Option<Op> {
        let (dst, size) = place(ins.op0_register())?;
        let by_constant = ins.op_count() == 3;
        let mut op = self.blank(ins, end, count);
        op.dst = dst;
        if ins.op1_kind() == OpKind::Memory {
            let memory = self.memory(ins)?;
            op.handler = alu::multiplication(size, flags, by_constant, Some(memory.indexed))?;
            return Some(with_memory(op, &memory));
        }
        op.handler = alu::multiplication(size, flags, by_constant, None)?;
        op.src = place(ins.op1_register())?.0;
        op.imm = ins.try_immediate(2).unwrap_or(0);
        Some(op)
    }

    fn push(&self, ins: &Instruction, count: u8) -> Option<Op> {
        let mut op = self.blank(ins, stack::push_reg, count);
        match ins.op0_kind() {
            OpKind::Register if ins.op0_register().is_gpr64() => op.src = place(ins.op0_register())?.0,
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
                op.handler = stack::push_imm;
                op.imm = ins.try_immediate(0).ok()?;
            }
            _ => return None,
        }
        Some(op)
    }

    fn branch(&self, ins: &Instruction, count: u8) -> Option<Op> {
        use iced_x86::Code as C;
        let mut op = self.blank(ins, end, count);
        let back = ins.next_ip().wrapping_sub(self.page);
        match ins.code() {
            C::Jmp_rel8_64 | C::Jmp_rel32_64 => {
                op.handler = branch::jmp;
                op.disp = self.target(ins)?;
            }
            C::Call_rel32_64 => {
                op.handler = branch::call;
                op.disp = self.target(ins)?;
                op.src = back as u16;
            }
            C::Retnq => op.handler = branch::ret,
            C::Retnq_imm16 => {
                op.handler = branch::ret;
                op.imm = ins.try_immediate(0).ok()?;
            }
            C::Jmp_rm64 | C::Call_rm64 => {
                let call = ins.code() == C::Call_rm64;
                op.imm = back;
                if ins.op0_kind() == OpKind::Register {
                    op.src = place(ins.op0_register())?.0;
                    op.handler = if call { branch::call_reg } else { branch::jmp_reg };
                } else {
                    let memory = self.memory(ins)?;
                    op.handler = match (call, memory.indexed) {
                        (true, true) => branch::call_mem::<true>,
                        (true, false) => branch::call_mem::<false>,
                        (false, true) => branch::jmp_mem::<true>,
                        (false, false) => branch::jmp_mem::<false>,
                    };
                    op = with_memory(op, &memory);
                }
            }
            _ => return None,
        }
        Some(op)
    }

    /// CMOVcc between registers and SETcc of a register.
    fn conditional_data(&self, ins: &Instruction, count: u8) -> Option<Op> {
        if ins.op0_kind() != OpKind::Register {
            return None;
        }
        let (dst, size) = place(ins.op0_register())?;
        let cc = condition(ins);
        let mut op = self.blank(ins, end, count);
        op.dst = dst;
        if ins.op_count() == 1 {
            op.handler = data::set_condition(cc)?;
        } else if ins.op1_kind() == OpKind::Register {
            op.handler = data::cmov(size, cc)?;
            op.src = place(ins.op1_register())?.0;
        } else {
            return None;
        }
        Some(op)
    }
}

/// Byte offset in [`Cpu`] and width of a general register.
fn place(register: Register) -> Option<(u16, usize)> {
    let (place, size) = gpr_place(register)?;
    Some(((Cpu::gpr_offset(0) + place) as u16, size))
}

fn with_memory(mut op: Op, memory: &Memory) -> Op {
    (op.base, op.index, op.scale, op.disp) = (memory.base, memory.index, memory.scale, memory.disp);
    op
}

/// Condition code as encoded in the instruction (iced counts from 1 in the same order).
fn condition(ins: &Instruction) -> u8 {
    (ins.condition_code() as u8).wrapping_sub(1) & 15
}
