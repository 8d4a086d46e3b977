//! Messages: decoding, destinations, lowest priority, shorthands.

use super::*;

const FIXED: u64 = 0;
const LOWEST: u64 = 1 << 8;
const LOGICAL: u64 = 1 << 11;
const ASSERT: u64 = 1 << 14;
const TRIGGER: u64 = 1 << 15;

impl Rig {
    /// An IPI by the xAPIC's two-halves ICR.
    fn xapic_ipi(&mut self, from: usize, destination: u64, low: u64) {
        self.lapics[from].write(ICR_HIGH, destination << 24);
        self.lapics[from].write(ICR, low);
    }

    fn x2apic_ipi(&mut self, from: usize, destination: u64, low: u64) {
        self.lapics[from].write(ICR, destination << 32 | low);
    }

    /// Who gets a fixed interrupt with vector 0x40 for this address.
    fn reached(&mut self, from: usize, destination: u64, low: u64) -> Vec<usize> {
        if self.lapics[from].is_x2apic() {
            self.x2apic_ipi(from, destination, low | 0x40);
        } else {
            self.xapic_ipi(from, destination, low | 0x40);
        }
        self.receivers().into_iter().map(|(vcpu, _)| vcpu).collect()
    }
}

/// 11.6.2.1: physical destination mode, 0xff for all.
#[test]
fn physical() {
    let mut rig = Rig::xapic(&[0, 2, 9]);
    assert_eq!(rig.reached(0, 9, FIXED), [2]);
    assert_eq!(rig.take_kicks(), [2]);
    assert_eq!(rig.reached(2, 2, FIXED), [1]);
    assert_eq!(rig.reached(1, 2, FIXED), [1], "self");
    assert_eq!(rig.take_kicks(), [1], "the sender is not kicked");
    assert!(rig.reached(0, 1, FIXED).is_empty());
    assert_eq!(rig.reached(0, 0xff, FIXED), [0, 1, 2]);
}

/// 11.6.2.2: flat model: any common bit.
#[test]
fn logical_flat() {
    let mut rig = Rig::xapic(&[0, 1, 2]);
    for (vcpu, id) in [0x01, 0x02, 0x84].into_iter().enumerate() {
        rig.lapics[vcpu].write(LDR, id << 24);
    }
    assert_eq!(rig.reached(0, 0x03, LOGICAL), [0, 1]);
    assert_eq!(rig.reached(0, 0x80, LOGICAL), [2]);
    assert!(rig.reached(0, 0x78, LOGICAL).is_empty());
    assert_eq!(rig.reached(0, 0xff, LOGICAL), [0, 1, 2]);
}

/// 11.6.2.2: cluster model: same cluster in bits 7:4 and a common bit in 3:0; 0xff for all.
#[test]
fn logical_cluster() {
    let mut rig = Rig::xapic(&[0, 1, 2, 3]);
    for (vcpu, id) in [0x11, 0x12, 0x21, 0x28].into_iter().enumerate() {
        rig.lapics[vcpu].write(DFR, 0);
        rig.lapics[vcpu].write(LDR, id << 24);
    }
    assert_eq!(rig.reached(0, 0x13, LOGICAL), [0, 1]);
    assert_eq!(rig.reached(0, 0x29, LOGICAL), [2, 3]);
    assert!(rig.reached(0, 0x31, LOGICAL).is_empty());
    assert_eq!(rig.reached(0, 0xff, LOGICAL), [0, 1, 2, 3]);
}

/// 11.12.9 and 11.12.10: x2APIC: 32-bit IDs, derived logical IDs, all ones for all in both modes.
#[test]
fn x2apic_destinations() {
    let mut rig = Rig::x2apic(&[0, 5, 0x13, 0xff, 0x12345]);
    assert_eq!(rig.reached(0, 0x12345, FIXED), [4]);
    assert_eq!(rig.reached(0, 0xff, FIXED), [3], "an ID like any other");
    assert_eq!(rig.reached(0, 0xffff_ffff, FIXED), [0, 1, 2, 3, 4]);
    assert_eq!(rig.reached(0, 0xffff_ffff, LOGICAL), [0, 1, 2, 3, 4]);
    assert_eq!(rig.reached(0, 1 | 1 << 5, LOGICAL), [0, 1]);
    assert_eq!(rig.reached(0, 1 << 16 | 1 << 3, LOGICAL), [2]);
    assert_eq!(rig.reached(0, 0x1234 << 16 | 1 << 5, LOGICAL), [4]);
    assert!(rig.reached(0, 2 << 16 | 0xffff, LOGICAL).is_empty());
    assert_eq!(rig.lapics[4].read(LDR), 0x1234_0020);
}

/// A processor in x2APIC mode starts one that is still in xAPIC mode, by the whole of its ID.
#[test]
fn x2apic_sender_reaches_xapic_receiver() {
    let mut rig = Rig::reset(&[0, 0x101, 1]);
    rig.lapics[0].set_apic_base(DEFAULT_BASE | BASE_ENABLED | BASE_X2APIC).unwrap();
    rig.x2apic_ipi(0, 0x101, 0x4500);
    assert!(rig.lapics[1].take_init());
    assert!(!rig.lapics[2].take_init());
    rig.lapics[2].write(SVR, 0x1ff);
    rig.lapics[2].write(LDR, 0x0200_0000);
    assert_eq!(rig.reached(0, 0x02, LOGICAL), [2]);
    assert!(rig.reached(0, 0x102, LOGICAL).is_empty());
}

/// Table 11-4: shorthands.
#[test]
fn shorthands() {
    for x2apic in [false, true] {
        let mut rig = if x2apic { Rig::x2apic(&[0, 1, 2]) } else { Rig::xapic(&[0, 1, 2]) };
        assert_eq!(rig.reached(1, 0, 1 << 18), [1]);
        assert_eq!(rig.reached(1, 0, 2 << 18), [0, 1, 2]);
        assert_eq!(rig.reached(1, 0, 3 << 18), [0, 2]);
        rig.take_kicks();
        rig.reached(1, 0, 2 << 18);
        assert_eq!(rig.take_kicks(), [0, 2]);
    }
}

/// 11.12.11: SELF IPI.
#[test]
fn self_ipi() {
    let mut rig = Rig::x2apic(&[0, 1]);
    rig.lapics[1].write(SELF_IPI, 0x81);
    assert_eq!(rig.lapics[1].pending_vector(), Some(0x81), "at once");
    assert!(rig.take_kicks().is_empty());
    rig.lapics[1].write(SELF_IPI, 7);
    rig.lapics[1].write(ESR, 0);
    assert_eq!(rig.lapics[1].read(ESR), 1 << 6);
}

/// 11.6.2.4: lowest priority goes to one processor, by task priority; equals take turns; a software-disabled one
/// is no candidate.
#[test]
fn lowest_priority() {
    let mut rig = Rig::x2apic(&[0, 1, 2, 3]);
    for (vcpu, tpr) in [0x30, 0x20, 0x2f, 0x00].into_iter().enumerate() {
        rig.lapics[vcpu].write(TPR, tpr);
    }
    rig.lapics[3].write(SVR, 0xff);
    let mut turns = Vec::new();
    for _ in 0..4 {
        turns.extend(rig.reached(0, 0xf, LOWEST | LOGICAL));
    }
    turns.sort_unstable();
    assert_eq!(turns, [1, 1, 2, 2]);
    assert_eq!(rig.reached(0, 0x9, LOWEST | LOGICAL), [0], "the only enabled one");
    assert!(rig.reached(0, 3, LOWEST).is_empty(), "physical, disabled");
}

/// 11.6.1: INIT, start-up and NMI; the INIT level de-assert and reserved delivery modes send nothing.
#[test]
fn start_of_a_processor() {
    let mut rig = Rig::reset(&[0, 1]);
    rig.xapic_ipi(0, 1, 0x600 | 0x55);
    rig.xapic_ipi(0, 1, 0x500 | ASSERT | TRIGGER);
    rig.xapic_ipi(0, 1, 0x500 | TRIGGER);
    rig.xapic_ipi(0, 1, 0x600 | ASSERT | 0x9f);
    rig.xapic_ipi(0, 1, 0x600 | ASSERT | 0x9e);
    rig.lapics[1].pull();
    rig.xapic_ipi(0, 1, 0x600 | ASSERT | 0x9d);
    let lapic = &mut rig.lapics[1];
    assert_eq!(lapic.take_sipi(), None, "INIT comes first");
    assert!(lapic.take_init());
    lapic.init();
    assert!(!lapic.take_init(), "the de-assert is none");
    assert_eq!(lapic.take_sipi(), Some(0x9f), "not the one before INIT, and the first after it");
    rig.xapic_ipi(0, 1, 0x400);
    assert!(rig.lapics[1].take_nmi());
    for reserved in [0x300, 0x700] {
        rig.xapic_ipi(0, 1, reserved | 0x44);
    }
    assert!(!rig.bus.inbox(1).unwrap().has_work());
}

/// 11.6.1: an IPI is edge-triggered whatever its trigger bit says.
#[test]
fn ipis_are_edge_triggered() {
    let mut rig = Rig::x2apic(&[0, 1]);
    rig.x2apic_ipi(0, 1, TRIGGER | ASSERT | 0x44);
    assert_eq!(rig.receivers(), [(1, 0x44)]);
    assert!(rig.take_eois().is_empty());
}

/// 11.11.1 and 11.11.2: MSI address and data.
#[test]
fn msi_decoding() {
    let fixed = |destination, vector| Some(ApicMessage::fixed(destination, vector));
    assert_eq!(ApicMessage::from_msi(0xfee0_3000, 0x41), fixed(Destination::Physical(3), 0x41));
    assert_eq!(ApicMessage::from_msi(0xfee0_3004, 0x41), fixed(Destination::Logical(3), 0x41));
    assert_eq!(ApicMessage::from_msi(0xfeef_f000, 0x41), fixed(Destination::All, 0x41));
    assert_eq!(ApicMessage::from_msi(0xfeef_f004, 0x41), fixed(Destination::All, 0x41));
    let redirected = ApicMessage::from_msi(0xfee0_300c, 0x41).unwrap();
    assert_eq!(
        (redirected.mode, redirected.destination),
        (DeliveryMode::LowestPriority, Destination::Logical(3))
    );
    let level = ApicMessage::from_msi(0xfee0_0000, 0xc041).unwrap();
    assert!(level.level);
    assert_eq!(ApicMessage::from_msi(0xfee0_0000, 0x8041), None, "level de-assert");
    let modes = [
        Some(DeliveryMode::Fixed),
        Some(DeliveryMode::LowestPriority),
        Some(DeliveryMode::Smi),
        None,
        Some(DeliveryMode::Nmi),
        Some(DeliveryMode::Init),
        None,
        Some(DeliveryMode::ExtInt),
    ];
    for (bits, mode) in (0..).zip(modes) {
        assert_eq!(ApicMessage::from_msi(0xfee0_0000, bits << 8 | 0x30).map(|message| message.mode), mode);
    }
    for address in [0, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, u64::MAX] {
        assert_eq!(ApicMessage::from_msi(address, 0x41), None);
    }
}

/// Devices' messages: level-triggered with EOI broadcast, ExtINT, shorthand destinations without a sender.
#[test]
fn messages_from_devices() {
    let mut rig = Rig::x2apic(&[0, 1]);
    let message = ApicMessage::from_msi(0xfee0_1000, 0xc041).unwrap();
    assert_eq!(rig.bus.deliver(&message, None), 1);
    assert_eq!(rig.bus.deliver(&message, None), 1);
    assert_eq!(rig.take_kicks(), [1], "the second finds the first one's kick under way");
    assert_eq!(rig.receivers(), [(1, 0x41)]);
    assert_eq!(rig.take_eois(), [0x41]);

    rig.bus.deliver(&ApicMessage::from_msi(0xfee0_0000, 0x700).unwrap(), None);
    assert!(rig.lapics[0].extint_pending());
    rig.lapics[0].accept_extint();
    assert!(!rig.lapics[0].extint_pending());

    assert_eq!(rig.bus.deliver(&ApicMessage::fixed(Destination::Sender, 0x50), None), 0);
    assert_eq!(rig.bus.deliver(&ApicMessage::fixed(Destination::AllButSender, 0x50), None), 2);
    assert!(rig.bus.inject_nmi(1) && !rig.bus.inject_nmi(2));
    assert!(rig.lapics[1].take_nmi());
}
