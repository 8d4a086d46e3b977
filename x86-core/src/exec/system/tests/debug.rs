//! Breakpoints, single steps, RF: Intel SDM vol. 3, chapter 18, and 6.8.3; each test names its section.

use accel_api::x86::gpr;

use super::*;
use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::{Mode, bits::*};
use crate::testing_tables::*;
use crate::{Exec, Fault, dr6};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x3000;

/// DR7 with breakpoint `n` enabled: R/W `kind`, LEN `len`.
const fn enable(n: u64, kind: u64, len: u64) -> u64 {
    1 << (2 * n) | (kind | len << 2) << (16 + 4 * n)
}

const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const PORT: u64 = 2;
const ACCESS: u64 = 3;

/// Level 0, 64-bit mode, with `code` at RIP.
fn at(code: &[u8]) -> Box<Cpu> {
    let mut c = cpu_with_tables(Mode::Long, 0);
    poke(&mut c, CODE, code);
    c.rip = CODE;
    c.dr6 = 0xffff_0ff0;
    c
}

/// Steps; the causes that DR6 gets if a trap follows.
fn step(c: &mut Cpu) -> Exec<u64> {
    c.step()?;
    Ok(if c.debug_shadow { 0 } else { c.pending_debug })
}

/// 18.2.4 and 18.2.5: which accesses a data breakpoint sees, by R/W, LEN and address; table 18-2.
#[test]
fn data_breakpoints() {
    let store: &'static [u8] = &[0x89, 0x03]; // mov [rbx], eax
    let load: &'static [u8] = &[0x8b, 0x03]; // mov eax, [rbx]
    let add: &'static [u8] = &[0x01, 0x03]; // add [rbx], eax
    let store8: &'static [u8] = &[0x88, 0x03]; // mov [rbx], al
    let push: &'static [u8] = &[0x53]; // push rbx
    let load16: &'static [u8] = &[0x0f, 0x10, 0x03]; // movups xmm0, [rbx]
    // Instruction, RBX, kind, LEN field, DR0, hit.
    type Case = (&'static [u8], u64, u64, u64, u64, bool);
    let cases: &[Case] = &[
        (store, DATA, WRITE, 3, DATA, true),
        (store, DATA, ACCESS, 3, DATA, true),
        (load, DATA, WRITE, 3, DATA, false),
        (load, DATA, ACCESS, 3, DATA, true),
        (add, DATA, WRITE, 3, DATA, true),
        (store, DATA, EXECUTE, 0, DATA, false),
        (store, DATA, PORT, 0, DATA, false),
        (store, DATA, WRITE, 0, DATA + 3, true),
        (store, DATA, WRITE, 0, DATA + 4, false),
        (store, DATA + 1, WRITE, 0, DATA, false),
        (store8, DATA + 3, WRITE, 3, DATA, true),
        (store8, DATA + 4, WRITE, 3, DATA, false),
        (store8, DATA + 7, WRITE, 2, DATA, true),
        (store8, DATA + 8, WRITE, 2, DATA, false),
        (store8, DATA + 1, WRITE, 1, DATA, true),
        (store8, DATA, WRITE, 1, DATA + 1, true), // the low bit of the address does not count
        (store, DATA + 0xffe, WRITE, 1, DATA + 0x1000, true), // across a page
        (load16, DATA, ACCESS, 0, DATA + 15, true),
        (push, 0, WRITE, 2, STACK - 8, true),
    ];
    for &(code, rbx, kind, len, dr0, hit) in cases {
        for (cleared, global) in [(0, 0), (1, 2)] {
            let mut c = at(code);
            c.gpr[gpr::RBX] = rbx;
            c.dr[0] = dr0;
            c.set_dr7(enable(0, kind, len) & !cleared | global);
            assert_eq!(step(&mut c), Ok(hit.into()), "{code:x?} {rbx:#x} {kind} {len} {dr0:#x}");
            assert_eq!(c.rip, CODE + code.len() as u64); // a trap: the instruction has been executed
        }
        let mut c = at(code);
        c.gpr[gpr::RBX] = rbx;
        c.dr[0] = dr0;
        c.set_dr7(enable(0, kind, len) & !3);
        assert_eq!((step(&mut c), c.armed, c.strict), (Ok(0), false, false));
    }
}

/// 18.2.3: DR6 tells of the last exception only in B0 to B3, and keeps the rest; several breakpoints at once.
#[test]
fn causes_accumulate() {
    let mut c = at(&[0x89, 0x03, 0x89, 0x03]);
    c.gpr[gpr::RBX] = DATA;
    c.dr = [DATA, DATA + 2, DATA + 4, DATA + 3];
    c.set_dr7(enable(0, WRITE, 0) | enable(1, ACCESS, 0) | enable(2, WRITE, 0) | enable(3, WRITE, 0));
    c.set_rflags(flag::TF);
    assert_eq!(step(&mut c), Ok(0b1011 | dr6::BS));
    c.take_debug_trap().unwrap();
    assert_eq!((c.dr6, c.rip, c.pending_debug), (0xffff_0ff0 | dr6::BS | 0b1011, HANDLER, 0));
    assert_eq!(peek64(&mut c, STACK - 40), CODE + 2);
    c.rip = CODE + 2;
    c.set_dr7(enable(2, WRITE, 0) | enable(0, WRITE, 0));
    assert_eq!(step(&mut c), Ok(1));
    c.take_debug_trap().unwrap();
    assert_eq!(c.dr6, 0xffff_0ff0 | dr6::BS | 1);
}

/// 18.3.1.1: a code breakpoint is a fault before the instruction, whose RF is what it was; with RF set it is passed once.
#[test]
fn code_breakpoints() {
    let mut c = at(&[0xff, 0xc0, 0xff, 0xc0]); // inc eax, twice
    c.dr[1] = CODE;
    c.set_dr7(enable(1, EXECUTE, 0));
    assert_eq!(step(&mut c), Err(Fault::DB));
    assert_eq!((c.rip, c.gpr[gpr::RAX]), (CODE, 0));
    c.raise(Fault::DB).unwrap();
    assert_eq!((c.dr6 & 0xf, c.pending_debug), (2, 0));
    assert_eq!((peek64(&mut c, STACK - 40), peek64(&mut c, STACK - 24) & flag::RF), (CODE, 0));
    c.rip = CODE;
    c.system_flags |= flag::RF;
    assert_eq!((step(&mut c), c.rip, c.has(flag::RF)), (Ok(0), CODE + 2, false));
    // Not in the middle of an instruction, and not for data.
    c.dr[1] = CODE + 3;
    assert_eq!(step(&mut c), Ok(0));
    // 6.8.3: not right behind MOV SS.
    let mut c = at(&[0x8e, 0xd0, 0x90, 0x90]);
    c.gpr[gpr::RAX] = DATA0.into();
    c.dr = [CODE + 2, CODE + 3, 0, 0];
    c.set_dr7(enable(0, EXECUTE, 0) | enable(1, EXECUTE, 0));
    assert_eq!([step(&mut c), step(&mut c), step(&mut c)], [Ok(0), Ok(0), Err(Fault::DB)]);
    assert_eq!(c.pending_debug, 2);
}

/// 18.2.4: breakpoints on ports need CR4.DE, and span by LEN.
#[test]
fn port_breakpoints() {
    // OUT 0x44, AL; IN EAX, 0x40.
    for (code, hits) in [(&[0xe6, 0x44][..], 0b10), (&[0xe5, 0x40], 0b01)] {
        for (de, want) in [(CR4_DE, hits), (0, 0)] {
            let mut c = at(code);
            c.cr4 |= de;
            (c.dr[0], c.dr[1]) = (0x43, 0x44);
            c.set_dr7(enable(0, PORT, 0) | enable(1, PORT, 3));
            assert_eq!(step(&mut c), Ok(want), "{code:x?} {de:#x}");
        }
    }
}

/// Table 18-2 and 18.3.1.2: repeated string instructions trap behind the iteration that hits, RF set in the flags.
#[test]
fn breakpoints_in_repeated_instructions() {
    let mut c = at(&[0xf3, 0xaa]); // rep stosb
    (c.gpr[gpr::RDI], c.gpr[gpr::RCX]) = (DATA, 4);
    c.dr[0] = DATA + 1;
    c.set_dr7(enable(0, WRITE, 0));
    assert_eq!([step(&mut c), step(&mut c)], [Ok(0), Ok(1)]);
    assert_eq!((c.rip, c.gpr[gpr::RDI], c.gpr[gpr::RCX]), (CODE, DATA + 2, 2));
    c.take_debug_trap().unwrap();
    assert_eq!(peek64(&mut c, STACK - 24) & flag::RF, flag::RF);
    // The code breakpoint on it is met once, not at each turn.
    let mut c = at(&[0xf3, 0xaa, 0x90]);
    (c.gpr[gpr::RDI], c.gpr[gpr::RCX]) = (DATA, 3);
    c.dr[0] = CODE;
    c.set_dr7(enable(0, EXECUTE, 0));
    assert_eq!(step(&mut c), Err(Fault::DB));
    c.pending_debug = 0;
    c.system_flags |= flag::RF;
    assert_eq!([step(&mut c), step(&mut c), step(&mut c)], [Ok(0); 3]);
    assert_eq!((c.rip, c.has(flag::RF)), (CODE + 2, false));
}

/// 6.8.3: MOV SS holds the trap of its own data breakpoint back until the next instruction is over, also if that enters a
/// handler; STI does not.
#[test]
fn stack_switches_hold_traps_back() {
    let mut c = at(&[0x8e, 0x13, 0xcc]); // mov ss, [rbx]; int3
    c.gpr[gpr::RBX] = DATA;
    poke(&mut c, DATA, &DATA0.to_le_bytes());
    c.dr[0] = DATA;
    c.set_dr7(enable(0, ACCESS, 1));
    assert_eq!(step(&mut c), Ok(0));
    c.take_debug_trap().unwrap();
    assert_eq!(c.rip, CODE + 2);
    assert_eq!((step(&mut c), c.rip), (Ok(1), HANDLER));
    // Of two in a row only the first does.
    let mut c = at(&[0x8e, 0x13, 0x8e, 0xd0, 0x90]);
    (c.gpr[gpr::RBX], c.gpr[gpr::RAX]) = (DATA, DATA0.into());
    poke(&mut c, DATA, &DATA0.to_le_bytes());
    c.dr[0] = DATA;
    c.set_dr7(enable(0, ACCESS, 1));
    assert_eq!([step(&mut c), step(&mut c)], [Ok(0), Ok(1)]);
    let mut c = at(&[0x8e, 0xd0, 0x90]); // mov ss, ax; nop
    c.gpr[gpr::RAX] = DATA0.into();
    c.set_rflags(flag::TF);
    assert_eq!([step(&mut c), step(&mut c)], [Ok(0), Ok(dr6::BS)]);
    let mut c = at(&[0xfb]);
    c.set_rflags(flag::TF);
    assert_eq!((step(&mut c), c.shadow), (Ok(dr6::BS), true));
}

/// 6.8.3, and vol. 3, 27.7.3: what becomes of a trap that MOV SS holds back, by the instruction behind it. Entries of
/// handlers by INT n and of the system's code come first and the trap before their first instruction; another #DB tells of
/// it as well, once; any other exception ends it.
#[test]
fn what_stack_switches_hold_back_is_told_once() {
    const ONE: u64 = STACK - 40;
    const TWO: u64 = (ONE & !15) - 40;
    let b0 = 0b0001;
    // What follows, the last frame's RIP, RSP in the handler, causes in DR6.
    let cases: &[(&str, &[u8], u64, u64, u64)] = &[
        ("nop", &[0x90], CODE + 3, ONE, b0),
        ("a load that is watched", &[0x8b, 0x03], CODE + 4, ONE, b0),
        ("hlt", &[0xf4], CODE + 3, ONE, b0),
        ("int1", &[0xf1], CODE + 3, ONE, b0),
        ("int3", &[0xcc], HANDLER, TWO, b0),
        ("int 0x30", &[0xcd, 0x30], HANDLER, TWO, b0),
        ("int 1", &[0xcd, 0x01], HANDLER, TWO, b0),
        ("syscall", &[0x0f, 0x05], HANDLER, ONE, b0),
        ("mov rax, dr0 with GD", &[0x0f, 0x21, 0xc0], CODE + 2, ONE, b0 | dr6::BD),
        ("ud2", &[0x0f, 0x0b], CODE + 2, ONE, 0),
        ("div by zero", &[0xf7, 0xf1], CODE + 2, ONE, 0),
        ("int 0x7f, beyond the table", &[0xcd, 0x7f], CODE + 2, ONE - 8, 0),
    ];
    for &(what, next, from, rsp, causes) in cases {
        let mut c = at(&[0x8e, 0x13]); // mov ss, [rbx]
        poke(&mut c, CODE + 2, next);
        c.gpr[gpr::RBX] = DATA;
        poke(&mut c, DATA, &DATA0.to_le_bytes());
        c.msrs.lstar = HANDLER;
        c.dr[0] = DATA;
        let gd = if causes & dr6::BD != 0 { 1 << 13 } else { 0 };
        c.set_dr7(enable(0, ACCESS, 1) | gd);
        for turn in 0..2 {
            if let Err(fault) = c.step() {
                assert_eq!(turn, 1, "{what}");
                c.raise(fault).unwrap();
            }
            c.take_debug_trap().unwrap();
            assert_eq!(c.rip == CODE + 2, turn == 0, "{what}");
        }
        let error = u64::from(rsp == ONE - 8) * 8;
        assert_eq!((c.rip, c.gpr[gpr::RSP], peek64(&mut c, rsp + error)), (HANDLER, rsp, from), "{what}");
        assert_eq!((c.dr6, c.pending_debug, c.debug_shadow), (0xffff_0ff0 | causes, 0, false), "{what}");
        assert_eq!(c.mp, accel_api::x86::MpState::Running, "{what}");
    }
}

/// INT1 with TF set is no step, and tells of no breakpoint of an earlier exception (18.2.3).
#[test]
fn causes_of_int1() {
    let mut c = at(&[0x8e, 0xd0, 0xf1]); // mov ss, ax; int1
    c.gpr[gpr::RAX] = DATA0.into();
    c.dr6 |= 0b11;
    c.set_rflags(flag::TF);
    assert_eq!([step(&mut c), step(&mut c)], [Ok(0), Ok(0)]);
    assert_eq!((c.rip, c.dr6), (HANDLER, 0xffff_0ff0));
    assert_eq!((peek64(&mut c, STACK - 40), peek64(&mut c, STACK - 24) & flag::TF), (CODE + 3, flag::TF));
}

/// 6.8.3: what MOV SS holds back stays so no longer than until an exception has been delivered.
#[test]
fn exceptions_end_the_shadow_of_stack_switches() {
    let mut c = at(&[0x8e, 0xd0]); // mov ss, ax
    c.gpr[gpr::RAX] = DATA0.into();
    step(&mut c).unwrap();
    assert!(c.debug_shadow && c.shadow);
    c.raise(Fault::GP0).unwrap(); // as for a virtual interrupt
    assert!(!c.debug_shadow && !c.shadow);
}

/// A faulting instruction does not trap for what it touched before (table 6-2: the fault is its outcome).
#[test]
fn faults_drop_their_hits() {
    let mut c = at(&[0xff, 0x33]); // push [rbx]: reads, then writes where it cannot
    c.gpr[gpr::RBX] = DATA;
    c.gpr[gpr::RSP] = (1 << 47) + 16;
    c.dr[0] = DATA;
    c.set_dr7(enable(0, ACCESS, 3));
    assert_eq!((step(&mut c), c.pending_debug), (Err(Fault::SS0), 0));
}

/// 18.3.1.4: TF as it was before the instruction: POPF, IRET, INT n, and SYSCALL and SYSRET by TF as it is behind them.
#[test]
fn single_steps() {
    let mut c = at(&[0x9d, 0x90]); // popfq, nop
    stack64(&mut c, &[flag::TF | 2]);
    assert_eq!([step(&mut c), step(&mut c)], [Ok(0), Ok(dr6::BS)]);
    let mut c = at(&[0x9d, 0x90]);
    stack64(&mut c, &[2]);
    c.set_rflags(flag::TF);
    assert_eq!((step(&mut c), c.has(flag::TF)), (Ok(dr6::BS), false));
    let mut c = at(&[0xcc]);
    c.set_rflags(flag::TF);
    assert_eq!((step(&mut c), c.rip), (Ok(0), HANDLER));
    let mut c = at(&[0x48, 0xcf]); // iretq
    stack64(&mut c, &[0x1800, CODE0.into(), flag::TF | 2, STACK, DATA0.into()]);
    poke(&mut c, 0x1800, &[0x90]);
    assert_eq!([step(&mut c), step(&mut c)], [Ok(0), Ok(dr6::BS)]);
    for (fmask, want) in [(0, dr6::BS), (flag::TF, 0)] {
        let mut c = at(&[0x0f, 0x05]);
        c.msrs.fmask = fmask;
        c.set_rflags(flag::TF);
        assert_eq!(step(&mut c), Ok(want), "{fmask:#x}");
    }
    // SYSRET to a program that is being stepped: the trap comes before its first instruction.
    let mut c = at(&[0x48, 0x0f, 0x07]);
    (c.gpr[gpr::RCX], c.gpr[11]) = (0x1800, flag::TF);
    assert_eq!((step(&mut c), c.rip, c.cpl), (Ok(dr6::BS), 0x1800, 3));
}

/// 18.4.3: with DEBUGCTL.BTF only taken branches trap, and the trap clears it.
#[test]
fn single_steps_on_branches() {
    let mut c = at(&[0x90, 0x74, 0x00, 0x75, 0x00, 0xeb, 0x00]); // nop; jz, jnz, jmp to the next instruction
    c.set_rflags(flag::TF);
    c.write_msr(0x1d9, 2).unwrap();
    // ZF is clear; a branch to the next instruction cannot be told from none.
    assert_eq!([step(&mut c), step(&mut c)], [Ok(0), Ok(0)]);
    c.rip = CODE + 5;
    assert_eq!(step(&mut c), Ok(dr6::BS));
    c.take_debug_trap().unwrap();
    assert_eq!(c.msrs.debugctl, 0);
}

/// 18.2.4: GD refuses the access before it, is cleared for the handler, and the flags pushed have RF (6.8.3).
#[test]
fn general_detect() {
    let mut c = at(&[0x0f, 0x23, 0xc0]); // mov dr0, rax
    c.set_dr7(1 << 13 | 0x400);
    assert_eq!(step(&mut c), Err(Fault::GENERAL_DETECT));
    c.raise(Fault::GENERAL_DETECT).unwrap();
    assert_eq!((c.dr6 & dr6::BD, c.dr7, peek64(&mut c, STACK - 24) & flag::RF), (dr6::BD, 0x400, flag::RF));
    assert_eq!(c.segs[seg::CS].selector, CODE0);
}
