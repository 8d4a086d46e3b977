//! Registers and flags after integer, x87 and SSE instructions. The instruction oracle goes into every corner; these
//! checks make sure that each backend has the ground right, through its own way of running a block.

use std::sync::Arc;

use accel_api::Accelerator;
use accel_api::x86::gpr;
use iced_x86::code_asm::*;

use crate::rig::{Rig, map};
use crate::snippet::Case;

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const OF: u64 = 0x800;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// Runs instructions and stores RAX and the status flags after each, then compares.
fn table(accel: &Arc<dyn Accelerator>, cases: &[Case]) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        for (n, (emit, ..)) in cases.iter().enumerate() {
            let at = map::DATA + 16 * n as u64;
            emit(a)?;
            a.pushfq()?;
            a.mov(qword_ptr(at), rax)?;
            a.pop(qword_ptr(at + 8))?;
        }
        Ok(())
    });
    rig.run_long();
    for (n, (_, value, flags)) in cases.iter().enumerate() {
        let [got, got_flags] = rig.quads(map::DATA + 16 * n as u64);
        assert_eq!((got, got_flags & STATUS), (*value, *flags), "case {n}: {got:#x} != {value:#x}");
    }
}

/// Binary arithmetic in all widths: carry, overflow, adjust, parity; 32-bit results clear the upper half, 8- and 16-bit
/// results leave it (Intel SDM vol. 1, 3.4.1.1; vol. 2, ADD, SUB, ADC, SBB, CMP).
pub fn add_sub_flags(accel: &Arc<dyn Accelerator>) {
    table(
        accel,
        &[
            (&|a| [a.mov(rax, -1i64), a.add(rax, 1)].into_iter().collect(), 0, CF | PF | AF | ZF),
            (&|a| [a.mov(rax, i64::MAX), a.add(rax, 1)].into_iter().collect(), 1 << 63, PF | AF | SF | OF),
            (&|a| [a.mov(rax, -1i64), a.add(eax, 2)].into_iter().collect(), 1, CF | AF),
            (
                &|a| [a.mov(rax, 0x1_0000_ffffu64), a.add(ax, 1)].into_iter().collect(),
                1 << 32,
                CF | PF | AF | ZF,
            ),
            (&|a| [a.mov(eax, 0x12_7f), a.add(al, 1)].into_iter().collect(), 0x1280, AF | SF | OF),
            (&|a| [a.mov(eax, 0x80_12), a.add(ah, ah)].into_iter().collect(), 0x0012, CF | PF | ZF | OF),
            (&|a| [a.xor(eax, eax), a.sub(rax, 1)].into_iter().collect(), u64::MAX, CF | PF | AF | SF),
            (
                &|a| [a.mov(eax, 0x8000_0000u32), a.sub(eax, 1)].into_iter().collect(),
                0x7fff_ffff,
                PF | AF | OF,
            ),
            (&|a| [a.mov(eax, 5), a.cmp(rax, 5)].into_iter().collect(), 5, PF | ZF),
            (&|a| [a.mov(eax, 1), a.stc(), a.adc(rax, -2)].into_iter().collect(), 0, CF | PF | AF | ZF),
            (
                &|a| [a.mov(eax, 7), a.stc(), a.sbb(eax, 7)].into_iter().collect(),
                0xffff_ffff,
                CF | PF | AF | SF,
            ),
            (
                &|a| [a.stc(), a.mov(eax, -1i32 as u32), a.inc(eax)].into_iter().collect(),
                0,
                CF | PF | AF | ZF,
            ),
            (
                &|a| [a.clc(), a.mov(rax, i64::MIN), a.dec(rax)].into_iter().collect(),
                i64::MAX as u64,
                PF | AF | OF,
            ),
            (&|a| [a.mov(eax, 1), a.neg(al)].into_iter().collect(), 0xff, CF | PF | AF | SF),
            (&|a| [a.mov(eax, 0x55), a.and(eax, 0x0f), a.cmp(eax, 5)].into_iter().collect(), 5, PF | ZF),
            (&|a| [a.mov(rax, -1i64), a.xor(rax, rax), a.cmp(eax, 0)].into_iter().collect(), 0, PF | ZF),
            (&|a| [a.mov(eax, 0x3f), a.mov(ebx, 1), a.xadd(eax, ebx)].into_iter().collect(), 0x40, AF),
        ],
    );
}

/// MUL, IMUL, DIV and IDIV in all widths (Intel SDM vol. 2): only defined results.
pub fn multiply_divide(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.mov(rax, 0xffff_ffff_ffff_fffeu64)?;
        a.mov(ebx, 3)?;
        a.mul(rbx)?; // 2:fffffffffffffffa
        a.mov(qword_ptr(map::DATA), rax)?;
        a.mov(qword_ptr(map::DATA + 8), rdx)?;
        a.mov(rcx, 10u64)?;
        a.div(rcx)?;
        a.mov(qword_ptr(map::DATA + 16), rax)?;
        a.mov(qword_ptr(map::DATA + 24), rdx)?;
        a.mov(eax, -7i32 as u32)?;
        a.cdq()?;
        a.mov(ebx, 2)?;
        a.idiv(ebx)?; // -3, remainder -1
        a.mov(qword_ptr(map::DATA + 32), rax)?;
        a.mov(qword_ptr(map::DATA + 40), rdx)?;
        a.mov(eax, 0x1234)?;
        a.mov(bl, 0x64)?;
        a.div(bl)?; // 0x1234 / 100 = 46 rest 60
        a.mov(qword_ptr(map::DATA + 48), rax)?;
        a.imul_3(r8, rbx, -5)?;
        a.mov(qword_ptr(map::DATA + 56), r8)?;
        a.mov(al, -3i32)?;
        a.mov(dl, 100)?;
        a.imul(dl)?; // AX = -300, carry and overflow
        a.setc(r9b)?;
        a.movzx(r9d, r9b)?;
        a.movsx(rax, ax)
    });
    let end = rig.run_long();
    assert_eq!(rig.quads(map::DATA), [0xffff_ffff_ffff_fffa, 2, 0x4ccc_cccc_cccc_cccc, 2]);
    assert_eq!(rig.quads(map::DATA + 32), [0xffff_fffd, 0xffff_ffff, 60 << 8 | 46, (-500i64) as u64]);
    assert_eq!((end.gpr[gpr::RAX], end.gpr[9]), ((-300i64) as u64, 1));
}

/// Shifts and rotates: counts are masked, a count of 0 leaves the flags (Intel SDM vol. 2, SAL/SAR/SHL/SHR).
pub fn shifts(accel: &Arc<dyn Accelerator>) {
    table(
        accel,
        &[
            (
                &|a| [a.mov(eax, 0x8000_0001u32), a.shl(eax, 1), a.cmp(eax, 2)].into_iter().collect(),
                2,
                PF | ZF,
            ),
            (
                &|a| {
                    [a.mov(ecx, 64), a.stc(), a.mov(eax, 3), a.cmp(eax, 4), a.shl(rax, cl)]
                        .into_iter()
                        .collect()
                },
                3,
                CF | PF | AF | SF,
            ),
            (
                &|a| [a.mov(ecx, 33), a.mov(eax, 3), a.shl(eax, cl), a.cmp(eax, 6)].into_iter().collect(),
                6,
                PF | ZF,
            ),
            (
                &|a| [a.mov(rax, i64::MIN), a.sar(rax, 63), a.cmp(rax, -1)].into_iter().collect(),
                u64::MAX,
                PF | ZF,
            ),
            (
                &|a| [a.mov(eax, 0x1234_5678), a.rol(eax, 8), a.cmp(eax, 0)].into_iter().collect(),
                0x3456_7812,
                PF,
            ),
            (
                &|a| {
                    [a.mov(rax, 0x1122_3344_5566_7788u64), a.bswap(rax), a.cmp(eax, eax)]
                        .into_iter()
                        .collect()
                },
                0x8877_6655_4433_2211,
                PF | ZF,
            ),
            (
                &|a| {
                    [a.mov(eax, 0xff00), a.mov(edx, 0xab00_0000u32), a.shld(eax, edx, 8), a.cmp(eax, eax)]
                        .into_iter()
                        .collect()
                },
                0xff_00ab,
                PF | ZF,
            ),
            (
                &|a| [a.mov(eax, 1), a.stc(), a.rcr(eax, 1), a.setc(bl), a.cmp(bl, 1)].into_iter().collect(),
                0x8000_0000,
                PF | ZF,
            ),
            (
                &|a| {
                    [a.mov(eax, 0x10), a.bsf(ecx, eax), a.mov(eax, ecx), a.cmp(eax, 4)].into_iter().collect()
                },
                4,
                PF | ZF,
            ),
        ],
    );
}

/// Conditional branches, SETcc, CMOVcc, LOOP, CALL and RET through registers and memory.
pub fn control_flow(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        let (mut top, mut out, mut function) = (a.create_label(), a.create_label(), a.create_label());
        let mut begin = a.create_label();
        a.jmp(begin)?;
        a.set_label(&mut function)?;
        a.add(rbx, 100)?;
        a.ret_1(8)?;
        a.set_label(&mut begin)?;
        // Sum of the odd numbers below 200.
        a.xor(eax, eax)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut top)?;
        a.mov(edx, ecx)?;
        a.test(cl, 1)?;
        a.cmovz(edx, r8d)?;
        a.add(eax, edx)?;
        a.inc(ecx)?;
        a.cmp(ecx, 200)?;
        a.jl(top)?;
        a.lea(rsi, ptr(function))?;
        a.mov(qword_ptr(map::DATA), rsi)?;
        a.push(1)?;
        a.call(rsi)?;
        a.push(2)?;
        a.call(qword_ptr(map::DATA))?;
        a.mov(ecx, 5)?;
        let mut looped = a.create_label();
        a.set_label(&mut looped)?;
        a.inc(rbx)?;
        a.loop_(looped)?;
        a.cmp(rbx, 205)?;
        a.sete(dil)?;
        a.jrcxz(out)?;
        a.xor(edi, edi)?;
        a.set_label(&mut out)?;
        a.nop()
    });
    let end = rig.run_long();
    assert_eq!((end.gpr[gpr::RAX], end.gpr[gpr::RBX], end.gpr[gpr::RDI]), (10_000, 205, 1));
    assert_eq!(end.gpr[gpr::RSP], map::STACK);
}

/// String instructions with repeat prefixes, both directions, across pages (Intel SDM vol. 2, REP).
pub fn strings(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let source: Vec<u8> = (0..6000u32).map(|n| (n * 7 % 251) as u8).collect();
    rig.bytes(map::DATA + 0x10, &source);
    rig.code(|a| {
        a.mov(esi, (map::DATA + 0x10) as u32)?;
        a.mov(edi, (map::DATA + 0x4003) as u32)?;
        a.mov(ecx, 6000)?;
        a.rep().movsb()?;
        a.mov(r8, rsi)?;
        a.mov(r9, rdi)?;
        // Back to front, overlapping: what was at +0 ends up at +8.
        a.std()?;
        a.mov(esi, (map::DATA + 0x10 + 80 - 8) as u32)?;
        a.mov(edi, (map::DATA + 0x10 + 80) as u32)?;
        a.mov(ecx, 10)?;
        a.rep().movsq()?;
        a.cld()?;
        a.mov(edi, (map::DATA + 0x8ff0) as u32)?;
        a.mov(eax, 0x4142_4344)?;
        a.mov(ecx, 9)?;
        a.rep().stosd()?;
        a.mov(edi, (map::DATA + 0x4003) as u32)?;
        a.mov(al, i32::from(source[100]))?;
        a.mov(ecx, 6000)?;
        a.repne().scasb()?;
        a.mov(r10, rcx)?;
        a.mov(esi, (map::DATA + 0x4003) as u32)?;
        a.mov(edi, (map::DATA + 0x4003) as u32)?;
        a.mov(ecx, 6000 / 2)?;
        a.repe().cmpsw()?;
        a.sete(r11b)?;
        a.xor(ecx, ecx)?;
        a.rep().movsb() // nothing
    });
    let end = rig.run_long();
    let mut copy = vec![0; 6000];
    use vm_memory::{Bytes, GuestAddress};
    rig.ram.memory().read_slice(&mut copy, GuestAddress(map::DATA + 0x4003)).expect("RAM");
    assert!(copy == source, "REP MOVSB");
    assert_eq!((end.gpr[8], end.gpr[9]), (map::DATA + 0x10 + 6000, map::DATA + 0x4003 + 6000));
    let moved: [u64; 10] = rig.quads(map::DATA + 0x18);
    for (n, word) in moved.iter().enumerate() {
        assert_eq!(word.to_le_bytes(), source[8 * n..8 * n + 8], "REP MOVSQ backwards, {n}");
    }
    let filled: [u64; 5] = rig.quads(map::DATA + 0x8ff0);
    assert_eq!(
        filled,
        [
            0x4142_4344_4142_4344,
            0x4142_4344_4142_4344,
            0x4142_4344_4142_4344,
            0x4142_4344_4142_4344,
            0x4142_4344
        ]
    );
    let first = source.iter().position(|b| *b == source[100]).expect("there") as u64;
    assert_eq!(end.gpr[10], 6000 - first - 1);
    assert_eq!((end.gpr[11], end.gpr[gpr::RDI]), (1, map::DATA + 0x4003 + 6000));
}

/// Packed integers, double arithmetic, conversion and comparison; MXCSR's rounding and sticky flags (Intel SDM vol. 1,
/// 10.2.3).
pub fn sse(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.write(map::DATA, 1.0f64.to_bits());
    rig.write(map::DATA + 8, 3.0f64.to_bits());
    rig.write(map::DATA + 0x20, 0x7f80u32); // round towards zero
    rig.code(|a| {
        a.movaps(xmm0, xmmword_ptr(map::DATA))?;
        a.movhlps(xmm1, xmm0)?;
        a.movsd_2(xmm2, xmm0)?;
        a.divsd(xmm2, xmm1)?;
        a.movq(rax, xmm2)?;
        a.ldmxcsr(dword_ptr(map::DATA + 0x20))?;
        a.movsd_2(xmm3, qword_ptr(map::DATA))?;
        a.divsd(xmm3, xmm1)?;
        a.mov(ecx, 0xc0d0_e0f0u32)?;
        a.movd(xmm4, ecx)?;
        a.pshufd(xmm4, xmm4, 0)?;
        a.paddusb(xmm4, xmm4)?;
        a.pmovmskb(edx, xmm4)?;
        a.comisd(xmm0, xmm1)?;
        a.setb(bl)?;
        a.mov(esi, -5i32)?;
        a.cvtsi2sd(xmm15, esi)?;
        a.cvttsd2si(rdi, xmm15)
    });
    let end = rig.run_long();
    let third = 1.0f64 / 3.0;
    assert_eq!(f64::from_bits(end.gpr[gpr::RAX]), third);
    assert_eq!(end.fpu.ymm[3][0], third.to_bits(), "a third is below the exact value in both modes");
    assert_eq!((end.gpr[gpr::RDX], end.gpr[gpr::RBX] & 0xff), (0xffff, 1));
    assert_eq!(end.gpr[gpr::RDI], (-5i64) as u64);
    assert_eq!(end.fpu.mxcsr, 0x7fa0, "rounding mode kept, precision flag set");
    assert_eq!((end.fpu.ymm[0][0], end.fpu.ymm[0][1]), (1.0f64.to_bits(), 3.0f64.to_bits()));
}

/// x87: 80-bit results in stack order, status and tags (Intel SDM vol. 1, 8.1).
pub fn x87(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.fninit()?;
        a.fld1()?;
        a.fldpi()?;
        a.fadd_2(st1, st0)?; // ST1 = pi + 1
        a.fld1()?;
        a.fchs()?;
        a.fsqrt()?; // invalid, masked: default NaN
        a.fnstsw(ax)?;
        a.fld(qword_ptr(map::DATA))?;
        a.fstp(tword_ptr(map::DATA + 0x10))?;
        a.fxch(st0, st1)
    });
    rig.write(map::DATA, 0.1f64.to_bits());
    let end = rig.run_long();
    assert_eq!(end.gpr[gpr::RAX] & 0x3801, 5 << 11 | 1, "TOP = 5, invalid operation");
    assert_eq!(end.fpu.ftw, 0b1110_0000);
    assert_eq!(end.fpu.fsw & 0x3801, 5 << 11 | 1);
    let top = |n: usize| {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(&end.fpu.st[n]);
        u128::from_le_bytes(bytes)
    };
    assert_eq!(top(0), 0x4000_c90f_daa2_2168_c235, "pi");
    assert_eq!(top(1), 0xffff_c000_0000_0000_0000, "the default NaN");
    assert_eq!(top(2), 0x4001_8487_ed51_10b4_611a, "pi + 1");
    assert_eq!(rig.quads(map::DATA + 0x10), [0xcccc_cccc_cccc_d000, 0x3ffb]);
}

/// Code of 32-bit protected mode and of real mode.
pub fn other_modes(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code_at(32, map::CODE, |a| {
        a.mov(eax, 0xffff_ffffu32)?;
        a.inc(eax)?;
        a.pushad()?;
        a.mov(dword_ptr(map::DATA as u32), 0x1234_5678)?;
        a.mov(ebx, esp)?;
        a.popad()?;
        a.mov(al, 0x9c)?;
        a.daa()?;
        crate::snippet::exit(a)
    });
    let end = rig.run(&rig.protected());
    assert_eq!(rig.read::<u32>(map::DATA), 0x1234_5678);
    assert_eq!((end.gpr[gpr::RAX] & 0xff, end.rflags & CF), (0x02, CF));

    let rig = Rig::new(accel);
    rig.code_at(16, 0, |a| {
        a.nop()?;
        a.nop()
    });
    let code = crate::snippet::assemble(16, 0, |a| {
        a.mov(ax, 0x7000)?;
        a.mov(es, ax)?;
        a.mov(di, 0xfffe)?;
        a.stosb()?;
        a.mov(eax, 0x1234_5678)?; // operand-size prefix
        a.mov(dword_ptr(bx + si + 0x100), eax)?;
        a.push(ds)?;
        a.pop(fs)?;
        a.mov(cx, fs)?;
        crate::snippet::exit(a)
    });
    rig.bytes(map::CODE, &code);
    let end = rig.run(&rig.real_mode());
    assert_eq!(rig.read::<u8>(0x7_fffe), 0);
    assert_eq!(rig.read::<u32>(map::CODE + 0x100), 0x1234_5678);
    assert_eq!(end.segments.es.base, 0x7_0000);
    assert_eq!((end.gpr[gpr::RDI], end.gpr[gpr::RCX] & 0xffff), (0xffff, map::CODE >> 4));
}
