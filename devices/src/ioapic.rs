//! The I/O APIC (Intel 82093AA datasheet, order 290566; ICH9 datasheet 13.5).
//!
//! 1. Twenty-four pins, each with a 64-bit redirection entry that says vector, delivery mode, destination, trigger
//!    mode and mask. A pin that fires becomes one MSI through [`MsiSender::send`](crate::MsiSender::send).
//! 2. An *edge* pin fires on the rising edge; an edge on a masked pin is lost (82093AA 3.2.4, bit 16).
//! 3. A *level* pin fires when it is asserted, not masked, and its Remote IRR is clear. Firing sets Remote IRR; the
//!    EOI of its vector clears it, and a pin that is still asserted fires again. ExtINT, NMI, SMI and INIT are edges
//!    whatever the trigger bit says.
//! 4. Each change of an entry is reported as an [`IrqRoute`] for local APICs that live in a kernel.
//!
//! The polarity bit is stored and has no effect: [`crate::IrqLine`] carries *asserted*, not a voltage.

use std::sync::{Arc, Mutex};

use accel_api::{IrqRoute, MsiMessage};
use state::{RestoreError, Section, StateUnit};

use crate::saved::ioapic::SavedIoapic;
use crate::traits::{IoapicHost, IrqLine, MmioDevice};
use crate::util::lock;

/// Guest-physical address of the register window.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Size of the register window in bytes.
pub const IOAPIC_LEN: u64 = 0x1000;
/// Number of pins.
pub const IOAPIC_PINS: u8 = accel_api::IOAPIC_PINS as u8;

pub(crate) const PINS: usize = IOAPIC_PINS as usize;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const IOEOIR: u64 = 0x40;

const VECTOR: u64 = 0xff;
const DEST_LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
pub(crate) const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DEST: u64 = 0xff << 56;
pub(crate) const WRITABLE: u64 = DEST | 0x1_ffff & !(DELIVERY_STATUS | REMOTE_IRR);

/// Which I/O APIC the version register names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoapicVersion {
    /// 82093AA: level interrupts end only through the local APIC's EOI.
    V11,
    /// ICH and later: has an EOI register, as directed EOI needs it.
    V20,
}

/// The state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IoapicState {
    /// IOREGSEL.
    pub select: u8,
    /// APIC ID, 4 bits.
    pub id: u8,
    /// Redirection entries, Remote IRR included.
    pub entries: [u64; PINS],
    /// Levels of the pins, bit n is pin n.
    pub lines: u32,
}

impl IoapicState {
    fn new() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; PINS], lines: 0 }
    }
}

fn delivery_mode(entry: u64) -> u64 {
    entry >> 8 & 7
}

/// Only fixed and lowest-priority interrupts can be level-triggered (82093AA 3.2.4, bits 10:8).
pub(crate) fn is_level(entry: u64) -> bool {
    entry & LEVEL != 0 && delivery_mode(entry) <= 1
}

/// Intel SDM vol. 3, 11.11: figures 11-24 and 11-25.
fn route(entry: u64) -> IrqRoute {
    let level = is_level(entry);
    let logical = u64::from(entry & DEST_LOGICAL != 0);
    let trigger = if level { 3 << 14 } else { 0 };
    let address = 0xfee0_0000 | (entry >> 56) << 12 | logical << 2;
    let data = (entry & VECTOR | delivery_mode(entry) << 8) as u32 | trigger;
    IrqRoute { message: MsiMessage { address, data }, level, masked: entry & MASKED != 0 }
}

/// The I/O APIC. MMIO window of [`IOAPIC_LEN`] bytes at [`IOAPIC_BASE`], 32-bit registers.
#[derive(Debug)]
pub struct Ioapic {
    state: Mutex<IoapicState>,
    version: IoapicVersion,
    host: Arc<dyn IoapicHost>,
}

impl Ioapic {
    /// An I/O APIC after RESET, all pins masked.
    pub fn new(version: IoapicVersion, host: Arc<dyn IoapicHost>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(IoapicState::new()), version, host })
    }

    /// Drives pin `pin`; numbers past the last pin are ignored.
    pub fn set_irq(&self, pin: u8, level: bool) {
        if pin >= IOAPIC_PINS {
            return;
        }
        let mut state = lock(&self.state);
        let bit = 1 << pin;
        let rose = level && state.lines & bit == 0;
        state.lines = if level { state.lines | bit } else { state.lines & !bit };
        let entry = state.entries[usize::from(pin)];
        if is_level(entry) {
            self.fire_level(&mut state, usize::from(pin));
        } else if rose && entry & MASKED == 0 {
            self.send(entry);
        }
    }

    /// Pin `pin` as a wire.
    pub fn line(self: &Arc<Self>, pin: u8) -> Arc<dyn IrqLine> {
        Arc::new(IoapicLine { ioapic: self.clone(), pin })
    }

    /// A local APIC ended `vector` of a level-triggered interrupt (82093AA 3.2.4, Remote IRR). Pins that are still
    /// asserted fire again before this returns; the caller must not hold a lock that delivery needs.
    pub fn eoi(&self, vector: u8) {
        self.end(&mut lock(&self.state), vector);
    }

    /// All routes as they stand, for a host that starts to watch (a new accelerator).
    pub fn routes(&self) -> Vec<IrqRoute> {
        lock(&self.state).entries.iter().map(|&e| route(e)).collect()
    }

    fn send(&self, entry: u64) {
        self.host.send(route(entry).message);
    }

    fn fire_level(&self, state: &mut IoapicState, pin: usize) {
        let entry = state.entries[pin];
        if is_level(entry) && entry & (MASKED | REMOTE_IRR) == 0 && state.lines & 1 << pin != 0 {
            state.entries[pin] |= REMOTE_IRR;
            self.send(entry);
        }
    }

    fn end(&self, state: &mut IoapicState, vector: u8) {
        for pin in 0..PINS {
            let entry = state.entries[pin];
            if entry & REMOTE_IRR != 0 && entry & VECTOR == u64::from(vector) {
                state.entries[pin] &= !REMOTE_IRR;
                self.fire_level(state, pin);
            }
        }
    }

    fn write_entry(&self, state: &mut IoapicState, pin: usize, value: u64) {
        let old = state.entries[pin];
        let mut entry = value & WRITABLE;
        // An entry set to edge forgets Remote IRR. Linux uses this to end a level interrupt on parts without an
        // EOI register (`__eoi_ioapic_pin`).
        if is_level(entry) {
            entry |= old & REMOTE_IRR;
        }
        state.entries[pin] = entry;
        if route(entry) != route(old) {
            self.host.route_changed(pin as u8, route(entry));
        }
        self.fire_level(state, pin);
    }

    fn read_register(&self, state: &IoapicState) -> u32 {
        match state.select {
            0 | 2 => u32::from(state.id) << 24,
            1 => {
                let version = if self.version == IoapicVersion::V11 { 0x11 } else { 0x20 };
                (u32::from(IOAPIC_PINS) - 1) << 16 | version
            }
            index @ 0x10..0x40 => {
                let entry = state.entries[usize::from(index - 0x10) / 2];
                (if index & 1 == 0 { entry } else { entry >> 32 }) as u32
            }
            _ => u32::MAX,
        }
    }

    fn write_register(&self, state: &mut IoapicState, value: u32) {
        match state.select {
            0 => state.id = (value >> 24) as u8 & 0xf,
            index @ 0x10..0x40 => {
                let pin = usize::from(index - 0x10) / 2;
                let old = state.entries[pin];
                let value = u64::from(value);
                let new =
                    if index & 1 == 0 { old & !0xffff_ffff | value } else { old & 0xffff_ffff | value << 32 };
                self.write_entry(state, pin, new);
            }
            _ => {}
        }
    }

    fn tell_all_routes(&self, state: &IoapicState) {
        for (pin, &entry) in (0u8..).zip(&state.entries) {
            self.host.route_changed(pin, route(entry));
        }
    }
}

impl MmioDevice for Ioapic {
    fn mmio_read(&self, offset: u64, _size: u8) -> u64 {
        let state = lock(&self.state);
        match offset {
            IOREGSEL => state.select.into(),
            IOWIN => self.read_register(&state).into(),
            _ => u64::MAX,
        }
    }

    fn mmio_write(&self, offset: u64, _size: u8, value: u64) {
        let mut state = lock(&self.state);
        match offset {
            IOREGSEL => state.select = value as u8,
            IOWIN => self.write_register(&mut state, value as u32),
            IOEOIR if self.version == IoapicVersion::V20 => self.end(&mut state, value as u8),
            _ => {}
        }
    }
}

impl StateUnit for Ioapic {
    fn name(&self) -> &str {
        "ioapic"
    }

    fn save(&self) -> Section {
        Section::of(&SavedIoapic::from(&*lock(&self.state)))
    }

    /// Reports every route. Nothing is sent: what was asserted and not yet delivered is in the local APIC's state
    /// or in Remote IRR.
    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = IoapicState::try_from(section.open::<SavedIoapic>()?)?;
        let mut state = lock(&self.state);
        *state = restored;
        self.tell_all_routes(&state);
        Ok(())
    }

    /// Masks every pin and reports every route. Devices keep driving their lines; so the levels are kept.
    fn reset(&self) {
        let mut state = lock(&self.state);
        *state = IoapicState { lines: state.lines, ..IoapicState::new() };
        self.tell_all_routes(&state);
    }
}

#[derive(Debug)]
struct IoapicLine {
    ioapic: Arc<Ioapic>,
    pin: u8,
}

impl IrqLine for IoapicLine {
    fn set(&self, level: bool) {
        self.ioapic.set_irq(self.pin, level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MsiSender;
    use crate::testing::{Rig, Rng, TestClock, device_tests};

    #[derive(Debug, Default)]
    struct Host {
        sent: Mutex<Vec<(u64, u32)>>,
        routes: Mutex<Vec<(u8, IrqRoute)>>,
    }

    impl Host {
        fn sent(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut lock(&self.sent))
        }
        fn routes(&self) -> Vec<(u8, IrqRoute)> {
            std::mem::take(&mut lock(&self.routes))
        }
    }

    impl MsiSender for Host {
        fn send(&self, message: MsiMessage) {
            lock(&self.sent).push((message.address, message.data));
        }
    }

    impl IoapicHost for Host {
        fn route_changed(&self, pin: u8, route: IrqRoute) {
            lock(&self.routes).push((pin, route));
        }
    }

    struct IoapicRig(Arc<Ioapic>, Arc<Host>);

    impl Rig for IoapicRig {
        type Device = Ioapic;
        const RESET_FORGETS: bool = false; // the levels of the lines stay

        fn new(_: Arc<TestClock>) -> Self {
            let host = Arc::new(Host::default());
            Self(Ioapic::new(IoapicVersion::V20, host.clone()), host)
        }
        fn device(&self) -> &Ioapic {
            &self.0
        }
        fn access(&self, rng: &mut Rng) -> u64 {
            let offset = rng.pick(&[0, 0x10, 0x10, 0x10, 0x40, 0x20, 0xffc]);
            let seen = match rng.below(6) {
                0 => self.0.mmio_read(offset, rng.pick(&[1, 2, 4, 8])),
                1 => {
                    self.0.eoi(rng.below(16) as u8);
                    0
                }
                2 | 3 => {
                    self.0.set_irq(rng.below(26) as u8, rng.below(2) == 0);
                    0
                }
                4 => {
                    self.0.mmio_write(0, 4, 0x10 + rng.below(48));
                    0
                }
                _ => {
                    let entry = match rng.below(3) {
                        0 => rng.next() & 0xffff_ffff,
                        1 => rng.below(16),
                        _ => rng.below(16) | LEVEL,
                    };
                    self.0.mmio_write(offset, 4, entry);
                    0
                }
            };
            self.1.routes();
            self.1.sent().iter().fold(seen, |sum, m| sum.rotate_left(7) ^ m.0 << 32 ^ u64::from(m.1))
        }
    }

    device_tests!(IoapicRig);

    fn new(version: IoapicVersion) -> (Arc<Ioapic>, Arc<Host>) {
        let host = Arc::new(Host::default());
        (Ioapic::new(version, host.clone()), host)
    }

    fn write(io: &Ioapic, index: u64, value: u64) {
        io.mmio_write(0, 4, index);
        io.mmio_write(0x10, 4, value);
    }

    fn read(io: &Ioapic, index: u64) -> u64 {
        io.mmio_write(0, 4, index);
        io.mmio_read(0x10, 4)
    }

    fn entry(io: &Ioapic, pin: u64, value: u64) {
        write(io, 0x11 + 2 * pin, value >> 32);
        write(io, 0x10 + 2 * pin, value & 0xffff_ffff);
    }

    /// 82093AA 3.2.1 to 3.2.4 and 3.1.
    #[test]
    fn registers() {
        let (io, _) = new(IoapicVersion::V11);
        assert_eq!(read(&io, 1), 0x0017_0011);
        write(&io, 1, 0);
        assert_eq!(read(&io, 1), 0x0017_0011, "read only");
        write(&io, 0, 0xffff_ffff);
        assert_eq!((read(&io, 0), read(&io, 2)), (0x0f00_0000, 0x0f00_0000));
        assert_eq!(read(&io, 0x10), 0x1_0000, "masked after reset");
        write(&io, 0x3e, 0xffff_ffff);
        write(&io, 0x3f, 0xffff_ffff);
        assert_eq!(read(&io, 0x3e), 0x1_afff, "delivery status and Remote IRR are read only");
        assert_eq!(read(&io, 0x3f), 0xff00_0000);
        assert_eq!(read(&io, 0x40), 0xffff_ffff);
        assert_eq!(io.mmio_read(0, 4), 0x40);
        assert_eq!(io.mmio_read(0x20, 4) as u32, u32::MAX);
        assert_eq!(read(&new(IoapicVersion::V20).0, 1), 0x0017_0020);
    }

    /// Intel SDM vol. 3, 11.11.1 and 11.11.2.
    #[test]
    fn messages() {
        let (io, host) = new(IoapicVersion::V20);
        let cases = [
            // entry, address, data
            (0x0300_0000_0000_0031, 0xfee0_3000, 0x0031), // fixed, physical 3, edge
            (0xff00_0000_0000_0931, 0xfeef_f004, 0x0131), // lowest priority, logical, edge
            (0x0100_0000_0000_8042, 0xfee0_1000, 0xc042), // fixed, level
            (0x0000_0000_0000_8400, 0xfee0_0000, 0x0400), // NMI: an edge although the bit says level
            (0x0000_0000_0000_0700, 0xfee0_0000, 0x0700), // ExtINT
        ];
        for (pin, (value, address, data)) in (0..).zip(cases) {
            entry(&io, pin, value);
            io.set_irq(pin as u8, true);
            assert_eq!(host.sent(), [(address, data)], "entry {value:#x}");
        }
    }

    #[test]
    fn edges_fire_once_and_are_lost_while_masked() {
        let (io, host) = new(IoapicVersion::V20);
        entry(&io, 4, 0x1_0034);
        io.set_irq(4, true);
        entry(&io, 4, 0x34);
        assert_eq!(host.sent(), [], "82093AA 3.2.4: not held pending");
        io.set_irq(4, true);
        assert_eq!(host.sent(), [], "no edge");
        io.set_irq(4, false);
        io.set_irq(4, true);
        assert_eq!(host.sent(), [(0xfee0_0000, 0x34)]);
        io.eoi(0x34);
        assert_eq!(host.sent(), []);
    }

    #[test]
    fn level_waits_for_eoi_and_fires_again_while_asserted() {
        let (io, host) = new(IoapicVersion::V20);
        let message = (0xfee0_0000, 0xc055);
        entry(&io, 9, 0x8055);
        io.set_irq(9, true);
        assert_eq!(host.sent(), [message]);
        assert_eq!(read(&io, 0x22), 0xc055, "Remote IRR");
        io.set_irq(9, false);
        io.set_irq(9, true);
        assert_eq!(host.sent(), [], "held back until EOI");
        io.eoi(0x54);
        assert_eq!(host.sent(), [], "another vector");
        io.eoi(0x55);
        assert_eq!(host.sent(), [message]);
        io.set_irq(9, false);
        io.mmio_write(0x40, 4, 0x55);
        assert_eq!(host.sent(), []);
        assert_eq!(read(&io, 0x22), 0x8055);
    }

    #[test]
    fn masked_level_fires_on_unmask_and_mask_keeps_remote_irr() {
        let (io, host) = new(IoapicVersion::V20);
        entry(&io, 9, 0x1_8055);
        io.set_irq(9, true);
        assert_eq!(host.sent(), []);
        entry(&io, 9, 0x8055);
        assert_eq!(host.sent().len(), 1);
        entry(&io, 9, 0x1_8055); // Linux masks, then EOIs
        assert_eq!(read(&io, 0x22), 0x1_c055);
        io.eoi(0x55);
        assert_eq!(host.sent(), []);
        entry(&io, 9, 0x8055);
        assert_eq!(host.sent().len(), 1);
    }

    #[test]
    fn version_11_ends_by_trigger_mode_only() {
        let (io, host) = new(IoapicVersion::V11);
        entry(&io, 9, 0x8055);
        io.set_irq(9, true);
        assert_eq!(host.sent().len(), 1);
        io.mmio_write(0x40, 4, 0x55);
        assert_eq!(read(&io, 0x22), 0xc055, "no EOI register");
        entry(&io, 9, 0x1_0055);
        entry(&io, 9, 0x8055);
        assert_eq!(host.sent().len(), 1, "Remote IRR was dropped by the edge entry");
    }

    #[test]
    fn shared_vector_ends_every_pin() {
        let (io, host) = new(IoapicVersion::V20);
        for pin in [10, 11] {
            entry(&io, pin, 0x8060);
            io.set_irq(pin as u8, true);
        }
        assert_eq!(host.sent().len(), 2);
        io.eoi(0x60);
        assert_eq!(host.sent().len(), 2);
    }

    #[test]
    fn route_changes_are_told_once() {
        let (io, host) = new(IoapicVersion::V20);
        write(&io, 0x10 + 10, 0x1_0033);
        let message = |data| MsiMessage { address: 0xfee0_0000, data };
        let route = IrqRoute { message: message(0x33), level: false, masked: true };
        assert_eq!(host.routes(), [(5, route)]);
        write(&io, 0x10 + 10, 0x1_2033);
        assert_eq!(host.routes(), [], "polarity is no part of the route");
        write(&io, 0x10 + 10, 0xa033);
        let route = IrqRoute { message: message(0xc033), level: true, masked: false };
        assert_eq!(host.routes(), [(5, route)]);
        assert_eq!(io.routes()[5], route);
        let saved = io.save();
        io.reset();
        assert!(io.routes()[5].masked);
        assert_eq!(host.routes().len(), 24);
        io.restore(&saved).unwrap();
        assert_eq!(host.routes()[5], (5, route));
        assert_eq!(host.sent(), []);
    }

    #[test]
    fn wires_past_the_last_pin_are_ignored() {
        let (io, host) = new(IoapicVersion::V20);
        entry(&io, 23, 0x70);
        io.line(24).set(true);
        io.line(255).set(true);
        io.line(23).set(true);
        assert_eq!(host.sent().len(), 1);
    }
}
