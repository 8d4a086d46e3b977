//! Changes of privilege: interrupts out of ring 3, call gates with parameters, far returns, IOPL and the I/O bitmap
//! (Intel SDM vol. 3, 6.8 and 7.12).

use super::code::nothing;
use super::rig::*;
use iced_x86::code_asm::*;
use iced_x86::{Code as Opcode, Instruction};

/// Call gates of DPL 3: 32 bits with three parameters, 16 bits with two, one that is not present, one of DPL 0, one
/// to conforming code, one to nowhere.
const CALL_3: u16 = FREE;
const CALL_2_OF_16: u16 = FREE + 8;
const ABSENT: u16 = FREE + 0x10;
const CLOSED: u16 = FREE + 0x18;
const TO_DATA: u16 = FREE + 0x20;
const CONFORMING: u16 = FREE + 0x28;
const TRAP_GATE: u8 = 0x22;
const GATE_16: u8 = 0x23;
const ABSENT_GATE: u8 = 0x24;
const TO_NULL: u8 = 0x25;
const TARGET_3: u32 = MORE;
const TARGET_2: u32 = CODE16;
const TRAPPED: u32 = MORE + 0x200;
const INTERRUPTED_16: u32 = CODE16 + 0x100;
/// What the targets find.
const SEEN: u32 = DATA + 0x40;
const IOPL_3: u32 = 3 << 12;

pub fn build(rig: &mut Rig) {
    rig.descriptor(CALL_3, gate(FLAT_CS, TARGET_3, 0xec, 3));
    rig.descriptor(CALL_2_OF_16, gate(CS_16, TARGET_2, 0xe4, 2));
    rig.descriptor(ABSENT, gate(FLAT_CS, TARGET_3, 0x6c, 0));
    rig.descriptor(CLOSED, gate(FLAT_CS, TARGET_3, 0x8c, 0));
    rig.descriptor(TO_DATA, gate(FLAT_DS, TARGET_3, 0xec, 0));
    rig.descriptor(CONFORMING, descriptor(0, 0xf_ffff, 0x9f, 0xc));
    rig.gate(TRAP_GATE, gate(FLAT_CS, TRAPPED, 0xef, 0));
    rig.gate(GATE_16, gate(CS_16, INTERRUPTED_16, 0xe6, 0));
    rig.gate(ABSENT_GATE, gate(FLAT_CS, TRAPPED, 0x6e, 0));
    rig.gate(TO_NULL, gate(0, TRAPPED, 0xee, 0));
    // Port 0x80 is allowed, its neighbours are not.
    rig.put(TSS + 0x68 + 0x10, &[0xfe]);
    rig.code(32, MAIN, |c| {
        interrupts(c)?;
        refused_gates(c)?;
        calls(c)?;
        returns(c)?;
        input_output(c)?;
        c.passed()
    });
    // Copies what it was called with: ESP, return EIP, CS, three parameters, outer ESP and SS.
    rig.code(32, TARGET_3, |c| {
        c.mov(dword_ptr(SEEN).ss(), esp)?;
        for slot in 0..7u32 {
            c.mov(eax, dword_ptr(esp + slot * 4))?;
            c.mov(dword_ptr(SEEN + 4 + slot * 4).ss(), eax)?;
        }
        c.mov(eax, cs)?;
        c.mov(dword_ptr(SEEN + 32).ss(), eax)?;
        c.retf_1(12)
    });
    rig.code(16, TARGET_2, |c| {
        c.mov(eax, esp)?;
        c.mov(dword_ptr(SEEN).ss(), eax)?;
        for slot in 0..6u32 {
            c.mov(ax, word_ptr(esp + slot * 2))?;
            c.movzx(eax, ax)?;
            c.mov(dword_ptr(SEEN + 4 + slot * 4).ss(), eax)?;
        }
        c.interrupt(USER_INT)
    });
    // A trap gate leaves IF.
    rig.code(32, TRAPPED, |c| {
        c.pushfd()?;
        c.pop(dword_ptr(SEEN).ss())?;
        c.iretd()
    });
    rig.code(16, INTERRUPTED_16, |c| {
        c.mov(dword_ptr(SEEN).ss(), esp)?;
        for slot in 0..5u32 {
            c.mov(ax, word_ptr(esp + slot * 2))?;
            c.movzx(eax, ax)?;
            c.mov(dword_ptr(SEEN + 4 + slot * 4).ss(), eax)?;
        }
        c.interrupt(USER_INT)
    });
}

fn far_call(c: &mut Code<'_>, selector: u16) -> Result {
    // The offset means nothing to a gate.
    c.add_instruction(Instruction::with_far_branch(Opcode::Call_ptr1632, selector, 0xdead_beefu32)?)
}

fn interrupts(c: &mut Code<'_>) -> Result {
    c.trap("INT n of ring 3", USER_INT, |c| c.user(0x202), |c| c.interrupt(USER_INT))?;
    c.equal(
        "its frame: CS, EFLAGS, ESP, SS",
        &[(CS, USER_CS.into()), (EFLAGS, 0x202), (OUTER, USER_STACK), (OUTER + 4, USER_DS.into())],
    )?;
    c.equal(
        "its stack is the TSS's; DS stays",
        &[(HANDLER_ESP, RING0_STACK - 24), (HANDLER_DS, USER_DS.into())],
    )?;
    c.fault("a fault in ring 3", 6, 0, |c| c.user(2), |c| c.ud2())?;
    c.trap("INT3 of ring 3, whose gate has DPL 3", 3, |c| c.user(2), |c| c.int3())?;
    c.fault("HLT in ring 3", 13, 0, |c| c.user(2), |c| c.hlt())?;
    c.fault("MOV from CR0 in ring 3", 13, 0, |c| c.user(2), |c| c.mov(ecx, cr0))?;
    c.fault("LIDT in ring 3", 13, 0, |c| c.user(2), |c| c.lidt(ptr(DATA)))?;
    // IRETD to ring 3 drops what ring 3 may not have.
    c.trap(
        "FS of ring 0 ...",
        USER_INT,
        |c| {
            c.push(i32::from(USER_DS))?;
            c.push(USER_STACK as i32)?;
            c.push(2)?;
            c.push(i32::from(USER_CS))?;
            let here = c.mark();
            c.push(here.address as i32)?;
            c.iretd()?;
            c.place(here)?;
            c.mov(esi, ds)?;
            c.mov(edi, fs)
        },
        |c| c.interrupt(USER_INT),
    )?;
    c.or(esi, edi)?;
    c.check("... is null in ring 3, and DS too", |a, l| a.je(l))?;
    // Same privilege: no stack switch, no ESP and SS.
    c.trap("INT n of ring 0", USER_INT, nothing, |c| c.interrupt(USER_INT))?;
    c.equal("has a frame of three", &[(HANDLER_ESP, STACK - 16), (CS, FLAT_CS.into())])
}

fn refused_gates(c: &mut Code<'_>) -> Result {
    // Error code: vector * 8 + IDT (Intel SDM vol. 3, 7.13).
    c.fault("INT through a gate of DPL 0", 13, 14 * 8 + 2, |c| c.user(2), |c| c.int(14))?;
    c.fault("INT beyond the IDT", 13, 0x40 * 8 + 2, |c| c.user(2), |c| c.int(0x40))?;
    let absent = u32::from(ABSENT_GATE);
    c.fault("INT through a gate that is not present", 11, absent * 8 + 2, nothing, move |c| {
        c.interrupt(ABSENT_GATE)
    })?;
    c.fault("a gate to the null selector", 13, 0, nothing, |c| c.interrupt(TO_NULL))?;
    // Trap and 16-bit gates.
    c.push(0x202)?;
    c.popfd()?;
    c.interrupt(TRAP_GATE)?;
    c.cli()?;
    c.equal("a trap gate leaves IF set", &[(SEEN, 0x202)])?;
    c.until_exception(|c| {
        c.user(2)?;
        c.interrupt(GATE_16)
    })?;
    c.equal(
        "a 16-bit gate pushes words",
        &[(VECTOR, USER_INT.into()), (SEEN, RING0_STACK - 10), (SEEN + 8, USER_CS.into()), (SEEN + 12, 2)],
    )?;
    c.equal("ESP and SS too", &[(SEEN + 16, USER_STACK), (SEEN + 20, USER_DS.into())])
}

fn calls(c: &mut Code<'_>) -> Result {
    let returned = DATA + 0x80;
    c.trap(
        "a call gate from ring 3 and back",
        USER_INT,
        |c| {
            c.user(2)?;
            for parameter in [0x333, 0x222, 0x111] {
                c.push(parameter)?;
            }
            let after = c.mark();
            c.mov(dword_ptr(returned), after.address)?;
            far_call(c, CALL_3)?;
            c.place(after)?;
            c.mov(ebp, esp)
        },
        |c| c.interrupt(USER_INT),
    )?;
    c.equal(
        "copies its three parameters behind EIP and CS",
        &[(SEEN + 8, USER_CS.into()), (SEEN + 12, 0x111), (SEEN + 16, 0x222), (SEEN + 20, 0x333)],
    )?;
    c.equal(
        "to the TSS's stack, above them the outer ESP and SS",
        &[(SEEN, RING0_STACK - 28), (SEEN + 24, USER_STACK - 12), (SEEN + 28, USER_DS.into())],
    )?;
    c.mov(eax, dword_ptr(returned))?;
    c.cmp(eax, dword_ptr(SEEN + 4))?;
    c.check("its EIP is that behind the call", |a, l| a.je(l))?;
    c.cmp(ebp, USER_STACK)?;
    c.check("RETF n releases the parameters of both stacks", |a, l| a.je(l))?;
    c.equal("the gate's RPL is replaced by the new CPL", &[(SEEN + 32, FLAT_CS.into())])?;
    c.until_exception(|c| {
        c.user(2)?;
        c.push(0x4444_3333)?;
        far_call(c, CALL_2_OF_16)
    })?;
    c.equal(
        "a 16-bit call gate copies words",
        &[(VECTOR, USER_INT.into()), (SEEN, RING0_STACK - 12), (SEEN + 8, USER_CS.into())],
    )?;
    c.equal(
        "its parameters, and ESP and SS",
        &[(SEEN + 12, 0x3333), (SEEN + 16, 0x4444), (SEEN + 20, USER_STACK - 4), (SEEN + 24, USER_DS.into())],
    )?;
    c.fault("a call gate of DPL 0", 13, CLOSED.into(), |c| c.user(2), |c| far_call(c, CLOSED))?;
    c.fault("a call gate that is not present", 11, ABSENT.into(), |c| c.user(2), |c| far_call(c, ABSENT))?;
    c.fault("a call gate to data", 13, FLAT_DS.into(), |c| c.user(2), |c| far_call(c, TO_DATA))?;
    c.fault("a far call to code of ring 0", 13, FLAT_CS.into(), |c| c.user(2), |c| far_call(c, FLAT_CS))?;
    // Jumps through a gate do not change privilege.
    c.fault(
        "a far jump through a gate to ring 0",
        13,
        FLAT_CS.into(),
        |c| c.user(2),
        |c| far_jump(c, CALL_3, 0),
    )?;
    // Conforming code runs at the caller's privilege.
    c.trap(
        "a far jump to conforming code ...",
        USER_INT,
        |c| {
            c.user(2)?;
            let there = c.mark();
            far_jump(c, CONFORMING, there.address)?;
            c.place(there)
        },
        |c| c.interrupt(USER_INT),
    )?;
    c.equal("... stays in ring 3", &[(CS, u32::from(CONFORMING) | 3), (OUTER + 4, USER_DS.into())])?;
    // From ring 0, no stack switch and no copies.
    c.push(0x77)?;
    c.sub(esp, 8)?;
    far_call(c, CALL_3)?;
    c.equal(
        "a call gate within ring 0",
        &[(SEEN, STACK - 20), (SEEN + 8, FLAT_CS.into()), (SEEN + 20, 0x77)],
    )?;
    c.cmp(esp, STACK)?;
    c.check("and its RETF n", |a, l| a.je(l))
}

fn returns(c: &mut Code<'_>) -> Result {
    // RETF to ring 3, with a parameter of 4 bytes on both stacks.
    c.trap(
        "RETF to ring 3",
        USER_INT,
        |c| {
            let there = c.mark();
            c.push(i32::from(USER_DS))?;
            c.push(USER_STACK as i32 - 16)?;
            c.push(0x99)?;
            c.push(i32::from(USER_CS))?;
            c.push(there.address as i32)?;
            c.retf_1(4)?;
            c.place(there)
        },
        |c| c.interrupt(USER_INT),
    )?;
    c.equal("releases from the outer stack too", &[(OUTER, USER_STACK - 12), (CS, USER_CS.into())])?;
    c.fault(
        "RETF inwards",
        13,
        FLAT_CS.into(),
        |c| {
            c.user(2)?;
            c.push(i32::from(FLAT_CS))?;
            c.push(MAIN as i32)
        },
        |c| c.retf(),
    )?;
    c.fault(
        "IRETD to a null CS",
        13,
        0,
        |c| {
            c.push(2)?;
            c.push(0)?;
            c.push(MAIN as i32)
        },
        |c| c.iretd(),
    )?;
    c.fault(
        "IRETD to ring 3 with SS of ring 0",
        13,
        FLAT_DS.into(),
        |c| {
            c.push(i32::from(FLAT_DS))?;
            c.push(USER_STACK as i32)?;
            c.push(2)?;
            c.push(i32::from(USER_CS))?;
            c.push(MAIN as i32)
        },
        |c| c.iretd(),
    )
}

fn input_output(c: &mut Code<'_>) -> Result {
    c.fault("CLI with CPL above IOPL", 13, 0, |c| c.user(2), |c| c.cli())?;
    c.trap(
        "CLI with IOPL 3",
        USER_INT,
        |c| {
            c.user(0x202 | IOPL_3)?;
            c.cli()
        },
        |c| c.interrupt(USER_INT),
    )?;
    c.equal("clears IF", &[(EFLAGS, 2 | IOPL_3)])?;
    c.trap(
        "POPFD in ring 3 ...",
        USER_INT,
        |c| {
            c.user(0x202)?;
            c.push((IOPL_3 | 3) as i32)?;
            c.popfd()
        },
        |c| c.interrupt(USER_INT),
    )?;
    c.equal("... changes neither IOPL nor IF", &[(EFLAGS, 0x203)])?;
    c.trap(
        "a port of the bitmap",
        USER_INT,
        |c| {
            c.user(2)?;
            c.out(0x80, al)
        },
        |c| c.interrupt(USER_INT),
    )?;
    c.fault("its neighbour", 13, 0, |c| c.user(2), |c| c.out(0x81, al))?;
    c.fault("a word of both", 13, 0, |c| c.user(2), |c| c.out(0x80, ax))?;
    c.fault(
        "a port beyond the bitmap",
        13,
        0,
        |c| {
            c.user(2)?;
            c.mov(dx, 0x3f8u32)
        },
        |c| c.in_(al, dx),
    )?;
    c.trap(
        "any port with IOPL 3",
        USER_INT,
        |c| {
            c.user(2 | IOPL_3)?;
            c.out(0x81, al)
        },
        |c| c.interrupt(USER_INT),
    )
}
