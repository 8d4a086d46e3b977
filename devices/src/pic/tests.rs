//! Tests against the 8259A datasheet.

use super::*;
use crate::testing::{Rig, Rng, TestClock, TestLine, device_tests, pio_access};

struct PicRig(Arc<Pic>, Arc<TestLine>);

impl Rig for PicRig {
    type Device = Pic;
    const RESET_FORGETS: bool = false; // the levels of the lines stay

    fn new(_: Arc<TestClock>) -> Self {
        let intr = Arc::new(TestLine::default());
        Self(Pic::new(intr.clone()), intr)
    }
    fn device(&self) -> &Pic {
        &self.0
    }
    fn access(&self, rng: &mut Rng) -> u64 {
        let seen = match rng.below(6) {
            0 => self.0.ack().map_or(0x100, u64::from),
            1 | 2 => {
                self.0.set_irq(rng.below(18) as u8, rng.below(2) == 0);
                0
            }
            3 if rng.below(10) == 0 => {
                init(&self.0, rng.pick(&[1, 3]));
                0
            }
            _ => pio_access(&*self.0, &[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1], rng),
        };
        assert_eq!(self.1.level(), self.0.pending());
        seen << 1 | u64::from(self.1.level())
    }
}

device_tests!(PicRig);

fn out(p: &Pic, port: u16, v: u8) {
    p.pio_write(port, 1, v.into());
}

/// The sequence of every PC firmware: vectors 0x30 and 0x38, all unmasked.
fn init(p: &Pic, icw4: u8) {
    for (base, vector, icw3) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
        out(p, base, 0x11);
        out(p, base + 1, vector);
        out(p, base + 1, icw3);
        out(p, base + 1, icw4);
        out(p, base + 1, 0);
    }
}

fn pic() -> (Arc<Pic>, Arc<TestLine>) {
    let rig = PicRig::new(TestClock::at(0));
    init(&rig.0, 1);
    (rig.0, rig.1)
}

fn isr(p: &Pic, base: u16) -> u8 {
    out(p, base, 0x0b);
    p.pio_read(base, 1) as u8
}

fn irr(p: &Pic, base: u16) -> u8 {
    out(p, base, 0x0a);
    p.pio_read(base, 1) as u8
}

#[test]
fn silent_until_initialised() {
    let rig = PicRig::new(TestClock::at(0));
    rig.0.set_irq(1, true);
    assert!(!rig.1.level());
    assert_eq!(rig.0.ack(), None);
    // "Initialization Command Words", item a: an input must rise after ICW1 to be seen.
    init(&rig.0, 1);
    assert!(!rig.1.level());
    rig.0.set_irq(1, false);
    rig.0.set_irq(1, true);
    assert!(rig.1.level());
}

#[test]
fn edge_is_latched_and_served_once() {
    let (p, intr) = pic();
    p.set_irq(4, true);
    assert!(intr.level());
    assert_eq!(irr(&p, 0x20), 0x10);
    assert_eq!(p.ack(), Some(0x34));
    assert!(!intr.level());
    assert_eq!((irr(&p, 0x20), isr(&p, 0x20)), (0, 0x10));
    out(&p, 0x20, 0x20);
    assert_eq!(isr(&p, 0x20), 0);
    assert!(!intr.level(), "the line is still high, but there was no new edge");
    p.set_irq(4, false);
    p.set_irq(4, true);
    p.set_irq(4, false);
    assert_eq!(p.ack(), Some(0x34), "a pulse is kept");
}

#[test]
fn fully_nested_priorities() {
    let (p, intr) = pic();
    p.set_irq(5, true);
    assert_eq!(p.ack(), Some(0x35));
    p.set_irq(6, true);
    assert!(!intr.level(), "lower priority waits");
    p.set_irq(3, true);
    assert_eq!(p.ack(), Some(0x33), "higher priority interrupts");
    out(&p, 0x20, 0x20);
    assert_eq!(isr(&p, 0x20), 0x20, "non-specific EOI ends the highest");
    assert!(!intr.level());
    out(&p, 0x20, 0x65);
    assert_eq!(p.ack(), Some(0x36));
}

#[test]
fn cascade_needs_both_eois() {
    let (p, intr) = pic();
    p.set_irq(12, true);
    p.set_irq(9, true);
    assert_eq!(p.ack(), Some(0x39));
    assert_eq!((isr(&p, 0x20), isr(&p, 0xa0)), (4, 2));
    assert!(!intr.level());
    out(&p, 0xa0, 0x20);
    assert!(!intr.level(), "the master's IR2 is still in service");
    out(&p, 0x20, 0x20);
    assert_eq!(p.ack(), Some(0x3c));
    // IRQ 8..15 stand between IRQ 1 and IRQ 3.
    p.set_irq(3, true);
    assert!(!intr.level());
    p.set_irq(1, true);
    assert_eq!(p.ack(), Some(0x31));
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    for (icw4, nested) in [(0x01, false), (0x11, true)] {
        let (p, intr) = pic();
        init(&p, icw4);
        p.set_irq(12, true);
        assert_eq!(p.ack(), Some(0x3c));
        p.set_irq(8, true);
        assert_eq!(intr.level(), nested);
    }
}

#[test]
fn spurious_vectors_leave_no_trace() {
    let (p, intr) = pic();
    p.set_irq(3, true);
    out(&p, 0x21, 0xff); // masked between INTR and INTA
    assert!(!intr.level());
    assert_eq!(p.ack(), Some(0x37));
    assert_eq!(isr(&p, 0x20), 0);
    out(&p, 0x21, 0x08);
    p.set_irq(10, true);
    out(&p, 0xa1, 0xff);
    // The master's IR2 was latched as an edge and stands: INTA reaches a slave with nothing to say.
    assert_eq!(p.ack(), Some(0x3f));
    assert_eq!((isr(&p, 0x20), isr(&p, 0xa0)), (4, 0));
}

#[test]
fn level_inputs_request_while_asserted() {
    let (p, intr) = pic();
    p.pio_write(0x4d0, 2, 0xffff);
    assert_eq!(p.pio_read(0x4d0, 2), 0xdef8, "ICH9 13.4.10: IRQ 0, 1, 2, 8, 13 stay edge");
    p.set_irq(11, true);
    assert_eq!(p.ack(), Some(0x3b));
    out(&p, 0xa0, 0x20);
    out(&p, 0x20, 0x20);
    assert!(intr.level(), "still asserted: requested again");
    p.set_irq(11, false);
    p.set_irq(5, true);
    p.set_irq(5, false);
    assert_eq!(irr(&p, 0x20) & 0x20, 0, "a level request goes with the level");
}

#[test]
fn automatic_eoi_and_rotation() {
    let (p, _) = pic();
    init(&p, 3);
    p.set_irq(4, true);
    assert_eq!(p.ack(), Some(0x34));
    assert_eq!(isr(&p, 0x20), 0);
    out(&p, 0x20, 0x80); // rotate in AEOI mode
    p.set_irq(1, true);
    assert_eq!(p.ack(), Some(0x31));
    p.set_irq(1, false);
    p.set_irq(1, true);
    p.set_irq(6, true);
    assert_eq!(p.ack(), Some(0x36), "IR1 has become the lowest");
    assert_eq!(p.ack(), Some(0x31));
}

#[test]
fn automatic_eoi_on_the_slave_keeps_the_second_request() {
    let (p, intr) = pic();
    init(&p, 3);
    p.set_irq(9, true);
    p.set_irq(10, true);
    assert_eq!(p.ack(), Some(0x39));
    assert_eq!(p.ack(), Some(0x3a));
    assert!(!intr.level());
}

/// "Specific Rotation" and "Automatic Rotation", OCW2 figure 8.
#[test]
fn priority_commands() {
    let (p, _) = pic();
    out(&p, 0x20, 0xc0 | 4); // set priority: IR4 lowest, IR5 highest
    p.set_irq(5, true);
    p.set_irq(0, true);
    assert_eq!(p.ack(), Some(0x35));
    out(&p, 0x20, 0xa0); // rotate on non-specific EOI: IR5 lowest, IR6 highest
    p.set_irq(6, true);
    p.set_irq(5, false);
    p.set_irq(5, true);
    assert_eq!(p.ack(), Some(0x36));
    out(&p, 0x20, 0xe0 | 6); // rotate on specific EOI
    assert_eq!(p.ack(), Some(0x30));
    out(&p, 0x20, 0x20);
    assert_eq!(p.ack(), Some(0x35));
}

#[test]
fn special_mask_mode_admits_lower_levels() {
    let (p, intr) = pic();
    p.set_irq(3, true);
    assert_eq!(p.ack(), Some(0x33));
    p.set_irq(6, true);
    out(&p, 0x21, 0x08);
    assert!(!intr.level());
    out(&p, 0x20, 0x68); // ESMM | SMM
    assert_eq!(p.ack(), Some(0x36));
    out(&p, 0x20, 0x20);
    assert_eq!(isr(&p, 0x20), 0x08, "masked levels are hidden from the non-specific EOI");
    out(&p, 0x20, 0x48); // ESMM
    p.set_irq(6, false);
    p.set_irq(6, true);
    assert!(!intr.level());
}

#[test]
fn poll_command_serves_a_request() {
    let (p, intr) = pic();
    out(&p, 0x20, 0x0c);
    assert_eq!(p.pio_read(0x20, 1), 0, "nothing to serve");
    p.set_irq(5, true);
    out(&p, 0x20, 0x0c);
    assert_eq!(p.pio_read(0x20, 1), 0x85);
    assert!(!intr.level());
    assert_eq!(isr(&p, 0x20), 0x20);
    p.set_irq(8, true);
    out(&p, 0xa0, 0x0c);
    assert_eq!(p.pio_read(0xa0, 1), 0x80);
    assert_eq!(isr(&p, 0xa0), 1);
}

#[test]
fn single_mode_and_missing_icw4() {
    let (p, intr) = pic();
    out(&p, 0x20, 0x12); // single, no ICW4
    out(&p, 0x21, 0x47);
    out(&p, 0x21, 0xfe); // already OCW1
    p.set_irq(1, true);
    assert!(!intr.level());
    p.set_irq(0, true);
    assert_eq!(p.ack(), Some(0x40));
}

#[test]
fn wires_reach_their_input() {
    let (p, intr) = pic();
    p.line(2).set(true);
    p.line(16).set(true);
    assert!(!intr.level());
    p.line(14).set(true);
    assert_eq!(p.ack(), Some(0x3e));
}
