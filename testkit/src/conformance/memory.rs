//! Linear memory: page boundaries, aliases, translations that change, rights, accessed and dirty bits.

use std::sync::Arc;

use accel_api::Accelerator;
use accel_api::x86::gpr;
use iced_x86::code_asm::*;

use crate::rig::{Rig, cell, map, pte};
use crate::snippet::faulting;

const PF: u64 = 14;

/// Loads and stores of all widths that straddle two pages which do not follow each other in physical memory.
pub fn straddling(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    // Linear DATA+0x1000 is a page far away.
    rig.map_page(map::DATA + 0x1000, (map::DATA + 0x9000) | pte::P | pte::W);
    rig.bytes(map::DATA + 0xff0, &(0x10..0x20u8).collect::<Vec<_>>());
    rig.bytes(map::DATA + 0x9000, &(0x20..0x30u8).collect::<Vec<_>>());
    rig.code(|a| {
        let edge = map::DATA + 0x1000;
        a.mov(rax, qword_ptr(edge - 3))?;
        a.mov(ebx, dword_ptr(edge - 1))?;
        a.movzx(ecx, word_ptr(edge - 1))?;
        a.movups(xmm0, xmmword_ptr(edge - 5))?;
        a.mov(rdx, 0x1122_3344_5566_7788u64)?;
        a.mov(qword_ptr(edge + 0x1000 - 6), rdx)?;
        a.add(dword_ptr(edge + 0x1000 - 2), 1)?;
        a.lock().xadd(qword_ptr(edge - 4), rdx)?;
        a.movups(xmmword_ptr(edge + 0x1000 - 1), xmm0)
    });
    let end = rig.run_long();
    assert_eq!(end.gpr[gpr::RAX], 0x2423_2221_201f_1e1d);
    assert_eq!((end.gpr[gpr::RBX], end.gpr[gpr::RCX]), (0x2221_201f, 0x201f));
    let bytes = |n: u64| u64::from_le_bytes(std::array::from_fn(|i| (n as usize + i) as u8));
    assert_eq!((end.fpu.ymm[0][0], end.fpu.ymm[0][1]), (bytes(0x1b), bytes(0x23)));
    let sum = bytes(0x1c).wrapping_add(0x1122_3344_5566_7788);
    assert_eq!(end.gpr[gpr::RDX], bytes(0x1c));
    assert_eq!(
        (rig.read::<u32>(map::DATA + 0xffc), rig.read::<u32>(map::DATA + 0x9000)),
        (sum as u32, (sum >> 32) as u32)
    );
    // 0x1122334455667788 at -6, then 1 added at -2: its bytes are 22 11 there, with what follows on the next page.
    assert_eq!(rig.read::<u32>(map::DATA + 0x9ffa), 0x5566_7788);
    assert_eq!(rig.read::<u8>(map::DATA + 0x9ffe), 0x45, "the ADD at -2");
    assert_eq!(rig.read::<u8>(map::DATA + 0x9fff), 0x1b, "the 16-byte store at -1");
    assert_eq!(rig.quads::<1>(map::DATA + 0x2000), [bytes(0x1c)]);
}

/// A store that faults on its second page changes nothing on the first; neither does a locked one.
pub fn straddling_fault(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.map_page(map::DATA + 0x1000, (map::DATA + 0x1000) | pte::P); // read-only
    rig.map_page(map::DATA + 0x2000, 0);
    rig.code(|a| {
        a.mov(rax, -1i64)?;
        a.movq(xmm1, rax)?;
        a.punpcklqdq(xmm1, xmm1)?;
        faulting(a, |a| a.mov(qword_ptr(map::DATA + 0xffd), rax))?;
        faulting(a, |a| a.lock().add(qword_ptr(map::DATA + 0xffa), rax))?;
        faulting(a, |a| a.movups(xmmword_ptr(map::DATA + 0xff1), xmm1))?;
        faulting(a, |a| a.mov(rbx, qword_ptr(map::DATA + 0x1ffc)))?;
        a.mov(rsp, map::DATA + 0x1004)?;
        faulting(a, |a| a.push(rax))?;
        a.mov(rbp, rsp)?;
        a.mov(rsp, map::STACK)
    });
    // The stack that faults is also the handler's: interrupts of that fault take an IST.
    let mut state = rig.long_mode(0);
    state.gpr[gpr::RBX] = 0x77;
    let gate = rig.read::<u64>(map::IDT + 16 * PF);
    rig.write(map::IDT + 16 * PF, gate | 1 << 32);
    let end = rig.run(&state);
    let traps = rig.traps();
    let seen: Vec<_> = traps.iter().map(|t| (t.vector, t.error, t.cr2, t.rip == t.expected_rip)).collect();
    let protection = 3;
    let edge = map::DATA + 0x1000;
    assert_eq!(
        seen,
        [
            (PF, protection, edge, true),
            (PF, protection, edge, true),
            (PF, protection, edge, true),
            (PF, 0, edge + 0x1000, true),
            (PF, protection, edge, true),
        ]
    );
    assert_eq!(rig.quads::<3>(map::DATA + 0xff0), [0, 0, 0], "nothing of a store that faults is done");
    assert_eq!((end.gpr[gpr::RBX], end.gpr[gpr::RBP]), (0x77, map::DATA + 0x1004));
}

/// Two linear pages of one physical page show each other's stores at once.
pub fn aliases(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.xor(ebx, ebx)?;
        a.mov(ecx, 1000)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(dword_ptr(map::ALIAS + 8), ecx)?;
        a.add(ebx, dword_ptr(map::ALIASED + 8))?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    assert_eq!(rig.run_long().gpr[gpr::RBX], 500_500);
    assert_eq!(rig.read::<u32>(map::ALIASED + 8), 1);
}

/// A changed page-table entry counts after INVLPG and after a load of CR3; a global one survives CR3 only (Intel SDM
/// vol. 3, 4.10.4.1). Not-present entries are never remembered (4.10.2.3).
pub fn invalidation(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let page = map::DATA + 0x1000;
    let entry = map::PT + (page >> 12) * 8;
    rig.write(map::DATA + 0x2000, 0x22u32);
    rig.write(map::DATA + 0x3000, 0x33u32);
    rig.map_page(page, 0);
    rig.code(|a| {
        faulting(a, |a| a.mov(eax, dword_ptr(page)))?;
        let point = |a: &mut CodeAssembler, to: u64| {
            a.mov(rax, to | pte::P | pte::W)?;
            a.mov(qword_ptr(entry), rax)
        };
        point(a, map::DATA + 0x2000)?;
        a.mov(r8d, dword_ptr(page))?; // no invalidation needed from not present
        point(a, map::DATA + 0x3000)?;
        a.invlpg(byte_ptr(page + 5))?;
        a.mov(r9d, dword_ptr(page))?;
        point(a, map::DATA + 0x2000)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(r10d, dword_ptr(page))?;
        point(a, map::DATA + 0x3000)?;
        a.mov(rax, cr4)?;
        a.xor(rax, 0x80)?; // PGE on flushes all
        a.mov(cr4, rax)?;
        a.mov(r11d, dword_ptr(page))?;
        // Write access needs no invalidation to be withdrawn, but takes effect with it.
        a.mov(rax, (map::DATA + 0x3000) | pte::P)?;
        a.mov(qword_ptr(entry), rax)?;
        a.invlpg(byte_ptr(page))?;
        faulting(a, |a| a.mov(dword_ptr(page), eax))?;
        // Given again: a spurious fault is not allowed after INVLPG.
        point(a, map::DATA + 0x3000)?;
        a.invlpg(byte_ptr(page))?;
        a.mov(dword_ptr(page), 0x44)
    });
    let end = rig.run_long();
    assert_eq!(end.gpr[8..12], [0x22, 0x33, 0x22, 0x33]);
    let errors: Vec<_> = rig.traps().iter().map(|t| (t.vector, t.error, t.cr2)).collect();
    assert_eq!(errors, [(PF, 0, page), (PF, 3, page)]);
    assert_eq!(rig.read::<u32>(map::DATA + 0x3000), 0x44);
}

/// The walk sets A on every level when it uses an entry, D on the leaf at the first store (Intel SDM vol. 3, 4.8); a
/// dirty bit the guest clears is set again after an invalidation.
pub fn accessed_and_dirty(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let (read, written, again) = (map::DATA + 0x1000, map::DATA + 0x2000, map::DATA + 0x3000);
    let entry = map::PT + (again >> 12) * 8;
    rig.code(|a| {
        a.mov(eax, dword_ptr(read))?;
        a.mov(dword_ptr(written), eax)?;
        a.mov(dword_ptr(again), eax)?;
        a.btr(dword_ptr(entry), 6)?;
        a.setc(bl)?;
        a.invlpg(byte_ptr(again))?;
        a.mov(ecx, dword_ptr(again))?;
        a.mov(r8, qword_ptr(entry))?;
        a.mov(dword_ptr(again), eax)?;
        a.mov(eax, dword_ptr(0x20_0000))
    });
    let end = rig.run_long();
    let ad = |entry: u64| entry & (pte::A | pte::D);
    assert_eq!(ad(rig.pte(read)), pte::A);
    assert_eq!(ad(rig.pte(written)), pte::A | pte::D);
    assert_eq!((end.gpr[gpr::RBX] & 1, ad(end.gpr[8])), (1, pte::A));
    assert_eq!(ad(rig.pte(again)), pte::A | pte::D);
    assert_eq!(ad(rig.pte(map::DATA + 0x4000)), 0, "never used");
    assert_eq!(ad(rig.read(map::PML4)) & pte::A, pte::A);
    assert_eq!(ad(rig.read(map::PDPT)) & pte::A, pte::A);
    assert_eq!(ad(rig.read(map::PD + 8)), pte::A, "a 2 MiB page that was read");
    assert_eq!(ad(rig.read(map::PD + 16)), 0);
}

/// Page rights with the error code of each violation (Intel SDM vol. 3, 4.6 and 4.7): write protection in ring 0,
/// execute-disable, reserved bits, supervisor pages from ring 3, SMEP and SMAP.
pub fn rights(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let (no_exec, reserved, user, user_text) =
        (map::DATA, map::DATA + 0x1000, map::DATA + 0x2000, map::DATA + 0x3000);
    rig.map_page(no_exec, rig.pte(no_exec) | pte::NX);
    rig.map_page(reserved, rig.pte(reserved) | 1 << 51);
    rig.user_page(user);
    rig.user_page(user_text);
    rig.bytes(user_text, &[0xc3]);
    rig.code(|a| {
        for target in [no_exec, user_text] {
            // The handler resumes behind the call; what CALL pushed stays.
            a.mov(eax, target as u32)?;
            faulting(a, |a| a.call(rax))?;
            a.mov(rax, cr4)?;
            a.or(rax, 0x10_0000)?; // SMEP
            a.mov(cr4, rax)?;
        }
        faulting(a, |a| a.mov(eax, dword_ptr(reserved)))?;
        a.mov(eax, dword_ptr(user))?;
        a.mov(rax, cr4)?;
        a.or(rax, 0x20_0000)?; // SMAP
        a.mov(cr4, rax)?;
        faulting(a, |a| a.mov(eax, dword_ptr(user)))?;
        faulting(a, |a| a.mov(dword_ptr(user), eax))?;
        a.stac()?;
        a.mov(dword_ptr(user), 0x55)?;
        a.clac()?;
        faulting(a, |a| a.mov(eax, dword_ptr(user)))
    });
    rig.run_long();
    let errors: Vec<_> = rig.traps().iter().map(|t| (t.vector, t.error, t.cr2)).collect();
    assert_eq!(
        errors,
        [
            (PF, 0x11, no_exec),
            (PF, 0x11, user_text),
            (PF, 0x09, reserved),
            (PF, 0x01, user),
            (PF, 0x03, user),
            (PF, 0x01, user),
        ]
    );
    assert_eq!(rig.read::<u32>(user), 0x55);
}

/// CR0.WP off lets ring 0 write read-only pages.
pub fn write_protect_off(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.map_page(map::DATA, map::DATA | pte::P);
    rig.code(|a| {
        faulting(a, |a| a.mov(dword_ptr(map::DATA), 1))?;
        a.mov(rax, cr0)?;
        a.btr(rax, 16)?;
        a.mov(cr0, rax)?;
        a.mov(dword_ptr(map::DATA), 2)?;
        a.bts(rax, 16)?;
        a.mov(cr0, rax)?;
        faulting(a, |a| a.mov(dword_ptr(map::DATA), 3))
    });
    rig.run_long();
    assert_eq!(rig.read::<u32>(map::DATA), 2);
    assert_eq!(rig.traps().iter().map(|t| t.error).collect::<Vec<_>>(), [3, 3]);
}

/// Memory above 4 GiB, by an address that needs more than 32 bits; PAE and 32-bit paging are reached from protected
/// mode.
pub fn other_paging_modes(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.mov(rax, map::HIGH + 0x123)?;
        a.mov(dword_ptr(rax), 0x0bad_cafeu32)
    });
    rig.run_long();
    assert_eq!(rig.read::<u32>(map::HIGH + 0x123), 0x0bad_cafe);

    // 32-bit paging with one 4 MiB page, and a 4 KiB page shown at 5 MiB (Intel SDM vol. 3, 4.3).
    let rig = Rig::new(accel);
    let (directory, table) = (map::DATA + 0x4000, map::DATA + 0x5000);
    rig.write(directory, 0x83u32);
    rig.write(directory + 4, (table | pte::P | pte::W) as u32);
    rig.write(table + 4 * 0x100, (map::DATA | pte::P | pte::W) as u32);
    rig.code_at(32, map::CODE, |a| {
        a.mov(dword_ptr(0x50_0010u32), 0x1111_2222)?;
        crate::snippet::exit(a)
    });
    let mut state = rig.protected();
    state.control.cr3 = directory;
    state.control.cr4 = 0x10; // PSE
    state.control.cr0 = 0x8001_0011;
    rig.run(&state);
    assert_eq!(rig.read::<u32>(map::DATA + 0x10), 0x1111_2222);
    assert_eq!(rig.read::<u32>(table + 4 * 0x100) & 0x60, 0x60, "A and D");

    // PAE paging: the PDPTEs are in CR3's page (4.4.1).
    let rig = Rig::new(accel);
    rig.write(map::DATA + 0x4000, map::PD | pte::P);
    rig.code_at(32, map::CODE, |a| {
        a.mov(dword_ptr(map::ALIAS as u32), 0x3333_4444)?;
        crate::snippet::exit(a)
    });
    rig.run(&rig.pae(map::DATA + 0x4000));
    assert_eq!(rig.read::<u32>(map::ALIASED), 0x3333_4444);
}

/// RSP-relative, RIP-relative, FS and GS based, and 32-bit addresses.
pub fn addressing(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.write(map::DATA + 0x18, 0x18u64);
    rig.write(map::DATA + 0x28, 0x28u64);
    rig.code(|a| {
        a.mov(ecx, 0xc000_0101u32)?; // GS base
        a.mov(eax, map::DATA as u32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(rax, qword_ptr(0x18).gs())?;
        a.mov(ebx, 0x10)?;
        a.mov(rbx, qword_ptr(rbx + rbx * 1 + 8).gs())?;
        a.mov(rdx, 0xffff_ffff_0000_0000u64 + map::DATA)?;
        a.mov(r8, qword_ptr(edx + 0x28))?; // the address is cut to 32 bits
        a.push(rax)?;
        a.mov(r9, qword_ptr(rsp))?;
        a.pop(qword_ptr(rsp - 8))?; // the address uses RSP after the increment
        a.mov(r10, qword_ptr(rsp - 8))?;
        a.push(rsp)?;
        a.pop(r11)?;
        a.mov(qword_ptr(cell::USER), rsp)
    });
    let end = rig.run_long();
    assert_eq!((end.gpr[gpr::RAX], end.gpr[gpr::RBX]), (0x18, 0x28));
    assert_eq!(end.gpr[8..12], [0x28, 0x18, 0x18, map::STACK]);
    assert_eq!((rig.read::<u64>(cell::USER), end.segments.gs.base), (map::STACK, map::DATA));
}
