//! The LPC bridge, 00:1f.0 (Intel ICH9 datasheet, order 316972, 13.1).
//!
//! 1. PMBASE and ACPI_CNTL say where the ACPI registers are, and whether they answer.
//! 2. PIRQ[A-H]_ROUT say which input of the 8259 pair each of PCI's interrupt wires drives ([`super::pirq`]). The inputs' trigger
//!    mode is that pair's (ELCR), and firmware's or the system's to set.
//! 3. What else firmware sets up (decode ranges, power management, GPIO base, RCBA) holds what it is given. The ISA devices are
//!    where they always were, and there is nothing behind RCBA.
//!
//! DEVNOTE: the SCI is ISA interrupt 9 whatever SCI_IRQ_SEL says.

use std::sync::Arc;

use super::pirq::UNROUTED;
use super::{ConfigSpace, DeviceFunction, Function, Identity, PIRQS, PciError, PciSlot, reg};
use crate::MmioDevice;

/// Its place.
pub const LPC: DeviceFunction = DeviceFunction::new(31, 0);
/// Base of the ACPI registers, bits 15:7.
pub const PMBASE: u16 = 0x40;
/// ACPI control: bit 7 has the ACPI registers answer.
pub const ACPI_CNTL: u16 = 0x44;
/// ACPI_CNTL: the ACPI registers answer.
pub const ACPI_EN: u8 = 1 << 7;
/// Routing of PIRQA to PIRQD, a byte each; bit 7: not to the 8259 pair.
pub const PIRQ_ROUT_AD: u16 = 0x60;
/// Routing of PIRQE to PIRQH.
pub const PIRQ_ROUT_EH: u16 = 0x68;

/// Registers: offset, value after reset, writable bits.
const REGISTERS: [(u16, &[u8], &[u8]); 22] = [
    // I/O, memory and bus mastering are always on. Of the status, the timing of DEVSEL#.
    (reg::COMMAND, &[0x07, 0], &[0x40, 0x01]),
    (reg::STATUS, &[0, 0x02], &[]),
    (0x0c, &[0], &[0]),
    (reg::HEADER_TYPE, &[0x80], &[]),
    (reg::INTERRUPT_LINE, &[0], &[0]),
    (PMBASE, &[0x01, 0, 0, 0], &[0x80, 0xff]),
    (ACPI_CNTL, &[0], &[0x87]),
    // GPIOBASE, GC.
    (0x48, &[0x01, 0, 0, 0], &[0x80, 0xff]),
    (0x4c, &[0], &[0x11]),
    (PIRQ_ROUT_AD, &[UNROUTED; 4], &[0x8f; 4]),
    // SIRQ_CNTL.
    (0x64, &[0x10], &[0xff]),
    (PIRQ_ROUT_EH, &[UNROUTED; 4], &[0x8f; 4]),
    // LPC_IBDF.
    (0x6c, &[0xf8, 0], &[0xff, 0xff]),
    // LPC_I/O_DEC, LPC_EN.
    (0x80, &[0; 4], &[0x77, 0x13, 0x0f, 0x3f]),
    // GEN1_DEC to GEN4_DEC.
    (0x84, &[0; 16], &[0xfd, 0xff, 0xfc, 0, 0xfd, 0xff, 0xfc, 0, 0xfd, 0xff, 0xfc, 0, 0xfd, 0xff, 0xfc, 0]),
    // GEN_PMCON_1 to 3 and their lock.
    (0xa0, &[0; 7], &[0xbf, 0x06, 0x0c, 0, 0xff, 0x3e, 0x06]),
    // GPIO_ROUT.
    (0xb8, &[0; 4], &[0xff; 4]),
    // FWH_SEL1, FWH_SEL2, FWH_DEC_EN1.
    (0xd0, &[0x33, 0x22, 0x11, 0x00], &[0xff, 0xff, 0xff, 0x0f]),
    (0xd4, &[0x67, 0x45], &[0xff, 0xff]),
    (0xd8, &[0xcf, 0xff], &[0xcf, 0x7f]),
    // BIOS_CNTL.
    (0xdc, &[0], &[0x0f]),
    // RCBA.
    (0xf0, &[0; 4], &[0x01, 0xc0, 0xff, 0xff]),
];

/// The LPC bridge, which moves `pm`, whose registers take `pm_len` ports.
///
/// # Errors
/// None that a caller can cause.
pub fn new(slot: &PciSlot, pm: Arc<dyn MmioDevice>, pm_len: u16) -> Result<Arc<Function>, PciError> {
    let identity = Identity {
        vendor: 0x8086,
        device: 0x2918,
        revision: 2,
        class: 0x06_0100,
        subsystem_vendor: 0x8086,
        subsystem: 0x2918,
    };
    let window = slot.decode.window(pm, true);
    let pirqs = slot.pirqs.clone();
    let bridge = Function::builder("lpc", &identity).config(|config| {
        for (offset, reset, writable) in REGISTERS {
            config.register(offset, reset, writable);
        }
        // FDCAP: a vendor's capability of 12 bytes: feature detection.
        config.add_capability_at(0xe0, 0x09, &[0x0c, 0x10, 0, 0, 0, 0, 0, 0, 0, 0], &[])
    })?;
    let changed = move |config: &ConfigSpace| {
        let base = u64::from(config.word(PMBASE) & 0xff80);
        let answers = config.read(ACPI_CNTL, 1) as u8 & ACPI_EN != 0 && base != 0;
        window.place(answers.then_some((base, pm_len.into())));
        let mut routes = [UNROUTED; PIRQS];
        let registers =
            [PIRQ_ROUT_AD, PIRQ_ROUT_EH].into_iter().flat_map(|at| config.dword(at).to_le_bytes());
        routes.iter_mut().zip(registers).for_each(|(route, register)| *route = register);
        pirqs.set_routes(routes);
    };
    bridge.on_change(changed).build(slot)
}
