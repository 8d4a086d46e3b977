//! String instructions: bulk chunks, progress, interruption, wrapping. What they compute is compared in `native.rs`.

use accel_api::PageFlag;
use accel_api::x86::gpr;

use super::faults::paged;
use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::Mode;
use crate::testing::{RAM_SIZE, cpu, peek, poke, run, step};
use crate::{Cpu, Ea, Fault, vector};

const REP_STOSB: &[u8] = &[0xf3, 0xaa];
const REP_MOVSB: &[u8] = &[0xf3, 0xa4];

fn set(c: &mut Cpu, rsi: u64, rdi: u64, rcx: u64) {
    (c.gpr[gpr::RSI], c.gpr[gpr::RDI], c.gpr[gpr::RCX]) = (rsi, rdi, rcx);
}

fn get(c: &Cpu) -> (u64, u64, u64) {
    (c.gpr[gpr::RSI], c.gpr[gpr::RDI], c.gpr[gpr::RCX])
}

#[test]
fn long_repetitions_stop_in_between_and_go_on() {
    let mut c = cpu(Mode::Long);
    set(&mut c, 0, 0x8_0123, 200_000);
    c.gpr[gpr::RAX] = 0x5a;
    (c.leave, c.budget) = (false, 1000);
    run(&mut c, REP_STOSB).unwrap();
    assert_eq!(c.rip, 0x1000, "not finished");
    let (_, rdi, rcx) = get(&c);
    assert_eq!((rdi - 0x8_0123) + rcx, 200_000);
    assert!((0x1_0000..0x1_2000).contains(&(200_000 - rcx)));
    assert!(c.leave && c.budget <= 0);
    let mut turns = 1;
    while c.rip == 0x1000 {
        step(&mut c).unwrap();
        turns += 1;
    }
    assert_eq!((c.rip, turns), (0x1002, 3));
    assert_eq!(get(&c), (0, 0x8_0123 + 200_000, 0));
    assert_eq!(peek(&mut c, 0x8_0122, 2), [0, 0x5a]);
    assert_eq!(peek(&mut c, 0x8_0123 + 199_999, 2), [0x5a, 0]);
    // Elements one by one cost more.
    c.set_rflags(flag::DF);
    set(&mut c, 0, 0x9_0000, 10_000);
    run(&mut c, REP_STOSB).unwrap();
    assert_eq!((c.rip, c.gpr[gpr::RCX]), (0x1000, 10_000 - 4096));
}

#[test]
fn a_count_at_the_very_limit_finishes() {
    let mut c = cpu(Mode::Long);
    set(&mut c, 0, 0x8_0000, 0x1_0000);
    run(&mut c, REP_STOSB).unwrap();
    assert_eq!((c.rip, c.gpr[gpr::RCX]), (0x1002, 0));
}

#[test]
fn single_stepping_stops_after_each_element() {
    let mut c = cpu(Mode::Long);
    c.set_rflags(flag::TF);
    set(&mut c, 0x2000, 0x3000, 3);
    for left in [2, 1] {
        run(&mut c, REP_MOVSB).unwrap();
        assert_eq!((c.rip, c.gpr[gpr::RCX]), (0x1000, left));
    }
    run(&mut c, REP_MOVSB).unwrap();
    assert_eq!((c.rip, get(&c)), (0x1002, (0x2003, 0x3003, 0)));
}

#[test]
fn faults_keep_the_progress_made() {
    // Page 5 is absent, page 6 read-only.
    let mut c = paged();
    poke(&mut c, 0x3f00, &[1; 0x100]);
    set(&mut c, 0x3f00, 0x4f10, 0x200);
    assert_eq!(run(&mut c, REP_MOVSB), Err(Fault::with_code(vector::PF, 2)));
    assert_eq!(get(&c), (0x3ff0, 0x5000, 0x110));
    assert_eq!(c.fault_address, 0x5000);
    assert_eq!(peek(&mut c, 0x4f0f, 3), [0, 1, 1]);
    // The element that crosses into the absent page faults as a whole.
    set(&mut c, 0x3000, 0x4ff4, 4);
    assert_eq!(run(&mut c, &[0xf3, 0x48, 0xa5]), Err(Fault::with_code(vector::PF, 2)));
    assert_eq!(get(&c), (0x3008, 0x4ffc, 3));
    // The source's fault comes first; the destination may be any.
    set(&mut c, 0x5000, 0x6000, 1);
    assert_eq!(run(&mut c, REP_MOVSB), Err(Fault::with_code(vector::PF, 0)));
    assert_eq!(c.fault_address, 0x5000);
    set(&mut c, 0x3000, 0x6000, 1);
    assert_eq!(run(&mut c, &[0xa4]), Err(Fault::with_code(vector::PF, 3)));
    assert_eq!(get(&c), (0x3000, 0x6000, 1));
    set(&mut c, 0x4fff, 0, 3);
    assert_eq!(run(&mut c, &[0xf3, 0xac]), Err(Fault::with_code(vector::PF, 0))); // rep lodsb
    assert_eq!(get(&c), (0x5000, 0, 2));
}

#[test]
fn addresses_wrap_in_the_address_size() {
    let mut c = cpu(Mode::Real);
    c.segs[seg::ES].base = 0x2_0000;
    set(&mut c, 0xaaaa_0000, 0xbbbb_fffe, 0xcccc_0004);
    c.gpr[gpr::RAX] = 0x77;
    run(&mut c, REP_STOSB).unwrap();
    assert_eq!(get(&c), (0xaaaa_0000, 0xbbbb_0002, 0xcccc_0000));
    assert_eq!(peek(&mut c, 0x2_fffe, 3), [0x77, 0x77, 0]);
    assert_eq!(peek(&mut c, 0x2_0000, 3), [0x77, 0x77, 0]);
    // A word at 0xffff does not wrap: it is beyond the limit.
    set(&mut c, 0, 0xfffd, 2);
    assert_eq!(run(&mut c, &[0xf3, 0xab]), Err(Fault::GP0));
    assert_eq!(get(&c), (0, 0xffff, 1));
    let mut c = cpu(Mode::Long);
    set(&mut c, 0, 0xffff_ffff_0000_3000, 0xffff_ffff_0000_0002);
    run(&mut c, &[0x67, 0xf3, 0xaa]).unwrap();
    assert_eq!(get(&c), (0, 0x3002, 0));
    set(&mut c, u64::MAX, u64::MAX, 0xffff_ffff_0000_0000);
    run(&mut c, &[0x67, 0xf3, 0xa4]).unwrap();
    assert_eq!(get(&c), (u64::MAX, u64::MAX, 0xffff_ffff_0000_0000), "a count of 0 changes nothing");
}

#[test]
fn segments_limits_and_overrides() {
    let mut c = cpu(Mode::Protected32);
    c.segs[seg::ES].limit = 0x30ff;
    set(&mut c, 0, 0x30f0, 0x20);
    assert_eq!(run(&mut c, REP_STOSB), Err(Fault::GP0));
    assert_eq!(get(&c), (0, 0x3100, 0x10), "up to the limit");
    c.segs[seg::FS].base = 0x5000;
    poke(&mut c, 0x5010, &[1, 2, 3, 4]);
    set(&mut c, 0x10, 0x2000, 1);
    run(&mut c, &[0x64, 0xa5]).unwrap(); // movsd es:[edi], fs:[esi]
    assert_eq!(peek(&mut c, 0x2000, 4), [1, 2, 3, 4]);
    c.segs[seg::ES].base = 0x1000;
    run(&mut c, &[0x64, 0xaa]).unwrap(); // stosb: the prefix changes nothing
    assert_eq!(c.gpr[gpr::RDI], 0x2005);
    assert_eq!(peek(&mut c, 0x3004, 1), [0]);
}

#[test]
fn devices_are_reached_one_element_at_a_time() {
    let mut c = cpu(Mode::Long);
    set(&mut c, RAM_SIZE - 2, 0x3000, 4);
    run(&mut c, REP_MOVSB).unwrap();
    assert_eq!(peek(&mut c, 0x3000, 5), [0, 0, 0xff, 0xff, 0]);
    set(&mut c, 0x3000, RAM_SIZE - 2, 4);
    run(&mut c, REP_MOVSB).unwrap();
    assert_eq!(get(&c), (0x3004, RAM_SIZE + 2, 0));
}

#[test]
fn bulk_stores_to_decoded_code_are_noticed() {
    let mut c = cpu(Mode::Long);
    let page = c.map.page(0x7000).unwrap().index;
    for (code, rdi, stale) in [
        (REP_STOSB, 0x7000, true),
        (REP_MOVSB, 0x7000, true),
        (REP_STOSB, 0x7100, false),
        (REP_MOVSB, 0x6fc0, true),
    ] {
        c.vm.flags.set(page, PageFlag::CODE);
        c.vm.code.add(page, 1);
        c.stale_code.clear();
        c.tlb.flush_all();
        set(&mut c, 0x2000, rdi, 0x80);
        run(&mut c, code).unwrap();
        let pages: Vec<_> = c.stale_code.iter().map(|s| s.page).collect();
        assert_eq!(pages, if stale { vec![page] } else { vec![] }, "{code:02x?} {rdi:x}");
    }
}

/// A device writes into a page of code: the mark goes at once, and the vCPU is told at its next look. A store of its own
/// before that must drop what it may be executing.
#[test]
fn own_stores_behind_dma_into_code_are_noticed() {
    let mut c = cpu(Mode::Long);
    let page = c.map.page(0x7000).unwrap().index;
    c.vm.flags.set(page, PageFlag::CODE);
    c.vm.code.add(page, 1);
    let writes = c.vm.code_writes.load(std::sync::atomic::Ordering::SeqCst);
    c.vm.flags.mark_written(7 << 12 | 0x800, 1);
    assert!(c.vm.code_writes.load(std::sync::atomic::Ordering::SeqCst) > writes);
    assert!(!c.vm.flags.get(page).contains(PageFlag::CODE));
    let stale = |c: &mut Cpu| {
        c.stale_code.clear();
        c.store(Ea::data(0x7004), 0x90u8).unwrap();
        c.stale_code.iter().map(|s| (s.page, s.lines)).collect::<Vec<_>>()
    };
    // Again, because a store may leave a translation behind through which the next would not ask.
    assert_eq!((stale(&mut c), stale(&mut c)), (vec![(page, 1)], vec![(page, 1)]));
    c.told = c.vm.told();
    assert_eq!((stale(&mut c), stale(&mut c)), (vec![], vec![]));
    assert_eq!(c.tlb.entry(c.tlb_mode(), 0x7000).write_tag, 0x7000);
}

/// What a vCPU forgets itself it need not be told.
#[test]
fn own_stores_to_code_leave_others_fast() {
    let mut c = cpu(Mode::Long);
    let page = c.map.page(0x7000).unwrap().index;
    c.vm.flags.set(page, PageFlag::CODE);
    c.vm.code.add(page, 1);
    c.store(Ea::data(0x7004), 0x90u8).unwrap();
    assert_eq!(c.stale_code.len(), 1);
    c.store(Ea::data(0x8004), 0x90u8).unwrap();
    c.store(Ea::data(0x7104), 0x90u8).unwrap();
    assert_eq!((c.stale_code.len(), c.tlb.entry(c.tlb_mode(), 0x8000).write_tag), (1, 0x8000));
}

#[test]
fn comparisons_end_where_they_should() {
    let mut c = cpu(Mode::Long);
    poke(&mut c, 0x2ffe, b"hello\0");
    c.gpr[gpr::RAX] = 0;
    set(&mut c, 0, 0x2ffe, u64::MAX);
    run(&mut c, &[0xf2, 0xae]).unwrap(); // repne scasb: strlen
    assert_eq!((c.gpr[gpr::RDI], !c.gpr[gpr::RCX]), (0x3004, 6));
    assert!(c.flags.zf());
    poke(&mut c, 0x4000, b"help");
    set(&mut c, 0x2ffe, 0x4000, 4);
    run(&mut c, &[0xf3, 0xa6]).unwrap(); // repe cmpsb
    assert_eq!(get(&c), (0x3002, 0x4004, 0));
    assert!(!c.flags.zf() && c.flags.cf(), "l < p");
    c.set_rflags(flag::CF | flag::ZF);
    set(&mut c, 0, 0, 0);
    run(&mut c, &[0xf3, 0xa6]).unwrap();
    assert_eq!(c.flags.to_rflags(), flag::CF | flag::ZF, "a count of 0 leaves the flags");
}

#[test]
fn overlap_ahead_repeats_the_pattern() {
    let mut c = cpu(Mode::Long);
    poke(&mut c, 0x2ff0, &[1, 2, 3]);
    set(&mut c, 0x2ff0, 0x2ff3, 0x40);
    run(&mut c, REP_MOVSB).unwrap();
    let want: Vec<u8> = (0..0x43).map(|i| i % 3 + 1).collect();
    assert_eq!(peek(&mut c, 0x2ff0, 0x43), want);
    assert_eq!(c.load::<u8>(Ea::data(0x3033)), Ok(0));
}
