//! Exceptions: vector, error code, saved RIP and CR2 are exact, and nothing of the faulting instruction has happened
//! (Intel SDM vol. 3, 6.15).

use std::sync::Arc;

use accel_api::x86::{CpuState, EventKind, InjectedEvent, MpState, Segment, gpr};
use accel_api::{Accelerator, Exit};
use iced_x86::code_asm::*;

use crate::rig::{Rig, Trap, cell, map, pte, sel};
use crate::snippet::{Case, exit, faulting};

const DE: u64 = 0;
const BP: u64 = 3;
const OF: u64 = 4;
const UD: u64 = 6;
const NM: u64 = 7;
const DF: u64 = 8;
const NP: u64 = 11;
const SS: u64 = 12;
const GP: u64 = 13;
const PF: u64 = 14;
const MF: u64 = 16;
const XM: u64 = 19;

/// Runs each instruction where it must fault; compares vector and error code, and that RIP is the instruction's.
fn faults(rig: &Rig, state: &CpuState, cases: &[Case]) -> (CpuState, Vec<Trap>) {
    rig.code(|a| {
        for (emit, ..) in cases {
            faulting(a, emit)?;
        }
        Ok(())
    });
    let end = rig.run(state);
    let traps = rig.traps();
    let got: Vec<_> = traps.iter().map(|t| (t.vector, t.error, t.rip.wrapping_sub(t.expected_rip))).collect();
    let expected: Vec<_> = cases.iter().map(|(_, vector, error)| (*vector, *error, 0)).collect();
    assert_eq!(got, expected);
    (end, traps)
}

/// #DE of DIV and IDIV, by zero and by overflow; operands stay.
pub fn divide(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let mut state = rig.long_mode(0);
    state.gpr[gpr::RAX] = 1 << 63;
    state.gpr[gpr::RDX] = u64::MAX;
    state.gpr[gpr::RBX] = u64::MAX;
    let (end, _) = faults(
        &rig,
        &state,
        &[
            (&|a| a.div(rcx), DE, 0),
            (&|a| a.div(cl), DE, 0),
            (&|a| a.div(rbx), DE, 0),
            (&|a| a.idiv(rbx), DE, 0),
            (&|a| a.idiv(byte_ptr(map::DATA)), DE, 0),
        ],
    );
    assert_eq!((end.gpr[gpr::RAX], end.gpr[gpr::RDX]), (1 << 63, u64::MAX));
}

/// #UD: undefined opcodes, instructions of features that the model lacks, LOCK where it does not belong.
pub fn undefined(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let state = rig.long_mode(0);
    faults(
        &rig,
        &state,
        &[
            (&|a| a.ud2(), UD, 0),
            (&|a| a.db(&[0x06]), UD, 0),                   // PUSH ES
            (&|a| a.db(&[0x0f, 0xff, 0xc0]), UD, 0),       // UD0
            (&|a| a.db(&[0xf0, 0x89, 0xc0]), UD, 0),       // LOCK MOV
            (&|a| a.db(&[0xf0, 0x01, 0xc0]), UD, 0),       // LOCK ADD to a register
            (&|a| a.db(&[0xc5, 0xf8, 0x58, 0xc0]), UD, 0), // VADDPS: no AVX
            (&|a| a.db(&[0x0f, 0x22, 0xc8]), UD, 0),       // MOV CR1
            (&|a| a.db(&[0x0f, 0x01, 0xc1]), UD, 0),       // VMCALL
            (&|a| a.db(&[0x8e, 0xc8]), UD, 0),             // MOV CS
            (&|a| a.db(&[0x0f, 0x01, 0xd0]), UD, 0),       // XGETBV without OSXSAVE
        ],
    );
}

/// #GP(0) of ring 0: non-canonical addresses, reserved bits of control registers and MSRs, misaligned SSE operands, an
/// instruction of more than 15 bytes; #SS(0) through the stack.
pub fn general_protection(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let mut state = rig.long_mode(0);
    let hole = 0x8000_0000_0000u64;
    state.gpr[gpr::RBX] = hole;
    state.gpr[gpr::RBP] = hole;
    state.gpr[gpr::RSI] = map::DATA + 8;
    let (end, _) = faults(
        &rig,
        &state,
        &[
            (&|a| a.mov(rax, qword_ptr(rbx)), GP, 0),
            (&|a| a.mov(qword_ptr(rbx - 4), rax), GP, 0),
            (&|a| a.mov(rax, qword_ptr(rbp)), SS, 0),
            (&|a| a.jmp(rbx), GP, 0),
            (&|a| a.mov(cr4, rbx), GP, 0),
            (&|a| a.mov(cr8, rbx), GP, 0),
            (&|a| a.movaps(xmm0, xmmword_ptr(rsi)), GP, 0),
            (&|a| a.paddd(xmm0, xmmword_ptr(rsi)), GP, 0),
            (
                &|a| {
                    a.db(&[
                        0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                        0x01, 0xd8,
                    ])
                },
                GP,
                0,
            ),
        ],
    );
    assert_eq!(end.gpr[gpr::RAX], 0);
    assert_eq!(end.control.cr4, state.control.cr4);
}

/// Error codes that name a selector or an IDT entry (Intel SDM vol. 3, 6.13).
pub fn selector_errors(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.write(map::GDT + 8 * 9, 0x0000_1300_0000_ffffu64); // 0x48: data, not present
    let mut state = rig.long_mode(0);
    state.idtr.limit = 0x60 * 16 - 1;
    state.gpr[gpr::RAX] = 0x48;
    state.gpr[gpr::RBX] = 0x1000;
    state.gpr[gpr::RCX] = u64::from(sel::TSS);
    state.gpr[gpr::RDX] = u64::from(sel::CODE64);
    let (end, _) = faults(
        &rig,
        &state,
        &[
            (&|a| a.mov(ds, eax), NP, 0x48),
            (&|a| a.mov(ss, eax), SS, 0x48),
            (&|a| a.mov(es, ebx), GP, 0x1000),
            (&|a| a.mov(fs, ecx), GP, 0x30),
            (&|a| a.mov(ss, edx), GP, 0x08),
            (&|a| a.lldt(dx), GP, 0x08),
            (&|a| a.ltr(cx), GP, 0x30), // busy
            (&|a| a.int(0x70), GP, 0x70 * 8 + 2),
        ],
    );
    assert_eq!(end.segments.ds.selector, sel::DATA);
}

/// What ring 3 may not do is #GP(0); what it may goes on. The handler runs on the stack of the TSS.
pub fn ring3(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    for page in [map::USER_CODE, map::USER_STACK - 0x1000, map::CELLS] {
        rig.user_page(page);
    }
    let cases: [Case; 13] = [
        (&|a| a.hlt(), GP, 0),
        (&|a| a.cli(), GP, 0),
        (&|a| a.in_(al, 0x60), GP, 0),
        (&|a| a.mov(rax, cr0), GP, 0),
        (&|a| a.rdmsr(), GP, 0),
        (&|a| a.lgdt(fword_ptr(cell::USER)), GP, 0),
        (&|a| a.invlpg(byte_ptr(cell::USER)), GP, 0),
        (&|a| a.swapgs(), GP, 0),
        (&|a| a.int(0x70), GP, 0x70 * 8 + 2),
        (&|a| a.mov(rax, qword_ptr(map::DATA)), PF, 5),
        (&|a| a.mov(qword_ptr(map::DATA), rax), PF, 7),
        (&|a| a.clts(), GP, 0),
        (&|a| a.wbinvd(), GP, 0),
    ];
    rig.code_at(64, map::USER_CODE, |a| {
        for (emit, ..) in &cases {
            faulting(a, emit)?;
        }
        a.int(0x80)?;
        a.mov(ebx, dword_ptr(cell::USER))?;
        a.syscall()
    });
    rig.code_at(64, map::CODE, exit);
    let mut state = user_state(&rig);
    state.msrs.star = u64::from(sel::USER_CODE32) << 48 | u64::from(sel::CODE64) << 32;
    state.msrs.lstar = map::CODE;
    let end = rig.run(&state);
    let traps = rig.traps();
    let seen: Vec<_> = traps.iter().map(|t| (t.vector, t.error)).collect();
    let mut expected: Vec<_> = cases.iter().map(|c| (c.1, c.2)).collect();
    expected.push((0x80, 0));
    assert_eq!(seen, expected);
    assert!(traps[..13].iter().all(|t| t.rip == t.expected_rip && t.cs == u64::from(sel::USER_CODE64)));
    assert!(traps.iter().all(|t| t.rsp == map::USER_STACK));
    assert_eq!((end.segments.cs.selector, end.segments.cs.dpl()), (sel::CODE64, 0));
    assert_eq!(end.gpr[gpr::RCX], traps[13].rip + 7 + 2, "SYSCALL leaves the return address in RCX");
}

/// IRET to a program makes null selectors 0, whatever their RPL (Intel SDM vol. 2A, IRET), and leaves their bases, which
/// are the program's.
pub fn null_segments(accel: &Arc<dyn Accelerator>) {
    const LEAVE: u64 = map::CODE + 0x800;
    let rig = Rig::new(accel);
    for page in [map::USER_CODE, map::USER_STACK - 0x1000, map::CELLS] {
        rig.user_page(page);
    }
    rig.code(|a| {
        a.mov(eax, 2)?;
        a.mov(fs, eax)?;
        a.inc(eax)?;
        a.mov(gs, eax)?;
        a.mov(eax, cell::USER as u32)?;
        a.xor(edx, edx)?;
        for base in [0xc000_0100u32, 0xc000_0101] {
            a.mov(ecx, base)?;
            a.wrmsr()?;
        }
        for value in [sel::USER_DATA.into(), map::USER_STACK, 2, sel::USER_CODE64.into(), map::USER_CODE] {
            a.mov(rax, value)?;
            a.push(rax)?;
        }
        a.iretq()
    });
    rig.code_at(64, map::USER_CODE, |a| {
        a.mov(r8d, fs)?;
        a.mov(r9d, gs)?;
        a.mov(r10, qword_ptr(0).fs())?;
        a.mov(r12, qword_ptr(0).gs())?;
        a.syscall()
    });
    rig.code_at(64, LEAVE, exit);
    rig.write(cell::USER, 0x5a5a_1234u64);
    let mut state = rig.long_mode(0);
    state.msrs.star = u64::from(sel::USER_CODE32) << 48 | u64::from(sel::CODE64) << 32;
    state.msrs.lstar = LEAVE;
    let end = rig.run(&state);
    assert_eq!((end.gpr[8], end.gpr[9]), (0, 0), "FS and GS");
    assert_eq!((end.gpr[10], end.gpr[12]), (0x5a5a_1234, 0x5a5a_1234), "what lies at their bases");
    assert_eq!((end.segments.fs.base, end.segments.gs.base), (cell::USER, cell::USER));
}

/// State of ring 3 at [`map::USER_CODE`].
pub(crate) fn user_state(rig: &Rig) -> CpuState {
    let mut state = rig.long_mode(0);
    state.rip = map::USER_CODE;
    state.gpr[gpr::RSP] = map::USER_STACK;
    state.segments.cs = Segment::flat(sel::USER_CODE64, 0xa0fb);
    state.segments.ss = Segment::flat(sel::USER_DATA, 0xc0f3);
    state
}

/// Traps point behind their instruction: INT3, INT n, INTO (32-bit), and the one-instruction INT1; single step by TF
/// reports in DR6.
pub fn traps(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.int3()?;
        a.int(0x44)?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?; // TF
        a.popfq()?;
        a.nop()?; // the first trap comes behind this
        a.pushfq()?;
        a.and(dword_ptr(rsp), !0x100i32)?;
        a.popfq()?; // and the last one behind this
        a.mov(rbx, dr6)
    });
    let mut state = rig.long_mode(0);
    state.rflags |= 0x40; // ZF, which survives
    let end = rig.run(&state);
    let traps = rig.traps();
    let vectors: Vec<_> = traps.iter().map(|t| t.vector).collect();
    assert_eq!(vectors, [BP, 0x44, 1, 1, 1, 1]);
    assert_eq!((traps[0].rip, traps[1].rip), (map::CODE + 1, map::CODE + 3));
    let popf = traps[1].rip + 1 + 7 + 1;
    assert_eq!(traps[2].rip, popf + 1, "behind the NOP");
    assert_eq!(traps[0].rflags & 0x40, 0x40);
    assert_eq!(end.gpr[gpr::RBX] & 0x4000, 0x4000, "DR6.BS");

    let rig = Rig::new(accel);
    rig.write(map::IDT + 0x800 + 8 * OF, 0u64);
    // A 32-bit task gate-less IDT: interrupt gate for #OF at a stub that ends the guest.
    let at = map::DATA;
    let idt = map::DATA + 0x1000;
    rig.write(idt + 8 * OF, (at & 0xffff) | u64::from(sel::CODE32) << 16 | 0x8e00 << 32 | (at >> 16) << 48);
    rig.code_at(32, at, |a| {
        a.pop(eax)?;
        exit(a)
    });
    rig.code_at(32, map::CODE, |a| {
        a.mov(al, 0x7f)?;
        a.add(al, 1)?;
        a.into()?;
        a.ud2()
    });
    let mut state = rig.protected();
    state.idtr.base = idt;
    state.idtr.limit = 0xff;
    assert_eq!(rig.run(&state).gpr[gpr::RAX], map::CODE + 5);
}

/// CR0.TS and EM: #NM and #UD; unmasked x87 and SSE exceptions: #MF at the next waiting instruction, #XM at once.
pub fn floating_point(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.write(map::DATA, 0x1f00u32); // MXCSR: invalid operation unmasked
    rig.write(map::DATA + 4, 0x037eu16); // FCW: likewise
    rig.code(|a| {
        a.mov(rax, cr0)?;
        a.bts(rax, 3)?; // TS
        a.mov(cr0, rax)?;
        faulting(a, |a| a.fld1())?;
        faulting(a, |a| a.addps(xmm0, xmm1))?;
        a.clts()?;
        a.fninit()?;
        a.fldcw(word_ptr(map::DATA + 4))?;
        a.fld1()?;
        a.fchs()?;
        a.fsqrt()?; // pends
        a.fnstsw(ax)?;
        a.mov(ebx, eax)?;
        faulting(a, |a| a.fld1())?;
        a.fnclex()?;
        a.ldmxcsr(dword_ptr(map::DATA))?;
        a.mov(eax, 0x7f80_0000)?;
        a.movd(xmm0, eax)?;
        faulting(a, |a| a.subss(xmm0, xmm0)) // infinity less infinity
    });
    let mut state = rig.long_mode(0);
    state.control.cr0 |= 0x20; // NE
    let end = rig.run(&state);
    let seen: Vec<_> = rig.traps().iter().map(|t| (t.vector, t.rip == t.expected_rip)).collect();
    assert_eq!(seen, [(NM, true), (NM, true), (MF, true), (XM, true)]);
    assert_eq!(end.gpr[gpr::RBX] & 0x8081, 0x8081, "invalid operation, summary, busy");
    assert_eq!((end.fpu.mxcsr & 1, end.fpu.ymm[0][0]), (1, 0x7f80_0000));
}

/// CR0.TS counts for code that has been called often without it, by a call that goes the same way as before.
pub fn device_not_available(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let function = map::CODE + 0x1000;
    rig.code_at(64, function, |a| {
        a.addps(xmm0, xmm1)?;
        a.ret()
    });
    rig.code(|a| {
        let (mut again, mut calm, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ebp, 6)?;
        a.mov(esi, function as u32)?;
        a.set_label(&mut again)?;
        a.cmp(ebp, 2)?;
        a.jne(calm)?;
        a.mov(rax, cr0)?;
        a.bts(rax, 3)?; // TS
        a.mov(cr0, rax)?;
        a.set_label(&mut calm)?;
        a.lea(r15, ptr(end))?;
        a.mov(qword_ptr(cell::RESUME), r15)?;
        a.call(rsi)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        a.set_label(&mut end)?;
        a.nop()
    });
    let end = rig.run_long();
    let seen: Vec<_> = rig.traps().iter().map(|t| (t.vector, t.rip)).collect();
    assert_eq!((seen.as_slice(), end.gpr[gpr::RBP]), (&[(NM, function)][..], 2));
}

/// A fault while another is delivered becomes #DF with error code 0, on its IST stack; a fault in its handler is a
/// triple fault (Intel SDM vol. 3, 6.15, interrupt 8).
pub fn double_fault(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.write(map::IDT + 16 * GP, 0u64); // not present
    rig.code(|a| {
        faulting(a, |a| {
            a.mov(rax, qword_ptr(rbx)) // non-canonical
        })
    });
    let mut state = rig.long_mode(0);
    state.gpr[gpr::RBX] = 1 << 63;
    rig.run(&state);
    let trap = rig.traps()[0];
    assert_eq!((trap.vector, trap.error, trap.rip), (DF, 0, trap.expected_rip));
    assert_eq!(trap.rsp, map::STACK);
}

/// With no way to deliver #DF, `run` returns [`Exit::TripleFault`], again and again.
pub fn triple_fault(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| a.ud2());
    let mut state = rig.long_mode(0);
    state.idtr.limit = 0;
    let mut runner = rig.vcpu(0, &state);
    assert_eq!(runner.step(), Exit::TripleFault);
    assert_eq!(runner.save().mp, MpState::Shutdown);
    assert_eq!(runner.step(), Exit::TripleFault);
}

/// The stack of the handler cannot be written: #PF while delivering #PF is #DF, and CR2 is the stack's.
pub fn fault_on_the_handlers_stack(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.map_page(map::DATA, map::DATA | pte::P);
    rig.map_page(map::DATA + 0x1000, 0);
    rig.code(|a| faulting(a, |a| a.mov(eax, dword_ptr(map::DATA + 0x1000))));
    let mut state = rig.long_mode(0);
    state.gpr[gpr::RSP] = map::DATA + 0x800;
    rig.run(&state);
    let trap = rig.traps()[0];
    assert_eq!((trap.vector, trap.rip, trap.rsp), (DF, trap.expected_rip, map::DATA + 0x800));
    assert_eq!(trap.cr2 & !0xfff, map::DATA);
}

/// A state that is saved between accepting an event and delivering it: hardware exceptions push their error code,
/// software interrupts return behind their instruction.
pub fn injected_events(accel: &Arc<dyn Accelerator>) {
    let cases = [
        (InjectedEvent { vector: 0x41, kind: EventKind::ExternalInterrupt, error_code: None }, 0, 0),
        (InjectedEvent { vector: GP as u8, kind: EventKind::Exception, error_code: Some(0x1234) }, 0x1234, 0),
        (InjectedEvent { vector: 0x80, kind: EventKind::Software { length: 2 }, error_code: None }, 0, 2),
        (InjectedEvent { vector: 2, kind: EventKind::Nmi, error_code: None }, 0, 0),
    ];
    for (event, error, behind) in cases {
        let rig = Rig::new(accel);
        rig.code(|a| {
            a.nop()?;
            a.nop()?;
            a.inc(ebx)
        });
        rig.write(cell::RESUME, map::CODE);
        let mut state = rig.long_mode(0);
        state.events.injected = Some(event);
        let end = rig.run(&state);
        let trap = rig.traps()[0];
        assert_eq!(
            (trap.vector, trap.error, trap.rip),
            (event.vector.into(), error, map::CODE + behind),
            "{event:x?}"
        );
        assert_eq!((end.gpr[gpr::RBX], end.events.nmi_masked), (1, false));
    }
}
