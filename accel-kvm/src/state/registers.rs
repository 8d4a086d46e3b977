//! General, segment and control registers.

use accel_api::x86::{ControlRegs, DescriptorTable, LapicState, Segment, Segments};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// IA32_EFER: long mode is active.
const EFER_LMA: u64 = 1 << 10;

/// General registers, RIP and RFLAGS.
pub(super) fn general(regs: &kvm_regs) -> ([u64; 16], u64, u64) {
    let kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    } = *regs;
    ([rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15], rip, rflags)
}

/// The other way.
pub(super) fn to_general(gpr: &[u64; 16], rip: u64, rflags: u64) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = *gpr;
    // Bit 1 is always set; KVM takes it as it comes.
    let rflags = rflags | 2;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

/// Segments, descriptor tables, control registers. EFER and the local APIC's registers are taken elsewhere.
pub(super) fn system(
    sregs: &kvm_sregs,
    xcr0: u64,
) -> (Segments, DescriptorTable, DescriptorTable, ControlRegs) {
    let kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        // The task priority and the mode are in the local APIC's state; an injected vector is an event.
        cr8: _,
        efer: _,
        apic_base: _,
        interrupt_bitmap: _,
    } = *sregs;
    let segments = Segments {
        es: segment(es),
        cs: segment(cs),
        ss: segment(ss),
        ds: segment(ds),
        fs: segment(fs),
        gs: segment(gs),
        ldtr: segment(ldt),
        tr: segment(tr),
    };
    let table = |t: kvm_dtable| DescriptorTable { base: t.base, limit: t.limit };
    (segments, table(gdt), table(idt), ControlRegs { cr0, cr2, cr3, cr4, xcr0, pdptrs: None })
}

/// The other way.
pub(super) fn to_system(
    segments: &Segments,
    gdtr: &DescriptorTable,
    idtr: &DescriptorTable,
    control: &ControlRegs,
    efer: u64,
    lapic: &LapicState,
) -> kvm_sregs {
    let Segments { es, cs, ss, ds, fs, gs, ldtr, tr } = segments;
    let ControlRegs { cr0, cr2, cr3, cr4, xcr0: _, pdptrs: _ } = *control;
    let table = |t: &DescriptorTable| kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] };
    let mut cs = to_segment(cs);
    // KVM refuses what a processor may report: L means nothing outside long mode (Intel SDM vol. 3, 5.2.1).
    cs.l &= u8::from(efer & EFER_LMA != 0);
    kvm_sregs {
        cs,
        ds: to_segment(ds),
        es: to_segment(es),
        fs: to_segment(fs),
        gs: to_segment(gs),
        ss: to_segment(ss),
        tr: to_segment(tr),
        ldt: to_segment(ldtr),
        gdt: table(gdtr),
        idt: table(idtr),
        cr0,
        cr2,
        cr3,
        cr4,
        cr8: u64::from(lapic.tpr >> 4),
        efer,
        apic_base: lapic.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

fn segment(from: kvm_segment) -> Segment {
    let kvm_segment { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable, padding: _ } =
        from;
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    let attributes = u16::from(type_ & 15)
        | bit(s, 4)
        | u16::from(dpl & 3) << 5
        | bit(present, 7)
        | bit(avl, 12)
        | bit(l, 13)
        | bit(db, 14)
        | bit(g, 15);
    Segment { selector, base, limit, attributes, unusable: unusable != 0 }
}

fn to_segment(from: &Segment) -> kvm_segment {
    let Segment { selector, base, limit, attributes, unusable } = *from;
    let bit = |at: u32| (attributes >> at & 1) as u8;
    // AMD's processors know an unusable segment by its P bit.
    let present = if unusable { 0 } else { bit(7) };
    kvm_segment {
        base,
        limit,
        selector,
        type_: (attributes & 15) as u8,
        present,
        dpl: from.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: unusable.into(),
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_round_trip() {
        for attributes in [0x93, 0xa09b, 0xc0f3, 0x8b, 0x82, 0x10fb] {
            let before =
                Segment { selector: 0x2b, base: 0x1234_5000, limit: 0xfffff, attributes, unusable: false };
            assert_eq!(segment(to_segment(&before)), before);
        }
        let unusable = Segment { attributes: 0x93, unusable: true, ..Segment::default() };
        assert_eq!(to_segment(&unusable).present, 0);
    }

    #[test]
    fn general_registers_keep_their_places() {
        let gpr = std::array::from_fn(|n| n as u64 + 100);
        let regs = to_general(&gpr, 7, 0x200);
        assert_eq!((regs.rax, regs.rcx, regs.rsp, regs.r15), (100, 101, 104, 115));
        assert_eq!(general(&regs), (gpr, 7, 0x202));
    }
}
