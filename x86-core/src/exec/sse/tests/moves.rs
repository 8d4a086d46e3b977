//! Moves in plain Rust, and their bytes in memory.

use iced_x86::Code::{self, *};
use iced_x86::Register;

use super::{
    BUFFER, Random, bench, execute, get, lane, on_registers, peek, poke, run, set, vector, with_memory,
};
use crate::exec::{Shape, vec_op};
use crate::testing;

fn low(value: u128) -> u128 {
    value & u128::from(u64::MAX)
}

fn high(value: u128) -> u128 {
    value & !u128::from(u64::MAX)
}

/// What a move leaves in the destination register, of old value `a`. In a memory form `b` is the operand,
/// zero-extended.
pub(super) fn reference(code: Code, a: u128, b: u128, memory: bool) -> Option<u128> {
    Some(match code {
        Movups_xmm_xmmm128 | Movupd_xmm_xmmm128 | Movdqu_xmm_xmmm128 | Movaps_xmm_xmmm128
        | Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128 | Movntdqa_xmm_m128 | Lddqu_xmm_m128
        | Movups_xmmm128_xmm | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm | Movaps_xmmm128_xmm
        | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm => b,
        Movss_xmm_xmmm32 | Movsd_xmm_xmmm64 if memory => b,
        Movss_xmm_xmmm32 | Movss_xmmm32_xmm => a >> 32 << 32 | u128::from(lane::<u32>(b, 0)),
        Movsd_xmm_xmmm64 | Movsd_xmmm64_xmm | Movlps_xmm_m64 | Movlpd_xmm_m64 => high(a) | low(b),
        Movq_xmm_xmmm64 | Movq_xmmm64_xmm => low(b),
        Movddup_xmm_xmmm64 => low(b) | b << 64,
        Movhps_xmm_m64 | Movhpd_xmm_m64 | Movlhps_xmm_xmm => low(a) | b << 64,
        Movhlps_xmm_xmm => high(a) | b >> 64,
        Movsldup_xmm_xmmm128 => vector([0, 0, 2, 2].map(|i| lane::<u32>(b, i))),
        Movshdup_xmm_xmmm128 => vector([1, 1, 3, 3].map(|i| lane::<u32>(b, i))),
        _ => return None,
    })
}

#[test]
fn stores_write_their_bytes_and_no_others() {
    let mut random = Random(11);
    let mut tested = 0;
    for code in Code::values() {
        let Some(form) = vec_op(code).filter(|f| f.shape == Shape::Store) else { continue };
        let mut cpu = bench();
        if !form.feature.is_none_or(|f| cpu.model.features.has(f)) {
            continue;
        }
        tested += 1;
        let (value, before) = (random.wide(), random.wide());
        set(&mut cpu, 9, value);
        poke(&mut cpu, BUFFER, before);
        execute(&mut cpu, &with_memory(on_registers(code, Register::XMM1, Register::XMM9, 0), 0)).unwrap();
        let stored = if matches!(code, Movhps_m64_xmm | Movhpd_m64_xmm) { value >> 64 } else { value };
        let mask = u128::MAX >> (128 - 8 * u32::from(form.bytes));
        assert_eq!(peek(&mut cpu, BUFFER), before & !mask | stored & mask, "{code:?}");
        assert_eq!(get(&cpu, 9), value, "{code:?}");
    }
    assert_eq!(tested, 16);
}

#[test]
fn unaligned_moves_cross_pages() {
    for at in [0x4ff9, 0x4fff, 0x4001, 0x4ff0] {
        let mut cpu = bench();
        cpu.gpr[6] = at;
        let value = Random(at).wide();
        set(&mut cpu, 1, value);
        run(&mut cpu, &[0x0f, 0x11, 0x0e]).unwrap(); // movups [rsi], xmm1
        assert_eq!(peek(&mut cpu, at), value);
        set(&mut cpu, 2, 0);
        run(&mut cpu, &[0xf3, 0x0f, 0x6f, 0x16]).unwrap(); // movdqu xmm2, [rsi]
        assert_eq!(get(&cpu, 2), value);
        run(&mut cpu, &[0xf2, 0x0f, 0xf0, 0x1e]).unwrap(); // lddqu xmm3, [rsi]
        assert_eq!((cpu.vector.0[3][0], cpu.vector.0[3][1]), (value as u64, (value >> 64) as u64));
    }
}

#[test]
fn maskmovdqu_writes_chosen_bytes_only() {
    let mut random = Random(5);
    for at in [0x4000u64, 0x4ff8, 0x4003] {
        for mask in [0, u128::MAX, random.wide(), random.wide(), 0x80, 0x80 << 120] {
            let mut cpu = bench();
            let (value, before) = (random.wide(), random.wide());
            poke(&mut cpu, at, before);
            cpu.gpr[7] = at;
            set(&mut cpu, 1, value);
            set(&mut cpu, 2, mask);
            run(&mut cpu, &[0x66, 0x0f, 0xf7, 0xca]).unwrap(); // maskmovdqu xmm1, xmm2
            let expected = vector(
                (0..16).map(|i| lane::<u8>(if lane::<u8>(mask, i) & 0x80 != 0 { value } else { before }, i)),
            );
            assert_eq!(peek(&mut cpu, at), expected);
        }
    }
}

#[test]
fn maskmovdqu_obeys_address_size_and_segment() {
    let mut cpu = bench();
    cpu.gpr[7] = 0xffff_ffff_0000_4000;
    cpu.segs[crate::cpu::seg::GS].base = 0x100;
    set(&mut cpu, 1, u128::from_le_bytes([7; 16]));
    set(&mut cpu, 2, 0x80);
    run(&mut cpu, &[0x65, 0x67, 0x66, 0x0f, 0xf7, 0xca]).unwrap(); // maskmovdqu gs:[edi], xmm1, xmm2
    assert_eq!(testing::peek(&mut cpu, 0x4100, 2), [7, 0]);
}

#[test]
fn quadword_and_doubleword_moves_zero_what_is_above() {
    let mut cpu = bench();
    cpu.gpr[0] = 0x1122_3344_5566_7788;
    set(&mut cpu, 1, u128::MAX);
    run(&mut cpu, &[0x66, 0x0f, 0x6e, 0xc8]).unwrap(); // movd xmm1, eax
    assert_eq!(get(&cpu, 1), 0x5566_7788);
    set(&mut cpu, 1, u128::MAX);
    run(&mut cpu, &[0x66, 0x48, 0x0f, 0x6e, 0xc8]).unwrap(); // movq xmm1, rax
    assert_eq!(get(&cpu, 1), 0x1122_3344_5566_7788);
    run(&mut cpu, &[0x66, 0x0f, 0x7e, 0xcb]).unwrap(); // movd ebx, xmm1
    assert_eq!(cpu.gpr[3], 0x5566_7788);
    poke(&mut cpu, BUFFER, u128::MAX);
    run(&mut cpu, &[0x66, 0x48, 0x0f, 0x7e, 0x0e]).unwrap(); // movq [rsi], xmm1
    assert_eq!(peek(&mut cpu, BUFFER), high(u128::MAX) | 0x1122_3344_5566_7788);
    run(&mut cpu, &[0x66, 0x44, 0x0f, 0x6e, 0x7e, 0x04]).unwrap(); // movd xmm15, [rsi + 4]
    assert_eq!((cpu.vector.0[15][0], cpu.vector.0[15][1]), (0x1122_3344, 0));
}
