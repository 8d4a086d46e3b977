//! Control instructions, environments, exceptions.

use super::native::{Case, OPERAND, Random, compare, load};
use crate::mode::{Mode, bits};
use crate::testing::{self, peek, poke, run};
use crate::{F80, Fault, fsw};
use accel_api::x86::gpr;

#[test]
fn against_the_host() {
    for code in [
        [0xd9, 0x2e].as_slice(), // fldcw
        &[0xd9, 0x3e],           // fnstcw
        &[0xdd, 0x3e],           // fnstsw m16
        &[0xdb, 0xe0],           // fneni
        &[0xdb, 0xe1],           // fndisi
        &[0xdb, 0xe2],           // fnclex
        &[0xdb, 0xe3],           // fninit
        &[0xdb, 0xe4],           // fnsetpm
        &[0xd9, 0x26],           // fldenv
        &[0x66, 0xd9, 0x26],
        &[0xdd, 0x26], // frstor
        &[0x66, 0xdd, 0x26],
        &[0x9b], // wait
    ] {
        compare(code, 300, |_, _| {}, |_| {}).unwrap();
    }
}

/// Pointers of a fresh unit are 0 on every processor.
#[test]
fn environments_stored() {
    for code in [[0xd9, 0x36].as_slice(), &[0x66, 0xd9, 0x36], &[0xdd, 0x36], &[0x66, 0xdd, 0x36]] {
        compare(code, 300, |_, _| {}, |_| {}).unwrap();
    }
}

/// Words loaded where exceptions become pending: nothing faults, ES follows.
#[test]
fn summary_follows_flags_and_masks() {
    let raise = |random: &mut Random, case: &mut Case| {
        let word = random.next();
        case.memory.0[..8].copy_from_slice(&word.to_le_bytes());
    };
    compare(&[0xd9, 0x26], 2000, raise, |_| {}).unwrap();
    compare(&[0xd9, 0x2e], 2000, raise, |_| {}).unwrap();
}

/// Intel SDM vol. 1, figures 8-9 to 8-12.
#[test]
fn environment_formats() {
    let formats: [(Mode, bool, [u8; 28]); 4] = [
        (
            Mode::Protected32,
            true,
            bytes(&[
                0xffff_027f,
                0xffff_3000,
                0xffff_3fff,
                0x1234_5678,
                0x0123_0000,
                0x9abc_def0,
                0xffff_0000,
            ]),
        ),
        (Mode::Protected16, false, bytes(&[0x3000_027f, 0x5678_3fff, 0xdef0_0000, 0])),
        (
            Mode::Real,
            true,
            bytes(&[
                0xffff_027f,
                0xffff_3000,
                0xffff_3fff,
                0xffff_5678,
                0x0123_4123,
                0xffff_def0,
                0x09ab_c000,
            ]),
        ),
        (Mode::Real, false, bytes(&[0x3000_027f, 0x5678_3fff, 0xdef0_4123, 0xc000])),
    ];
    for (mode, wide, expected) in formats {
        let mut cpu = testing::cpu(mode);
        let regs = &mut cpu.fpu;
        (regs.fcw, regs.fsw, regs.ftw, regs.fop) = (0x27f, 0x3000, 0x80, 0x123);
        (regs.fip, regs.fdp) = (0x1234_5678, 0x9abc_def0);
        regs.r[7] = F80 { mantissa: 1 << 63, exponent: 0x3fff };
        cpu.gpr[gpr::RSI] = OPERAND;
        cpu.gpr[gpr::RBX] = OPERAND;
        // [esi] or [bx]; the operand size prefix where the mode's own size is the other.
        let (default_wide, modrm) = if mode == Mode::Protected32 { (true, 0x36) } else { (false, 0x37) };
        let mut code = if wide == default_wide { vec![] } else { vec![0x66] };
        code.extend([0xd9, modrm]);
        let before = cpu.fpu.clone();
        run(&mut cpu, &code).unwrap();
        let len = if wide { 28 } else { 14 };
        assert_eq!(peek(&mut cpu, OPERAND, len), expected[..len], "{mode:?} {wide}");
        assert_eq!(cpu.fpu.fcw, 0x27f | fsw::EXCEPTIONS);
        // And back: what 16-bit formats leave out is 0.
        cpu.fpu.initialise();
        *code.last_mut().unwrap() -= 0x10;
        run(&mut cpu, &code).unwrap();
        let mut after = before.clone();
        if !wide {
            let mask = if mode == Mode::Real { 0xf_ffff } else { 0xffff };
            (after.fip, after.fdp) = (before.fip & mask, before.fdp & mask);
        }
        if !wide && mode != Mode::Real {
            after.fop = 0;
        }
        assert_eq!(cpu.fpu, after, "{mode:?} {wide}");
    }
}

fn bytes(words: &[u32]) -> [u8; 28] {
    let mut out = [0; 28];
    for (place, word) in out.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// An exception is reported by the next waiting instruction and by no other (Intel SDM vol. 1, 8.6 and 8.7).
#[test]
fn pending_exceptions() {
    let mut cpu = testing::cpu(Mode::Long);
    cpu.fpu.fcw = 0x37b;
    run(&mut cpu, &[0xd9, 0xee]).unwrap(); // fldz
    run(&mut cpu, &[0xd9, 0xe8]).unwrap(); // fld1
    // fdiv st, st1 behind a prefix: a division by zero leaves the operands.
    run(&mut cpu, &[0x48, 0xd8, 0xf1]).unwrap();
    assert_eq!(cpu.fpu.st(0), F80 { mantissa: 1 << 63, exponent: 0x3fff });
    assert_eq!(cpu.fpu.fsw, fsw::ZE | fsw::ES | fsw::B | 6 << 11);
    assert_eq!((cpu.fpu.fop, cpu.fpu.fip), (0x0f1, 0x1000));
    cpu.gpr[gpr::RSI] = OPERAND;
    let waiting: [&[u8]; 7] = [
        &[0xd9, 0xd0],       // fnop
        &[0xd8, 0xc1],       // fadd
        &[0xd9, 0x06],       // fld m32
        &[0xd9, 0x2e],       // fldcw
        &[0xdd, 0x26],       // frstor
        &[0x9b],             // wait
        &[0x0f, 0x6f, 0xc1], // movq mm0, mm1
    ];
    let state = cpu.fpu.clone();
    for code in waiting {
        assert_eq!(run(&mut cpu, code), Err(Fault::MF), "{code:02x?}");
        assert_eq!(cpu.fpu, state);
    }
    for code in [[0xd9, 0x3e].as_slice(), &[0xdf, 0xe0], &[0x0f, 0xae, 0x06], &[0xdb, 0xe4]] {
        assert_eq!(run(&mut cpu, code), Ok(()), "{code:02x?}");
    }
    assert_eq!(cpu.gpr[gpr::RAX] as u16, state.fsw);
    cpu.cr0 &= !bits::CR0_NE;
    assert_eq!(run(&mut cpu, &[0xd9, 0xd0]), Ok(()));
    cpu.cr0 |= bits::CR0_NE;
    run(&mut cpu, &[0xdb, 0xe2]).unwrap(); // fnclex
    assert_eq!(run(&mut cpu, &[0x9b]), Ok(()));
}

/// Intel SDM vol. 3, table 2-2 (Action taken by x87 FPU instructions for EM, MP and TS).
#[test]
fn device_not_available() {
    let (wait, fnop, fninit): (&[u8], &[u8], &[u8]) = (&[0x9b], &[0xd9, 0xd0], &[0xdb, 0xe3]);
    for (flags, faults, wait_faults) in [
        (0, false, false),
        (bits::CR0_MP, false, false),
        (bits::CR0_TS, true, false),
        (bits::CR0_TS | bits::CR0_MP, true, true),
        (bits::CR0_EM, true, false),
        (bits::CR0_EM | bits::CR0_MP | bits::CR0_TS, true, true),
    ] {
        let mut cpu = testing::cpu(Mode::Protected32);
        cpu.cr0 = cpu.cr0 & !(bits::CR0_MP | bits::CR0_TS | bits::CR0_EM) | flags;
        let outcome = |faults| if faults { Err(Fault::NM) } else { Ok(()) };
        assert_eq!(run(&mut cpu, wait), outcome(wait_faults));
        assert_eq!(run(&mut cpu, fnop), outcome(faults));
        assert_eq!(run(&mut cpu, fninit), outcome(faults));
    }
}

/// A fault of the memory access changes nothing, the stack and FIP included.
#[test]
fn memory_faults_change_nothing() {
    let mut random = Random(7);
    for code in [
        [0xd9, 0x06],
        [0xdd, 0x1e],
        [0xdb, 0x2e],
        [0xdb, 0x3e],
        [0xdf, 0x36],
        [0xdd, 0x36],
        [0xdd, 0x26],
        [0xd8, 0x06],
    ] {
        let mut cpu = testing::cpu(Mode::Long);
        load(&mut cpu, &random.case());
        cpu.fpu.fcw = 0x37f;
        cpu.fpu.ftw = 0xfe;
        cpu.fpu.fsw = 1 << 11;
        // The operand crosses into non-canonical addresses.
        cpu.gpr[gpr::RSI] = 0x7fff_ffff_fffe;
        let before = cpu.fpu.clone();
        assert_eq!(run(&mut cpu, &code), Err(Fault::GP0), "{code:02x?}");
        assert_eq!(cpu.fpu, before, "{code:02x?}");
    }
}

/// A store over a page boundary, and FIP and FDP of instructions with operands.
#[test]
fn page_crossing_and_pointers() {
    let mut cpu = testing::cpu(Mode::Long);
    run(&mut cpu, &[0xd9, 0xeb]).unwrap(); // fldpi
    cpu.gpr[gpr::RSI] = 0x4ffb;
    poke(&mut cpu, 0x1100, &[0xdb, 0x3e]); // fstp tbyte [rsi]
    cpu.rip = 0x1100;
    testing::step(&mut cpu).unwrap();
    assert_eq!((cpu.fpu.fip, cpu.fpu.fdp, cpu.fpu.ftw), (0x1100, 0x4ffb, 0));
    let pi = F80 { mantissa: 0xc90f_daa2_2168_c235, exponent: 0x4000 };
    assert_eq!(peek(&mut cpu, 0x4ffb, 10), pi.to_bytes());
    run(&mut cpu, &[0xdb, 0x2e]).unwrap(); // fld tbyte [rsi]
    assert_eq!(cpu.fpu.st(0), pi);
}
