//! What an instruction must find before it runs (Intel SDM vol. 3, 13.1 and table 13-1; vol. 2A, 2.4).

use iced_x86::{Code, Register};

use super::{BUFFER, bench, execute, get, on_registers, poke, run, set, with_memory};
use crate::exec::{Shape, vec_op};
use crate::mode::{Mode, bits};
use crate::{Cpu, Fault, testing};

/// One instruction of each kind of function.
const SAMPLES: &[&[u8]] = &[
    &[0x0f, 0x58, 0xca],                   // addps xmm1, xmm2
    &[0x0f, 0x11, 0xca],                   // movups xmm2, xmm1
    &[0x66, 0x0f, 0x71, 0xd1, 0x03],       // psrlw xmm1, 3
    &[0xf3, 0x0f, 0x2d, 0xc1],             // cvtss2si eax, xmm1
    &[0xf2, 0x0f, 0x2a, 0xc8],             // cvtsi2sd xmm1, eax
    &[0x66, 0x0f, 0x2f, 0xca],             // comisd xmm1, xmm2
    &[0x66, 0x0f, 0x6e, 0xc8],             // movd xmm1, eax
    &[0x66, 0x0f, 0x7e, 0xc8],             // movd eax, xmm1
    &[0x66, 0x0f, 0xc5, 0xc1, 0x02],       // pextrw eax, xmm1, 2
    &[0x66, 0x0f, 0xc4, 0xc8, 0x02],       // pinsrw xmm1, eax, 2
    &[0x66, 0x0f, 0x38, 0x10, 0xca],       // pblendvb xmm1, xmm2
    &[0x66, 0x0f, 0xf7, 0xca],             // maskmovdqu xmm1, xmm2
    &[0x66, 0x0f, 0x3a, 0x63, 0xca, 0x0c], // pcmpistri xmm1, xmm2, 12
    &[0x0f, 0xae, 0x16],                   // ldmxcsr [esi]
    &[0x0f, 0xae, 0x1e],                   // stmxcsr [esi]
];

fn with_mxcsr() -> Box<Cpu> {
    let mut cpu = bench();
    poke(&mut cpu, BUFFER, 0x1f80);
    cpu
}

#[test]
fn control_registers_decide_between_ud_and_nm() {
    let cases: [(u64, u64, Result<(), Fault>); 5] = [
        (0, bits::CR4_OSFXSR, Ok(())),
        (bits::CR0_EM, bits::CR4_OSFXSR, Err(Fault::UD)),
        (bits::CR0_TS, bits::CR4_OSFXSR, Err(Fault::NM)),
        (bits::CR0_EM | bits::CR0_TS, bits::CR4_OSFXSR, Err(Fault::UD)),
        (bits::CR0_TS, 0, Err(Fault::UD)),
    ];
    for code in SAMPLES {
        for (cr0, cr4, expected) in cases {
            let mut cpu = with_mxcsr();
            cpu.cr0 |= cr0;
            cpu.cr4 = cpu.cr4 & !bits::CR4_OSFXSR | cr4;
            cpu.update_mode();
            assert_eq!(run(&mut cpu, code), expected, "{code:x?} {cr0:#x} {cr4:#x}");
        }
    }
}

#[test]
fn every_feature_can_be_taken_away() {
    let mut tested = 0;
    for code in Code::values() {
        let Some((form, feature)) = vec_op(code).and_then(|f| Some((f, f.feature?))) else { continue };
        tested += 1;
        let mut cpu = bench();
        let mut model = (*cpu.model).clone();
        model.features = model.features.without(&[feature]);
        cpu.model = std::sync::Arc::new(model);
        let n = u32::from(form.shape == Shape::Load);
        let ins = with_memory(on_registers(code, Register::XMM1, Register::XMM2, 0), n);
        assert_eq!(execute(&mut cpu, &ins), Err(Fault::UD), "{code:?}");
    }
    assert!(tested > 70, "{tested}");
}

#[test]
fn alignment_is_checked_where_the_manual_says() {
    for code in Code::values() {
        let Some(form) = vec_op(code).filter(|f| f.bytes != 0) else { continue };
        let mut cpu = bench();
        if !form.feature.is_none_or(|f| cpu.model.features.has(f)) {
            continue;
        }
        cpu.gpr[6] = BUFFER + 8;
        set(&mut cpu, 1, 0);
        let n = u32::from(form.shape == Shape::Load);
        let ins = with_memory(on_registers(code, Register::XMM1, Register::XMM1, 0), n);
        let expected = if form.aligned { Err(Fault::GP0) } else { Ok(()) };
        assert_eq!(execute(&mut cpu, &ins), expected, "{code:?}");
    }
}

#[test]
fn other_sixteen_byte_operands_are_aligned_too() {
    let aligned: [&[u8]; 2] = [&[0x66, 0x0f, 0x38, 0x17, 0x0e], &[0x66, 0x0f, 0x38, 0x10, 0x0e]]; // ptest, pblendvb
    for code in aligned {
        let mut cpu = bench();
        cpu.gpr[6] = BUFFER + 1;
        assert_eq!(run(&mut cpu, code), Err(Fault::GP0), "{code:x?}");
        cpu.gpr[6] = BUFFER;
        assert_eq!(run(&mut cpu, code), Ok(()), "{code:x?}");
    }
}

#[test]
fn a_fault_on_the_second_page_leaves_everything_alone() {
    let mut cpu = bench();
    // The last canonical address of the lower half: bytes behind it fault.
    cpu.gpr[6] = 0x7fff_ffff_fff8;
    set(&mut cpu, 1, 5);
    assert_eq!(run(&mut cpu, &[0x0f, 0x10, 0x0e]), Err(Fault::GP0)); // movups xmm1, [rsi]
    assert_eq!(get(&cpu, 1), 5);
    assert_eq!(run(&mut cpu, &[0x0f, 0x11, 0x0e]), Err(Fault::GP0)); // movups [rsi], xmm1
    assert_eq!(run(&mut cpu, &[0xf2, 0x0f, 0x10, 0x0e]), Ok(())); // movsd xmm1, [rsi]: nothing there, ones
    assert_eq!(get(&cpu, 1), u128::from(u64::MAX));
}

#[test]
fn maskmovdqu_writes_nothing_if_some_byte_faults() {
    let mut cpu = testing::cpu(Mode::Protected32);
    cpu.segs[crate::cpu::seg::DS].limit = 0x4fff;
    set(&mut cpu, 1, u128::MAX);
    set(&mut cpu, 2, u128::MAX);
    cpu.gpr[7] = 0x4ff8;
    assert_eq!(run(&mut cpu, &[0x66, 0x0f, 0xf7, 0xca]), Err(Fault::GP0));
    assert_eq!(testing::peek(&mut cpu, 0x4ff8, 16), [0; 16]);
}

#[test]
fn segment_limits_hold_for_the_whole_operand() {
    for (mode, limit) in [(Mode::Protected32, 0x4fff), (Mode::Protected16, 0x4fff), (Mode::Real, 0x4fff)] {
        let mut cpu = testing::cpu(mode);
        cpu.segs[crate::cpu::seg::DS].limit = limit;
        cpu.gpr[6] = 0x4ff0;
        let load: &[u8] = if mode == Mode::Protected32 { &[0x0f, 0x10, 0x0e] } else { &[0x0f, 0x10, 0x0c] };
        assert_eq!(run(&mut cpu, load), Ok(()), "{mode:?}");
        cpu.gpr[6] += 1;
        assert_eq!(run(&mut cpu, load), Err(Fault::GP0), "{mode:?}");
    }
}

#[test]
fn sse_runs_in_every_mode() {
    for mode in [Mode::Real, Mode::Virtual8086, Mode::Protected16, Mode::Protected32, Mode::Long] {
        let mut cpu = testing::cpu(mode);
        set(&mut cpu, 1, 3);
        set(&mut cpu, 2, 4);
        run(&mut cpu, &[0x66, 0x0f, 0xfe, 0xca]).unwrap(); // paddd xmm1, xmm2
        assert_eq!(get(&cpu, 1), 7, "{mode:?}");
    }
}
