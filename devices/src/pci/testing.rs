//! Test support: a board with a bus, whose messages and lines are recorded.

use std::sync::{Arc, Mutex};

use super::*;
use accel_api::MsiMessage;

use crate::bus::{MmioBus, PioBus};
use crate::ioapic::{Ioapic, IoapicVersion};
use crate::testing::TestLine;
use crate::util::lock;
use crate::waiting::Waiter;
use crate::{IoapicHost, IrqLine, MmioDevice, MsiSender};

/// Remembers messages, of functions and of the IOAPIC.
#[derive(Debug, Default)]
pub(crate) struct Messages(Mutex<Vec<(u64, u32)>>);

impl Messages {
    pub(crate) fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl MsiSender for Messages {
    fn send(&self, MsiMessage { address, data }: MsiMessage) {
        lock(&self.0).push((address, data));
    }
}

impl IoapicHost for Messages {}

/// Registers that read as their offset, and remember what is written.
#[derive(Debug, Default)]
pub(crate) struct Registers(pub(crate) Mutex<Vec<(u64, u8, u64)>>);

impl MmioDevice for Registers {
    fn mmio_read(&self, offset: u64, _: u8) -> u64 {
        offset
    }
    fn mmio_write(&self, offset: u64, size: u8, value: u64) {
        lock(&self.0).push((offset, size, value));
    }
}

/// RAM of the board: one range.
pub(crate) const RAM: std::ops::Range<u64> = 0..0x800_0000;

/// A bus with its bridges.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) mmio: Arc<MmioBus>,
    pub(crate) pio: Arc<PioBus>,
    pub(crate) root: Arc<PciRoot>,
    pub(crate) decode: Arc<DecodeSpace>,
    pub(crate) pirqs: Arc<Pirqs>,
    pub(crate) messages: Arc<Messages>,
    pub(crate) ioapic: Arc<Ioapic>,
    /// Inputs of the 8259 pair.
    pub(crate) pic: Vec<Arc<TestLine>>,
    pub(crate) pm: Arc<Registers>,
    pub(crate) bridge: Arc<Function>,
    pub(crate) lpc: Arc<Function>,
}

impl Board {
    pub(crate) fn new() -> Self {
        let (mmio, pio) = (Arc::new(MmioBus::new()), Arc::new(PioBus::new()));
        let decode = DecodeSpace::new(mmio.clone(), pio.clone(), vec![RAM]);
        let messages = Arc::new(Messages::default());
        let ioapic = Ioapic::new(IoapicVersion::V20, messages.clone());
        let pic: Vec<Arc<TestLine>> = (0..16).map(|_| Arc::default()).collect();
        let inputs = pic.iter().map(|line| line.clone() as Arc<dyn IrqLine>).collect();
        let pirqs = Pirqs::new(&ioapic, inputs);
        let root = PciRoot::new();
        let slot = |at| PciSlot::new(at, decode.clone(), pirqs.clone(), messages.clone());
        let pm = Arc::new(Registers::default());
        let bridge = host_bridge::new(&slot(host_bridge::HOST_BRIDGE), Ecam::new(root.clone())).unwrap();
        let lpc = lpc::new(&slot(lpc::LPC), pm.clone(), 12).unwrap();
        root.add(host_bridge::HOST_BRIDGE, bridge.clone()).unwrap();
        root.add(lpc::LPC, lpc.clone()).unwrap();
        pio.add_exact(CONFIG_ADDRESS_PORT, 4, root.clone()).unwrap();
        pio.add(CONFIG_DATA_PORT, 4, root.clone()).unwrap();
        Self { mmio, pio, root, decode, pirqs, messages, ioapic, pic, pm, bridge, lpc }
    }

    pub(crate) fn slot(&self, at: DeviceFunction) -> PciSlot {
        PciSlot::new(at, self.decode.clone(), self.pirqs.clone(), self.messages.clone())
    }

    /// Builds what `describe` says and puts it on the bus.
    pub(crate) fn add(
        &self,
        at: DeviceFunction,
        describe: impl FnOnce(FunctionBuilder) -> FunctionBuilder,
    ) -> Arc<Function> {
        let function = describe(Function::builder("test", &IDENTITY)).build(&self.slot(at)).unwrap();
        self.root.add(at, function.clone()).unwrap();
        function
    }

    pub(crate) fn outl(&self, port: u16, value: u32) {
        self.pio.write(port, 4, value, &Arc::<Waiter>::default());
    }

    pub(crate) fn poke(&self, gpa: u64, size: u8, value: u64) {
        self.mmio.write(gpa, size, value, &Arc::<Waiter>::default());
    }
}

/// Who the functions of the tests say they are.
pub(crate) const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1044,
    revision: 1,
    class: 0xff_0000,
    subsystem_vendor: 0x1af4,
    subsystem: 4,
};
