//! Process-context identifiers: what a load of CR3 may keep, and what must be gone after each kind of invalidation (Intel
//! SDM vol. 3, 4.10.1 and 4.10.4.1).
//!
//! Two address spaces, PCIDs 1 and 2, show different RAM at a page of data and at one of code, which a user program in both
//! loads from and calls. Under PCID 2 the entries of the other space are changed, and something is invalidated; what the
//! program then sees under PCID 1 tells whether old translations are gone. They may always be.

use std::sync::Arc;

use accel_api::Accelerator;
use accel_api::x86::{Feature, gpr};
use iced_x86::code_asm::*;

use crate::rig::{Rig, map, pte, sel};
use crate::skip;
use crate::snippet::Asm;

/// Linear pages that the spaces show differently.
const DATA: u64 = map::DATA + 0x1000;
const CODE: u64 = map::DATA + 0x2000;
/// What they show: frames of data and of code, by letter.
const FRAMES: u64 = map::DATA + 0x8000;
/// Tables of the second space, levels 4 to 1. The first has the rig's.
const TABLES: u64 = map::DATA + 0x1_0000;
/// INVPCID's operand.
const OPERAND: u64 = map::DATA + 0x3000;
/// What the program saw, a quadword a time: what was called in the low half, what was loaded in the high one.
const SEEN: u64 = map::DATA + 0x4000;

const ONE: u64 = map::PML4 | 1;
const TWO: u64 = TABLES | 2;
const KEEP: u64 = 1 << 63;
const CR4_PGE: u32 = 1 << 7;
const CR4_PCIDE: u64 = 1 << 17;

/// Letters of what is seen.
const OLD: u32 = 0xa;
const OTHER: u32 = 0xb;
const NEW: u32 = 0xc;

/// Emits the invalidation of a case.
type Invalidation = fn(&mut CodeAssembler) -> Asm;

/// Whether old translations must be gone.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Gone,
    Permitted,
}
use Then::{Gone, Permitted};

fn load_cr3(a: &mut CodeAssembler, value: u64) -> Asm {
    a.mov(rax, value)?;
    a.mov(cr3, rax)
}

fn invpcid(a: &mut CodeAssembler, kind: u32, pcid: u32, address: u64) -> Asm {
    a.mov(qword_ptr(OPERAND), pcid as i32)?;
    a.mov(qword_ptr(OPERAND + 8), address as i32)?;
    a.mov(eax, kind)?;
    a.invpcid(rax, xmmword_ptr(OPERAND))
}

fn toggle_global_pages(a: &mut CodeAssembler) -> Asm {
    for _ in 0..2 {
        a.mov(rax, cr4)?;
        a.xor(eax, CR4_PGE as i32)?;
        a.mov(cr4, rax)?;
    }
    Ok(())
}

/// Has the tables at `table` (level 1) show the frames `letter`.
fn show(a: &mut CodeAssembler, table: u64, letter: u32, flags: u64) -> Asm {
    for (page, frame) in [(DATA, 0), (CODE, 0x1000)] {
        let frame = FRAMES + 0x2000 * u64::from(letter - OLD) + frame;
        a.mov(qword_ptr(table + (page >> 12) * 8), (frame | flags | pte::P | pte::U | pte::W) as i32)?;
    }
    Ok(())
}

/// The program, once; what it saw goes to the next quadword of [`SEEN`], at R13.
fn look(a: &mut CodeAssembler) -> Asm {
    let mut back = a.create_label();
    a.lea(r12, ptr(back))?;
    a.mov(ecx, map::USER_CODE as u32)?;
    a.mov(r11d, 2)?;
    a.sysretq()?;
    a.set_label(&mut back)?;
    a.mov(dword_ptr(r13), eax)?;
    a.mov(dword_ptr(r13 + 4), ebx)?;
    a.add(r13, 8)
}

/// The program in each of these address spaces, of which none is emptied on the way.
fn look_in(a: &mut CodeAssembler, spaces: &[u64]) -> Asm {
    for space in spaces {
        load_cr3(a, space | KEEP)?;
        look(a)?;
    }
    Ok(())
}

/// A VM of two address spaces, and the state it begins with: under PCID 1. `None`, with a line, where there are no PCIDs.
fn spaces(accel: &Arc<dyn Accelerator>, what: &str) -> Option<(Rig, accel_api::x86::CpuState)> {
    let features = [Feature::Pcid, Feature::Invpcid];
    if !features.iter().all(|f| accel.caps().features.has(*f)) {
        skip(what, "the processor has no PCIDs");
        return None;
    }
    let rig = Rig::with_features(accel, &features);
    for page in [map::USER_CODE, map::USER_STACK - 0x1000] {
        rig.user_page(page);
    }
    for (level, table) in [map::PML4, map::PDPT, map::PD, map::PT].into_iter().enumerate() {
        let own = TABLES + 0x1000 * level as u64;
        let mut entries = rig.quads::<512>(table);
        if level < 3 {
            entries[0] = (own + 0x1000) | entries[0] & 0xfff;
        }
        for (n, entry) in entries.into_iter().enumerate() {
            rig.write(own + 8 * n as u64, entry);
        }
    }
    for letter in [OLD, OTHER, NEW] {
        let frame = FRAMES + 0x2000 * u64::from(letter - OLD);
        rig.write(frame, letter);
        rig.code_at(64, frame + 0x1000, |a| {
            a.mov(eax, letter)?;
            a.ret()
        });
    }
    rig.code_at(64, map::USER_CODE, |a| {
        let mut again = a.create_label();
        a.mov(rsp, map::USER_STACK)?;
        a.mov(edx, CODE as u32)?;
        a.mov(ebp, 3)?;
        a.set_label(&mut again)?;
        a.call(rdx)?;
        a.mov(ebx, dword_ptr(DATA))?;
        a.dec(ebp)?;
        a.jnz(again)?;
        a.syscall()
    });
    let back = map::STARTUP;
    rig.code_at(64, back, |a| a.jmp(r12));
    let mut state = rig.long_mode(0);
    state.msrs.star = u64::from(sel::USER_CODE32) << 48 | u64::from(sel::CODE64) << 32;
    state.msrs.lstar = back;
    state.control.cr3 = ONE;
    state.control.cr4 |= CR4_PCIDE;
    state.gpr[13] = SEEN;
    Some((rig, state))
}

/// Runs one case after the other in one guest; what was seen in each.
fn run<const LOOKS: usize>(
    rig: &Rig,
    state: &accel_api::x86::CpuState,
    cases: usize,
    mut case: impl FnMut(&mut CodeAssembler, usize) -> Asm,
) -> Vec<[(u32, u32); LOOKS]> {
    rig.code(|a| (0..cases).try_for_each(|n| case(a, n)));
    let end = rig.run(state);
    assert_eq!(end.gpr[13], SEEN + 8 * (LOOKS * cases) as u64, "looks");
    let seen = |n: usize| {
        let value: u64 = rig.read(SEEN + 8 * n as u64);
        (value as u32, (value >> 32) as u32)
    };
    (0..cases).map(|c| std::array::from_fn(|n| seen(LOOKS * c + n))).collect()
}

/// That `seen` is new, or if that is permitted, old: code and data each for itself.
fn check(what: &str, then: Then, seen: (u32, u32)) {
    let allowed = |letter| letter == NEW || letter == OLD && then == Permitted;
    assert!(allowed(seen.0), "{what}: called {:#x}", seen.0);
    assert!(allowed(seen.1), "{what}: loaded {:#x}", seen.1);
}

/// Neither space sees the other's translations, and each kind of invalidation takes back what it must of one that is not the
/// current one.
pub fn spaces_apart(accel: &Arc<dyn Accelerator>) {
    let Some((rig, state)) = spaces(accel, "pcid::spaces_apart") else { return };
    let cases: [(&str, Invalidation, Then); 14] = [
        ("nothing", |_| Ok(()), Permitted),
        (
            "INVPCID of both addresses",
            |a| {
                invpcid(a, 0, 1, DATA + 5)?;
                invpcid(a, 0, 1, CODE + 5)
            },
            Gone,
        ),
        (
            "INVPCID of other addresses",
            |a| {
                invpcid(a, 0, 1, DATA - 0x1000)?;
                invpcid(a, 0, 1, CODE + (1 << 24))
            },
            Permitted,
        ),
        (
            "INVPCID of addresses of the current PCID",
            |a| {
                invpcid(a, 0, 2, DATA)?;
                invpcid(a, 0, 2, CODE)
            },
            Permitted,
        ),
        ("INVPCID of the PCID", |a| invpcid(a, 1, 1, 0), Gone),
        ("INVPCID of the current PCID", |a| invpcid(a, 1, 2, 0), Permitted),
        ("INVPCID of another PCID", |a| invpcid(a, 1, 3, 0), Permitted),
        ("INVPCID of all, with global ones", |a| invpcid(a, 2, 0, 0), Gone),
        ("INVPCID of all", |a| invpcid(a, 3, 0, 0), Gone),
        ("CR4.PGE", toggle_global_pages, Gone),
        (
            "INVLPG of the current PCID's",
            |a| {
                a.invlpg(byte_ptr(DATA))?;
                a.invlpg(byte_ptr(CODE))
            },
            Permitted,
        ),
        ("a load of the current CR3", |a| load_cr3(a, TWO), Permitted),
        ("a load of CR3", |a| load_cr3(a, ONE), Gone),
        (
            "INVLPG once it is the current one",
            |a| {
                load_cr3(a, ONE | KEEP)?;
                a.invlpg(byte_ptr(DATA))?;
                a.invlpg(byte_ptr(CODE))
            },
            Gone,
        ),
    ];
    let seen = run::<6>(&rig, &state, cases.len(), |a, n| {
        show(a, map::PT, OLD, 0)?;
        show(a, TABLES + 0x3000, OTHER, 0)?;
        invpcid(a, 2, 0, 0)?;
        look_in(a, &[ONE, TWO, ONE, TWO])?;
        show(a, map::PT, NEW, 0)?;
        cases[n].1(a)?;
        look_in(a, &[ONE, TWO])
    });
    for ((what, _, then), seen) in cases.into_iter().zip(seen) {
        let [old, other] = [(OLD, OLD), (OTHER, OTHER)];
        assert_eq!(seen[..4], [old, other, old, other], "{what}: before");
        check(what, then, seen[4]);
        assert_eq!(seen[5], other, "{what}: the other space");
    }
}

/// Global translations belong to no PCID: INVLPG under any takes them back.
pub fn global_pages(accel: &Arc<dyn Accelerator>) {
    let Some((rig, mut state)) = spaces(accel, "pcid::global_pages") else { return };
    state.control.cr4 |= u64::from(CR4_PGE);
    let cases: [(&str, Invalidation, Then); 7] = [
        ("nothing", |_| Ok(()), Permitted),
        (
            "INVLPG",
            |a| {
                a.invlpg(byte_ptr(DATA))?;
                a.invlpg(byte_ptr(CODE))
            },
            Gone,
        ),
        ("INVPCID of all, with global ones", |a| invpcid(a, 2, 0, 0), Gone),
        ("INVPCID of all others", |a| invpcid(a, 3, 0, 0), Permitted),
        ("INVPCID of the PCID", |a| invpcid(a, 1, 1, 0), Permitted),
        ("CR4.PGE", toggle_global_pages, Gone),
        ("a load of CR3", |a| load_cr3(a, ONE), Permitted),
    ];
    let seen = run::<4>(&rig, &state, cases.len(), |a, n| {
        for table in [map::PT, TABLES + 0x3000] {
            show(a, table, OLD, pte::G)?;
        }
        invpcid(a, 2, 0, 0)?;
        look_in(a, &[ONE, TWO])?;
        for table in [map::PT, TABLES + 0x3000] {
            show(a, table, NEW, pte::G)?;
        }
        cases[n].1(a)?;
        look_in(a, &[ONE, TWO])
    });
    for ((what, _, then), seen) in cases.into_iter().zip(seen) {
        assert_eq!(seen[..2], [(OLD, OLD); 2], "{what}: before");
        check(what, then, seen[2]);
        check(what, then, seen[3]);
    }
}

/// More address spaces than anybody remembers, each with a page and code of its own, in turn.
pub fn many_spaces(accel: &Arc<dyn Accelerator>) {
    const SPACES: u64 = 3;
    const PCIDS: u64 = 40;
    let Some((rig, state)) = spaces(accel, "pcid::many_spaces") else { return };
    // The second space's tables under many PCIDs. Before each of them is used, the entries change, and only it is flushed.
    let letter = |n: u64| [OLD, OTHER, NEW][(n % SPACES) as usize];
    let seen = run::<1>(&rig, &state, (2 * PCIDS) as usize, |a, n| {
        let n = n as u64;
        show(a, TABLES + 0x3000, letter(n), 0)?;
        load_cr3(a, TABLES | (5 + n % PCIDS))?;
        look(a)
    });
    for (n, seen) in seen.into_iter().enumerate() {
        let letter = letter(n as u64);
        assert_eq!(seen, [(letter, letter)], "{n}");
    }
}

/// What is stored while a PCID is away counts when it comes back: to its code, and to pages whose stores somebody logs.
pub fn stores_between(accel: &Arc<dyn Accelerator>) {
    let Some((rig, state)) = spaces(accel, "pcid::stores_between") else { return };
    let code = FRAMES + 0x1000;
    let seen = run::<3>(&rig, &state, 1, |a, _| {
        show(a, map::PT, OLD, 0)?;
        show(a, TABLES + 0x3000, OTHER, 0)?;
        invpcid(a, 2, 0, 0)?;
        load_cr3(a, ONE | KEEP)?;
        // A store, so that the translation allows more of them; then its page becomes one of code, under the other PCID.
        a.mov(dword_ptr(CODE + 0x100), 1)?;
        look(a)?;
        load_cr3(a, TWO | KEEP)?;
        a.mov(dword_ptr(code + 1), NEW)?;
        load_cr3(a, ONE | KEEP)?;
        look(a)?;
        a.mov(dword_ptr(CODE + 1), OTHER)?;
        look(a)
    });
    assert_eq!(seen[0].map(|(called, _)| called), [OLD, NEW, OTHER]);
}

/// Bit 63 is not stored; without PCIDs it is reserved.
pub fn bit_63(accel: &Arc<dyn Accelerator>) {
    let Some((rig, state)) = spaces(accel, "pcid::bit_63") else { return };
    rig.code(|a| {
        load_cr3(a, TWO | KEEP)?;
        a.mov(rbx, cr3)?;
        load_cr3(a, map::PML4 | KEEP)?;
        a.mov(rcx, cr4)?;
        a.btr(rcx, 17)?;
        a.mov(cr4, rcx)?;
        a.mov(rax, map::PML4 | KEEP)?;
        crate::snippet::faulting(a, |a| a.mov(cr3, rax))
    });
    let end = rig.run(&state);
    assert_eq!((end.gpr[gpr::RBX], end.control.cr3), (TWO, map::PML4));
    assert_eq!(rig.vectors(), [13]);
}
