//! Memory slots that come and go under a running guest, and the dirty log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use accel_api::x86::gpr;
use accel_api::{AccelError, Accelerator, Access, Exit, PAGE_SIZE, SlotId};
use iced_x86::code_asm::*;

use crate::fake_bus::{Event, pattern};
use crate::rig::{Rig, cell, map};
use crate::snippet::{assemble, stay};

const SLOT: SlotId = SlotId(map::EXTRA_SLOT);

/// Slots that overlap, are in use or do not exist are refused, and nothing changes.
pub fn refusals(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let extra = &rig.ram.regions()[2];
    let bad = |r: Result<(), AccelError>| matches!(r, Err(AccelError::BadSlot { .. }));
    assert!(bad(rig.vm.map(SlotId(0), extra, Access::ReadWrite)), "in use");
    assert!(bad(rig.vm.map(SLOT, &rig.ram.regions()[0], Access::ReadWrite)), "overlaps");
    assert!(bad(rig.vm.unmap(SLOT)), "does not exist");
    rig.vm.map(SLOT, extra, Access::ReadOnly).expect("map");
    rig.vm.unmap(SLOT).expect("unmap");
    rig.vm.map(SLOT, extra, Access::ReadWrite).expect("map again");
    let id = rig.vm.bind_vcpu(&accel_api::VcpuConfig { id: 1 }, rig.bus().clone());
    assert!(matches!(id, Err(AccelError::BadVcpu(1))));
}

/// A device maps and unmaps a slot at exact points of the program (as a PCI BAR or a shadowed ROM does): the next
/// instruction sees it, for loads, stores and fetches.
pub fn by_a_device(accel: &Arc<dyn Accelerator>) {
    let rig = Arc::new(Rig::new(accel));
    let (vm, extra) = (rig.vm.clone(), rig.ram.regions()[2].clone());
    rig.bus().on_out(0xe0, move |what| {
        let done = match what & 0xff {
            0 => vm.unmap(SLOT),
            1 => vm.map(SLOT, &extra, Access::ReadWrite),
            _ => vm.map(SLOT, &extra, Access::ReadOnly),
        };
        done.expect("map or unmap");
    });
    rig.write(map::EXTRA, 0x1122_3344u32);
    rig.bytes(
        map::EXTRA + 0x100,
        &assemble(64, 0, |a| {
            a.mov(eax, 0x77)?;
            a.ret()
        }),
    );
    let act = |a: &mut CodeAssembler, what: u32| {
        a.mov(eax, what)?;
        a.out(0xe0u32, al)
    };
    rig.code(|a| {
        a.mov(esi, map::EXTRA as u32)?;
        a.mov(r8d, dword_ptr(rsi))?; // a device
        act(a, 1)?;
        a.mov(r9d, dword_ptr(rsi))?;
        a.mov(dword_ptr(rsi + 4), 0x55)?;
        a.lea(rdi, ptr(rsi + 0x100))?;
        a.call(rdi)?;
        a.mov(r10d, eax)?;
        act(a, 0)?;
        a.mov(dword_ptr(rsi + 8), 0x66)?;
        a.mov(r11d, dword_ptr(rsi + 4))?;
        act(a, 2)?;
        a.mov(dword_ptr(rsi + 12), 0x77)?;
        a.mov(r12d, dword_ptr(rsi + 4))
    });
    let end = rig.run_long();
    assert_eq!(end.gpr[8..13], [pattern(map::EXTRA, 4), 0x1122_3344, 0x77, pattern(map::EXTRA + 4, 4), 0x55]);
    let writes: Vec<_> =
        rig.bus().take_log().into_iter().filter(|e| matches!(e, Event::MmioWrite { .. })).collect();
    assert_eq!(writes.len(), 2, "{writes:x?}");
    assert_eq!(rig.quads(map::EXTRA), [0x55 << 32 | 0x1122_3344, 0]);
}

/// A slot is unmapped from another thread while the guest stores to it all the time: when `unmap` has returned no store
/// reaches the RAM any more.
pub fn while_running(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.vm.map(SLOT, &rig.ram.regions()[2], Access::ReadWrite).expect("map");
    rig.code(|a| {
        let mut top = a.create_label();
        a.mov(esi, map::EXTRA as u32)?;
        a.set_label(&mut top)?;
        a.inc(ebx)?;
        a.mov(dword_ptr(rsi), ebx)?;
        a.mov(dword_ptr(cell::USER), ebx)?;
        a.jmp(top)
    });
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    runner.run_while(|| {
        for _ in 0..12 {
            rig.wait_turns(1);
            rig.vm.unmap(SLOT).expect("unmap");
            let left = rig.read::<u32>(map::EXTRA);
            rig.wait_turns(1);
            assert_eq!(rig.read::<u32>(map::EXTRA), left, "a store reached an unmapped slot");
            rig.bus().take_log();
            rig.vm.map(SLOT, &rig.ram.regions()[2], Access::ReadWrite).expect("map");
            rig.wait_turns(1);
            rig.wait_turns(1);
            assert_ne!(rig.read::<u32>(map::EXTRA), left, "no store reaches the slot mapped again");
        }
    });
}

/// Pages of low RAM that are dirty, as a migration would take them.
fn collect(rig: &Rig) -> Vec<u64> {
    rig.vm.take_dirty().expect("take_dirty").offsets().take_while(|offset| *offset < map::RAM_END).collect()
}

/// A page whose flag a device collects between two stores to it, of the same base and with no branch between them, is marked
/// by both.
pub fn dirty_between_stores(accel: &Arc<dyn Accelerator>) {
    let rig = Arc::new(Rig::new(accel));
    rig.vm.start_dirty_log().expect("start_dirty_log");
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (weak, log) = (Arc::downgrade(&rig), seen.clone());
    rig.bus().on_out(0xe0, move |_| {
        let rig = weak.upgrade().expect("alive");
        log.lock().expect("lock").push(collect(&rig).contains(&map::DATA));
    });
    rig.code(|a| {
        let mut top = a.create_label();
        a.mov(esi, map::DATA as u32)?;
        a.mov(ecx, 4)?;
        a.set_label(&mut top)?;
        for n in 0..2 {
            a.mov(dword_ptr(rsi + 8 * n), ecx)?;
            a.out(0xe0u32, al)?;
        }
        a.mov(dword_ptr(rsi), ecx)?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    rig.run_long();
    assert_eq!(*seen.lock().expect("lock"), [true; 8]);
}

/// Every kind of store marks its page: plain, across pages, string, SSE, push, accessed and dirty bits, a descriptor's
/// accessed bit. Loads mark nothing. After the flags are collected and cleared, the next store marks again.
pub fn dirty_log(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.vm.start_dirty_log().expect("start_dirty_log");
    let page = |n: u64| map::DATA + n * PAGE_SIZE;
    let pass = cell::USER;
    rig.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(dword_ptr(page(0)), 1)?;
        a.mov(qword_ptr(page(2) - 4), rax)?;
        a.mov(edi, (page(3) + 8) as u32)?;
        a.mov(ecx, 4)?;
        a.rep().stosd()?;
        a.movups(xmmword_ptr(page(4)), xmm0)?;
        a.lock().inc(dword_ptr(page(5)))?;
        a.mov(eax, dword_ptr(page(6)))?; // a load
        a.mov(rbp, rsp)?;
        a.mov(rsp, page(8))?;
        a.push(rax)?;
        a.mov(rsp, rbp)?;
        a.inc(dword_ptr(pass))?;
        a.mov(eax, dword_ptr(pass))?;
        a.out(0xe0u32, al)?;
        a.cmp(dword_ptr(pass), 3)?;
        a.jb(top)
    });
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let rig = Arc::new(rig);
    let (weak, log) = (Arc::downgrade(&rig), seen.clone());
    rig.bus().on_out(0xe0, move |_| {
        let rig = weak.upgrade().expect("alive");
        log.lock().expect("lock").push(collect(&rig));
    });
    let state = rig.long_mode(0);
    let mut runner = rig.vcpu(0, &state);
    collect(&rig);
    rig.check(runner.finish());
    let seen = seen.lock().expect("lock");
    let stores: Vec<_> = [0, 1, 2, 3, 4, 5, 7].map(page).to_vec();
    let data = |pages: &[u64]| -> Vec<u64> {
        pages.iter().copied().filter(|p| (map::DATA..map::DATA + 0x1_0000).contains(p)).collect()
    };
    assert_eq!(seen.len(), 3);
    for pages in seen.iter() {
        let found = data(pages);
        assert!(
            found == stores || !accel.caps().exact && stores.iter().all(|p| found.contains(p)),
            "{found:x?}"
        );
        assert!(pages.contains(&map::CELLS));
    }
    assert!(seen[0].contains(&map::PT), "accessed and dirty bits are stores too");
    let read = |page| seen[0].contains(&page) && accel.caps().exact;
    assert!(!read(map::CODE) && !read(map::CODE - PAGE_SIZE));
}

/// The same against a guest that stores all the time: a page cleared while it runs is marked again.
pub fn dirty_again_while_running(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.vm.start_dirty_log().expect("start_dirty_log");
    rig.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rbx)?;
        a.mov(qword_ptr(map::DATA), rbx)?;
        a.jmp(top)
    });
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    let found = runner.run_while(|| {
        let mut found = 0;
        let start = std::time::Instant::now();
        while found < 30 && start.elapsed() < crate::rig::PATIENCE {
            found += usize::from(collect(&rig).contains(&map::DATA));
        }
        found
    });
    assert_eq!(found, 30, "stores were not marked again");
    assert!(runner.save().gpr[gpr::RBX] > 0);
}

/// Two vCPUs store to pages of their own all the time while pages are taken and copied. When both stand and what is left has
/// been taken, the copy is what they have stored: the last store to a page before each copy was never lost.
pub fn last_store_before_a_copy(accel: &Arc<dyn Accelerator>) {
    const PAGES: u64 = 8;
    const ROUNDS: u32 = 3000;
    let rig = Rig::smp(accel, 2);
    // xorshift64 picks the page.
    rig.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        for (left, by) in [(true, 13), (false, 7), (true, 17)] {
            a.mov(rcx, rax)?;
            if left {
                a.shl(rcx, by)?
            } else {
                a.shr(rcx, by)?
            }
            a.xor(rax, rcx)?;
        }
        a.mov(ecx, eax)?;
        a.and(ecx, ((PAGES - 1) * PAGE_SIZE) as u32)?;
        a.inc(qword_ptr(rsi + rcx))?;
        a.jmp(top)
    });
    rig.vm.start_dirty_log().expect("start_dirty_log");
    let (hold, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let standing = AtomicU32::new(0);
    let kicks = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for id in 0..2u32 {
            let (rig, hold, over, standing, kicks) = (&rig, &hold, &over, &standing, &kicks);
            s.spawn(move || {
                let mut state = rig.long_mode(id);
                state.gpr[gpr::RSI] = map::DATA + u64::from(id) * PAGES * PAGE_SIZE;
                state.gpr[gpr::RAX] = 0x9e37_79b9_7f4a_7c15 >> id;
                let mut runner = rig.vcpu(id, &state);
                kicks.lock().expect("lock").push(runner.vcpu.kicker());
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(runner.step(), Exit::Kicked);
                    if hold.load(Ordering::SeqCst) {
                        standing.fetch_add(1, Ordering::SeqCst);
                        while hold.load(Ordering::SeqCst) {
                            std::thread::yield_now();
                        }
                        standing.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            });
        }
        /// Lets the vCPUs go also when an assertion fails: they never end themselves.
        struct End<'a>(&'a [&'a AtomicBool; 2], &'a Mutex<Vec<Arc<dyn accel_api::Kick>>>);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                let [hold, over] = self.0;
                over.store(true, Ordering::SeqCst);
                hold.store(false, Ordering::SeqCst);
                self.1.lock().unwrap_or_else(|e| e.into_inner()).iter().for_each(|kick| kick.kick());
            }
        }
        let flags = [&hold, &over];
        let _end = End(&flags, &kicks);
        let patience = std::time::Instant::now();
        while kicks.lock().expect("lock").len() < 2 {
            assert!(patience.elapsed() < crate::rig::PATIENCE, "a vCPU does not start");
            std::thread::yield_now();
        }
        let pages = || (0..2 * PAGES).map(|n| map::DATA + n * PAGE_SIZE);
        let mut copy: BTreeMap<u64, u64> = pages().map(|page| (page, 0)).collect();
        let mut take = || {
            for page in collect(&rig) {
                copy.entry(page).and_modify(|value| *value = rig.read(page));
            }
            copy.clone()
        };
        let start = std::time::Instant::now();
        let wait = |count: u32| {
            while standing.load(Ordering::SeqCst) != count {
                assert!(
                    start.elapsed() < 4 * crate::rig::PATIENCE,
                    "a vCPU does not stand, or does not go on"
                );
                std::thread::yield_now();
            }
        };
        for round in 0..ROUNDS {
            // An emulated host gets through fewer.
            if round > 50 && start.elapsed() > std::time::Duration::from_secs(20) {
                break;
            }
            take();
            take();
            hold.store(true, Ordering::SeqCst);
            kicks.lock().expect("lock").iter().for_each(|kick| kick.kick());
            wait(2);
            let copied = take();
            let stored: BTreeMap<u64, u64> = pages().map(|page| (page, rig.read(page))).collect();
            assert_eq!(copied, stored, "round {round}");
            hold.store(false, Ordering::SeqCst);
            wait(0);
        }
        assert!(pages().all(|page| rig.read::<u64>(page) > 0), "the vCPUs stored nothing");
    });
}

/// `stay` in an extra slot: fetching goes on from RAM that has gone as it would from a device.
pub fn code_unmapped(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.vm.map(SLOT, &rig.ram.regions()[2], Access::ReadWrite).expect("map");
    rig.bytes(
        map::EXTRA,
        &assemble(64, map::EXTRA, |a| {
            a.mov(dword_ptr(cell::USER), 1)?;
            stay(a)
        }),
    );
    let mut state = rig.long_mode(0);
    state.rip = map::EXTRA;
    // Ones are fetched where nothing is (FF FF is no instruction), and the handler ends the guest as failed.
    let mut runner = rig.vcpu(0, &state);
    std::thread::scope(|s| {
        s.spawn(|| {
            while rig.read::<u32>(cell::USER) == 0 {
                std::thread::yield_now();
            }
            rig.vm.unmap(SLOT).expect("unmap");
        });
        if accel.caps().exact {
            assert!(runner.finish().is_err());
            assert_eq!(rig.vectors(), [6]);
        } else {
            let Exit::Unsupported(detail) = runner.step() else { panic!("neither fetched nor refused") };
            assert!((map::EXTRA..map::EXTRA + 0x20).contains(&detail.rip), "{detail:x?}");
        }
    });
}
