//! Locked accesses of several vCPUs, the guest's and those that processors make by themselves.

use std::sync::Arc;

use accel_api::Accelerator;
use iced_x86::code_asm::*;

use super::smp::run_all;
use crate::rig::{Rig, map};
use crate::snippet::{Asm, exit, stay};

/// LOCK-prefixed instructions and XCHG from three vCPUs on the same cache line, on a line boundary and across pages: no
/// update is lost.
pub fn atomic_counters(accel: &Arc<dyn Accelerator>) {
    const ROUNDS: u32 = 20_000;
    let rig = Rig::smp(accel, 3);
    let (aligned, split, lock, plain) =
        (map::DATA, map::DATA + 0x1000 - 3, map::DATA + 0x40, map::DATA + 0x80);
    let arrived = map::DATA + 0x100;
    rig.code_at(64, map::CODE, |a| {
        let (mut top, mut spin, mut all) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut top)?;
        a.lock().inc(qword_ptr(aligned))?;
        a.mov(eax, 2)?;
        a.lock().xadd(qword_ptr(aligned + 8), rax)?;
        a.test(ecx, 63)?;
        a.jnz(spin)?;
        a.lock().add(qword_ptr(split), 1)?;
        a.set_label(&mut spin)?;
        a.mov(eax, 1)?;
        a.xchg(dword_ptr(lock), eax)?;
        a.test(eax, eax)?;
        a.jnz(spin)?;
        a.inc(qword_ptr(plain))?;
        a.mov(dword_ptr(lock), 0)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.lock().inc(dword_ptr(arrived))?;
        a.set_label(&mut all)?;
        a.pause()?;
        a.cmp(dword_ptr(arrived), 3)?;
        a.jb(all)?;
        exit(a)
    });
    run_all(&rig, &rig.long_mode(0), &[rig.long_mode(1), rig.long_mode(2)]);
    let rounds = 3 * u64::from(ROUNDS);
    assert_eq!(rig.quads(aligned), [rounds, 2 * rounds]);
    assert_eq!(rig.read::<u64>(plain), rounds, "under a spin lock");
    assert_eq!(rig.read::<u64>(split), 3 * u64::from(ROUNDS / 64), "across two pages");
}

/// A locked access across two cache lines or pages excludes all other accesses to any part of it, locked or not, and so do
/// XCHG and CMPXCHG8B (Intel SDM vol. 3, 9.1.2.2): one vCPU adds to a quadword, the other to its lower half, and stores to its
/// upper half and finds what it stored.
pub fn split_locks(accel: &Arc<dyn Accelerator>) {
    const ROUNDS: u32 = 2000;
    let (arrived, over) = (map::DATA, map::DATA + 8);
    let rig = Rig::smp(accel, 2);
    // Across pages with the lower half in one, across pages in the lower half, across lines.
    let places = [map::DATA + 0x1000 - 4, map::DATA + 0x2000 - 2, map::DATA + 0x3040 - 3];
    let meet = |a: &mut CodeAssembler, n: u32| {
        let mut wait = a.create_label();
        a.lock().inc(dword_ptr(arrived))?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(arrived), 2 * n)?;
        a.jb(wait)
    };
    // Each adds 1 to the quadword, by R8.
    let ways: [fn(&mut CodeAssembler) -> Asm; 4] = [
        |a| a.lock().inc(qword_ptr(r8)),
        |a| {
            a.mov(eax, 1)?;
            a.lock().xadd(qword_ptr(r8), rax)
        },
        |a| {
            // Writes what it has read, whether or not that is 0.
            for register in [eax, ebx, ecx, edx] {
                a.xor(register, register)?;
            }
            a.lock().cmpxchg8b(qword_ptr(r8))?;
            a.lock().inc(qword_ptr(r8))
        },
        |a| {
            // Takes the number away, as one who sums up does, and adds it and 1 again.
            a.xor(eax, eax)?;
            a.xchg(dword_ptr(r8), eax)?;
            a.inc(eax)?;
            a.lock().add(dword_ptr(r8), eax)
        },
    ];
    let cases = || places.iter().flat_map(|place| ways.map(|way| (*place, way)));
    rig.code(|a| {
        for ((place, way), n) in cases().zip(1..) {
            let mut top = a.create_label();
            a.mov(r8, place)?;
            a.mov(r12d, ROUNDS)?;
            meet(a, 2 * n - 1)?;
            a.set_label(&mut top)?;
            way(a)?;
            a.dec(r12d)?;
            a.jnz(top)?;
            a.mov(dword_ptr(over), n)?;
            meet(a, 2 * n)?;
        }
        a.nop()
    });
    // How often it added to the lower half, and found another upper half, in each case.
    let counts = |n: u32| map::DATA + 0x4000 + 16 * u64::from(n);
    rig.code_at(64, map::USER_CODE, |a| {
        for ((place, _), n) in cases().zip(1..) {
            let (mut top, mut same) = (a.create_label(), a.create_label());
            a.mov(r8, place)?;
            a.xor(r12d, r12d)?;
            a.xor(r13d, r13d)?;
            meet(a, 2 * n - 1)?;
            a.set_label(&mut top)?;
            a.lock().inc(dword_ptr(r8))?;
            a.inc(r12)?;
            a.mov(dword_ptr(r8 + 4), r12d)?;
            a.cmp(dword_ptr(r8 + 4), r12d)?;
            a.je(same)?;
            a.inc(r13)?;
            a.set_label(&mut same)?;
            a.cmp(dword_ptr(over), n)?;
            a.jne(top)?;
            a.mov(qword_ptr(counts(n)), r12)?;
            a.mov(qword_ptr(counts(n) + 8), r13)?;
            a.mov(rax, qword_ptr(r8))?;
            a.mov(qword_ptr(counts(n) + 0x1000), rax)?;
            a.mov(qword_ptr(r8), 0)?;
            meet(a, 2 * n)?;
        }
        stay(a)
    });
    let mut one = rig.long_mode(1);
    one.rip = map::USER_CODE;
    run_all(&rig, &rig.long_mode(0), &[one]);
    for ((place, _), n) in cases().zip(1..) {
        let [added, others] = rig.quads(counts(n));
        let sum = rig.read::<u64>(counts(n) + 0x1000);
        assert_eq!(sum as u32, ROUNDS + added as u32, "lost at {place:#x}, case {n}, of {added}");
        assert_eq!(others, 0, "stores lost at {place:#x}, case {n}, of {added}");
    }
}

/// One vCPU stores to the entries of all page tables of an address all the time, with other bits that mean nothing and A and D
/// clear, while another uses the address: no access faults.
pub fn restless_tables(accel: &Arc<dyn Accelerator>) {
    const ROUNDS: u32 = 5_000;
    let rig = Rig::smp(accel, 2);
    let page = map::DATA + 0x4000;
    let entries = [map::PML4, map::PDPT, map::PD, map::PT + (page >> 12) * 8];
    rig.code_at(64, map::USER_CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        // Bits 9 to 11 are the software's.
        for bits in 0..8 {
            for (at, to) in entries.into_iter().zip([map::PDPT, map::PD, map::PT, page]) {
                a.mov(dword_ptr(at), to as u32 | 3 | bits << 9)?;
            }
        }
        a.jmp(top)
    });
    rig.code(|a| {
        let mut top = a.create_label();
        a.mov(r12d, ROUNDS)?;
        a.set_label(&mut top)?;
        a.invlpg(byte_ptr(page))?;
        a.mov(eax, dword_ptr(page))?;
        a.invlpg(byte_ptr(page))?;
        a.mov(dword_ptr(page), eax)?;
        a.dec(r12d)?;
        a.jnz(top)
    });
    let mut one = rig.long_mode(1);
    one.rip = map::USER_CODE;
    run_all(&rig, &rig.long_mode(0), &[one]);
    assert_eq!(rig.traps(), []);
}

/// Two vCPUs load TR with the same task state segments, one after the other: each is found available by one of them, since it
/// is tested and made busy by one locked access (Intel SDM vol. 3, 9.1.2.1).
pub fn busy_tasks(accel: &Arc<dyn Accelerator>) {
    const TASKS: u16 = 4000;
    const FIRST: u16 = 0x60;
    let rig = Rig::smp(accel, 2);
    let (gdt, handler, arrived) = (map::DATA, map::DATA + 0x1_0000, map::DATA + 0x1_1000);
    let mut state = rig.long_mode(0);
    for at in (0..=u64::from(state.gdtr.limit)).step_by(8) {
        rig.write(gdt + at, rig.read::<u64>(map::GDT + at));
    }
    for n in 0..u64::from(TASKS) {
        rig.write(gdt + u64::from(FIRST) + 16 * n, 0x8900_0000_0067 | map::TSS << 16);
    }
    // #GP: behind LTR and what counts it.
    rig.code_at(64, handler, |a| {
        a.add(rsp, 8)?;
        a.add(qword_ptr(rsp), 6)?;
        a.iretq()
    });
    rig.write(map::IDT + 16 * 13, handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | handler >> 16 << 48);
    rig.code(|a| {
        let (mut all, mut top) = (a.create_label(), a.create_label());
        for count in [2, 4] {
            a.lock().inc(dword_ptr(arrived))?;
            a.set_label(&mut all)?;
            a.pause()?;
            a.cmp(dword_ptr(arrived), count)?;
            a.jb(all)?;
            if count == 4 {
                break;
            }
            a.mov(eax, u32::from(FIRST))?;
            a.mov(ecx, u32::from(TASKS))?;
            a.set_label(&mut top)?;
            a.ltr(eax)?;
            a.inc(r12)?;
            a.add(eax, 16)?;
            a.dec(ecx)?;
            a.jnz(top)?;
            all = a.create_label();
        }
        a.nop()
    });
    (state.gdtr.base, state.gdtr.limit) = (gdt, FIRST + 16 * TASKS - 1);
    let mut one = rig.long_mode(1);
    one.gdtr = state.gdtr;
    let (zero, others) = run_all(&rig, &state, &[one]);
    assert_eq!(zero.gpr[12] + others[0].gpr[12], u64::from(TASKS));
}
