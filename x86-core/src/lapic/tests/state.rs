//! Saving and loading.

use super::*;

/// A local APIC with something in every field, in the given mode.
fn busy(x2apic: bool) -> (Rig, Now) {
    let mut rig = if x2apic { Rig::x2apic(&[0x12, 1]) } else { Rig::xapic(&[0x12, 1]) };
    let lapic = &mut rig.lapics[0];
    lapic.write(SVR, 0x13e0);
    if !x2apic {
        lapic.write(ID, 0x5500_0000);
        lapic.write(LDR, 0x3400_0000);
        lapic.write(DFR, 0);
        lapic.write(ICR_HIGH, 0x0100_0000);
        lapic.write(ICR, 0x61);
        lapic.read(0x00);
    } else {
        lapic.write(ICR, 1 << 32 | 0x61);
        lapic.write(SELF_IPI, 2);
    }
    lapic.write(ESR, 0);
    lapic.inbox().post_vector(2, false);
    lapic.inbox().post_vector(0xa0, true);
    assert_eq!(lapic.pending_vector(), Some(0xa0));
    lapic.accept(0xa0);
    lapic.write(TPR, 0x25);
    for (at, register) in (LVT_TIMER..=LVT_ERROR).enumerate() {
        lapic.write(register, 0x90 + at as u64);
    }
    lapic.write(LVT_TIMER, 1 << 17 | 0x90);
    lapic.write(DIVIDE, 3);
    lapic.write_at(INITIAL, 1_000_000, ns(5));
    let inbox = Arc::clone(lapic.inbox());
    inbox.post_vector(0x44, false);
    inbox.post_init();
    inbox.post_sipi(0x10);
    inbox.post_nmi();
    inbox.post_extint();
    (rig, ns(777_777))
}

#[test]
fn round_trip() {
    for x2apic in [false, true] {
        let (mut rig, now) = busy(x2apic);
        let state = rig.lapics[0].save(now);
        assert_eq!(rig.lapics[0].save(now), state, "saving changes nothing");
        let mut other = Rig::reset(&[0x12]);
        let later = ns(99_000_000_000);
        let lapic = &mut other.lapics[0];
        lapic.load(&state, later).unwrap();
        assert_eq!(lapic.save(later), state);
        let mut again = state.clone();
        again.normalise();
        assert_eq!(again, state);

        assert_eq!(lapic.read_at(CURRENT, later), rig.lapics[0].read_at(CURRENT, now));
        assert_eq!(state.timer_current(), lapic.read_at(CURRENT, later) as u32);
        assert_eq!(lapic.read(PPR), 0xa0);
        assert!(lapic.take_init() && lapic.extint_pending());
        assert!(!lapic.take_nmi(), "NMIs are the CPU's");
        assert_eq!(lapic.take_sipi(), Some(0x10));
        assert_eq!(lapic.pending_vector(), None);
        lapic.write(EOI, 0);
        assert_eq!(lapic.pending_vector(), Some(0x44));
    }
}

/// `busy` leaves no field at its reset value, so that the round trip covers them all, also through a file.
#[test]
fn every_field_is_covered() {
    let (mut rig, now) = busy(false);
    let state = rig.lapics[0].save(now);
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<LapicState>(&text).unwrap(), state);

    let fields = serde_json::to_value(&state).unwrap();
    let reset = serde_json::to_value(LapicState::reset(0x12, true)).unwrap();
    // The first two differ by mode only, and a TSC deadline excludes the other timer modes.
    let same = ["apic_id", "apic_base", "tsc_deadline"];
    for (name, value) in fields.as_object().unwrap() {
        assert_eq!(*value == reset[name], same.contains(&name.as_str()), "{name}");
    }
}

/// Messages are addressed by the loaded state.
#[test]
fn load_publishes_the_addressing() {
    let (mut rig, now) = busy(false);
    let state = rig.lapics[0].save(now);
    let mut other = Rig::reset(&[0x12]);
    other.lapics[0].load(&state, now).unwrap();
    let message = ApicMessage::fixed(Destination::Logical(0x34), 0xf0);
    assert_eq!(other.bus.deliver(&message, None), 1);
    let message = ApicMessage::fixed(Destination::Logical(0x48), 0xf0);
    assert_eq!(other.bus.deliver(&message, None), 0, "cluster 4");
    for (id, receivers) in [(0x55, 1), (0x12, 0)] {
        let message = ApicMessage::fixed(Destination::Physical(id), 0xf1);
        assert_eq!(other.bus.deliver(&message, None), receivers, "{id:#x}");
    }
}

/// Loading goes back to what was saved: what has come since is not in it.
#[test]
fn load_replaces_the_inbox() {
    let mut rig = Rig::x2apic(&[0]);
    let lapic = &mut rig.lapics[0];
    let state = lapic.save(T0);
    lapic.inbox().post_vector(0x50, false);
    lapic.inbox().post_nmi();
    lapic.load(&state, T0).unwrap();
    assert_eq!(lapic.save(T0), state);
}

/// A due timer is in IRR after saving, not lost and not doubled; a pending TSC deadline survives.
#[test]
fn armed_timers() {
    let mut rig = Rig::x2apic(&[0]);
    let lapic = &mut rig.lapics[0];
    lapic.write(LVT_TIMER, 0x30);
    lapic.write(INITIAL, 10);
    let state = lapic.save(ns(1000));
    assert!(state.irr[0] & 1 << 0x30 != 0);
    assert_eq!((state.timer_remaining_ns, state.timer_current()), (0, 0));

    lapic.write(LVT_TIMER, 2 << 17 | 0x31);
    lapic.write_msr(MSR_TSC_DEADLINE, 500, T0).unwrap();
    let state = lapic.save(T0);
    let mut other = Rig::reset(&[0]);
    other.lapics[0].load(&state, T0).unwrap();
    assert_eq!(other.lapics[0].next_deadline(), Some(TimerDeadline::Tsc(500)));
}

/// A current count from a backend that knows no phase starts the timer where it was.
#[test]
fn phase_from_a_count() {
    let mut state = LapicState::reset(0, true).with_virtual_wire();
    state.lvt_timer = 0x30;
    state.timer_divide = 1;
    state.timer_initial = 1000;
    state.set_timer_current(250);
    let mut rig = Rig::reset(&[0]);
    rig.lapics[0].load(&state, ns(50)).unwrap();
    assert_eq!(rig.lapics[0].read_at(CURRENT, ns(50)), 250);
    assert_eq!(rig.lapics[0].next_deadline(), Some(TimerDeadline::Ns(1050)));
    rig.bus.set_lint0(true);
    assert!(rig.lapics[0].extint_pending(), "virtual wire");
}

/// What a state must not hold is refused, and nothing changes.
#[test]
fn refused() {
    let (mut rig, now) = busy(true);
    let lapic = &mut rig.lapics[0];
    let before = lapic.save(now);
    assert_eq!(lapic.load(&LapicState::reset(1, false), now), Err(LapicStateError::ApicId(1, 0x12)));
    for base in [BASE_X2APIC, BASE_ENABLED | 1, BASE_ENABLED | 1 << 45] {
        let state = LapicState { apic_base: base, ..before.clone() };
        assert_eq!(lapic.load(&state, now), Err(LapicStateError::ApicBase(base)));
    }
    assert_eq!(lapic.save(now), before);
}

/// A disabled local APIC cannot be loaded with interrupts in it.
#[test]
fn disabled() {
    let (mut rig, now) = busy(true);
    let lapic = &mut rig.lapics[0];
    let state = LapicState { apic_base: DEFAULT_BASE, ..lapic.save(now) };
    lapic.load(&state, now).unwrap();
    assert_eq!((lapic.pending_vector(), lapic.next_deadline(), lapic.extint_pending()), (None, None, false));
}
