//! Code that changes: by its own stores, through another address, by DMA, by another vCPU.
//!
//! A store is seen by the instruction after it (Intel SDM vol. 3, 9.1.3 asks for a jump on old processors only); other
//! processors need a serialising instruction.

use std::sync::Arc;

use accel_api::Accelerator;
use accel_api::x86::gpr;
use iced_x86::code_asm::*;

use crate::rig::{Rig, cell, map};
use crate::snippet::{assemble, exit};

/// `mov eax, imm32; ret`.
fn answer(value: u32) -> Vec<u8> {
    assemble(64, 0, |a| {
        a.mov(eax, value)?;
        a.ret()
    })
}

/// The instruction right behind the store is the one that changes.
pub fn next_instruction(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        let (mut target, mut top) = (a.create_label(), a.create_label());
        a.xor(ebx, ebx)?;
        a.mov(ecx, 50)?;
        a.lea(rsi, ptr(target))?;
        a.set_label(&mut top)?;
        a.mov(byte_ptr(rsi + 1), cl)?; // MOV EAX, imm32: the low byte
        a.set_label(&mut target)?;
        a.mov(eax, 0)?;
        a.add(ebx, eax)?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    assert_eq!(rig.run_long().gpr[gpr::RBX], 50 * 51 / 2);
}

/// A loop that has become hot is changed to end.
pub fn hot_loop(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        let (mut top, mut outer) = (a.create_label(), a.create_label());
        a.lea(rsi, ptr(top))?;
        a.xor(ebx, ebx)?;
        a.mov(edx, 2)?;
        a.set_label(&mut outer)?;
        a.mov(ecx, 2000)?;
        a.set_label(&mut top)?;
        a.inc(rbx)?; // 48 ff c3; DEC is 48 ff cb
        a.dec(ecx)?;
        a.jnz(top)?;
        a.mov(byte_ptr(rsi + 2), 0xcb)?;
        a.dec(edx)?;
        a.jnz(outer)
    });
    assert_eq!(rig.run_long().gpr[gpr::RBX], 0);
}

/// A function on another page is rewritten between calls, through its own address and through an alias.
pub fn other_page_and_alias(accel: &Arc<dyn Accelerator>) {
    for through in [map::ALIASED, map::ALIAS] {
        let rig = Rig::new(accel);
        rig.bytes(map::ALIASED, &answer(0));
        rig.code(|a| {
            let mut top = a.create_label();
            a.xor(ebx, ebx)?;
            a.mov(ecx, 100)?;
            a.mov(esi, map::ALIASED as u32)?;
            a.set_label(&mut top)?;
            a.call(rsi)?;
            a.add(ebx, eax)?;
            a.mov(dword_ptr(through + 1), ecx)?;
            a.dec(ecx)?;
            a.jnz(top)
        });
        // The calls see 0, 100, 99, ... 2.
        assert_eq!(rig.run_long().gpr[gpr::RBX], 5049, "through {through:#x}");
    }
}

/// An instruction that crosses a page boundary changes in either half.
pub fn across_pages(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let at = map::ALIASED - 3; // MOV EAX, imm32 with its last two bytes on the next page
    rig.bytes(at, &answer(0));
    rig.code(|a| {
        a.mov(esi, at as u32)?;
        a.call(rsi)?;
        a.mov(r8d, eax)?;
        a.mov(byte_ptr(at + 1), 0x11)?;
        a.call(rsi)?;
        a.mov(r9d, eax)?;
        a.mov(byte_ptr(map::ALIAS), 0x22)?;
        a.call(rsi)?;
        a.mov(r10d, eax)?;
        a.mov(word_ptr(map::ALIASED - 1), 0x3344)?;
        a.call(rsi)?;
        a.mov(r11d, eax)
    });
    assert_eq!(rig.run_long().gpr[8..12], [0, 0x11, 0x22_0011, 0x33_4411]);
}

/// A device writes code by DMA while the guest waits for it.
pub fn by_dma(accel: &Arc<dyn Accelerator>) {
    let rig = Arc::new(Rig::new(accel));
    let dma = rig.ram.clone();
    rig.bytes(map::ALIASED, &answer(0));
    rig.bus().on_out(0x80, move |value| {
        use vm_memory::{Bytes, GuestAddress};
        dma.memory().write_slice(&answer(value), GuestAddress(map::ALIASED)).expect("RAM");
    });
    rig.code(|a| {
        let mut top = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 100)?;
        a.mov(esi, map::ALIASED as u32)?;
        a.set_label(&mut top)?;
        a.mov(eax, ecx)?;
        a.out(0x80u32, eax)?;
        a.call(rsi)?;
        a.add(ebx, eax)?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    assert_eq!(rig.run_long().gpr[gpr::RBX], 5050);
}

/// REP MOVS and REP STOS over code, and over the REP instruction itself.
pub fn by_string_store(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.bytes(map::ALIASED, &answer(7));
    rig.bytes(map::DATA, &answer(9));
    rig.code(|a| {
        a.mov(ebx, map::ALIASED as u32)?;
        a.call(rbx)?;
        a.mov(r8d, eax)?;
        a.mov(esi, map::DATA as u32)?;
        a.mov(edi, map::ALIAS as u32)?;
        a.mov(ecx, 6)?;
        a.rep().movsb()?;
        a.call(rbx)?;
        a.mov(r9d, eax)?;
        // NOPs over what follows the REP STOS: the exit below is put behind 64 bytes of UD2.
        let mut behind = a.create_label();
        a.lea(rdi, ptr(behind))?;
        a.mov(eax, 0x9090_9090u32)?;
        a.mov(ecx, 16)?;
        a.rep().stosd()?;
        a.set_label(&mut behind)?;
        for _ in 0..32 {
            a.ud2()?;
        }
        a.nop()
    });
    let end = rig.run_long();
    assert_eq!(end.gpr[8..10], [7, 9]);
    assert_eq!(end.gpr[gpr::RCX], 0);
}

/// Code is replaced under the guest by changing the page table.
pub fn by_remapping(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.bytes(map::DATA, &answer(1));
    rig.bytes(map::DATA + 0x1000, &answer(2));
    let entry = map::PT + (map::ALIAS >> 12) * 8;
    rig.code(|a| {
        a.mov(ebx, map::ALIAS as u32)?;
        for (target, register) in [(0, r8d), (0x1000, r9d), (0, r10d)] {
            a.mov(rax, (map::DATA + target) | 3)?;
            a.mov(qword_ptr(entry), rax)?;
            a.invlpg(byte_ptr(map::ALIAS))?;
            a.call(rbx)?;
            a.mov(register, eax)?;
        }
        a.nop()
    });
    assert_eq!(rig.run_long().gpr[8..11], [1, 2, 1]);
}

/// An instruction across two pages, the second of which is mapped elsewhere: by INVLPG in supervisor code, which falls
/// through into it in a loop.
pub fn half_remapped(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.bytes(map::ALIASED - 5, &[0x31, 0xdb]); // XOR EBX, EBX before MOV EAX, imm32
    rig.bytes(map::ALIASED - 3, &answer(0x0000_1111));
    let halves = [0x22u8, 0x33];
    for (n, half) in halves.into_iter().enumerate() {
        rig.bytes(map::DATA + 0x1000 * n as u64, &[half, half, 0xc3]);
    }
    rig.code(|a| {
        a.mov(esi, (map::ALIASED - 5) as u32)?;
        for (target, register) in [(0, r8d), (0x1000, r9d), (0, r10d)] {
            let mut top = a.create_label();
            a.mov(rax, (map::DATA + target) | 3)?;
            a.mov(qword_ptr(map::PT + (map::ALIASED >> 12) * 8), rax)?;
            a.invlpg(byte_ptr(map::ALIASED))?;
            a.mov(ecx, 50)?;
            a.set_label(&mut top)?;
            a.call(rsi)?;
            a.dec(ecx)?;
            a.jnz(top)?;
            a.mov(register, eax)?;
        }
        a.nop()
    });
    assert_eq!(rig.run_long().gpr[8..11], [0x2222_1111, 0x3333_1111, 0x2222_1111]);
}

/// The same without any change of a translation: ring 3 has the first page twice, before different second ones.
pub fn half_aliased(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let (first, second) = (map::DATA + 0x4000, map::DATA + 0x8000);
    rig.bytes(map::DATA + 0xffb, &[0x31, 0xdb]);
    rig.bytes(map::DATA + 0xffd, &answer(0x0000_1111)[..3]);
    for (at, half) in [(first, 0x22u8), (second, 0x33)] {
        rig.map_page(at, map::DATA | 7);
        rig.user_page(at + 0x1000);
        rig.bytes(at + 0x1000, &[half, half, 0xc3]);
    }
    rig.user_page(map::USER_CODE);
    rig.user_page(map::USER_STACK - 0x1000);
    rig.code_at(64, map::USER_CODE, |a| {
        for (at, sum) in [(first, r8d), (second, r9d), (first, r10d), (second, r11d)] {
            let mut top = a.create_label();
            a.mov(esi, (at + 0xffb) as u32)?;
            a.mov(ecx, 50)?;
            a.set_label(&mut top)?;
            a.call(rsi)?;
            a.dec(ecx)?;
            a.jnz(top)?;
            a.mov(sum, eax)?;
        }
        crate::snippet::exit(a)
    });
    let mut state = super::exceptions::user_state(&rig);
    state.rflags |= 3 << 12; // the exit is an OUT
    let end = rig.run(&state);
    assert_eq!(end.gpr[8..12], [0x2222_1111, 0x3333_1111, 0x2222_1111, 0x3333_1111]);
}

/// One vCPU rewrites a function that the other executes all the time, and makes it serialise (CPUID) by a flag before
/// it may use the new one, as kernels patch text.
pub fn cross_modifying(accel: &Arc<dyn Accelerator>) {
    const ROUNDS: u32 = 200;
    let rig = Rig::smp(accel, 2);
    let (asked, done) = (cell::USER, cell::USER + 8);
    rig.bytes(map::ALIASED, &answer(0));
    rig.code(|a| {
        // Writer: for n in 1..=ROUNDS { patch; asked = n; wait for done == n }.
        let (mut top, mut wait) = (a.create_label(), a.create_label());
        a.mov(ecx, 1)?;
        a.set_label(&mut top)?;
        a.mov(dword_ptr(map::ALIASED + 1), ecx)?;
        a.mov(dword_ptr(asked), ecx)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(done), ecx)?;
        a.jne(wait)?;
        a.inc(ecx)?;
        a.cmp(ecx, ROUNDS)?;
        a.jbe(top)
    });
    rig.code_at(64, map::USER_CODE, |a| {
        // Reader: calls all the time; after each new `asked` it serialises, calls, and adds up what it sees.
        let mut top = a.create_label();
        a.xor(ebp, ebp)?;
        a.xor(edi, edi)?;
        a.mov(esi, map::ALIASED as u32)?;
        a.set_label(&mut top)?;
        a.call(rsi)?;
        a.mov(r8d, dword_ptr(asked))?;
        a.cmp(r8d, edi)?;
        a.je(top)?;
        a.mov(edi, r8d)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.call(rsi)?;
        a.add(ebp, eax)?;
        a.mov(dword_ptr(done), edi)?;
        a.cmp(edi, ROUNDS)?;
        a.jne(top)?;
        exit(a)
    });
    let sum = std::thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut state = rig.long_mode(1);
            state.rip = map::USER_CODE;
            rig.check(rig.vcpu(1, &state).finish()).gpr[gpr::RBP]
        });
        rig.run_long();
        reader.join().expect("reader")
    });
    assert_eq!(sum, u64::from(ROUNDS) * u64::from(ROUNDS + 1) / 2);
}
