//! Which registers exist, and who may do what to them.

use super::*;

/// Table 11-6: every MSR of 0x800 to 0x8ff, readable and writable or not.
#[test]
fn x2apic_register_table() {
    let read_only = [0x02, 0x03, 0x0a, 0x0d, 0x39];
    let write_only = [0x0b, 0x3f];
    let both = [0x08, 0x0f, 0x28, 0x30, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x3e];
    let mut rig = Rig::x2apic(&[0]);
    let lapic = &mut rig.lapics[0];
    for register in 0..=0xffu32 {
        let vectors = (0x10..0x28).contains(&register);
        let readable = vectors || read_only.contains(&register) || both.contains(&register);
        let writable = write_only.contains(&register) || both.contains(&register);
        assert_eq!(lapic.read_msr(0x800 + register, T0).is_ok(), readable, "RDMSR {register:#x}");
        assert_eq!(lapic.write_msr(0x800 + register, 0, T0).is_ok(), writable, "WRMSR {register:#x}");
    }
    assert_eq!(lapic.read_msr(0x7ff, T0), Err(GpFault));
    assert_eq!(lapic.write_msr(0x900, 0, T0), Err(GpFault));
    assert!(
        Lapic::owns_msr(0x800) && Lapic::owns_msr(0x8ff) && Lapic::owns_msr(0x1b) && Lapic::owns_msr(0x6e0)
    );
    assert!(!Lapic::owns_msr(0x7ff) && !Lapic::owns_msr(0x900));
}

/// 11.12.1.3: a one in a reserved bit raises #GP and changes nothing.
#[test]
fn x2apic_reserved_bits() {
    let allowed: [(u32, u64); 13] = [
        (TPR, 0xff),
        (EOI, 0),
        (SVR, 0x13ff),
        (ESR, 0),
        (ICR, 0xffff_ffff_000c_dfff),
        (LVT_TIMER, 0x7_10ff),
        (0x33, 0x1_17ff),
        (0x34, 0x1_17ff),
        (LVT_LINT0, 0x1_f7ff),
        (LVT_ERROR, 0x1_10ff),
        (INITIAL, 0xffff_ffff),
        (DIVIDE, 0xb),
        (SELF_IPI, 0xff),
    ];
    for (register, mask) in allowed {
        let mut rig = Rig::x2apic(&[0]);
        let lapic = &mut rig.lapics[0];
        let before = lapic.save(T0);
        for bit in 0..64 {
            let refused = lapic.write_msr(0x800 + register, 1 << bit, T0) == Err(GpFault);
            assert_eq!(refused, mask & 1 << bit == 0, "register {register:#x} bit {bit}");
            if refused {
                assert_eq!(lapic.save(T0), before);
            } else {
                *lapic = Rig::x2apic(&[0]).lapics.remove(0);
            }
        }
    }
}

/// 11.6.1: the delivery status bit is not software's; a read-modify-write that carries it is no fault.
#[test]
fn icr_busy_bit_is_dropped() {
    let mut rig = Rig::x2apic(&[0]);
    rig.lapics[0].write(ICR, 0x1055);
    assert_eq!(rig.lapics[0].read(ICR), 0x55);
    assert_eq!(rig.receivers(), [(0, 0x55)]);
}

/// 11.12.1: without EOI suppression SVR bit 12 is reserved and the version says so.
#[test]
fn no_eoi_suppression() {
    let rig = Rig::x2apic(&[0]);
    let config = LapicConfig { eoi_suppression: false, ..CONFIG };
    let mut lapic = Lapic::new(rig.bus.clone(), 0, config, rig.eois.clone()).unwrap();
    assert_eq!(lapic.read(0x03), 0x5_0014);
    lapic.write(SVR, 0x11ff);
    assert_eq!(lapic.read(SVR), 0x1ff);
    lapic.set_apic_base(DEFAULT_BASE | BASE_ENABLED | BASE_X2APIC).unwrap();
    assert_eq!(lapic.write_msr(0x80f, 0x11ff, T0), Err(GpFault));
}

/// Table 11-1 and 11.5.3: reserved addresses of the xAPIC page log "illegal register address", others do not.
#[test]
fn xapic_reserved_addresses() {
    let valid: Vec<u64> =
        [0x02, 0x03].into_iter().chain(0x08..=0x28).chain(0x30..=0x39).chain([0x3e]).collect();
    for register in 0..0x100u64 {
        for write in [false, true] {
            let mut rig = Rig::xapic(&[0]);
            let lapic = &mut rig.lapics[0];
            if write {
                lapic.mmio_write(register << 4, 4, 0x1ff, T0);
            } else {
                lapic.mmio_read(register << 4, 4, T0);
            }
            lapic.write(ESR, 0);
            let logged = lapic.save(T0).esr & 1 << 7 != 0;
            assert_eq!(logged, !valid.contains(&register), "register {register:#x}, write {write}");
        }
    }
}

/// 11.4.1: widths. Narrow reads give a part; writes that are not 32 bits and aligned do nothing.
#[test]
fn xapic_widths() {
    let mut rig = Rig::xapic(&[0x5c]);
    let lapic = &mut rig.lapics[0];
    assert_eq!(lapic.mmio_read(0x20, 4, T0), 0x5c00_0000);
    assert_eq!(lapic.mmio_read(0x23, 1, T0), 0x5c);
    assert_eq!(lapic.mmio_read(0x22, 2, T0), 0x5c00);
    assert_eq!(lapic.mmio_read(0x20, 8, T0), 0x5c00_0000);
    assert_eq!(lapic.mmio_read(0x24, 4, T0), 0);
    for (offset, size) in [(0x80, 1), (0x80, 2), (0x80, 8), (0x84, 4), (0x81, 4)] {
        lapic.mmio_write(offset, size, 0x70, T0);
        assert_eq!(lapic.read(TPR), 0, "{offset:#x}, {size}");
    }
    lapic.mmio_write(0x80, 4, 0xffff_ff70, T0);
    assert_eq!(lapic.read(TPR), 0x70);
    assert_eq!(lapic.mmio_read(u64::MAX, 4, T0), 0);
}

/// 11.6.2.2 and 11.4.6: writable parts of LDR, DFR and the ID.
#[test]
fn xapic_destination_registers() {
    let mut rig = Rig::xapic(&[1]);
    let lapic = &mut rig.lapics[0];
    lapic.write(LDR, 0x12ff_ffff);
    lapic.write(DFR, 0);
    lapic.write(ID, 0x12ff_ffff);
    assert_eq!((lapic.read(LDR), lapic.read(DFR), lapic.read(ID)), (0x1200_0000, 0x0fff_ffff, 0x1200_0000));
}

/// 11.12.1.2: the MSRs are there in x2APIC mode only, the page in xAPIC mode only.
#[test]
fn one_interface_at_a_time() {
    let mut rig = Rig::xapic(&[0]);
    let lapic = &mut rig.lapics[0];
    assert_eq!(lapic.read_msr(0x803, T0), Err(GpFault));
    assert_eq!(lapic.write_msr(0x808, 0x10, T0), Err(GpFault));
    let mut rig = Rig::x2apic(&[0]);
    let lapic = &mut rig.lapics[0];
    lapic.mmio_write(0x80, 4, 0x20, T0);
    assert_eq!(lapic.read(TPR), 0);
    assert_eq!(lapic.mmio_read(0x30, 4, T0), 0xffff_ffff);
}
