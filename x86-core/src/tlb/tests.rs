//! Entries, flushes, address spaces.

use super::*;

fn hit(tlb: &Tlb, mode: TlbMode, address: u64) -> (bool, bool) {
    let e = tlb.entry(mode, address);
    (address ^ e.read_tag < 4096, address ^ e.write_tag < 4096)
}

/// An empty one; on the heap, since a test's stack does not hold many.
#[inline(never)]
fn tlb() -> Box<Tlb> {
    Box::default()
}

fn to(page: usize, store: bool, global: bool, large: bool) -> Translation {
    Translation { host: std::ptr::without_provenance_mut(0x10000), page, store, global, large }
}

#[test]
fn nothing_hits_an_empty_table() {
    let tlb = tlb();
    for bits in [0, 0xfff, 0x1000, !0xfff, u64::MAX, 1 << 47, 0x8000_0000_0000_0000] {
        for page in 0..4u64 {
            assert_eq!(hit(&tlb, TlbMode::User, bits ^ page << 12), (false, false), "{bits:#x} {page}");
        }
    }
}

#[test]
fn a_cr3_load_keeps_global_pages_only() {
    let mut tlb = tlb();
    tlb.fill(TlbMode::Supervisor, 0x5000, &to(1, true, false, false));
    tlb.fill(TlbMode::Supervisor, 0x6000, &to(2, false, true, false));
    assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x5fff), (true, true));
    assert_eq!(hit(&tlb, TlbMode::User, 0x5fff), (false, false));
    assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x6000), (true, false));
    tlb.flush_non_global();
    assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x5fff), (false, false));
    assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x6000), (true, false));
    tlb.flush_all();
    assert_eq!(hit(&tlb, TlbMode::Supervisor, 0x6000), (false, false));
}

#[test]
fn a_non_global_page_in_a_global_slot_goes_with_cr3() {
    let mut tlb = tlb();
    tlb.fill(TlbMode::User, 0x5000, &to(1, true, true, false));
    tlb.fill(TlbMode::User, 0x5000 + ((TLB_ENTRIES as u64) << 12), &to(2, true, false, false));
    tlb.flush_non_global();
    assert_eq!(hit(&tlb, TlbMode::User, 0x5000 + ((TLB_ENTRIES as u64) << 12)), (false, false));
    // And the other way round: a global page in a slot already listed must go with a full flush.
    tlb.fill(TlbMode::User, 0x5000, &to(1, true, false, false));
    tlb.fill(TlbMode::User, 0x5000, &to(1, true, true, false));
    tlb.flush_all();
    assert_eq!(hit(&tlb, TlbMode::User, 0x5000), (false, false));
}

#[test]
fn invlpg_drops_all_pieces_of_a_large_page() {
    let mut tlb = tlb();
    tlb.fill(TlbMode::User, 0x20_0000, &to(1, true, false, true));
    tlb.fill(TlbMode::User, 0x20_1000, &to(2, true, false, true));
    tlb.flush_page(0x3f_f000);
    assert_eq!(hit(&tlb, TlbMode::User, 0x20_0000), (false, false));
    assert_eq!(hit(&tlb, TlbMode::User, 0x20_1000), (false, false));
}

#[test]
fn watched_pages_lose_their_write_tag() {
    let mut tlb = tlb();
    tlb.fill(TlbMode::User, 0x5000, &to(7, true, false, false));
    assert!(!tlb.drop_write_tags_of(8));
    assert!(tlb.drop_write_tags_of(7) && !tlb.drop_write_tags_of(7));
    assert_eq!(hit(&tlb, TlbMode::User, 0x5000), (true, false));
}

#[test]
fn fetch_entries_know_the_privilege() {
    let mut tlb = tlb();
    tlb.fill_fetch(0x7123, true, &to(3, false, false, false));
    assert!(tlb.fetch(0x7fff, true).is_some() && tlb.fetch(0x7fff, false).is_none());
    let generation = tlb.fetch_generation;
    tlb.flush_page(0x7000);
    assert!(tlb.fetch(0x7fff, true).is_none() && tlb.fetch_generation != generation);
}

/// CR3 of the address spaces of the tests below: PCIDs 1 and 2.
const ONE: u64 = 0x1_0001;
const TWO: u64 = 0x2_0002;
const USER: TlbMode = TlbMode::User;

fn reads(tlb: &Tlb, address: u64) -> bool {
    hit(tlb, USER, address).0
}

/// PCID 1 with a translation of 0x5000 to RAM page 7, for stores, too, and one for fetches of 0x7000; then PCID 2.
fn saved() -> Box<Tlb> {
    let mut tlb = tlb();
    tlb.fill(USER, 0x5000, &to(7, true, false, false));
    tlb.fill_fetch(0x7000, true, &to(3, false, false, false));
    tlb.switch_space(ONE, TWO, true);
    tlb
}

#[test]
fn an_address_space_comes_back_with_its_translations() {
    let mut tlb = tlb();
    tlb.fill(USER, 0x5000, &to(7, true, false, false));
    tlb.fill(USER, 0x6000, &to(8, false, true, false));
    tlb.fill_fetch(0x7000, true, &to(3, false, false, false));
    let one = tlb.fetch_generation;
    tlb.switch_space(ONE, TWO, true);
    assert!(!reads(&tlb, 0x5000) && reads(&tlb, 0x6000) && tlb.fetch(0x7000, true).is_none());
    assert!(tlb.fetch_generation != one && tlb.may_return(one));
    // The same places, filled otherwise meanwhile.
    tlb.fill(USER, 0x5000 + ((TLB_ENTRIES as u64) << 12), &to(9, true, false, false));
    tlb.fill_fetch(0x7000 + ((FETCH_ENTRIES as u64) << 12), true, &to(4, false, false, false));
    let two = tlb.fetch_generation;
    tlb.switch_space(TWO, ONE, true);
    assert_eq!((hit(&tlb, USER, 0x5000), tlb.fetch_generation), ((true, true), one));
    assert_eq!(tlb.fetch(0x7000, true).map(|e| e.page), Some(3));
    assert!(!reads(&tlb, 0x5000 + ((TLB_ENTRIES as u64) << 12)));
    tlb.switch_space(ONE, TWO, true);
    assert_eq!((reads(&tlb, 0x5000), tlb.fetch_generation), (false, two));
    assert!(reads(&tlb, 0x5000 + ((TLB_ENTRIES as u64) << 12)));
    // Data of 1 and 2, code of 1 and 2; nothing was resumed of 2 at first.
    assert_eq!(tlb.counters().map(|(_, n)| n), [2, 4]);
}

/// 4.10.4.1: without bit 63 the new PCID's translations go, and no other's; 4.10.1: page tables are not what they are known
/// by, but with others they may go.
#[test]
fn what_a_load_of_cr3_takes_back() {
    let mut tlb = saved();
    tlb.switch_space(TWO, ONE, false);
    assert!(!reads(&tlb, 0x5000) && tlb.fetch(0x7000, true).is_none());
    tlb.switch_space(ONE, TWO, true);
    tlb.switch_space(TWO, ONE, true);
    assert!(!reads(&tlb, 0x5000), "forgotten for good");

    let mut tlb = saved();
    tlb.switch_space(TWO, 0x3_0003, false);
    tlb.switch_space(0x3_0003, ONE, true);
    assert!(reads(&tlb, 0x5000), "not asked for");
    tlb.switch_space(ONE, ONE, true);
    assert!(reads(&tlb, 0x5000));
    tlb.switch_space(ONE, ONE, false);
    assert!(!reads(&tlb, 0x5000));

    for other in [ONE | 1 << 12, ONE] {
        let mut tlb = saved();
        tlb.switch_space(TWO, other, true);
        assert_eq!(reads(&tlb, 0x5000), other == ONE, "{other:#x}");
        tlb.fill(USER, 0x6000, &to(7, true, false, false));
        tlb.switch_space(other, other ^ 1 << 20, true);
        assert!(!reads(&tlb, 0x6000));
        tlb.switch_space(other ^ 1 << 20, ONE, true);
        assert!(!reads(&tlb, 0x5000), "forgotten for good");
    }
}

#[test]
fn what_reaches_other_address_spaces() {
    type Action = fn(&mut Tlb);
    // What is done; whether PCID 1 still has its translation of 0x5000, with a write tag, and that of 0x7000.
    let cases: [(&str, Action, bool, bool, bool); 13] = [
        ("INVLPG", |t| t.flush_page(0x5000), true, true, true),
        ("INVLPG of code", |t| t.flush_page(0x7000), true, true, true),
        ("a CR3 load", Tlb::flush_non_global, true, true, true),
        ("an address", |t| t.flush_other_page(1, 0x5fff), false, false, true),
        ("an address of code", |t| t.flush_other_page(1, 0x7000), true, true, false),
        (
            "another slot's address",
            |t| t.flush_other_page(1, 0x5000 + ((TLB_ENTRIES as u64) << 12)),
            true,
            true,
            true,
        ),
        ("an address of another", |t| t.flush_other_page(3, 0x5000), true, true, true),
        ("PCID 1", |t| t.flush_other(1), false, false, false),
        ("PCID 3", |t| t.flush_other(3), true, true, true),
        ("others", Tlb::flush_others, false, false, false),
        ("all", Tlb::flush_all, false, false, false),
        ("all write tags", Tlb::drop_write_tags, true, false, true),
        ("write tags of a page", |t| assert!(!t.drop_write_tags_of(7)), true, false, true),
    ];
    for (what, action, read, write, fetch) in cases {
        let mut tlb = saved();
        let generation = tlb.fetch_generation - 1;
        action(&mut tlb);
        tlb.switch_space(TWO, ONE, true);
        let found = (hit(&tlb, USER, 0x5000), tlb.fetch(0x7000, true).is_some());
        assert_eq!(found, ((read, write), fetch), "{what}");
        assert!(tlb.fetch_generation != generation || fetch, "{what}");
    }
}

#[test]
fn write_tags_go_only_where_they_must() {
    let mut tlb = saved();
    tlb.drop_write_tags_of(7 + 4096); // the same bit of the filter
    tlb.switch_space(TWO, ONE, true);
    assert_eq!(hit(&tlb, USER, 0x5000), (true, true));
    // What came back is reached like what was filled here.
    assert!(tlb.drop_write_tags_of(7));
    assert_eq!(hit(&tlb, USER, 0x5000), (true, false));
}

#[test]
fn an_address_of_another_space_takes_back_all_pieces_of_a_large_page() {
    let mut tlb = tlb();
    tlb.fill(USER, 0x20_0000, &to(1, true, false, true));
    tlb.fill(USER, 0x20_1000, &to(2, true, false, true));
    tlb.switch_space(ONE, TWO, true);
    tlb.flush_page(0x20_0000);
    tlb.switch_space(TWO, ONE, true);
    assert!(reads(&tlb, 0x20_0000) && reads(&tlb, 0x20_1000), "another PCID's");
    tlb.switch_space(ONE, TWO, true);
    tlb.flush_other_page(1, 0x3f_f000);
    tlb.switch_space(TWO, ONE, true);
    assert!(!reads(&tlb, 0x20_0000) && !reads(&tlb, 0x20_1000));
    // Where they are known to lie comes back with them.
    tlb.fill(USER, 0x20_1000, &to(2, true, false, true));
    tlb.switch_space(ONE, TWO, true);
    tlb.switch_space(TWO, ONE, true);
    tlb.flush_page(0x3f_f000);
    assert!(!reads(&tlb, 0x20_1000));
}

#[test]
fn large_pages_go_by_whether_they_are_global() {
    for (global, address) in [(false, 0x20_1000), (true, 0x4030_1000)] {
        let mut tlb = tlb();
        tlb.fill(USER, 0x20_0000, &to(1, true, false, true));
        tlb.fill(USER, 0x4030_0000, &to(2, true, true, true));
        tlb.flush_page(address);
        assert_eq!((reads(&tlb, 0x20_0000), reads(&tlb, 0x4030_0000)), (global, !global));
    }
}

/// INVLPG takes back global translations whatever the PCID; executors must not find such again with another.
#[test]
fn global_fetch_translations_are_nobodys_own() {
    let mut tlb = tlb();
    tlb.fill_fetch(0x9000, false, &to(3, false, true, false));
    tlb.fill_fetch(0x7000, true, &to(4, false, false, false));
    let one = tlb.fetch_generation;
    tlb.switch_space(ONE, TWO, true);
    assert!(tlb.fetch(0x9000, false).is_some());
    tlb.flush_page(0x9000);
    assert!(tlb.fetch(0x9000, false).is_none() && !tlb.may_return(one));
    tlb.switch_space(TWO, ONE, true);
    assert!(tlb.fetch(0x7000, true).is_some() && tlb.fetch_generation != one);
}

#[test]
fn a_global_translation_is_not_saved_and_not_overwritten() {
    let far = 0x5000 + ((TLB_ENTRIES as u64) << 12);
    let mut tlb = saved();
    tlb.fill(USER, far, &to(9, true, false, false));
    tlb.fill(USER, far, &to(9, true, true, false));
    tlb.fill_fetch(0x7000 + ((FETCH_ENTRIES as u64) << 12), true, &to(3, false, true, false));
    tlb.switch_space(TWO, ONE, true);
    assert!(reads(&tlb, far) && !reads(&tlb, 0x5000));
    assert!(tlb.fetch(0x7000, true).is_none());
    tlb.flush_page(far);
    tlb.switch_space(ONE, TWO, true);
    tlb.switch_space(TWO, ONE, true);
    assert!(!reads(&tlb, far));
}

#[test]
fn address_spaces_and_their_entries_are_bounded() {
    let mut tlb = tlb();
    for pcid in 0..100u64 {
        for page in 0..1000 {
            tlb.fill(USER, page << 12, &to(page as usize, false, false, false));
        }
        tlb.switch_space(pcid, pcid + 1, true);
        assert!(!(0..1000).any(|page| reads(&tlb, page << 12)));
    }
    assert_eq!(tlb.spaces.sizes(), [128; 7]);
    tlb.switch_space(100, 99, true);
    let kept = |tlb: &Tlb| (0..1000).filter(|page| reads(tlb, page << 12)).collect::<Vec<_>>();
    assert_eq!(kept(&tlb), (872..1000).collect::<Vec<_>>(), "those filled last");
    tlb.switch_space(99, 92, true);
    assert!(kept(&tlb).is_empty(), "left too long ago");
}

#[test]
fn what_was_fetched_from_is_bounded() {
    for global in [false, true] {
        let mut tlb = tlb();
        let generations = |tlb: &Tlb| (tlb.fetch_generation, tlb.global_fetch_generation);
        let before = generations(&tlb);
        for page in 0..MOST_FETCHED as u64 + 10 {
            tlb.fill_fetch(page << 12, true, &to(3, false, global, false));
        }
        assert_eq!(tlb.fetched.len() + tlb.fetched_global.len(), 10);
        let after = generations(&tlb);
        assert_eq!((after.0 != before.0, after.1 != before.1), (true, global));
    }
}
