//! Against the Intel SDM vol. 3, chapter 6, and 18 where it is about debugging; each test names its section.

use accel_api::x86::{EventKind, InjectedEvent, MpState, Segment, gpr};

use super::*;
use crate::cpu::seg;
use crate::dr6;
use crate::mode::bits;
use crate::testing::{cpu, peek, poke};
use crate::testing_tables::*;

const NO_CODE: InjectedEvent =
    InjectedEvent { vector: 0x21, kind: EventKind::ExternalInterrupt, error_code: None };

fn software(vector: u8) -> InjectedEvent {
    InjectedEvent { vector, kind: EventKind::Software { length: 2 }, error_code: None }
}

/// Gates that tell which vector was taken by where RIP is.
fn numbered_gates(c: &mut Cpu) {
    for vector in 0..64u8 {
        set_gate(c, vector, gate(CODE0, HANDLER + u64::from(vector), 14, 0, 0), 0);
    }
}

fn taken(c: &Cpu) -> u64 {
    c.rip - HANDLER
}

/// 6.14.2 to 6.14.5: stack by gate, CPL and IST; the frame; alignment; flags.
#[test]
fn frames_of_64_bit_mode() {
    for (kind, cpl, ist, error_code) in [
        (14, 0, 0, None),
        (14, 0, 0, Some(0x1234)),
        (14, 0, 1, None),
        (14, 3, 0, Some(5)),
        (14, 3, 1, None),
        (15, 0, 0, None),
        (15, 3, 0, None),
    ] {
        let mut c = cpu_with_tables(Mode::Long, cpl);
        set_gate(&mut c, 0x21, gate(CODE0, 0x8000_1000 + HANDLER, kind, 0, ist), 0xffff_ffff);
        c.gpr[gpr::RSP] = STACK + 5;
        c.rip = 0x1_2345_6789;
        c.set_rflags(flag::CF | flag::IF | flag::TF | flag::NT | flag::AC | flag::DF);
        let (ss, cs, rflags) = (c.segs[seg::SS].selector, c.segs[seg::CS].selector, c.rflags());
        c.deliver(InjectedEvent { error_code, ..NO_CODE }).unwrap();

        let base = match (ist, cpl) {
            (1, _) => IST,
            (_, 3) => INNER_STACK,
            _ => STACK,
        };
        let mut frame = vec![0x1_2345_6789, cs.into(), rflags, STACK + 5, ss.into()];
        if let Some(code) = error_code {
            frame.insert(0, code.into());
        }
        assert_eq!(c.gpr[gpr::RSP], base - 8 * frame.len() as u64, "{kind} {cpl} {ist}");
        for (i, want) in frame.into_iter().enumerate() {
            let at = c.gpr[gpr::RSP] + 8 * i as u64;
            assert_eq!(peek64(&mut c, at), want, "{kind} {cpl} {ist} slot {i}");
        }
        assert_eq!((c.rip, c.next_rip), (0xffff_ffff_8000_1000 + HANDLER, c.rip));
        assert_eq!((c.cpl, c.segs[seg::CS].selector, c.mode), (0, CODE0, Mode::Long));
        let ifl = if kind == 14 { 0 } else { flag::IF };
        assert_eq!(c.rflags(), 2 | flag::CF | flag::AC | flag::DF | ifl);
        // SS is null with RPL = new CPL only after a change of privilege.
        assert_eq!(c.segs[seg::SS].selector, if cpl == 3 { 0 } else { DATA0 });
        assert_eq!(c.segs[seg::SS].unusable, cpl == 3);
        assert!(c.leave);
    }
}

/// 6.14.3: interrupts in compatibility mode use the 64-bit frame and go to 64-bit code.
#[test]
fn from_compatibility_mode() {
    let mut c = cpu_with_tables(Mode::Long, 3);
    c.segs[seg::CS] = Segment::flat(COMPAT3, 0xc0fb);
    c.update_mode();
    assert_eq!(c.mode, Mode::Protected32);
    c.deliver(NO_CODE).unwrap();
    assert_eq!((c.mode, c.gpr[gpr::RSP]), (Mode::Long, INNER_STACK - 40));
    assert_eq!(peek64(&mut c, INNER_STACK - 32), u64::from(COMPAT3));
}

/// 6.8.3: RF is set in the image that faults push, and only there; 6.7.1: NMIs mask NMIs.
#[test]
fn resume_flag_and_nmi_mask() {
    for (event, rf) in [
        (InjectedEvent { vector: 6, kind: EventKind::Exception, error_code: None }, true),
        (InjectedEvent { vector: 1, kind: EventKind::Exception, error_code: None }, false),
        (InjectedEvent { vector: 2, kind: EventKind::Nmi, error_code: None }, false),
        (NO_CODE, false),
    ] {
        let mut c = cpu_with_tables(Mode::Long, 0);
        c.deliver(event).unwrap();
        assert_eq!(peek64(&mut c, STACK - 24) & flag::RF != 0, rf, "{event:?}");
        assert_eq!(c.nmi_masked, event.kind == EventKind::Nmi);
    }
}

/// 6.12.1.2: DPL of the gate counts for INT n only; the length is added to RIP; a halted CPU wakes up.
#[test]
fn software_interrupts_check_the_gate() {
    let mut c = cpu_with_tables(Mode::Long, 3);
    numbered_gates(&mut c);
    c.rip = 0x5000;
    c.deliver(software(0x30)).unwrap();
    assert_eq!(taken(&c), 13);
    assert_eq!(peek64(&mut c, INNER_STACK - 48), 0x30 * 8 + 2); // no EXT: it was the program
    assert_eq!(peek64(&mut c, INNER_STACK - 40), 0x5000);

    let mut c = cpu_with_tables(Mode::Long, 3);
    set_gate(&mut c, 0x30, gate(CODE0, HANDLER, 15, 3, 0), 0);
    c.rip = 0x5000;
    c.mp = MpState::Halted;
    c.deliver(software(0x30)).unwrap();
    assert_eq!((peek64(&mut c, INNER_STACK - 40), c.mp), (0x5002, MpState::Running));
}

/// 6.12 and 6.13: what is wrong with a gate and the error code that tells.
#[test]
fn bad_gates() {
    let cases: &[(&str, u64, u64, u64, u32)] = &[
        ("wrong type", gate(CODE0, HANDLER, 12, 0, 0), 0, 13, 0x21 * 8 + 3),
        ("task gate", gate(TR, 0, 5, 0, 0), 0, 13, 0x21 * 8 + 3),
        ("absent", gate(CODE0, HANDLER, 14, 0, 0) & !(1 << 47), 0, 11, 0x21 * 8 + 3),
        ("null code", gate(2, HANDLER, 14, 0, 0), 0, 13, 1),
        ("data", gate(DATA0, HANDLER, 14, 0, 0), 0, 13, DATA0 as u32 | 1),
        ("absent code", gate(ABSENT_CODE, HANDLER, 14, 0, 0), 0, 11, ABSENT_CODE as u32 | 1),
        ("outer code", gate(CODE3, HANDLER, 14, 0, 0), 0, 13, CODE3 as u32 & !3 | 1),
        ("32-bit code", gate(COMPAT3, HANDLER, 14, 0, 0), 0, 13, COMPAT3 as u32 & !3 | 1),
        ("outside the GDT", gate(0x100, HANDLER, 14, 0, 0), 0, 13, 0x101),
        ("LDT without LDT", gate(0xc, HANDLER, 14, 0, 0), 0, 13, 0xd),
        ("not canonical", gate(CODE0, HANDLER, 14, 0, 0), 0x8000, 13, 1),
    ];
    for &(what, low, high, vector, code) in cases {
        let mut c = cpu_with_tables(Mode::Long, 0);
        c.ldtr.unusable = true;
        numbered_gates(&mut c);
        set_gate(&mut c, 0x21, low, high);
        c.deliver(NO_CODE).unwrap();
        assert_eq!((taken(&c), peek64(&mut c, STACK - 48)), (vector, code.into()), "{what}");
    }
    let mut c = cpu_with_tables(Mode::Long, 0);
    numbered_gates(&mut c);
    c.deliver(InjectedEvent { vector: 64, ..NO_CODE }).unwrap();
    assert_eq!((taken(&c), peek64(&mut c, STACK - 48)), (13, 64 * 8 + 3));
}

/// Table 6-5: which second exception makes a double fault, and 6.15 (#DF): which third one stops the CPU.
#[test]
fn double_and_triple_faults() {
    const PF_AT: u64 = 14;
    // First exception, vectors whose gates are broken, vector delivered in the end (`None`: shutdown).
    let cases: &[(u8, &[u8], Option<u64>)] = &[
        (6, &[6], Some(13)),    // benign, then contributory: serially
        (13, &[13], Some(8)),   // contributory twice
        (0, &[0], Some(8)),     // #DE is contributory
        (14, &[14], Some(8)),   // page fault, then contributory
        (13, &[13, 8], None),   // and the double fault's handler fails too
        (6, &[6, 13], Some(8)), // benign; #GP; #GP while delivering #GP
        (6, &[6, 13, 8], None),
        (PF_AT as u8, &[], Some(PF_AT)),
    ];
    for &(first, broken, last) in cases {
        let mut c = cpu_with_tables(Mode::Long, 0);
        numbered_gates(&mut c);
        for &vector in broken {
            set_gate(&mut c, vector, gate(DATA0, 0, 14, 0, 0), 0);
        }
        c.fault_address = 0x1234;
        c.rip = 0x5555;
        let code = matches!(first, 13 | 14).then_some(0);
        let fault = code.map_or(Fault::plain(first), |code| Fault::with_code(first, code));
        let result = c.raise(fault);
        match last {
            Some(vector) => {
                assert_eq!((result, taken(&c)), (Ok(()), vector), "{first} {broken:?}");
                if vector == 8 {
                    assert_eq!(peek64(&mut c, STACK - 48), 0);
                }
                assert_eq!(peek64(&mut c, STACK - 40), 0x5555);
            }
            None => assert_eq!((result, c.mp), (Err(Shutdown), MpState::Shutdown), "{first} {broken:?}"),
        }
        assert_eq!(c.cr2, if first == 14 { 0x1234 } else { 0 });
    }
}

/// 6.14.5, 6.13: stacks that cannot be used. #SS(0) for a non-canonical IST, #TS(TR) beyond the TSS.
#[test]
fn bad_stacks_of_64_bit_mode() {
    let mut c = cpu_with_tables(Mode::Long, 0);
    numbered_gates(&mut c);
    set_gate(&mut c, 0x21, gate(CODE0, HANDLER, 14, 0, 1), 0);
    poke64(&mut c, TSS + 0x24, 0x8000_0000_0000);
    c.deliver(NO_CODE).unwrap();
    assert_eq!((taken(&c), peek64(&mut c, STACK - 48)), (12, 1));

    let mut c = cpu_with_tables(Mode::Long, 0);
    numbered_gates(&mut c);
    set_gate(&mut c, 0x21, gate(CODE0, HANDLER, 14, 0, 7), 0);
    c.tr.limit = 0x5a;
    c.deliver(NO_CODE).unwrap();
    assert_eq!((taken(&c), peek64(&mut c, STACK - 48)), (10, u64::from(TR) | 1));

    // The stack of the interrupted program itself is bad: no handler can run on it.
    let mut c = cpu_with_tables(Mode::Long, 0);
    c.gpr[gpr::RSP] = 0x8000_0000_0010;
    assert_eq!(c.deliver(NO_CODE), Err(Shutdown));
}

/// 6.12.1: protected mode, 32- and 16-bit gates, same and inner privilege.
#[test]
fn frames_of_protected_mode() {
    for (kind, cpl, error_code) in
        [(14, 0, None), (15, 0, Some(7)), (14, 3, None), (14, 3, Some(9)), (6, 0, None), (7, 3, Some(1))]
    {
        let mut c = cpu_with_tables(Mode::Protected32, cpl);
        set_gate(&mut c, 0x21, gate(CODE0, HANDLER, kind, 0, 0), 0);
        c.rip = 0x5678;
        c.set_rflags(flag::IF | flag::ZF);
        let (ss, cs, rflags) = (c.segs[seg::SS].selector, c.segs[seg::CS].selector, c.rflags());
        c.deliver(InjectedEvent { error_code, ..NO_CODE }).unwrap();
        let mut frame = vec![0x5678u32, cs.into(), rflags as u32];
        if cpl == 3 {
            frame.extend([STACK as u32, ss.into()]);
        }
        if let Some(code) = error_code {
            frame.insert(0, code);
        }
        let width = if kind & 8 != 0 { 4 } else { 2 };
        let base = if cpl == 3 { INNER_STACK } else { STACK };
        assert_eq!(c.gpr[gpr::RSP], base - (width * frame.len()) as u64);
        for (i, want) in frame.into_iter().enumerate() {
            let at = c.gpr[gpr::RSP] + (width * i) as u64;
            let got = peek(&mut c, at, width);
            assert_eq!(got, want.to_le_bytes()[..width], "{kind} {cpl} slot {i}");
        }
        assert_eq!((c.cpl, c.rip, c.segs[seg::SS].selector), (0, HANDLER, DATA0));
        assert_eq!(c.has(flag::IF), kind & 1 != 0);
    }
}

/// 6.12.1, 5.8.5: the inner stack of the TSS is checked; its faults are #TS with the selector.
#[test]
fn bad_inner_stacks() {
    for (ss, vector, code) in [
        (0u16, 10, 1u32),
        (DATA3, 10, u32::from(DATA3) & !3 | 1),
        (CODE0, 10, u32::from(CODE0) | 1),
        (READ_ONLY, 10, u32::from(READ_ONLY) | 1),
        (ABSENT_DATA, 12, u32::from(ABSENT_DATA) | 1),
    ] {
        let mut c = cpu_with_tables(Mode::Protected32, 3);
        numbered_gates(&mut c);
        // The fault's own handler gets a conforming segment, so that it needs no inner stack.
        set_gate(&mut c, vector, gate(CONFORMING, HANDLER + u64::from(vector), 14, 0, 0), 0);
        poke64(&mut c, TSS + 4, INNER_STACK | u64::from(ss) << 32);
        c.deliver(NO_CODE).unwrap();
        assert_eq!((taken(&c), c.cpl), (vector.into(), 3));
        assert_eq!(peek32(&mut c, STACK - 16), code, "SS0 = {ss:#x}");
    }
}

/// 21.3.1: leaving virtual-8086 mode stores all segment registers and nulls the data segments.
#[test]
fn from_virtual_8086_mode() {
    let mut c = cpu_with_tables(Mode::Protected32, 0);
    c.set_rflags(flag::VM | flag::IF | flag::IOPL);
    for (index, s) in c.segs.iter_mut().enumerate() {
        *s = Segment { attributes: 0xf3, ..Segment::real(0x100 + index as u16) };
    }
    c.rip = 0x42;
    c.gpr[gpr::RSP] = 0xfffe;
    c.deliver(NO_CODE).unwrap();
    assert_eq!((c.mode, c.cpl, c.gpr[gpr::RSP]), (Mode::Protected32, 0, INNER_STACK - 36));
    let frame: Vec<u32> = (0..9).map(|i| peek32(&mut c, INNER_STACK - 36 + 4 * i)).collect();
    assert_eq!(frame[..2], [0x42, 0x101]);
    assert_eq!(frame[2] as u64 & (flag::VM | flag::IF), flag::VM | flag::IF);
    assert_eq!(frame[3..], [0xfffe, 0x102, 0x100, 0x103, 0x104, 0x105]);
    assert!([seg::ES, seg::DS, seg::FS, seg::GS].iter().all(|&i| c.segs[i].unusable));
}

/// 21.1.4: the interrupt vector table; no error codes; IF, TF and AC cleared; the IDT limit holds.
#[test]
fn real_mode() {
    let mut c = cpu(Mode::Real);
    c.idtr = accel_api::x86::DescriptorTable { base: 0x100, limit: 0x3ff };
    poke(&mut c, 0x100 + 13 * 4, &[0x34, 0x12, 0x00, 0x20]);
    c.segs[seg::SS] = Segment::real(0x800);
    c.gpr[gpr::RSP] = 0xaaaa_0002; // only SP counts, and it wraps
    c.rip = 0x77;
    c.set_rflags(flag::IF | flag::TF | flag::AC | flag::CF);
    c.raise(Fault::GP0).unwrap();
    assert_eq!((c.segs[seg::CS].selector, c.segs[seg::CS].base, c.rip), (0x2000, 0x20000, 0x1234));
    assert_eq!(c.gpr[gpr::RSP], 0xaaaa_fffc);
    assert_eq!(peek(&mut c, 0x8000, 2), [3, 3]);
    assert_eq!(peek(&mut c, 0x17ffc, 4), [0x77, 0, 0, 0]);
    assert_eq!(c.rflags(), 2 | flag::CF);

    // An IDT too short for #GP: contributory twice, then no #DF either.
    c.idtr.limit = 4 * 8 - 1;
    assert_eq!(c.raise(Fault::GP0), Err(Shutdown));
}

/// 18.2.4 and 18.3.1.4: #DB clears GD; single steps are marked in DR6.
#[test]
fn debug_traps() {
    let mut c = cpu_with_tables(Mode::Long, 0);
    c.dr7 |= 1 << 13;
    c.set_rflags(flag::TF);
    c.rip = 0x5001;
    c.pending_debug = dr6::BS;
    c.take_debug_trap().unwrap();
    assert_eq!((c.dr6 & dr6::BS, c.dr7 & 1 << 13), (dr6::BS, 0));
    assert_eq!(peek64(&mut c, STACK - 40), 0x5001);
    assert_eq!((peek64(&mut c, STACK - 24) & flag::TF, c.has(flag::TF)), (flag::TF, false));
}

/// Table 10-1 and 9.4.3: INIT keeps the FPU, MSRs and the cache bits of CR0; SIPI starts in real mode.
#[test]
fn init_and_start_up() {
    let mut c = cpu_with_tables(Mode::Long, 0);
    c.gpr[5] = 5;
    c.fpu.fcw = 0x27f;
    c.vector.0[3][0] = 9;
    c.msrs.lstar = 0x1000;
    c.cr0 = c.cr0 & !bits::CR0_NW | bits::CR0_CD | bits::CR0_PG;
    c.nmi_masked = true;
    c.injected = Some(NO_CODE);
    c.init_reset();
    assert_eq!((c.gpr[5], c.rip, c.segs[seg::CS].base), (0, 0xfff0, 0xffff_0000));
    assert_eq!((c.fpu.fcw, c.vector.0[3][0], c.msrs.lstar), (0x27f, 9, 0x1000));
    assert_eq!((c.cr0, c.efer, c.mode), (0x4000_0010, 0, Mode::Real));
    assert_eq!((c.nmi_masked, c.injected, c.mp), (false, None, MpState::Running)); // vCPU 0 is the BSP
    c.mp = MpState::WaitForSipi;
    c.start_up(0x9a);
    assert_eq!((c.segs[seg::CS].selector, c.segs[seg::CS].base, c.rip), (0x9a00, 0x9a000, 0));
    assert_eq!(c.mp, MpState::Running);
}

/// 6.14.5 with paging: a page fault while pushing becomes the guest's, with CR2; a second one a double fault.
#[test]
fn page_fault_while_pushing() {
    let mut c = cpu_with_tables(Mode::Long, 0);
    numbered_gates(&mut c);
    // Identity map of the first 2 MiB by 4 KiB pages at 0x50000, with the stack's page absent.
    for (at, value) in [(0x50000, 0x51007), (0x51000, 0x52007), (0x52000, 0x53007)] {
        poke64(&mut c, at, value);
    }
    for page in 0..256u64 {
        poke64(&mut c, 0x53000 + 8 * page, page << 12 | 3);
    }
    let absent = STACK - 0x1000;
    poke64(&mut c, 0x53000 + (absent >> 12) * 8, 0);
    c.cr3 = 0x50000;
    c.cr0 |= bits::CR0_PG;
    set_gate(&mut c, 14, gate(CODE0, HANDLER + 14, 14, 0, 1), 0);
    c.tlb.flush_all();
    c.deliver(NO_CODE).unwrap();
    assert_eq!((taken(&c), c.cr2, peek64(&mut c, IST - 48)), (14, STACK - 8, 2));

    // SS and RSP fit above the page, RFLAGS does not.
    c.gpr[gpr::RSP] = STACK - 0x1000 + 16;
    poke64(&mut c, 0x53000 + (absent >> 12) * 8, absent | 3);
    poke64(&mut c, 0x53000 + (absent >> 12) * 8 - 8, 0);
    c.tlb.flush_all();
    c.deliver(NO_CODE).unwrap();
    assert_eq!((taken(&c), c.cr2, peek64(&mut c, IST - 48)), (14, absent - 8, 2));
    poke64(&mut c, 0x53000 + (absent >> 12) * 8, 0);

    c.gpr[gpr::RSP] = STACK;
    c.tlb.flush_all();
    set_gate(&mut c, 14, gate(CODE0, HANDLER + 14, 14, 0, 0), 0);
    set_gate(&mut c, 8, gate(CODE0, HANDLER + 8, 14, 0, 1), 0);
    c.deliver(NO_CODE).unwrap();
    assert_eq!((taken(&c), c.cr2, peek64(&mut c, IST - 48)), (8, STACK - 8, 0));
}
