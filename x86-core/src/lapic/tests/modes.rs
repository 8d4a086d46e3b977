//! IA32_APIC_BASE, software disable, resets.

use super::*;

const EN: u64 = BASE_ENABLED;
const X2: u64 = BASE_ENABLED | BASE_X2APIC;
const EXTD: u64 = BASE_X2APIC;
const OFF: u64 = 0;

/// 11.12.5 and table 11-5: every transition from every valid state.
#[test]
fn transitions() {
    let legal = [(EN, EN), (EN, X2), (EN, OFF), (X2, X2), (X2, OFF), (OFF, OFF), (OFF, EN)];
    for from in [EN, X2, OFF] {
        for to in [EN, X2, OFF, EXTD] {
            let mut rig = Rig::reset(&[5]);
            let lapic = &mut rig.lapics[0];
            lapic.set_apic_base(DEFAULT_BASE | from).unwrap();
            let before = lapic.apic_base();
            let done = lapic.write_msr(MSR_APIC_BASE, DEFAULT_BASE | to, T0);
            assert_eq!(done.is_ok(), legal.contains(&(from, to)), "{from:#x} to {to:#x}");
            let expected = if done.is_ok() { DEFAULT_BASE | to } else { before };
            assert_eq!(lapic.read_msr(MSR_APIC_BASE, T0), Ok(expected));
        }
    }
}

/// 11.4.4: bits 7:0 and 9 and those from MAXPHYADDR up are reserved; the page moves with the base.
#[test]
fn base_register() {
    let mut rig = Rig::reset(&[0]);
    let lapic = &mut rig.lapics[0];
    assert_eq!(lapic.apic_base(), 0xfee0_0900, "bootstrap processor, 11.4.7.1");
    for bit in (0..8).chain([9]).chain(40..64) {
        assert_eq!(lapic.set_apic_base(DEFAULT_BASE | EN | 1 << bit), Err(GpFault), "bit {bit}");
    }
    lapic.set_apic_base(0x12_3456_7000 | EN).unwrap();
    assert_eq!(lapic.mmio_base(), Some(0x12_3456_7000));
    assert!(!lapic.is_bsp());
    lapic.set_apic_base(0x12_3456_7000 | X2).unwrap();
    assert_eq!(lapic.mmio_base(), None);
}

/// 11.12.1: without CPUID's x2APIC bit, EXTD is reserved.
#[test]
fn x2apic_not_offered() {
    let rig = Rig::reset(&[0]);
    let config = LapicConfig { x2apic: false, ..CONFIG };
    let mut lapic = Lapic::new(rig.bus.clone(), 0, config, rig.eois.clone()).unwrap();
    assert_eq!(lapic.set_apic_base(DEFAULT_BASE | X2), Err(GpFault));
    assert!(Lapic::new(rig.bus.clone(), 1, config, rig.eois.clone()).is_none());
}

/// 11.12.5.1: xAPIC to x2APIC keeps the registers, derives LDR.
#[test]
fn entering_x2apic_mode_keeps_registers() {
    let mut rig = Rig::xapic(&[0x25]);
    let lapic = &mut rig.lapics[0];
    lapic.write(TPR, 0x20);
    lapic.write(LVT_TIMER, 0x40);
    lapic.write(LDR, 0x0100_0000);
    lapic.write(ICR_HIGH, 0x0700_0000);
    lapic.inbox().post_vector(0x99, false);
    lapic.set_apic_base(DEFAULT_BASE | X2).unwrap();
    assert_eq!(lapic.read(TPR), 0x20);
    assert_eq!(lapic.read(LVT_TIMER), 0x40);
    assert_eq!(lapic.read(SVR), 0x1ff);
    assert_eq!(lapic.read(LDR), 2 << 16 | 1 << 5);
    assert_eq!(lapic.read(0x02), 0x25);
    assert_eq!(lapic.read(ICR), 0);
    assert_eq!(rig.receivers(), [(0, 0x99)]);
}

/// 11.4.6: the ID register can be written in xAPIC mode and addresses the local APIC from then on. INIT keeps it (11.4.7.3);
/// x2APIC mode, being disabled and power-up bring the processor's own back.
#[test]
fn id_register() {
    let mut rig = Rig::xapic(&[3, 4]);
    let receivers = |rig: &mut Rig, id: u32| {
        rig.bus.deliver(&ApicMessage::fixed(Destination::Physical(id), 0x50), None);
        rig.receivers().iter().map(|&(vcpu, _)| vcpu).collect::<Vec<_>>()
    };
    rig.lapics[0].write(ID, 0x09ff_ffff);
    rig.lapics[0].init();
    assert_eq!(rig.lapics[0].read(ID), 9 << 24);
    assert_eq!((rig.lapics[0].apic_id(), rig.lapics[0].save(T0).xapic_id), (3, 9));
    rig.lapics[0].write(SVR, 0x1ff);
    rig.lapics[1].write(ID, 9 << 24);
    assert_eq!(receivers(&mut rig, 9), [0, 1], "who has the same ID hears the same");
    assert!(receivers(&mut rig, 3).is_empty() && receivers(&mut rig, 4).is_empty());
    rig.lapics[0].set_apic_base(DEFAULT_BASE | X2).unwrap();
    assert_eq!((receivers(&mut rig, 3), rig.lapics[0].read(ID)), (vec![0], 3));
    assert_eq!(receivers(&mut rig, 9), [1]);
    let lapic = &mut rig.lapics[1];
    lapic.set_apic_base(DEFAULT_BASE).unwrap();
    lapic.set_apic_base(DEFAULT_BASE | EN).unwrap();
    assert_eq!(lapic.read(ID), 4 << 24);
    lapic.write(ID, 9 << 24);
    lapic.reset();
    assert_eq!(lapic.save(T0), LapicState::reset(4, false));
}

/// 6.7.1, and as KVM counts: two NMIs that wait are two, a third merges; one counts of those that came while they were
/// masked.
#[test]
fn nmis_that_wait() {
    let mut rig = Rig::reset(&[0]);
    let lapic = &mut rig.lapics[0];
    let inbox = Arc::clone(lapic.inbox());
    for _ in 0..3 {
        inbox.post_nmi();
    }
    assert_eq!([lapic.take_nmi(), lapic.take_nmi(), lapic.take_nmi()], [true, true, false]);
    for _ in 0..2 {
        inbox.post_nmi();
        lapic.pull();
    }
    lapic.merge_nmis();
    assert_eq!([lapic.take_nmi(), lapic.take_nmi()], [true, false]);
}

/// 11.4.3 and 11.12.5.1: disabling loses the state; LINT0 is then INTR, LINT1 is NMI, and the bus is not heard.
#[test]
fn hardware_disabled() {
    let mut rig = Rig::x2apic(&[0, 1]);
    rig.lapics[1].write(TPR, 0x30);
    rig.lapics[1].inbox().post_vector(0x50, false);
    rig.lapics[1].set_apic_base(DEFAULT_BASE).unwrap();
    assert!(!rig.lapics[1].is_enabled());
    for mode in [0, 4, 5, 6, 7] {
        let address = 0xfee0_1000;
        let message = ApicMessage::from_msi(address, mode << 8 | 0x41);
        assert_eq!(message.map_or(0, |message| rig.bus.deliver(&message, None)), 0);
    }
    let lapic = &mut rig.lapics[1];
    assert_eq!(lapic.pending_vector(), None);
    assert_eq!((lapic.take_nmi(), lapic.take_init(), lapic.take_sipi()), (false, false, None));
    lapic.inbox().set_lint0(true);
    lapic.inbox().set_lint1(true);
    assert!(lapic.extint_pending());
    assert!(lapic.take_nmi());
    assert_eq!(lapic.read_msr(0x803, T0), Err(GpFault));
    assert_eq!(lapic.mmio_read(0x30, 4, T0), 0xffff_ffff);
    lapic.set_apic_base(DEFAULT_BASE | EN).unwrap();
    assert_eq!((lapic.read(TPR), lapic.read(SVR), lapic.read(IRR + 2)), (0, 0xff, 0));
    assert!(!lapic.extint_pending(), "LINT0 is masked again");
}

/// 11.4.7.2: software-disabled: LVT masked and stuck so, nothing accepted but INIT, NMI and start-up; IPIs can be
/// sent; what is pending is held, and still delivered.
#[test]
fn software_disabled() {
    let mut rig = Rig::x2apic(&[0, 1]);
    rig.lapics[0].inbox().post_vector(0x48, false);
    rig.lapics[0].write(LVT_TIMER, 0x31);
    rig.lapics[0].write(SVR, 0xff);
    for register in 0x32..=0x37 {
        rig.lapics[0].write(register, 0x20);
        assert_eq!(rig.lapics[0].read(register), 0x1_0020);
    }
    assert_eq!(rig.bus.deliver(&ApicMessage::fixed(Destination::Physical(0), 0x49), None), 0);
    rig.lapics[0].write(SELF_IPI, 0x4a);
    rig.lapics[0].write(ICR, 1 << 32 | 0x4b);
    assert_eq!(rig.receivers(), [(0, 0x48), (1, 0x4b)]);
    for mode in [DeliveryMode::Nmi, DeliveryMode::Init, DeliveryMode::StartUp] {
        let message = ApicMessage { mode, ..ApicMessage::fixed(Destination::Physical(0), 0x12) };
        assert_eq!(rig.bus.deliver(&message, None), 1);
    }
    let lapic = &mut rig.lapics[0];
    assert!(lapic.take_nmi() && lapic.take_init());
    assert_eq!(lapic.take_sipi(), Some(0x12));
    lapic.write(SVR, 0x1ff);
    assert_eq!(lapic.read(LVT_TIMER), 0x1_0020, "enabling does not unmask");
}

/// 11.4.7.1: power-up values, xAPIC mode.
#[test]
fn power_up_state() {
    let mut rig = Rig::reset(&[3]);
    let lapic = &mut rig.lapics[0];
    let expected =
        [(0x02, 3 << 24), (0x03, 0x0105_0014), (TPR, 0), (LDR, 0), (DFR, 0xffff_ffff), (SVR, 0xff)];
    for (register, value) in expected {
        assert_eq!(lapic.read(register), value, "{register:#x}");
    }
    for register in (ISR..ESR + 1).chain([ICR, ICR_HIGH, INITIAL, CURRENT, DIVIDE]) {
        assert_eq!(lapic.read(register), 0, "{register:#x}");
    }
    for register in LVT_TIMER..=LVT_ERROR {
        assert_eq!(lapic.read(register), 0x1_0000, "{register:#x}");
    }
    assert_eq!(lapic.save(T0), LapicState::reset(3, true));
}

/// 11.4.7.3 and 11.12.5.1: INIT resets the registers but keeps the ID, the base and x2APIC mode, and the start-up
/// message behind it; reset leaves nothing.
#[test]
fn init_and_reset() {
    let mut rig = Rig::x2apic(&[0, 0x31]);
    let lapic = &mut rig.lapics[1];
    lapic.write(TPR, 0x40);
    lapic.write(LVT_TIMER, 0x4_0040);
    lapic.write_msr(MSR_TSC_DEADLINE, 1000, T0).unwrap();
    let inbox = Arc::clone(lapic.inbox());
    inbox.post_vector(0x77, false);
    inbox.post_nmi();
    inbox.post_init();
    inbox.post_sipi(0x9a);
    assert!(lapic.take_init());
    lapic.init();
    assert!(lapic.is_x2apic());
    assert_eq!((lapic.read(TPR), lapic.read(SVR), lapic.read(LVT_TIMER)), (0, 0xff, 0x1_0000));
    assert_eq!(lapic.read(LDR), 3 << 16 | 2);
    assert_eq!(lapic.read_msr(MSR_TSC_DEADLINE, Now { ns: 0, tsc: 2000 }), Ok(0));
    assert_eq!((lapic.pending_vector(), lapic.take_nmi(), lapic.next_deadline()), (None, false, None));
    assert_eq!(lapic.take_sipi(), Some(0x9a));
    assert_eq!(lapic.take_sipi(), None);

    inbox.post_init();
    inbox.post_sipi(1);
    lapic.reset();
    assert_eq!(lapic.save(T0), LapicState::reset(0x31, false));
}
