//! Memory of devices that moves under a running guest: BARs with memory behind them, ROMs that are shadowed piece by piece.

use std::sync::{Arc, Mutex};

use accel_api::{AccelVm, Accelerator, Access, PAGE_SIZE, RamRegion, SlotId};
use iced_x86::code_asm::*;
use vm_memory::Bytes;

use crate::fake_bus::{Event, pattern};
use crate::rig::{Rig, cell, map};
use crate::snippet::assemble;

const SLOT: SlotId = SlotId(map::EXTRA_SLOT);
/// Two places where a window can be.
const PLACES: [u64; 2] = [map::EXTRA, map::EXTRA + 0x10_0000];
/// Piece that a chipset shadows ROMs by.
const PIECE: u64 = 0x4000;

fn show(vm: &Arc<dyn AccelVm>, slot: SlotId, region: &RamRegion, gpa: u64, access: Access) {
    vm.map(slot, &region.at(gpa).expect("an address"), access).expect("map");
}

/// A function that returns `value`.
fn function(value: u32) -> Vec<u8> {
    assemble(64, 0, |a| {
        a.mov(eax, value)?;
        a.ret()
    })
}

/// A window moves between two places from another thread while the guest loads from and stores to both: when the move is over,
/// the new place has the memory, and the old one the device behind it.
pub fn window_moves_while_running(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let window = rig.ram.allocate(0x2000).expect("device memory");
    window.bytes().write_obj(0x600d_f00du32, 0x1000).expect("within");
    show(&rig.vm, SLOT, &window, PLACES[0], Access::ReadWrite);
    rig.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        for (n, place) in (0i32..).zip(PLACES) {
            a.mov(esi, place as u32)?;
            a.mov(eax, dword_ptr(rsi + 0x1000))?;
            a.mov(dword_ptr(cell::USER + 8 + 4 * n as u64), eax)?;
            a.mov(dword_ptr(rsi + 8 * n), ebx)?;
        }
        a.inc(ebx)?;
        a.mov(dword_ptr(cell::USER), ebx)?;
        a.jmp(top)
    });
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    runner.run_while(|| {
        // Two turns: one may have begun before.
        for round in 0..12 {
            let (here, away) = (round % 2, 1 - round % 2);
            rig.wait_turns(2);
            let seen: [u32; 2] = [0, 4].map(|n| rig.read(cell::USER + 8 + n));
            assert_eq!(seen[here], 0x600d_f00d, "round {round}");
            assert_eq!(u64::from(seen[away]), pattern(PLACES[away] + 0x1000, 4), "round {round}");
            rig.vm.unmap(SLOT).expect("unmap");
            let stored = |n: usize| window.bytes().read_obj::<u32>(8 * n).expect("within");
            let left = [0, 1].map(stored);
            rig.wait_turns(2);
            assert_eq!([0, 1].map(stored), left, "a store reached memory that is nowhere");
            show(&rig.vm, SLOT, &window, PLACES[away], Access::ReadWrite);
            rig.wait_turns(2);
            assert_ne!(stored(away), left[away], "no store reaches the memory at its new place");
            assert_eq!(stored(here), left[here], "a store came by the old place");
            rig.bus().take_log();
        }
    });
}

/// Pieces of one region are hidden, read-only or writable, each by itself, and change at exact points of the program, as ROM
/// does that is copied into RAM behind it.
pub fn pieces_change_access(accel: &Arc<dyn Accelerator>) {
    let rig = Arc::new(Rig::new(accel));
    let shadow = rig.ram.allocate(2 * PIECE).expect("device memory").at(map::EXTRA).expect("an address");
    let pieces = [0, 1].map(|n| shadow.part(n * PIECE, PIECE).expect("a part"));
    let slots = [SLOT, SlotId(map::EXTRA_SLOT + 1)];
    let (vm, own) = (rig.vm.clone(), pieces.clone());
    let mapped = Mutex::new([false; 2]);
    // Bit 0: which piece. Bits 2:1: 0 hides it, 1 shows it read-only, 2 writable.
    rig.bus().on_out(0xe0, move |what| {
        let n = (what & 1) as usize;
        let mapped = &mut mapped.lock().expect("lock")[n];
        if *mapped {
            vm.unmap(slots[n]).expect("unmap");
        }
        let access = [None, Some(Access::ReadOnly), Some(Access::ReadWrite)][(what >> 1 & 3) as usize];
        *mapped = access.is_some();
        if let Some(access) = access {
            vm.map(slots[n], &own[n], access).expect("map");
        }
    });
    let act = |a: &mut CodeAssembler, piece: u32, access: u32| {
        a.mov(eax, access << 1 | piece)?;
        a.out(0xe0u32, al)
    };
    let second = PIECE as i32;
    rig.code(|a| {
        a.mov(esi, map::EXTRA as u32)?;
        act(a, 0, 2)?;
        act(a, 1, 2)?;
        a.mov(dword_ptr(rsi), 0x11)?;
        a.mov(qword_ptr(rsi + (second - 4)), -1)?; // across both
        act(a, 0, 1)?;
        a.mov(dword_ptr(rsi), 0x22)?; // a device
        a.mov(dword_ptr(rsi + (second + 8)), 0x33)?;
        a.mov(r8d, dword_ptr(rsi))?;
        act(a, 1, 0)?;
        a.mov(r9d, dword_ptr(rsi + (second + 8)))?; // a device
        act(a, 1, 1)?;
        act(a, 0, 2)?;
        a.mov(dword_ptr(rsi + 4), 0x44)?;
        a.mov(dword_ptr(rsi + (second + 8)), 0x55)?; // a device
        a.mov(r10d, dword_ptr(rsi + (second + 8)))
    });
    let end = rig.run_long();
    assert_eq!(end.gpr[8..11], [0x11, pattern(map::EXTRA + PIECE + 8, 4), 0x33]);
    let quad = |at: u64| shadow.bytes().read_obj::<u64>(at as usize).expect("within");
    assert_eq!(
        [quad(0), quad(PIECE - 8), quad(PIECE), quad(PIECE + 8)],
        [0x44 << 32 | 0x11, 0xffff_ffff << 32, 0xffff_ffff, 0x33]
    );
    let log = rig.bus().take_log();
    let writes = log.iter().filter(|event| matches!(event, Event::MmioWrite { .. })).count();
    assert_eq!(writes, 2, "{log:x?}");
}

/// Two pieces of memory take turns at one address, each with a function of its own: a call always reaches what is there. One of
/// them is at a second address, too; a store there is seen by the next call.
pub fn code_takes_turns(accel: &Arc<dyn Accelerator>) {
    let rig = Arc::new(Rig::new(accel));
    let both = [1u32, 2].map(|value| {
        let region = rig.ram.allocate(PAGE_SIZE).expect("device memory");
        region.bytes().write_slice(&function(value), 0).expect("within");
        region
    });
    show(&rig.vm, SlotId(map::EXTRA_SLOT + 1), &both[1], PLACES[1], Access::ReadWrite);
    show(&rig.vm, SLOT, &both[0], PLACES[0], Access::ReadWrite);
    let (vm, own) = (rig.vm.clone(), both.clone());
    rig.bus().on_out(0xe0, move |what| {
        vm.unmap(SLOT).expect("unmap");
        show(&vm, SLOT, &own[(what & 1) as usize], PLACES[0], Access::ReadOnly);
    });
    rig.code(|a| {
        let mut top = a.create_label();
        a.xor(r8d, r8d)?;
        a.mov(ebx, 12)?;
        a.mov(esi, PLACES[0] as u32)?;
        a.set_label(&mut top)?;
        a.mov(eax, ebx)?;
        a.out(0xe0u32, al)?;
        a.call(rsi)?;
        a.imul_3(r8, r8, 3)?;
        a.add(r8, rax)?;
        a.dec(ebx)?;
        a.jnz(top)?;
        a.mov(eax, 1)?;
        a.out(0xe0u32, al)?;
        a.call(rsi)?;
        a.mov(r9d, eax)?;
        a.mov(edi, PLACES[1] as u32)?;
        a.mov(byte_ptr(rdi + 1), 7)?; // the immediate
        a.call(rsi)?;
        a.mov(r10d, eax)
    });
    let end = rig.run_long();
    let turns = (1..=12u64).rev().fold(0u64, |sum, n| sum * 3 + if n & 1 == 1 { 2 } else { 1 });
    assert_eq!(end.gpr[8..11], [turns, 2, 7]);
}

/// Stores to memory of devices are recorded by its place in the RAM, wherever the guest has it; also what was written when it has
/// gone.
pub fn dirty_windows(accel: &Arc<dyn Accelerator>) {
    let rig = Arc::new(Rig::new(accel));
    let window = rig.ram.allocate(0x4000).expect("device memory");
    rig.vm.start_dirty_log().expect("start_dirty_log");
    let (vm, own) = (rig.vm.clone(), window.clone());
    rig.bus().on_out(0xe0, move |what| match what & 3 {
        0 => vm.unmap(SLOT).expect("unmap"),
        n => show(&vm, SLOT, &own, PLACES[n as usize - 1], Access::ReadWrite),
    });
    let act = |a: &mut CodeAssembler, what: u32| {
        a.mov(eax, what)?;
        a.out(0xe0u32, al)
    };
    rig.code(|a| {
        act(a, 1)?;
        a.mov(esi, PLACES[0] as u32)?;
        a.mov(dword_ptr(rsi + 0x1000), 1)?;
        act(a, 0)?;
        act(a, 2)?;
        a.mov(esi, PLACES[1] as u32)?;
        a.mov(dword_ptr(rsi + 0x3000), 1)
    });
    let dirty = || -> Vec<u64> {
        let pages = rig.vm.take_dirty().expect("take_dirty");
        pages
            .offsets()
            .filter_map(|offset| offset.checked_sub(window.offset()))
            .filter(|at| *at < 0x4000)
            .collect()
    };
    dirty();
    rig.run_long();
    let seen = dirty();
    let exact = accel.caps().exact;
    assert!(
        seen == [0x1000, 0x3000] || !exact && [0x1000, 0x3000].iter().all(|p| seen.contains(p)),
        "{seen:x?}"
    );
    assert_eq!(dirty(), [0; 0]);
}
