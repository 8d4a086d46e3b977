//! A code cache that is far too small: regions of it are emptied all the time, and guests do not notice.

use std::sync::Arc;

use accel_api::Accelerator;
use accel_api::x86::gpr;
use accel_dynasm::{Config, create_with};
use iced_x86::code_asm::*;
use testkit::conformance::Choice;
use testkit::rig::{Rig, map};

fn small(cache_bytes: usize) -> Arc<dyn Accelerator> {
    create_with(Config { cache_bytes, ..Config::default() })
}

/// The smallest that there is, for each check: its regions hold a few blocks.
fn tiny(_: &str) -> Choice {
    Ok(small(0))
}

testkit::conformance!(suite, crate::tiny);

/// Functions of the guest that runs code once, and of code that it goes on running.
const COLD: u64 = 0xe000;
const HOT: u64 = 100;
const TURNS: u64 = 3;

/// Calls each cold function, and all hot ones after each 64 of them; three times. RAX counts calls of both. How often
/// it did, and the vCPU's counters.
fn run(accel: &Arc<dyn Accelerator>) -> (u64, impl Fn(&str) -> u64 + use<>) {
    const COLD_AT: u64 = map::RAM_END - 8 * COLD;
    const HOT_AT: u64 = map::DATA;
    let rig = Rig::new(accel);
    rig.code(|a| {
        let (mut turn, mut cold, mut hot, mut next) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.xor(eax, eax)?;
        a.mov(r8d, TURNS as u32)?;
        a.set_label(&mut turn)?;
        a.mov(rbx, COLD_AT)?;
        a.set_label(&mut cold)?;
        a.call(rbx)?;
        a.add(rbx, 8)?;
        a.test(ebx, 64 * 8 - 8)?;
        a.jne(next)?;
        a.mov(rcx, HOT_AT)?;
        a.set_label(&mut hot)?;
        a.call(rcx)?;
        a.add(rcx, 16)?;
        a.cmp(rcx, (HOT_AT + 16 * HOT) as i32)?;
        a.jne(hot)?;
        a.set_label(&mut next)?;
        a.cmp(rbx, (COLD_AT + 8 * COLD) as i32)?;
        a.jne(cold)?;
        a.dec(r8d)?;
        a.jne(turn)
    });
    // inc rax; ret
    (0..COLD)
        .for_each(|n| rig.write(COLD_AT + 8 * n, u64::from_le_bytes(*b"\x48\xff\xc0\xc3\xcc\xcc\xcc\xcc")));
    // inc rax; stc; jc, which is linked, to the ret that ends them
    let hot = u128::from_le_bytes(*b"\x48\xff\xc0\xf9\x72\x05\xcc\xcc\xcc\xcc\xcc\xc3\xcc\xcc\xcc\xcc");
    (0..HOT).for_each(|n| rig.write(HOT_AT + 16 * n, hot));
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    let state = runner.finish().expect("no exception");
    let counters = runner.vcpu.stats().counters;
    let counter = move |name: &str| counters.iter().find(|(other, _)| *other == name).expect("a counter").1;
    (state.gpr[gpr::RAX], counter)
}

#[test]
fn what_is_hot_goes_on_while_what_is_not_comes_and_goes() {
    let calls = TURNS * (COLD + COLD / 64 * HOT);
    let (done, big) = run(&small(64 << 20));
    assert_eq!((done, big("regions_evicted"), big("blocks_evicted")), (calls, 0, 0));
    let once = big("blocks_translated");
    assert!(once < COLD + 3 * HOT, "{once} blocks of code that is run once at least");

    let (done, tight) = run(&small(2 << 20));
    let (evictions, evicted) = (tight("regions_evicted"), tight("blocks_evicted"));
    assert_eq!(done, calls);
    assert!(evictions > 100 && evicted > evictions * 100, "{evictions} regions of {evicted} blocks");
    // Nothing that was run once is there the next time. Besides, in each round of the cache, all that is hot comes
    // again; if every region took all with it, that would be sixteen times as much.
    let again = tight("blocks_translated") - TURNS * COLD;
    assert!(again <= (evictions / 16 + 2) * 3 * HOT, "{again} hot blocks in {evictions} regions");
    assert!(tight("blocks") + evicted <= tight("blocks_translated"), "blocks are forgotten with their code");
    assert!(tight("code_bytes") <= 2 << 20);
}
