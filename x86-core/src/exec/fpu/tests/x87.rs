//! Every x87 opcode but the control instructions, thousands of operands each.

use super::native::compare;

/// Runs all `modrm`s of all escape opcodes that `wanted` lets through, and reports every one that differs.
fn sweep(count: usize, wanted: impl Fn(u8, u8) -> bool) {
    let modrms = (0..8).map(|reg| reg << 3 | 6).chain(0xc0..=0xff);
    let mut failures = Vec::new();
    for (opcode, modrm) in modrms.flat_map(|modrm| (0xd8..=0xdf).map(move |opcode| (opcode, modrm))) {
        if defined(opcode, modrm) && wanted(opcode, modrm) {
            failures.extend(compare(&[opcode, modrm], count, |_, _| {}, |_| {}).err());
        }
    }
    assert!(failures.is_empty(), "{} differ\n{}", failures.len(), failures.join("\n"));
}

/// What is an instruction at all, and no control instruction that changes more than registers.
fn defined(opcode: u8, modrm: u8) -> bool {
    let bytes = [opcode, modrm];
    let ins = iced_x86::Decoder::new(64, &bytes, crate::DECODER_OPTIONS).decode();
    let control = match (opcode, modrm) {
        (0xd9, 0x26 | 0x2e | 0x36 | 0x3e) | (0xdd, 0x26 | 0x36 | 0x3e) => true,
        // No operation on current processors, or not decoded by all.
        (0xdb, 0xe0..=0xe7) => true,
        _ => false,
    };
    !ins.is_invalid() && !control
}

/// FSIN and the like take long.
fn transcendental(opcode: u8, modrm: u8) -> bool {
    opcode == 0xd9 && modrm >= 0xf0
}

#[test]
fn memory_forms() {
    sweep(2000, |_, modrm| modrm < 0xc0);
}

#[test]
fn register_forms() {
    sweep(600, |opcode, modrm| modrm >= 0xc0 && !transcendental(opcode, modrm));
}

#[test]
fn functions() {
    sweep(4000, transcendental);
}

/// A store that an unmasked exception suppresses still touches its operand first, as the host does.
#[test]
fn operands_fault_before_an_exception_is_recorded() {
    for (ftw, fcw, st0) in [(0, 0x37e, 0), (0xff, 0x36f, 1)] {
        let mut cpu = crate::testing::cpu(crate::mode::Mode::Long);
        cpu.gpr[accel_api::x86::gpr::RBX] = 1 << 47;
        (cpu.fpu.ftw, cpu.fpu.fcw) = (ftw, fcw);
        cpu.fpu.r[0].mantissa = st0;
        let before = cpu.fpu.clone();
        // fst dword [rbx]
        assert_eq!(crate::testing::run(&mut cpu, &[0xd9, 0x13]), Err(crate::Fault::GP0));
        assert_eq!((cpu.fpu.fsw, cpu.fpu.ftw), (before.fsw, before.ftw));
    }
}
