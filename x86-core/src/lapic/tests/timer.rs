//! The APIC timer (11.5.4).

use super::*;

const PERIODIC: u64 = 1 << 17;
const DEADLINE: u64 = 2 << 17;
const MASKED: u64 = 1 << 16;
/// Divide by one.
const BY_1: u64 = 0xb;

fn tsc(tsc: u64) -> Now {
    Now { ns: 0, tsc }
}

fn timer(mode: u64, divide: u64) -> Rig {
    let mut rig = Rig::x2apic(&[0]);
    rig.lapics[0].write(LVT_TIMER, mode | 0x30);
    rig.lapics[0].write(DIVIDE, divide);
    rig
}

/// True if the timer interrupts up to `now`; takes the interrupt.
fn fires(lapic: &mut Lapic, now: Now) -> bool {
    lapic.expire(now);
    let Some(vector) = lapic.pending_vector() else { return false };
    assert_eq!(vector, 0x30);
    lapic.accept(vector);
    lapic.write_at(EOI, 0, now);
    true
}

/// Figure 11-10: the eight dividers.
#[test]
fn dividers() {
    for (divide, by) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128), (0xb, 1)] {
        let mut rig = timer(0, divide);
        rig.lapics[0].write(INITIAL, 1000);
        assert_eq!(rig.lapics[0].next_deadline(), Some(TimerDeadline::Ns(1000 * by)), "{divide:#x}");
    }
}

/// One-shot: counts down exactly, fires once, stands still at zero.
#[test]
fn one_shot() {
    let mut rig = timer(0, 1); // by 4
    let lapic = &mut rig.lapics[0];
    lapic.write_at(INITIAL, 100, ns(1000));
    for (at, count) in
        [(1000, 100), (1001, 100), (1003, 100), (1004, 99), (1396, 1), (1399, 1), (1400, 0), (9999, 0)]
    {
        assert_eq!(lapic.read_at(CURRENT, ns(at)), count, "at {at}");
    }
    assert!(!fires(lapic, ns(1399)));
    assert!(fires(lapic, ns(1400)));
    assert_eq!(lapic.next_deadline(), None);
    assert!(!fires(lapic, ns(u64::MAX)));
    assert_eq!(lapic.read_at(INITIAL, ns(5000)), 100);
    lapic.write_at(INITIAL, 100, ns(6000));
    lapic.write_at(INITIAL, 0, ns(6001));
    assert_eq!((lapic.next_deadline(), lapic.read_at(CURRENT, ns(6001))), (None, 0));
}

/// Periodic: re-armed in the old rhythm however late it is looked at, one interrupt for all that were missed.
#[test]
fn periodic_does_not_drift() {
    let mut rig = timer(PERIODIC, BY_1);
    let lapic = &mut rig.lapics[0];
    lapic.write_at(INITIAL, 1_000_000, ns(7));
    assert!(!fires(lapic, ns(1_000_006)));
    assert!(fires(lapic, ns(1_000_007 + 123)));
    assert_eq!(lapic.next_deadline(), Some(TimerDeadline::Ns(2_000_007)));
    assert_eq!(lapic.read_at(CURRENT, ns(1_000_007 + 123)), 1_000_000 - 123);
    assert_eq!(lapic.read_at(CURRENT, ns(2_000_007)), 1_000_000, "reloaded before it is serviced");
    assert!(fires(lapic, ns(50_000_000)));
    assert!(!fires(lapic, ns(50_000_000)));
    assert_eq!(lapic.next_deadline(), Some(TimerDeadline::Ns(50_000_007)));
}

/// A period of one tick neither spins nor floods: wake-ups are bounded, the count and its phase stay.
#[test]
fn shortest_period() {
    let mut rig = timer(PERIODIC, BY_1);
    let lapic = &mut rig.lapics[0];
    lapic.write_at(INITIAL, 1, ns(0));
    let mut fired = 0;
    let mut now = 0;
    while now < 10_000_000 {
        let Some(TimerDeadline::Ns(at)) = lapic.next_deadline() else { panic!("stopped") };
        assert!(at > now);
        now = at;
        fired += u32::from(fires(lapic, ns(now)));
        assert_eq!(lapic.read_at(CURRENT, ns(now)), 1);
    }
    assert_eq!(fired, 50);
    assert!(fires(lapic, ns(u64::MAX / 2)), "ages later, in one step");

    lapic.write_at(INITIAL, 70_000, ns(1_000));
    assert_eq!(
        lapic.next_deadline(),
        Some(TimerDeadline::Ns(1_000 + 3 * 70_000)),
        "a whole number of periods"
    );
    assert_eq!(lapic.read_at(CURRENT, ns(1_000 + 70_000 + 5)), 69_995);
}

/// The end of time is reached without overflow.
#[test]
fn end_of_time() {
    for mode in [0, PERIODIC] {
        let mut rig = timer(mode, 0xa);
        let lapic = &mut rig.lapics[0];
        lapic.write_at(INITIAL, u64::from(u32::MAX), ns(u64::MAX - 1));
        lapic.expire(ns(u64::MAX));
        lapic.expire(ns(u64::MAX));
        lapic.read_at(CURRENT, ns(u64::MAX));
        lapic.read_at(CURRENT, ns(0));
        lapic.write_at(DIVIDE, 0, ns(0));
        lapic.save(ns(0));
    }
}

/// A masked timer runs unheard: unmasking later does not bring back what passed.
#[test]
fn masked() {
    let mut rig = timer(MASKED, BY_1);
    let lapic = &mut rig.lapics[0];
    lapic.write_at(INITIAL, 500, ns(0));
    assert_eq!(lapic.next_deadline(), None);
    assert_eq!(lapic.read_at(CURRENT, ns(100)), 400);
    lapic.write_at(LVT_TIMER, 0x30, ns(600));
    assert!(!fires(lapic, ns(700)));
    lapic.write_at(LVT_TIMER, MASKED | 0x30, ns(700));
    lapic.write_at(INITIAL, 500, ns(700));
    lapic.write_at(LVT_TIMER, 0x30, ns(800));
    assert_eq!(lapic.next_deadline(), Some(TimerDeadline::Ns(1200)));
    assert!(fires(lapic, ns(1200)));
}

/// A new divider goes on with the count that is left.
#[test]
fn divider_change_while_running() {
    let mut rig = timer(0, BY_1);
    let lapic = &mut rig.lapics[0];
    lapic.write_at(INITIAL, 1000, ns(0));
    lapic.write_at(DIVIDE, 0xa, ns(400));
    assert_eq!(lapic.read_at(CURRENT, ns(400)), 600);
    assert_eq!(lapic.next_deadline(), Some(TimerDeadline::Ns(400 + 600 * 128)));
    lapic.write_at(DIVIDE, BY_1, ns(400 + 128));
    assert_eq!(lapic.next_deadline(), Some(TimerDeadline::Ns(528 + 599)));
}

/// 11.5.4.1: TSC-deadline: fires when the TSC is there, then reads zero; zero disarms; a past one fires at once.
#[test]
fn tsc_deadline() {
    let mut rig = timer(DEADLINE, 0);
    let lapic = &mut rig.lapics[0];
    lapic.write_msr(MSR_TSC_DEADLINE, 5000, tsc(10)).unwrap();
    assert_eq!(lapic.next_deadline(), Some(TimerDeadline::Tsc(5000)));
    assert!(!fires(lapic, tsc(4999)));
    assert_eq!(lapic.read_msr(MSR_TSC_DEADLINE, tsc(4999)), Ok(5000));
    assert!(fires(lapic, tsc(5000)));
    assert_eq!(lapic.read_msr(MSR_TSC_DEADLINE, tsc(5001)), Ok(0));
    assert!(!fires(lapic, tsc(6000)));

    lapic.write_msr(MSR_TSC_DEADLINE, 5, tsc(6000)).unwrap();
    assert_eq!(lapic.pending_vector(), Some(0x30), "in the past");
    assert!(fires(lapic, tsc(6000)));
    lapic.write_msr(MSR_TSC_DEADLINE, 7000, tsc(6000)).unwrap();
    lapic.write_msr(MSR_TSC_DEADLINE, 0, tsc(6000)).unwrap();
    assert_eq!(lapic.next_deadline(), None);
    assert!(!fires(lapic, tsc(8000)));
}

/// 11.5.4.1: in TSC-deadline mode the initial count is ignored and the current count is zero; in the others the
/// deadline is.
#[test]
fn each_mode_ignores_the_others_registers() {
    let mut rig = timer(DEADLINE, BY_1);
    let lapic = &mut rig.lapics[0];
    lapic.write(INITIAL, 1000);
    assert_eq!((lapic.read(INITIAL), lapic.read(CURRENT), lapic.next_deadline()), (0, 0, None));
    lapic.write(LVT_TIMER, 0x30);
    lapic.write_msr(MSR_TSC_DEADLINE, 1, tsc(5)).unwrap();
    assert_eq!(lapic.read_msr(MSR_TSC_DEADLINE, T0), Ok(0));
    assert_eq!(lapic.pending_vector(), None);
}

/// 11.5.4.1: to and from TSC-deadline mode disarms; one-shot to periodic and back goes on counting.
#[test]
fn mode_changes() {
    let mut rig = timer(DEADLINE, BY_1);
    let lapic = &mut rig.lapics[0];
    lapic.write_msr(MSR_TSC_DEADLINE, 5000, T0).unwrap();
    lapic.write(LVT_TIMER, 0x30);
    lapic.write(LVT_TIMER, DEADLINE | 0x30);
    assert_eq!((lapic.next_deadline(), lapic.read_msr(MSR_TSC_DEADLINE, T0)), (None, Ok(0)));

    lapic.write(LVT_TIMER, 0x30);
    lapic.write(INITIAL, 1_000_000);
    lapic.write_at(LVT_TIMER, PERIODIC | 0x30, ns(10));
    assert_eq!(lapic.read_at(CURRENT, ns(10)), 999_990);
    assert!(fires(lapic, ns(1_000_000)));
    lapic.write_at(LVT_TIMER, 0x30, ns(1_000_010));
    assert!(fires(lapic, ns(2_000_000)));
    assert_eq!(lapic.next_deadline(), None);

    lapic.write_at(INITIAL, 1000, ns(0));
    lapic.write_at(LVT_TIMER, DEADLINE | 0x30, ns(0));
    assert_eq!((lapic.next_deadline(), lapic.read(INITIAL)), (None, 0));
    lapic.write(LVT_TIMER, 3 << 17 | 0x30);
    lapic.write(INITIAL, 1000);
    assert_eq!(lapic.next_deadline(), None, "reserved mode");
}

/// Rewriting the same deadline mode (another vector) leaves the deadline armed.
#[test]
fn vector_change_keeps_the_deadline() {
    let mut rig = timer(DEADLINE, 0);
    let lapic = &mut rig.lapics[0];
    lapic.write_msr(MSR_TSC_DEADLINE, 5000, T0).unwrap();
    lapic.write(LVT_TIMER, DEADLINE | 0x31);
    assert_eq!(lapic.next_deadline(), Some(TimerDeadline::Tsc(5000)));
}
