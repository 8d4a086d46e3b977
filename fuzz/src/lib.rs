//! What several targets share: the board that PCI functions are plugged into.

use std::sync::Arc;

use devices::bus::{MmioBus, PioBus};
use devices::ioapic::{Ioapic, IoapicVersion};
use devices::pci::{DecodeSpace, DeviceFunction, PciSlot, Pirqs};
use devices::{IoapicHost, IrqLine, MsiSender};

/// Takes interrupts, and does nothing.
#[derive(Debug)]
pub struct Nobody;

impl MsiSender for Nobody {
    fn send(&self, message: accel_api::MsiMessage) {
        assert_eq!(message.address & 3, 0, "messages are aligned");
    }
}
impl IoapicHost for Nobody {}
impl IrqLine for Nobody {
    fn set(&self, _: bool) {}
}

/// PCI's interrupt wires, which lead nowhere.
pub fn pirqs() -> Arc<Pirqs> {
    let ioapic = Ioapic::new(IoapicVersion::V20, Arc::new(Nobody));
    let inputs = (0..16).map(|_| Arc::new(Nobody) as Arc<dyn IrqLine>).collect();
    Pirqs::new(&ioapic, inputs)
}

/// A place on a PCI bus of its own, and what decodes the addresses there, which has to live as long.
pub fn pci_slot() -> (PciSlot, Arc<DecodeSpace>) {
    let decode = DecodeSpace::new(Arc::new(MmioBus::new()), Arc::new(PioBus::new()), Vec::new());
    (PciSlot::new(DeviceFunction::new(1, 0), decode.clone(), pirqs(), Arc::new(Nobody)), decode)
}
