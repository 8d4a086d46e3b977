//! The PCI bus of the machine, and what firmware would do on it: there is none, and systems take over what they find.

use std::ops::Range;
use std::sync::Arc;

use devices::acpi_pm::{ACPI_PM_LEN, ACPI_PM_PORT};
use devices::bus::{MmioBus, PioBus};
use devices::ioapic::Ioapic;
use devices::pci::{
    BarInfo, BarKind, CONFIG_ADDRESS_PORT, CONFIG_DATA_PORT, DecodeSpace, DeviceFunction, Ecam, PIRQS,
    PciFunction, PciRoot, PciSlot, Pirqs, command, host_bridge, lpc, reg,
};
use devices::pic::Pic;
use devices::shared_line::SharedIrqLine;
use devices::{MmioDevice, MsiSender, PioDevice};
use state::StateUnit;

use crate::chipset::ChipsetError;
use crate::interrupts::InterruptCell;
use crate::memory_map::{CHIPSET, ECAM, MIB, MemoryMap, PCI_PORTS};

/// Input of the 8259 pair that each of PCI's interrupt wires is routed to, PIRQA first.
pub(crate) const PIRQ_INPUTS: [u8; PIRQS] = [10, 11, 10, 11, 10, 11, 10, 11];
/// The edge/level control of inputs 8 to 15, and its value: those that PCI drives are levels.
const ELCR: (u16, u32) = (0x4d1, 1 << (10 - 8) | 1 << (11 - 8));

/// The bus with all that belongs to it.
#[derive(Debug)]
pub(crate) struct PciBoard {
    pub(crate) root: Arc<PciRoot>,
    decode: Arc<DecodeSpace>,
    pirqs: Arc<Pirqs>,
    msi: Arc<dyn MsiSender>,
    pic: Arc<Pic>,
    map: MemoryMap,
    /// Root and bridges.
    pub(crate) units: [Arc<dyn StateUnit>; 3],
}

/// What the bus is built on.
pub(crate) struct PciParts<'a> {
    pub(crate) map: &'a MemoryMap,
    /// Guest-physical ranges with memory.
    pub(crate) memory: Vec<Range<u64>>,
    pub(crate) mmio: &'a Arc<MmioBus>,
    pub(crate) pio: &'a Arc<PioBus>,
    pub(crate) pic: &'a Arc<Pic>,
    /// Inputs of the 8259 pair.
    pub(crate) pic_inputs: &'a [Arc<SharedIrqLine>],
    pub(crate) ioapic: &'a Arc<Ioapic>,
    pub(crate) interrupts: &'a Arc<InterruptCell>,
    pub(crate) pm: Arc<dyn MmioDevice>,
}

impl PciBoard {
    /// The bus with its two bridges.
    pub(crate) fn build(parts: PciParts<'_>) -> Result<Self, ChipsetError> {
        let PciParts { map, memory, mmio, pio, pic, pic_inputs, ioapic, interrupts, pm } = parts;
        let taken = memory.into_iter().chain([CHIPSET]).collect();
        let decode = DecodeSpace::new(mmio.clone(), pio.clone(), taken);
        let pirqs = Pirqs::new(ioapic, pic_inputs.iter().map(|input| input.owner()).collect());
        let msi: Arc<dyn MsiSender> = interrupts.clone();
        let root = PciRoot::new();
        let slot = |at| PciSlot::new(at, decode.clone(), pirqs.clone(), msi.clone());
        let bridge = host_bridge::new(&slot(host_bridge::HOST_BRIDGE), Ecam::new(root.clone()))?;
        let lpc = lpc::new(&slot(lpc::LPC), pm, ACPI_PM_LEN)?;
        root.add(host_bridge::HOST_BRIDGE, bridge.clone())?;
        root.add(lpc::LPC, lpc.clone())?;
        pio.add_exact(CONFIG_ADDRESS_PORT, 4, root.clone())?.add(CONFIG_DATA_PORT, 4, root.clone())?;
        let units: [Arc<dyn StateUnit>; 3] = [root.clone(), bridge, lpc];
        Ok(Self { root, decode, pirqs, msi, pic: pic.clone(), map: *map, units })
    }

    /// The place `at`, or the first free one.
    pub(crate) fn slot(&self, at: Option<DeviceFunction>) -> Result<PciSlot, ChipsetError> {
        let at = at.map_or_else(|| self.root.free_place(), Ok)?;
        Ok(PciSlot::new(at, self.decode.clone(), self.pirqs.clone(), self.msi.clone()))
    }

    /// Sets up bridges and functions as firmware does: after the machine is built, and after each reset.
    pub(crate) fn program(&self) {
        self.program_host_bridge();
        self.program_lpc();
        let mut room = Room::new(&self.map);
        let functions = self.root.functions();
        let mut bars: Vec<(&Arc<dyn PciFunction>, DeviceFunction, BarInfo)> = functions
            .iter()
            .flat_map(|(at, function)| {
                function.function().bars().iter().map(move |bar| (function, *at, *bar))
            })
            .collect();
        // The largest first: all are aligned to their size.
        bars.sort_by_key(|(.., bar)| std::cmp::Reverse(bar.len));
        for (function, at, bar) in bars {
            match room.take(&bar) {
                Some(address) => {
                    function.config_write(bar.register(), 4, address as u32);
                    if matches!(bar.kind, BarKind::Memory64 { .. }) {
                        function.config_write(bar.register() + 4, 4, (address >> 32) as u32);
                    }
                }
                None => tracing::warn!("no address left for BAR {} of the PCI function {at}", bar.index),
            }
        }
        for (at, function) in &functions {
            let decode = function.function().bars().iter().fold(0, |bits, bar| {
                bits | if bar.kind == BarKind::Io { command::IO } else { command::MEMORY }
            });
            let now = function.config_read(reg::COMMAND, 2);
            function.config_write(reg::COMMAND, 2, now | u32::from(decode));
            let pin = function.config_read(reg::INTERRUPT_PIN, 1) as u8;
            if pin != 0 {
                let input = PIRQ_INPUTS[Pirqs::wire(at.device(), pin) % PIRQS];
                function.config_write(reg::INTERRUPT_LINE, 1, input.into());
            }
        }
    }

    fn program_host_bridge(&self) {
        let write = |at, size, value| self.root.config_write(0, host_bridge::HOST_BRIDGE, at, size, value);
        let high_end = self.map.high_end();
        write(host_bridge::PCIEXBAR + 4, 4, 0);
        write(host_bridge::PCIEXBAR, 4, ECAM.start as u32 | 1);
        write(host_bridge::TOLUD, 2, ((self.map.low_end() / MIB) << 4) as u32);
        write(host_bridge::TOM, 2, self.map.size().div_ceil(64 * MIB) as u32);
        write(host_bridge::TOUUD, 2, (high_end / MIB) as u32);
        // The ROM area is RAM.
        write(host_bridge::PAM0, 1, 0x30);
        (1..7).for_each(|n| write(host_bridge::PAM0 + n, 1, 0x33));
    }

    fn program_lpc(&self) {
        let write = |at, size, value| self.root.config_write(0, lpc::LPC, at, size, value);
        write(lpc::PMBASE, 4, ACPI_PM_PORT.into());
        write(lpc::ACPI_CNTL, 1, lpc::ACPI_EN.into());
        for (n, input) in (0u16..).zip(PIRQ_INPUTS) {
            let register = if n < 4 { lpc::PIRQ_ROUT_AD + n } else { lpc::PIRQ_ROUT_EH + n - 4 };
            write(register, 1, input.into());
        }
        let (port, value) = ELCR;
        self.pic.pio_write(port, 1, value);
    }
}

/// The addresses that are left.
struct Room {
    low: Vec<Range<u64>>,
    high: Vec<Range<u64>>,
    ports: Vec<Range<u64>>,
}

impl Room {
    fn new(map: &MemoryMap) -> Self {
        let mut low = map.pci_windows().to_vec();
        // The window behind ECAM first: the other one is where more RAM would be.
        low.reverse();
        Self { low, high: map.pci_high_window().into_iter().collect(), ports: vec![PCI_PORTS] }
    }

    /// Memory below 4 GiB as long as there is any: a boot loader of 32 bits reaches it.
    fn take(&mut self, bar: &BarInfo) -> Option<u64> {
        let take = |ranges: &mut Vec<Range<u64>>| {
            ranges.iter_mut().find_map(|range| {
                let start = range.start.checked_next_multiple_of(bar.len)?;
                let end = start.checked_add(bar.len).filter(|&end| end <= range.end)?;
                range.start = end;
                Some(start)
            })
        };
        match bar.kind {
            BarKind::Io => take(&mut self.ports),
            BarKind::Memory32 => take(&mut self.low),
            BarKind::Memory64 { .. } => take(&mut self.low).or_else(|| take(&mut self.high)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_map::{GIB, HIGH_RAM};

    #[test]
    fn addresses_are_aligned_apart_and_below_4_gib_while_there_are_any() {
        let map = MemoryMap::new(5 * GIB).unwrap();
        let mut room = Room::new(&map);
        let bar = |kind, len| BarInfo { index: 0, kind, len };
        let wide = BarKind::Memory64 { prefetchable: false };
        assert_eq!(room.take(&bar(BarKind::Memory32, 1 << 30)), None, "no such hole");
        assert_eq!(room.take(&bar(wide, 1 << 28)), Some(0xc000_0000));
        assert_eq!(room.take(&bar(wide, 1 << 28)), Some(0xd000_0000));
        assert_eq!(room.take(&bar(wide, 1 << 28)), Some(HIGH_RAM + 2 * GIB), "above the RAM");
        assert_eq!(room.take(&bar(BarKind::Memory32, 0x1000)), Some(ECAM.end));
        assert_eq!(room.take(&bar(BarKind::Memory32, 0x4000)), Some(ECAM.end + 0x4000));
        assert_eq!(room.take(&bar(BarKind::Io, 32)), Some(PCI_PORTS.start));
        assert_eq!(room.take(&bar(BarKind::Io, 256)), Some(PCI_PORTS.start + 0x100));
    }
}
