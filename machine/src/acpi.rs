//! ACPI tables: RSDP, XSDT, FADT, FACS, MADT, MCFG, DSDT (ACPI 6.5, chapter 5).
//!
//! 1. The machine is a fixed-hardware ACPI platform, in ACPI mode from the start (SMI_CMD is 0): power-off is SLP_TYP 5
//!    in PM1a_CNT, reset is 6 to port 0xcf9, time is the 32-bit PM timer.
//! 2. The MADT names one local APIC a vCPU (ids are the vCPU numbers), one IOAPIC, and the two ISA lines that differ
//!    from the default: IRQ 0 reaches pin 2, the SCI is level-triggered.
//! 3. The DSDT describes what a kernel would otherwise probe for. The 8042 is left out on purpose: it is there to reset
//!    the machine, which needs no table, and a kernel told of it spends time looking for a keyboard.
//! 4. PCI is a root bridge in the DSDT ([`crate::acpi_pci`]) and an MCFG table that says where its configuration spaces are.
//!
//! The tables lie in the reserved ROM area, the RSDP first ([`crate::memory_map::ACPI_AREA`]).

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate, Scope};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::acpi_pci;
use crate::memory_map::{ECAM, LAPIC_BASE, MemoryMap};

const OEM: [u8; 6] = *b"GEARSH";
const OEM_TABLE: [u8; 8] = *b"GEARSHFT";
const OEM_REVISION: u32 = 1;

/// Where the chipset's ACPI hardware is; the tables say it, the devices answer there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AcpiHardware {
    /// PM1a event block, 4 bytes.
    pub pm1a_evt: u16,
    /// PM1a control block, 2 bytes.
    pub pm1a_cnt: u16,
    /// PM timer, 4 bytes.
    pub pm_timer: u16,
    /// Reset register, 1 byte.
    pub reset: u16,
    /// What to write there.
    pub reset_value: u8,
    /// ISA line of the SCI.
    pub sci: u8,
    /// Index of the century in the CMOS memory.
    pub century: u8,
    /// SLP_TYP of S5.
    pub s5: u8,
    /// Address of the IOAPIC.
    pub ioapic: u32,
}

/// The tables as bytes to be placed at `base`, the RSDP first. `base` is a multiple of 64.
///
/// `vcpus` is at most [`crate::MAX_VCPUS`]. PCI has what `map` leaves it.
pub fn tables(base: u64, vcpus: u32, hw: &AcpiHardware, map: &MemoryMap) -> Vec<u8> {
    let mut image = vec![0; Rsdp::len()];
    // The FACS wants 64 bytes of alignment (ACPI 6.5, 5.2.10); so all get it.
    let mut place = |table: &dyn Aml| {
        image.resize(image.len().next_multiple_of(64), 0);
        let at = base + image.len() as u64;
        table.to_aml_bytes(&mut image);
        at
    };
    let facs = place(&FACS::new());
    let dsdt = place(&dsdt(vcpus, hw, map));
    let fadt = place(&fadt(facs, dsdt, hw));
    let madt = place(&madt(vcpus, hw));
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM.start, 0, 0, 255);
    let mcfg = place(&mcfg);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    xsdt.add_entry(mcfg);
    let xsdt = place(&xsdt);

    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    image[..rsdp.len()].copy_from_slice(&rsdp);
    image
}

fn fadt(facs: u64, dsdt: u64, hw: &AcpiHardware) -> impl Aml {
    let port = |port: u16, bits, access| GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is in the fixed hardware; sleep button and RTC wake-up are not.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(hw.sci).into();
    fadt.pm1a_evt_blk = u32::from(hw.pm1a_evt).into();
    fadt.x_pm1a_evt_blk = port(hw.pm1a_evt, 32, AccessSize::WordAccess);
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(hw.pm1a_cnt).into();
    fadt.x_pm1a_cnt_blk = port(hw.pm1a_cnt, 16, AccessSize::WordAccess);
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(hw.pm_timer).into();
    fadt.x_pm_tmr_blk = port(hw.pm_timer, 32, AccessSize::DwordAccess);
    fadt.pm_tmr_len = 4;
    // Above 100 and 1000 microseconds: no C2, no C3 (ACPI 6.5, table 5.9).
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = hw.century;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.reset_reg = port(hw.reset, 8, AccessSize::ByteAccess);
    fadt.reset_value = hw.reset_value;
    fadt.finalize()
}

/// IAPC_BOOT_ARCH bits (ACPI 6.5, table 5.11).
const LEGACY_DEVICES: u16 = 1 << 0;
const VGA_NOT_PRESENT: u16 = 1 << 2;

fn madt(vcpus: u32, hw: &AcpiHardware) -> Sdt {
    const PCAT_COMPAT: u32 = 1;
    const EDGE_HIGH: u16 = 0b0101;
    const LEVEL_HIGH: u16 = 0b1101;
    let mut table = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&(LAPIC_BASE as u32).to_le_bytes());
    table.append_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..vcpus {
        let id = id as u8;
        table.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    let mut ioapic = vec![1, 12, IOAPIC_ID, 0];
    ioapic.extend(hw.ioapic.to_le_bytes());
    ioapic.extend(0u32.to_le_bytes());
    table.append_slice(&ioapic);
    for (irq, pin, flags) in [(0, 2, EDGE_HIGH), (hw.sci, hw.sci, LEVEL_HIGH)] {
        let flags = flags.to_le_bytes();
        table.append_slice(&[2, 10, 0, irq, pin, 0, 0, 0, flags[0], flags[1]]);
    }
    // NMI at LINT1 of every local APIC.
    table.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    table
}

/// Id of the IOAPIC in its own register and in the MADT.
pub const IOAPIC_ID: u8 = 0;

fn dsdt(vcpus: u32, hw: &AcpiHardware, map: &MemoryMap) -> Sdt {
    let mut code = Vec::new();
    Name::new("_S5_".into(), &Package::new(vec![&hw.s5, &hw.s5, &0u8, &0u8])).to_aml_bytes(&mut code);
    let edge = |irq| Interrupt::new(true, true, false, false, irq);
    Scope::new(
        "_SB_".into(),
        vec![
            &Device::new(
                "COM1".into(),
                vec![
                    &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                    &Name::new("_UID".into(), &1u8),
                    &Name::new(
                        "_CRS".into(),
                        &ResourceTemplate::new(vec![&IO::new(0x3f8, 0x3f8, 1, 8), &edge(4)]),
                    ),
                ],
            ),
            &Device::new(
                "RTC_".into(),
                vec![
                    &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
                    &Name::new(
                        "_CRS".into(),
                        &ResourceTemplate::new(vec![&IO::new(0x70, 0x70, 1, 2), &edge(8)]),
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(&mut code);
    code.extend(acpi_pci::aml(hw, map));
    for id in 0..vcpus {
        let name = format!("\\_SB_.C{id:03X}");
        Device::new(
            name.as_str().into(),
            vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &id)],
        )
        .to_aml_bytes(&mut code);
    }
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::ACPI_HARDWARE;
    use crate::memory_map::{ACPI_AREA, EXTENDED};

    const BASE: u64 = ACPI_AREA;

    fn map() -> MemoryMap {
        MemoryMap::new(512 << 20).unwrap()
    }
    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }
    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }
    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |a, &b| a.wrapping_add(b))
    }
    /// The table at guest address `gpa`, its length and checksum checked.
    fn table(image: &[u8], gpa: u64) -> &[u8] {
        let at = (gpa - BASE) as usize;
        let table = &image[at..at + u32_at(image, at + 4) as usize];
        if &table[..4] != b"FACS" {
            assert_eq!(sum(table), 0, "checksum of {:?}", &table[..4]);
        }
        table
    }
    /// Walks the tables as a guest does: signature to bytes.
    fn walk(image: &[u8]) -> Vec<([u8; 4], Vec<u8>)> {
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!((sum(&image[..20]), sum(&image[..36]), image[15]), (0, 0, 2));
        let xsdt = table(image, u64_at(image, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let mut found = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let t = table(image, u64_at(entry, 0));
            if &t[..4] == b"FACP" {
                for gpa in [u64::from(u32_at(t, 36)), u64_at(t, 140)] {
                    let inner = table(image, gpa);
                    found.push((inner[..4].try_into().unwrap(), inner.to_vec()));
                }
            }
            found.push((t[..4].try_into().unwrap(), t.to_vec()));
        }
        found
    }
    fn find(image: &[u8], signature: &[u8; 4]) -> Vec<u8> {
        walk(image).into_iter().find(|t| &t.0 == signature).expect("table").1
    }

    #[test]
    fn tables_are_linked_and_sum_to_zero() {
        for vcpus in [1, 8, crate::MAX_VCPUS] {
            let image = tables(BASE, vcpus, &ACPI_HARDWARE, &map());
            let names: Vec<_> = walk(&image).iter().map(|t| t.0).collect();
            assert_eq!(names, [*b"FACS", *b"DSDT", *b"FACP", *b"APIC", *b"MCFG"]);
            assert!(BASE + image.len() as u64 <= EXTENDED);
        }
    }

    /// ACPI 6.5, 5.2.12: structure by structure.
    #[test]
    fn madt_names_every_vcpu_and_the_overrides() {
        let madt = find(&tables(BASE, 3, &ACPI_HARDWARE, &map()), b"APIC");
        assert_eq!((u32_at(&madt, 36), u32_at(&madt, 40)), (0xfee0_0000, 1));
        let (mut at, mut seen) = (44, Vec::new());
        while at < madt.len() {
            let len = usize::from(madt[at + 1]);
            seen.push(madt[at..at + len].to_vec());
            at += len;
        }
        assert_eq!(at, madt.len());
        for id in 0..3u8 {
            assert_eq!(seen[usize::from(id)], [0, 8, id, id, 1, 0, 0, 0]);
        }
        assert_eq!(seen[3], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(seen[4], [2, 10, 0, 0, 2, 0, 0, 0, 5, 0]);
        assert_eq!(seen[5], [2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
        assert_eq!(seen[6], [4, 6, 0xff, 0, 0, 1]);
        assert_eq!(seen.len(), 7);
    }

    /// ACPI 6.5, table 5.9.
    #[test]
    fn fadt_describes_the_fixed_hardware() {
        let fadt = find(&tables(BASE, 1, &ACPI_HARDWARE, &map()), b"FACP");
        assert_eq!((fadt.len(), fadt[8]), (276, 6));
        let word = |at| u16::from_le_bytes([fadt[at], fadt[at + 1]]);
        assert_eq!((word(46), u32_at(&fadt, 48)), (9, 0), "SCI_INT, SMI_CMD");
        assert_eq!((u32_at(&fadt, 56), u32_at(&fadt, 64), u32_at(&fadt, 76)), (0x600, 0x604, 0x608));
        assert_eq!((fadt[88], fadt[89], fadt[91]), (4, 2, 4));
        assert_eq!(fadt[108], 0x32, "CENTURY");
        assert_eq!(word(109) & 2, 0, "8042 in IAPC_BOOT_ARCH");
        let flags = u32_at(&fadt, 112);
        assert_eq!((flags >> 8 & 1, flags >> 10 & 1, flags >> 20 & 1), (1, 1, 0), "{flags:#x}");
        assert_eq!(flags >> 4 & 3, 0b10, "fixed power button, no sleep button");
        assert_eq!(fadt[116..128], [1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0], "RESET_REG");
        assert_eq!(fadt[128], 6);
        assert_eq!((fadt[148], fadt[149], u64_at(&fadt, 152)), (1, 32, 0x600), "X_PM1a_EVT_BLK");
        assert_eq!((fadt[208], fadt[209], u64_at(&fadt, 212)), (1, 32, 0x608), "X_PM_TMR_BLK");
    }

    /// PCI Firmware Specification 3.3, 4.1.2.
    #[test]
    fn mcfg_names_all_buses() {
        let mcfg = find(&tables(BASE, 1, &ACPI_HARDWARE, &map()), b"MCFG");
        assert_eq!((mcfg.len(), u64_at(&mcfg, 44)), (60, 0xe000_0000));
        assert_eq!(mcfg[52..56], [0, 0, 0, 255], "segment 0, buses 0 to 255");
    }

    #[test]
    fn dsdt_has_s5_and_one_device_a_vcpu() {
        let dsdt = find(&tables(BASE, 5, &ACPI_HARDWARE, &map()), b"DSDT");
        let s5 = dsdt.windows(12).find(|w| w.starts_with(b"\x08_S5_")).expect("_S5");
        assert_eq!(s5[5..], [0x12, 8, 4, 0x0a, 5, 0x0a, 5], "package of 4, SLP_TYP 5");
        assert_eq!(dsdt.windows(8).filter(|w| w == b"ACPI0007").count(), 5);
        assert_eq!(dsdt.windows(4).filter(|w| w == b"COM1").count(), 1);
    }
}
