//! What orders a vCPU's instructions for the others to see: serialising instructions, fences, and the time-stamp counter
//! behind them. Nothing here has to happen at the same time: on a host with one processor the checks see little, and pass.

use std::sync::Arc;

use accel_api::Accelerator;
use iced_x86::code_asm::*;

use super::smp::run_all;
use crate::rig::{Rig, map, sel};
use crate::snippet::{Asm, exit};

/// How many vCPUs have come to the next barrier, or the end.
const ARRIVED: u64 = map::DATA + 0x40;

/// Waits until both vCPUs have come here; it is the barrier number `n`, from 1. Uses nothing.
fn meet(a: &mut CodeAssembler, n: u32) -> Asm {
    let mut wait = a.create_label();
    a.lock().inc(dword_ptr(ARRIVED))?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(ARRIVED), 2 * n)?;
    a.jb(wait)
}

/// Runs two vCPUs in 64-bit mode, each with its own code, to their ends.
fn run_both(rig: &Rig, body: impl Fn(&mut CodeAssembler, u64) -> Asm) {
    let states = [(0, map::CODE), (1, map::USER_CODE)].map(|(id, at)| {
        rig.code_at(64, at, |a| {
            body(a, id.into())?;
            exit(a)
        });
        let mut state = rig.long_mode(id);
        state.rip = at;
        state
    });
    let [zero, one] = states;
    run_all(rig, &zero, &[one]);
}

/// One or several instructions; they may change any register but R12 to R15.
type Piece = fn(&mut CodeAssembler) -> Asm;

/// Two vCPUs load the other's last reading of the time-stamp counter, read it themselves and store that: with LFENCE or
/// CPUID in front, and by RDTSCP, which waits for the loads before it by itself, no reading is less than the one loaded
/// before (Intel SDM vol. 3, 18.17.4; vol. 2, RDTSCP).
pub fn time_stamps(accel: &Arc<dyn Accelerator>) {
    const ROUNDS: u32 = 200_000;
    const WAYS: [(&str, Piece); 3] = [
        ("LFENCE; RDTSC", |a| {
            a.lfence()?;
            a.rdtsc()
        }),
        ("RDTSCP", |a| a.rdtscp()),
        ("CPUID; RDTSC", |a| {
            a.xor(eax, eax)?;
            a.cpuid()?;
            a.rdtsc()
        }),
    ];
    let last = |vcpu: u64| map::DATA + 0x80 + 0x40 * vcpu;
    let backwards = |vcpu: u64, n: u64| map::DATA + 0x100 + 0x40 * vcpu + 8 * n;
    let rig = Rig::smp(accel, 2);
    run_both(&rig, |a, vcpu| {
        for (n, (_, read)) in (0..).zip(WAYS) {
            let (mut top, mut good) = (a.create_label(), a.create_label());
            meet(a, n + 1)?;
            a.mov(r12d, ROUNDS)?;
            a.set_label(&mut top)?;
            a.mov(r13, qword_ptr(last(1 - vcpu)))?;
            read(a)?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)?;
            a.cmp(rax, r13)?;
            a.jae(good)?;
            a.inc(qword_ptr(backwards(vcpu, n.into())))?;
            a.set_label(&mut good)?;
            a.mov(qword_ptr(last(vcpu)), rax)?;
            a.dec(r12d)?;
            a.jnz(top)?;
        }
        meet(a, WAYS.len() as u32 + 1)
    });
    let counts: [[u64; WAYS.len()]; 2] = [0, 1].map(|vcpu| rig.quads(backwards(vcpu, 0)));
    let found: Vec<_> = WAYS.iter().enumerate().map(|(n, way)| (way.0, counts.map(|c| c[n]))).collect();
    assert!(counts.as_flattened().iter().all(|count| *count == 0), "read backwards: {found:?}");
}

/// An image for LGDT and LIDT.
const TABLE: u64 = map::DATA + 0x200;

/// What keeps a load from going before a store in front of it (Intel SDM vol. 3, 9.2.2 and 9.3): fences, locked and
/// serialising instructions, I/O, exceptions.
const SERIALISERS: [(&str, Piece); 19] = [
    ("MFENCE", |a| a.mfence()),
    ("XCHG", |a| a.xchg(dword_ptr(rsp - 0x40), eax)),
    ("LOCK OR", |a| a.lock().or(dword_ptr(rsp - 0x40), 0)),
    ("CPUID", |a| {
        a.xor(eax, eax)?;
        a.cpuid()
    }),
    ("IRETQ", |a| {
        let mut behind = a.create_label();
        a.mov(rax, rsp)?;
        a.push(i32::from(sel::DATA))?;
        a.push(rax)?;
        a.pushfq()?;
        a.push(i32::from(sel::CODE64))?;
        a.lea(rax, ptr(behind))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut behind)?;
        a.nop()
    }),
    ("WRMSR", |a| {
        a.mov(ecx, 0x174)?; // IA32_SYSENTER_CS
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.wrmsr()
    }),
    ("MOV CR0", |a| {
        a.mov(rax, cr0)?;
        a.mov(cr0, rax)
    }),
    ("MOV CR2", |a| a.mov(cr2, rax)),
    ("MOV CR3", |a| {
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)
    }),
    ("MOV CR4", |a| {
        a.mov(rax, cr4)?;
        a.mov(cr4, rax)
    }),
    ("MOV DR3", |a| {
        a.xor(eax, eax)?;
        a.mov(dr3, rax)
    }),
    ("INVLPG", |a| a.invlpg(byte_ptr(map::EXTRA))),
    ("LGDT", |a| a.lgdt(ptr(TABLE))),
    ("LIDT", |a| a.lidt(ptr(TABLE + 0x10))),
    ("LLDT", |a| {
        a.xor(eax, eax)?;
        a.lldt(ax)
    }),
    ("WBINVD", |a| a.wbinvd()),
    ("IN", |a| a.in_(al, 0x80)),
    ("OUT", |a| a.out(0x80, al)),
    ("INT", |a| a.int(0x80)),
];

/// Of two vCPUs that each store to a cell and then load the other's, at least one sees the other's store, if between store
/// and load is one of [`SERIALISERS`].
///
/// Each stores ascending numbers to its cell and notes what it loads: who stored `i` and then found less than `k` loaded
/// before the other stored `k`, which must then find `i` or more.
pub fn serialising(accel: &Arc<dyn Accelerator>) {
    const ROUNDS: u32 = 12_000;
    /// Where no test has anything.
    const NOTES: u64 = map::RAM_END / 2;
    const { assert!(8 * (ROUNDS as u64 + 1) * SERIALISERS.len() as u64 <= map::RAM_END - NOTES) };
    let note = |vcpu: u64, n: u64| NOTES + (2 * n + vcpu) * 4 * u64::from(ROUNDS + 1);
    let cell = |vcpu: u64, n: u64| map::DATA + 0x400 + (2 * n + vcpu) * 0x40;
    let rig = Rig::smp(accel, 2);
    let state = rig.long_mode(0);
    for (at, table) in [(TABLE, state.gdtr), (TABLE + 0x10, state.idtr)] {
        rig.write(at, table.limit);
        rig.write(at + 2, table.base);
    }
    // INT 0x80 goes straight back.
    rig.code_at(64, map::HANDLERS + 16 * 0x80, |a| a.iretq());
    run_both(&rig, |a, vcpu| {
        for (n, (_, serialise)) in (0..).zip(SERIALISERS) {
            let mut top = a.create_label();
            a.mov(r12d, 1)?;
            meet(a, n as u32 + 1)?;
            a.set_label(&mut top)?;
            a.mov(dword_ptr(cell(vcpu, n)), r12d)?;
            serialise(a)?;
            a.mov(eax, dword_ptr(cell(1 - vcpu, n)))?;
            a.mov(dword_ptr(r12 * 4 + note(vcpu, n) as i32), eax)?;
            a.inc(r12d)?;
            a.cmp(r12d, ROUNDS)?;
            a.jbe(top)?;
        }
        meet(a, SERIALISERS.len() as u32 + 1)
    });
    let found = |vcpu: u64, n: u64, i: u32| rig.read::<u32>(note(vcpu, n) + 4 * u64::from(i));
    let mut wrong = Vec::new();
    for (n, (name, _)) in (0..).zip(SERIALISERS) {
        let passed = (1..=ROUNDS).filter(|&i| {
            let k = found(0, n, i) + 1;
            k <= ROUNDS && found(1, n, k) < i
        });
        let count = passed.count();
        if count > 0 {
            wrong.push((name, count));
        }
    }
    assert!(wrong.is_empty(), "loads went before stores: {wrong:?}");
}
