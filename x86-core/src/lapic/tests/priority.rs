//! Acceptance, priorities, EOI, errors.

use super::*;

/// 11.8.3.1: PPR is the higher class of TPR and the vector in service.
#[test]
fn processor_priority_follows_the_table() {
    for (tpr, in_service, ppr) in [
        (0x00, None, 0x00),
        (0x37, None, 0x37),
        (0x37, Some(0x52), 0x50),
        (0x63, Some(0x52), 0x63),
        (0x55, Some(0x52), 0x55),
    ] {
        let mut rig = Rig::x2apic(&[0]);
        let lapic = &mut rig.lapics[0];
        if let Some(vector) = in_service {
            lapic.inbox().post_vector(vector, false);
            assert_eq!(lapic.pending_vector(), Some(vector));
            lapic.accept(vector);
        }
        lapic.write(TPR, tpr);
        assert_eq!(lapic.read(PPR), ppr, "TPR {tpr:#x}, in service {in_service:?}");
    }
}

/// 11.8.3: a vector is delivered if its class is above PPR's; its sub-class does not count.
#[test]
fn class_not_above_ppr_waits() {
    let mut rig = Rig::xapic(&[0]);
    let lapic = &mut rig.lapics[0];
    lapic.inbox().post_vector(0x4f, false);
    lapic.write(TPR, 0x40);
    assert_eq!(lapic.pending_vector(), None);
    lapic.write(TPR, 0x3f);
    assert_eq!(lapic.pending_vector(), Some(0x4f));
}

/// 11.8.4: the highest vector first; a higher class interrupts the handler, the same class waits for EOI.
#[test]
fn nesting_and_eoi() {
    let mut rig = Rig::x2apic(&[0]);
    let lapic = &mut rig.lapics[0];
    for vector in [0x31, 0x3e, 0x30] {
        lapic.inbox().post_vector(vector, false);
    }
    assert_eq!(lapic.pending_vector(), Some(0x3e));
    assert_eq!(lapic.accept(0x3e), 0x3e);
    assert_eq!(lapic.pending_vector(), None, "same class");
    lapic.inbox().post_vector(0x80, false);
    assert_eq!(lapic.pending_vector(), Some(0x80));
    lapic.accept(0x80);
    assert_eq!(lapic.read(ISR + 1), 1 << 30);
    assert_eq!(lapic.read(ISR + 4), 1);
    lapic.write(EOI, 0);
    assert_eq!((lapic.read(ISR + 4), lapic.read(PPR)), (0, 0x30));
    assert_eq!(lapic.pending_vector(), None);
    lapic.write(EOI, 0);
    assert_eq!(lapic.pending_vector(), Some(0x31));
}

/// 11.8.4: while a vector is in service, one more of the same is kept in IRR, and only one.
#[test]
fn one_vector_in_service_and_one_requested() {
    let mut rig = Rig::x2apic(&[0]);
    let lapic = &mut rig.lapics[0];
    lapic.inbox().post_vector(0x55, false);
    let vector = lapic.pending_vector().unwrap();
    lapic.accept(vector);
    lapic.inbox().post_vector(0x55, false);
    lapic.pull();
    lapic.inbox().post_vector(0x55, false);
    lapic.write(EOI, 0);
    assert_eq!(rig.receivers(), [(0, 0x55)]);
}

/// 11.8.6: CR8 is bits 7:4 of TPR; bits above 3 raise #GP.
#[test]
fn cr8_is_the_task_priority_class() {
    let mut rig = Rig::x2apic(&[0]);
    let lapic = &mut rig.lapics[0];
    lapic.write(TPR, 0x9c);
    assert_eq!(lapic.cr8(), 9);
    lapic.set_cr8(0xf).unwrap();
    assert_eq!(lapic.read(TPR), 0xf0);
    assert_eq!(lapic.set_cr8(0x10), Err(GpFault));
    assert_eq!(lapic.set_cr8(1 << 32), Err(GpFault));
    assert_eq!(lapic.read(TPR), 0xf0);
}

/// 11.9: a vector that the task priority masks between request and acknowledge gives the spurious vector, and no
/// ISR bit.
#[test]
fn spurious_vector() {
    let mut rig = Rig::x2apic(&[0]);
    let lapic = &mut rig.lapics[0];
    lapic.write(SVR, 0x1ef);
    lapic.inbox().post_vector(0x41, false);
    let vector = lapic.pending_vector().unwrap();
    lapic.write(TPR, 0xff);
    assert_eq!(lapic.accept(vector), 0xef);
    assert_eq!(lapic.read(ISR + 2), 0);
    assert_eq!(lapic.read(IRR + 2), 1 << 1);
    assert_eq!(lapic.accept(0x77), 0xef, "never requested");
}

/// 11.8.5: the EOI of a level-triggered vector is broadcast, that of an edge-triggered one is not; SVR bit 12
/// suppresses the broadcast.
#[test]
fn eoi_broadcast() {
    let mut rig = Rig::x2apic(&[0]);
    rig.lapics[0].inbox().post_vector(0x60, true);
    rig.lapics[0].pull();
    assert_eq!(rig.lapics[0].read(TMR + 3), 1);
    assert_eq!(rig.receivers(), [(0, 0x60)]);
    assert_eq!(rig.take_eois(), [0x60]);

    rig.lapics[0].inbox().post_vector(0x60, false);
    assert_eq!(rig.receivers(), [(0, 0x60)]);
    assert!(rig.take_eois().is_empty());
    assert_eq!(rig.lapics[0].read(TMR + 3), 0);

    rig.lapics[0].write(SVR, 0x11ff);
    rig.lapics[0].inbox().post_vector(0x60, true);
    assert_eq!(rig.receivers(), [(0, 0x60)]);
    assert!(rig.take_eois().is_empty());
}

/// 11.5.3: sending and receiving vectors below 16 is logged, not done; the error interrupt fires at the first error
/// after a write of ESR.
#[test]
fn illegal_vectors() {
    let mut rig = Rig::xapic(&[0]);
    let lapic = &mut rig.lapics[0];
    lapic.write(LVT_ERROR, 0xfe);
    lapic.write(ICR, 0x4_000f); // to self, vector 15
    assert_eq!(lapic.read(ESR), 0, "not before a write");
    lapic.write(ESR, 0);
    assert_eq!(lapic.read(ESR), 1 << 5);
    assert_eq!(rig.receivers(), [(0, 0xfe)]);

    let lapic = &mut rig.lapics[0];
    lapic.inbox().post_vector(3, false);
    lapic.pull();
    assert_eq!(rig.receivers(), [(0, 0xfe)]);
    let lapic = &mut rig.lapics[0];
    lapic.inbox().post_vector(3, false);
    lapic.pull();
    assert!(rig.receivers().is_empty(), "not rearmed");
    let lapic = &mut rig.lapics[0];
    lapic.write(ESR, 0);
    assert_eq!(lapic.read(ESR), 1 << 6);
    lapic.write(ESR, 0);
    assert_eq!(lapic.read(ESR), 0);
}

/// 11.5.3: an illegal vector in the error entry itself is an error too, and the end of it.
#[test]
fn illegal_vector_in_the_error_entry() {
    let mut rig = Rig::xapic(&[0]);
    let lapic = &mut rig.lapics[0];
    lapic.write(LVT_ERROR, 0x05);
    lapic.read(0x00);
    lapic.write(ESR, 0);
    assert_eq!(lapic.read(ESR), 1 << 7 | 1 << 6);
    assert!(rig.receivers().is_empty());
}

/// 11.5.1: LINT0 in ExtINT mode passes the 8259's line on; masked, it does not.
#[test]
fn lint0_extint() {
    let mut rig = Rig::xapic(&[0]);
    rig.bus.set_lint0(true);
    assert_eq!(rig.take_kicks(), [0]);
    let lapic = &mut rig.lapics[0];
    assert!(!lapic.extint_pending(), "masked after reset");
    lapic.write(LVT_LINT0, 0x700);
    assert!(lapic.extint_pending() && lapic.has_interrupt());
    lapic.accept_extint();
    assert!(lapic.extint_pending(), "a level stays until the line falls");
    rig.bus.set_lint0(false);
    assert!(!rig.lapics[0].extint_pending());
}

/// 11.5.1: LINT0, fixed and level-triggered: remote IRR holds it back until EOI, then the level counts again.
#[test]
fn lint0_level() {
    let mut rig = Rig::xapic(&[0]);
    rig.lapics[0].write(LVT_LINT0, 0x8077);
    rig.bus.set_lint0(true);
    let lapic = &mut rig.lapics[0];
    assert_eq!(lapic.pending_vector(), Some(0x77));
    assert_eq!(lapic.read(LVT_LINT0), 0xc077);
    lapic.accept(0x77);
    lapic.write(EOI, 0);
    assert_eq!(lapic.pending_vector(), Some(0x77), "line still up");
    lapic.accept(0x77);
    rig.bus.set_lint0(false);
    rig.lapics[0].write(EOI, 0);
    assert_eq!(rig.lapics[0].read(LVT_LINT0), 0x8077);
    assert!(rig.receivers().is_empty());
}

/// 11.5.1: edges of the LINT pins: LINT0 fixed, LINT1 as NMI.
#[test]
fn lint_edges() {
    let mut rig = Rig::xapic(&[0]);
    let lapic = &mut rig.lapics[0];
    lapic.write(LVT_LINT0, 0x66);
    lapic.write(LVT_LINT1, 0x400);
    assert!(lapic.inbox().set_lint1(true));
    assert!(!lapic.inbox().set_lint1(true), "no edge");
    assert!(lapic.take_nmi());
    assert!(!lapic.take_nmi());
    lapic.inbox().set_lint0(true);
    lapic.inbox().set_lint0(false);
    lapic.inbox().set_lint0(true);
    assert_eq!(rig.receivers(), [(0, 0x66)]);
}
