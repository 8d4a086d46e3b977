//! PCI in the DSDT: the root bridge with its windows and interrupts, and the place of the configuration spaces.
//!
//! 1. `\_SB.PCI0` decodes what the memory map leaves it: ports, two windows below 4 GiB, one above the RAM (`_CRS`).
//! 2. `_PRT` gives each pin of each device its interrupt: a pin of the IOAPIC, or, to a system that has not said by `\_PIC` that it
//!    uses the IOAPIC, the input of the 8259 pair that the LPC bridge routes the wire to.
//! 3. The configuration spaces (ECAM) are the motherboard's (PNP0C02), not the bridge's: what a bridge decodes may be given to
//!    BARs (PCI Firmware Specification 3.3, 4.1.2).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If,
    Local, Memory32Fixed, Method, Name, NotEqual, ONE, Or, PackageBuilder, Path, ResourceTemplate, Return,
    Store, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};
use devices::pci::Pirqs;

use crate::acpi::AcpiHardware;
use crate::memory_map::{ECAM, MemoryMap};
use crate::pci::PIRQ_INPUTS;

/// Devices on the bus.
const DEVICES: u8 = 32;
/// Pins of a device.
const PINS: u8 = 4;
/// What a system may control of PCI Express: hot plug, power management events, error reporting, capability structures.
const PCIE_CONTROLS: u32 = 0b1_1101;

/// The AML of the objects.
pub(crate) fn aml(hw: &AcpiHardware, map: &MemoryMap) -> Vec<u8> {
    let mut code = Vec::new();
    let mode: Path = "\\PICM".into();
    Name::new("PICM".into(), &ZERO).to_aml_bytes(&mut code);
    Method::new("_PIC".into(), 1, false, vec![&Store::new(&mode, &Arg(0))]).to_aml_bytes(&mut code);

    let (pic, apic) = (routes(|wire| PIRQ_INPUTS[wire % PIRQ_INPUTS.len()]), routes(Pirqs::gsi));
    let resources = resources(map);
    let resources = ResourceTemplate::new(resources.iter().map(|resource| &**resource).collect());
    Device::new(
        "\\_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Name::new("PRTP".into(), &pic),
            &Name::new("PRTA".into(), &apic),
            &Routing,
            &Capabilities,
        ],
    )
    .to_aml_bytes(&mut code);
    Device::new(
        "\\_SB_.MRES".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, ECAM.start as u32, (ECAM.end - ECAM.start) as u32),
                    &IO::new(hw.pm1a_evt, hw.pm1a_evt, 1, 0x80),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut code);
    code
}

/// `_PRT` (ACPI 6.5, 6.2.13) with the interrupt that `of_wire` gives each wire.
fn routes(of_wire: impl Fn(usize) -> u8) -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for (device, pin) in (0..DEVICES).flat_map(|device| (0..PINS).map(move |pin| (device, pin))) {
        let mut route = PackageBuilder::new();
        route.add_element(&(u32::from(device) << 16 | 0xffff));
        route.add_element(&pin);
        route.add_element(&ZERO);
        route.add_element(&of_wire(Pirqs::wire(device, pin + 1)));
        routes.add_element(&route);
    }
    routes
}

fn resources(map: &MemoryMap) -> Vec<Box<dyn Aml>> {
    const UNCACHED: AddressSpaceCacheable = AddressSpaceCacheable::NotCacheable;
    let mut resources: Vec<Box<dyn Aml>> = vec![
        Box::new(AddressSpace::new_bus_number(0u16, 255)),
        Box::new(IO::new(0xcf8, 0xcf8, 1, 8)),
        Box::new(AddressSpace::new_io(0u16, 0xcf7, None)),
        Box::new(AddressSpace::new_io(0xd00u16, 0xffff, None)),
    ];
    for window in map.pci_windows() {
        let (first, last) = (window.start as u32, (window.end - 1) as u32);
        resources.push(Box::new(AddressSpace::new_memory(UNCACHED, true, first, last, None)));
    }
    if let Some(window) = map.pci_high_window() {
        let last = window.end - 1;
        resources.push(Box::new(AddressSpace::new_memory(UNCACHED, true, window.start, last, None)));
    }
    resources
}

/// `_PRT`: one of two packages.
struct Routing;

impl Aml for Routing {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let [mode, pic, apic]: [Path; 3] = ["\\PICM".into(), "PRTP".into(), "PRTA".into()];
        Method::new(
            "_PRT".into(),
            0,
            false,
            vec![&If::new(&mode, vec![&Return::new(&apic)]), &Return::new(&pic)],
        )
        .to_aml_bytes(sink);
    }
}

/// `_OSC` of a PCI Express root bridge (PCI Firmware Specification 3.3, 4.5.1): the system gets what it asks for, of what there is
/// to control.
struct Capabilities;

impl Aml for Capabilities {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const UNKNOWN_UUID: u8 = 1 << 2;
        const UNKNOWN_REVISION: u8 = 1 << 3;
        const MASKED: u8 = 1 << 4;
        let [status, control]: [Path; 2] = ["CDW1".into(), "CDW3".into()];
        let root_bridge = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
        Method::new(
            "_OSC".into(),
            4,
            false,
            vec![
                &CreateDWordField::new(&status, &Arg(3), &0u8),
                &If::new(
                    &Equal::new(&Arg(0), &root_bridge),
                    vec![
                        &CreateDWordField::new(&control, &Arg(3), &8u8),
                        &And::new(&Local(0), &control, &PCIE_CONTROLS),
                        &If::new(
                            &NotEqual::new(&Arg(1), &ONE),
                            vec![&Or::new(&status, &status, &UNKNOWN_REVISION)],
                        ),
                        &If::new(
                            &NotEqual::new(&control, &Local(0)),
                            vec![&Or::new(&status, &status, &MASKED)],
                        ),
                        &Store::new(&control, &Local(0)),
                    ],
                ),
                &Else::new(vec![&Or::new(&status, &status, &UNKNOWN_UUID)]),
                &Return::new(&Arg(3)),
            ],
        )
        .to_aml_bytes(sink);
    }
}
