//! What becomes of a debug trap that MOV SS holds back (Intel SDM vol. 3, 6.8.3 and 18.3).

use std::sync::Arc;

use crate::rig::{Rig, map, sel};
use crate::snippet::exit;
use accel_api::Accelerator;
use iced_x86::code_asm::*;

/// What the program's breakpoint watches: a selector for SS.
const WATCHED: u64 = map::DATA;
/// How many debug exceptions there were, and of each RIP and DR6.
const COUNT: u64 = map::DATA + 0x1000;
const LOG: u64 = map::DATA + 0x1010;
const HANDLERS: u64 = map::DATA + 0x2000;
const SYSTEM: u64 = map::DATA + 0x3000;

/// Leads a vector to `at`.
fn gate(rig: &Rig, vector: u64, at: u64, dpl: u64) {
    let low =
        (at & 0xffff) | u64::from(sel::CODE64) << 16 | (0x8e | dpl << 5) << 40 | (at >> 16 & 0xffff) << 48;
    rig.write(map::IDT + 16 * vector, low);
}

/// A program with a watched MOV SS before each way into the kernel: one debug exception for each, in the place where it
/// belongs, and none behind a fault.
pub fn mov_ss_with_a_breakpoint(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    for page in [map::USER_CODE, map::USER_STACK - 0x1000, WATCHED] {
        rig.user_page(page);
    }
    rig.write(WATCHED, sel::USER_DATA);
    rig.code_at(64, HANDLERS, |a| {
        for register in [rax, rbx] {
            a.push(register)?;
        }
        a.mov(rbx, qword_ptr(COUNT))?;
        a.inc(qword_ptr(COUNT))?;
        a.shl(rbx, 4)?;
        a.mov(rax, qword_ptr(rsp + 16))?;
        a.mov(qword_ptr(rbx + LOG as i32), rax)?;
        a.mov(rax, dr6)?;
        a.mov(qword_ptr(rbx + (LOG + 8) as i32), rax)?;
        a.xor(eax, eax)?;
        a.mov(dr6, rax)?;
        for register in [rbx, rax] {
            a.pop(register)?;
        }
        a.iretq()
    });
    gate(&rig, 1, HANDLERS, 0);
    // INT3 and INT 0x80 have nothing to do, UD2 is passed over.
    let (entry, over) = (HANDLERS + 0x100, HANDLERS + 0x200);
    rig.code_at(64, entry, |a| a.iretq());
    rig.code_at(64, over, |a| {
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    });
    gate(&rig, 3, entry, 3);
    gate(&rig, 0x80, entry, 3);
    gate(&rig, 6, over, 0);
    rig.code_at(64, SYSTEM, |a| {
        a.inc(r8)?;
        a.sysretq()
    });

    let mut state = crate::conformance::exceptions::user_state(&rig);
    state.msrs.star = u64::from(sel::USER_CODE32) << 48 | u64::from(sel::CODE64) << 32;
    state.msrs.lstar = SYSTEM;
    state.rflags |= 0x3000;
    state.debug.dr[0] = WATCHED;
    state.debug.dr7 = 0x7_0402; // accesses, two bytes
    let held: [(&[u8], Option<u64>); 7] = [
        (&[0x90], None),
        (&[0xf1], None), // INT1
        (&[0xcc], Some(entry)),
        (&[0xcd, 0x80], Some(entry)),
        (&[0x0f, 0x05], Some(SYSTEM)),
        (&[0x0f, 0x0b], Some(0)), // UD2
        (&[0x90], None),
    ];
    let mut expected = Vec::new();
    let mut at = map::USER_CODE;
    for (next, from) in held {
        at += 7 + next.len() as u64;
        match from {
            Some(0) => {}
            from => expected.push((from.unwrap_or(at), 0xffff_0ff1)),
        }
        at += 1;
    }
    rig.code_at(64, map::USER_CODE, |a| {
        for (next, _) in held {
            a.db(&[0x8e, 0x14, 0x25])?; // mov ss, [WATCHED]
            a.db(&(WATCHED as u32).to_le_bytes())?;
            a.db(next)?;
            a.nop()?;
        }
        exit(a)
    });
    let end = rig.run(&state);
    let seen: Vec<_> = (0..rig.read::<u64>(COUNT).min(64))
        .map(|n| (rig.read::<u64>(LOG + 16 * n), rig.read::<u64>(LOG + 16 * n + 8)))
        .collect();
    assert_eq!((&seen, end.gpr[8]), (&expected, 1), "{seen:x?}");
}
