//! The host bridge, 00:00.0 (Intel 3 Series Express Chipset Family datasheet, order 316966, chapter 5: the MCH's device 0).
//!
//! 1. PCIEXBAR says where the ECAM window is, how many buses it has, and whether it is there.
//! 2. PAM, SMRAM, TOLUD and what else firmware sets up hold what they are given, in the bits that are writable; the machine's RAM
//!    is where it is, and there is no SMM. SMRAM's D_LCK locks what it locks on the chip.

use std::sync::Arc;

use super::{DeviceFunction, Ecam, Function, Identity, PciError, PciSlot, reg};

/// Its place.
pub const HOST_BRIDGE: DeviceFunction = DeviceFunction::new(0, 0);
/// PCI Express register range base address, 8 bytes: base in bits 35:26, length in bits 2:1, enable in bit 0.
pub const PCIEXBAR: u16 = 0x60;
/// Top of low usable DRAM in MiB: bits 15:4.
pub const TOLUD: u16 = 0xb0;
/// Top of memory, in units of 64 MiB.
pub const TOM: u16 = 0xa0;
/// Top of upper usable DRAM, in MiB.
pub const TOUUD: u16 = 0xa2;
/// The first of seven registers that say where the ROM area is RAM.
pub const PAM0: u16 = 0x90;

/// System management RAM control.
const SMRAM: u16 = 0x9d;
const D_LCK: u8 = 1 << 4;
const D_OPEN: u8 = 1 << 6;

const MIB: u64 = 1 << 20;

/// Registers: offset, value after reset, writable bits.
const REGISTERS: [(u16, &[u8], &[u8]); 21] = [
    // Memory and bus mastering are always on. Of the status, fast back-to-back.
    (reg::COMMAND, &[0x06, 0], &[0, 1]),
    (reg::STATUS, &[0x80, 0], &[]),
    (0x0c, &[0], &[0]),
    (reg::INTERRUPT_LINE, &[0], &[0]),
    // EPBAR, MCHBAR.
    (0x40, &[0; 8], &[0x01, 0xf0, 0xff, 0xff, 0x0f]),
    (0x48, &[0; 8], &[0x01, 0xc0, 0xff, 0xff, 0x0f]),
    // GGC, DEVEN.
    (0x52, &[0x30, 0], &[0x72]),
    (0x54, &[0xdb, 0x03, 0, 0], &[0xda, 0x03]),
    (PCIEXBAR, &[0, 0, 0, 0xe0, 0, 0, 0, 0], &[0x07, 0, 0, 0xfc, 0x0f]),
    // DMIBAR.
    (0x68, &[0; 8], &[0x01, 0xf0, 0xff, 0xff, 0x0f]),
    (PAM0, &[0; 7], &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]),
    // LAC, REMAPBASE, REMAPLIMIT.
    (0x97, &[0], &[0x81]),
    (0x98, &[0xff, 0x03], &[0xff, 0x03]),
    (0x9a, &[0; 2], &[0xff, 0x03]),
    // SMRAM, ESMRAMC.
    (SMRAM, &[0x02, 0x38], &[0x78, 0x87]),
    (TOM, &[0x01, 0], &[0xff, 0x03]),
    (TOUUD, &[0; 2], &[0xff, 0xff]),
    // GBSM, BGSM, TSEGMB: bits 31:20.
    (0xa4, &[0; 12], &[0, 0, 0xf0, 0xff, 0, 0, 0xf0, 0xff, 0, 0, 0xf0, 0xff]),
    (TOLUD, &[0x10, 0], &[0xf0, 0xff]),
    // ERRCMD, SMICMD, SCICMD.
    (0xca, &[0; 6], &[0xff, 0x0f, 0x02, 0, 0x02, 0]),
    // SKPD: firmware's own.
    (0xdc, &[0; 4], &[0xff; 4]),
];

/// The host bridge, which moves the window onto `ecam`.
///
/// # Errors
/// None that a caller can cause.
pub fn new(slot: &PciSlot, ecam: Arc<Ecam>) -> Result<Arc<Function>, PciError> {
    let identity = Identity {
        vendor: 0x8086,
        device: 0x29c0,
        revision: 2,
        class: 0x06_0000,
        subsystem_vendor: 0x8086,
        subsystem: 0x29c0,
    };
    let window = slot.decode.window(ecam, false);
    let bridge = Function::builder("host_bridge", &identity).config(|config| {
        for (offset, reset, writable) in REGISTERS {
            config.register(offset, reset, writable);
        }
        config.clear_by_one(SMRAM + 1, &[0x40]);
        config.lock_bit(SMRAM, D_LCK, D_OPEN, [0x7f, 0x87]);
        // CAPID0: a vendor's capability of 9 bytes, version 1, without restrictions.
        config.add_capability_at(0xe0, 0x09, &[0x09, 0x01, 0, 0, 0, 0, 0], &[])
    })?;
    bridge.on_change(move |config| window.place(ecam_place(config.qword(PCIEXBAR)))).build(slot)
}

/// First address and bytes of the ECAM window.
fn ecam_place(pciexbar: u64) -> Option<(u64, u64)> {
    let len = match pciexbar >> 1 & 3 {
        0 => 256 * MIB,
        1 => 128 * MIB,
        2 => 64 * MIB,
        _ => return None,
    };
    let base = pciexbar & 0xf_fc00_0000 & !(len - 1);
    (pciexbar & 1 != 0 && base != 0).then_some((base, len))
}
