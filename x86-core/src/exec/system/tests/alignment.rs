//! #AC: Intel SDM vol. 3, 6.15 (interrupt 17) and table 6-7; which operands want what was seen on a processor.

use accel_api::x86::{Feature, gpr};

use super::*;
use crate::alu::flag;
use crate::mode::{Mode, bits::*};
use crate::testing::run;
use crate::testing_tables::*;
use crate::{AccessKind, Ea, Fault};

const DATA: u64 = 0x3000;

/// Level `cpl` with AC and AM set.
fn checking(mode: Mode, cpl: u8) -> Box<Cpu> {
    let mut c = cpu_with_tables(mode, cpl);
    c.cr0 |= CR0_AM;
    c.set_rflags(flag::AC);
    c.update_mode();
    c
}

/// Table 6-7: alignment by the operand's type, RBX at each offset in 16 bytes.
#[test]
fn alignment_by_type() {
    let cases: &[(&str, &[u8], u64)] = &[
        ("mov al, [rbx]", &[0x8a, 0x03], 1),
        ("mov ax, [rbx]", &[0x66, 0x8b, 0x03], 2),
        ("mov eax, [rbx]", &[0x8b, 0x03], 4),
        ("mov rax, [rbx]", &[0x48, 0x8b, 0x03], 8),
        ("mov [rbx], rax", &[0x48, 0x89, 0x03], 8),
        ("add [rbx], eax", &[0x01, 0x03], 4),
        ("lock add [rbx], eax", &[0xf0, 0x01, 0x03], 4),
        ("xchg [rbx], ax", &[0x66, 0x87, 0x03], 2),
        ("cmpxchg8b [rbx]", &[0x0f, 0xc7, 0x0b], 8),
        ("bt [rbx], eax", &[0x0f, 0xa3, 0x03], 4),
        ("movsx eax, word [rbx]", &[0x0f, 0xbf, 0x03], 2),
        ("mov [rbx], fs", &[0x8c, 0x23], 2),
        ("movss xmm0, [rbx]", &[0xf3, 0x0f, 0x10, 0x03], 4),
        ("movsd xmm0, [rbx]", &[0xf2, 0x0f, 0x10, 0x03], 8),
        ("movups xmm0, [rbx]", &[0x0f, 0x10, 0x03], 16),
        ("movups [rbx], xmm0", &[0x0f, 0x11, 0x03], 16),
        ("fld dword [rbx]", &[0xd9, 0x03], 4),
        ("fld qword [rbx]", &[0xdd, 0x03], 8),
        ("fld tword [rbx]", &[0xdb, 0x2b], 8),
        ("fnstcw [rbx]", &[0xd9, 0x3b], 2),
        ("fnstenv [rbx]", &[0xd9, 0x33], 4),
        ("stmxcsr [rbx]", &[0x0f, 0xae, 0x1b], 4),
        ("prefetcht0 [rbx]", &[0x0f, 0x18, 0x0b], 1),
        ("clflush [rbx]", &[0x0f, 0xae, 0x3b], 1),
    ];
    for &(what, code, alignment) in cases {
        for offset in 0..16 {
            let mut c = checking(Mode::Long, 3);
            c.gpr[gpr::RBX] = DATA + offset;
            let want = if offset % alignment == 0 { Ok(()) } else { Err(Fault::AC0) };
            assert_eq!(run(&mut c, code), want, "{what} at {offset}");
        }
    }
    // Whatever AC says, these are #GP(0).
    let strict: [&[u8]; 3] = [&[0x0f, 0x28, 0x03], &[0x0f, 0x58, 0x03], &[0x48, 0x0f, 0xc7, 0x0b]];
    for code in strict {
        let mut c = checking(Mode::Long, 3);
        c.gpr[gpr::RBX] = DATA + 4;
        assert_eq!(run(&mut c, code), Err(Fault::GP0), "{code:x?}");
    }
}

/// Stack accesses and string elements count, and nothing has happened when they fault.
#[test]
fn stacks_and_strings() {
    let mut c = checking(Mode::Long, 3);
    c.gpr[gpr::RSP] = STACK + 4;
    for code in [&[0x50][..], &[0x58], &[0xc3], &[0xe8, 0, 0, 0, 0], &[0xc9], &[0xc8, 0, 0, 0]] {
        c.gpr[gpr::RBP] = STACK + 4;
        assert_eq!(
            (run(&mut c, code), c.gpr[gpr::RSP], c.rip),
            (Err(Fault::AC0), STACK + 4, 0x1000),
            "{code:x?}"
        );
    }
    (c.gpr[gpr::RSI], c.gpr[gpr::RDI], c.gpr[gpr::RCX]) = (DATA, DATA + 0x101, 4);
    assert_eq!((run(&mut c, &[0xf3, 0x48, 0xa5]), c.gpr[gpr::RCX]), (Err(Fault::AC0), 4));
    run(&mut c, &[0xf3, 0xa4]).unwrap(); // bytes have no alignment
    c.gpr[gpr::RBX] = DATA + 1;
    let mut c = checking(Mode::Protected32, 3);
    c.gpr[gpr::RBX] = DATA + 2;
    assert_eq!(run(&mut c, &[0x62, 0x03]), Err(Fault::AC0)); // bound eax, [ebx]
    assert_eq!(run(&mut c, &[0x66, 0x62, 0x03]), Ok(())); // two words
}

/// 6.15: only at CPL 3 with both CR0.AM and EFLAGS.AC; the processor's own accesses are exempt.
#[test]
fn who_is_checked() {
    let load: &[u8] = &[0x8b, 0x03];
    for (cpl, am, ac, checked) in
        [(3, true, true, true), (3, false, true, false), (3, true, false, false), (0, true, true, false)]
    {
        let mut c = checking(Mode::Long, cpl);
        c.cr0 = if am { c.cr0 } else { c.cr0 & !CR0_AM };
        c.set_rflags(if ac { flag::AC } else { 0 });
        c.update_mode();
        c.gpr[gpr::RBX] = DATA + 1;
        assert_eq!((run(&mut c, load).is_err(), c.strict), (checked, checked), "{cpl} {am} {ac}");
    }
    // A GDT at an odd address, and a stack of level 0 in the TSS that is odd too.
    let mut c = checking(Mode::Protected32, 3);
    let gdt = peek(&mut c, GDT, 0x100);
    poke(&mut c, GDT + 0x801, &gdt);
    c.gdtr.base = GDT + 0x801;
    c.gpr[gpr::RAX] = DATA3.into();
    run(&mut c, &[0x8e, 0xc0]).unwrap();
    poke(&mut c, TSS + 4, &[3, 0xa0, 0, 0]);
    c.raise(Fault::AC0).unwrap();
    assert_eq!((c.cpl, c.rip, peek32(&mut c, 0xa003 - 24)), (0, HANDLER, 0));
}

/// Behind the canonical form, before the page (as seen on a processor; table 6-2 leaves the order open).
#[test]
fn order_of_faults() {
    let mut c = checking(Mode::Long, 3);
    for la in [(1 << 47) + 1, (1 << 47) - 2] {
        assert_eq!(c.load::<u32>(Ea::data(la)), Err(Fault::GP0), "{la:#x}");
        assert_eq!(c.load::<u32>(Ea { la, stack: true }), Err(Fault::SS0), "{la:#x}");
    }
    c.cr0 |= CR0_PG;
    c.cr3 = 0xf_0000;
    c.tlb.flush_all();
    assert_eq!(c.load::<u32>(Ea::data(DATA + 1)), Err(Fault::AC0));
    assert_eq!(c.span(Ea::data(DATA + 1), 4, AccessKind::Write).map(|_| ()), Err(Fault::AC0));
    assert_eq!(c.load::<u32>(Ea::data(DATA)).map_err(Fault::vector), Err(crate::vector::PF));
}

/// Masked moves and gathers take their elements at any alignment (vol. 2A, table 2-18: exceptions types 6 and 12).
#[test]
fn masked_elements_are_not_checked() {
    let cases: &[&[u8]] = &[
        &[0xc4, 0xe2, 0x69, 0x2c, 0x0b],       // vmaskmovps xmm1, xmm2, [rbx]
        &[0xc4, 0xe2, 0x69, 0x2e, 0x0b],       // vmaskmovps [rbx], xmm2, xmm1
        &[0xc4, 0xe2, 0xe9, 0x8e, 0x0b],       // vpmaskmovq [rbx], xmm2, xmm1
        &[0xc4, 0xe2, 0x69, 0x92, 0x0c, 0x1b], // vgatherdps xmm1, [rbx + xmm3], xmm2
        &[0x66, 0x0f, 0xf7, 0xca],             // maskmovdqu xmm1, xmm2
    ];
    for code in cases {
        let mut c = checking(Mode::Long, 3);
        let mut model = (*c.model).clone();
        model.features = model.features.with(&[Feature::Xsave, Feature::Avx, Feature::Avx2]);
        c.model = std::sync::Arc::new(model);
        (c.cr4, c.xcr0) = (c.cr4 | CR4_OSXSAVE, 7);
        c.update_mode();
        (c.gpr[gpr::RBX], c.gpr[gpr::RDI]) = (DATA + 1, DATA + 1);
        c.vector.0[2] = [u64::MAX; 4];
        assert_eq!(run(&mut c, code), Ok(()), "{code:02x?}");
        assert_eq!(run(&mut c, &[0x8b, 0x03]), Err(Fault::AC0), "checks go on behind {code:02x?}");
    }
}
