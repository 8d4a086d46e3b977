//! The front of one function: header, BARs, INTx, MSI-X, and its right to access memory.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use accel_api::{GuestRam, PageBitmap};
use state::{RestoreError, Section, StateUnit, check};
use vm_memory::GuestMemoryMmap;

use super::msix::Msix;
use super::{ConfigSpace, DecodeSpace, DecodeWindow, Identity, PciError, PciFunction, PciSlot, command, reg};
use crate::saved::pci::SavedFunction;
use crate::util::lock;
use crate::{IrqLine, MmioDevice};

/// Status bit: the function asserts its INTx, or would if it were not disabled.
const INTERRUPT_STATUS: u32 = 1 << 3;
/// Number of base address registers of a type 0 header.
const BARS: usize = 6;

/// What a BAR decodes (PCI Local Bus Specification 3.0, 6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next register, too.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Ports.
    Io,
}

/// A BAR of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarInfo {
    /// Number of its (first) register.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Bytes, or ports.
    pub len: u64,
}

impl BarInfo {
    /// Offset of its (first) register in the configuration space.
    pub fn register(&self) -> u16 {
        reg::BAR0 + 4 * u16::from(self.index)
    }

    fn check(&self) -> Result<(), PciError> {
        let (least, most, last) = match self.kind {
            BarKind::Memory32 => (16, 1 << 31, 5),
            BarKind::Memory64 { .. } => (16, 1 << 38, 4),
            BarKind::Io => (4, 256, 5),
        };
        let why = if !self.len.is_power_of_two() {
            "it must be a power of two"
        } else if !(least..=most).contains(&self.len) {
            "memory takes 16 bytes to 2 GiB (256 GiB with 64 bits), ports are 4 to 256"
        } else if self.index > last {
            "a function has six registers, and 64 bits take two"
        } else {
            return Ok(());
        };
        Err(PciError::Bar { index: self.index, len: self.len, why })
    }

    /// Registers, as they are after reset and what the guest can write there.
    fn registers(&self) -> (u64, u64) {
        let address = !(self.len - 1);
        match self.kind {
            BarKind::Memory32 => (0, address & 0xffff_fff0),
            BarKind::Memory64 { prefetchable } => (4 | u64::from(prefetchable) << 3, address & !0xf),
            BarKind::Io => (1, address & 0xfffc),
        }
    }

    /// First address and bytes, if the function answers there. An address of zero is none, nor is what a probe for the size
    /// leaves behind.
    fn place(&self, config: &ConfigSpace) -> Option<(u64, u64)> {
        let (_, mask) = self.registers();
        let (enable, register) = match self.kind {
            BarKind::Io => (command::IO, config.dword(self.register()).into()),
            BarKind::Memory32 => (command::MEMORY, config.dword(self.register()).into()),
            BarKind::Memory64 { .. } => (command::MEMORY, config.qword(self.register())),
        };
        let address = register & mask;
        let ones = address & 0xffff_ffff == mask & 0xffff_ffff;
        let probe = match self.kind {
            // The high half of a probe is beyond every processor's addresses.
            BarKind::Memory64 { .. } => {
                address >> 52 != 0 || (address >> 32 == 0 && ones && mask as u32 != 0)
            }
            BarKind::Memory32 | BarKind::Io => ones,
        };
        let decodes = config.word(reg::COMMAND) & enable != 0 && address != 0 && !probe;
        decodes.then_some((address, self.len))
    }
}

/// Called with the function's lock held when its configuration space may have changed.
type Changed = Box<dyn Fn(&ConfigSpace) + Send + Sync>;

/// Describes a function.
#[must_use]
pub struct FunctionBuilder {
    name: String,
    config: ConfigSpace,
    bars: Vec<BarInfo>,
    msix: Option<(u8, u16)>,
    pin: Option<u8>,
    changed: Option<Changed>,
}

impl FunctionBuilder {
    /// A BAR. Its device is connected once it is there: [`Function::connect`].
    pub fn bar(mut self, index: u8, kind: BarKind, len: u64) -> Self {
        self.bars.push(BarInfo { index, kind, len });
        self
    }

    /// MSI-X with `vectors` vectors, whose table is in a 32-bit memory BAR of its own.
    pub fn msix(mut self, bar: u8, vectors: u16) -> Self {
        self.msix = Some((bar, vectors));
        self
    }

    /// Interrupt pin INTA.
    pub fn intx(mut self) -> Self {
        self.pin = Some(1);
        self
    }

    /// More of the configuration space: registers and capabilities of the function's own.
    ///
    /// # Errors
    /// What `add` returns.
    pub fn config(
        mut self,
        add: impl FnOnce(&mut ConfigSpace) -> Result<(), PciError>,
    ) -> Result<Self, PciError> {
        add(&mut self.config)?;
        Ok(self)
    }

    /// Has `changed` called, with the function's lock held, whenever the configuration space may have changed.
    pub(super) fn on_change(mut self, changed: impl Fn(&ConfigSpace) + Send + Sync + 'static) -> Self {
        self.changed = Some(Box::new(changed));
        self
    }

    /// The function, for the place `slot`. It answers there once it is added to the root.
    ///
    /// # Errors
    /// BARs or vectors that cannot be.
    pub fn build(self, slot: &PciSlot) -> Result<Arc<Function>, PciError> {
        let Self { name, mut config, mut bars, msix, pin, changed } = self;
        let msix = match msix {
            None => None,
            Some((bar, vectors)) => {
                let msix = Msix::new(vectors, slot.msi.clone())?;
                bars.push(BarInfo { index: bar, kind: BarKind::Memory32, len: msix.bar_len() });
                let offset = msix.add_capability(&mut config, bar)?;
                Some(MsixPart { bar, control: offset + 2, msix })
            }
        };
        let mut used = [false; BARS];
        for bar in &bars {
            bar.check()?;
            let registers = if matches!(bar.kind, BarKind::Memory64 { .. }) { 2 } else { 1 };
            for used in used.iter_mut().skip(bar.index.into()).take(registers) {
                if std::mem::replace(used, true) {
                    let why = "another BAR has the register";
                    return Err(PciError::Bar { index: bar.index, len: bar.len, why });
                }
            }
            let (reset, writable) = bar.registers();
            let bytes = 4 * registers;
            config.register(bar.register(), &reset.to_le_bytes()[..bytes], &writable.to_le_bytes()[..bytes]);
            let enable = if bar.kind == BarKind::Io { command::IO } else { command::MEMORY };
            config.allow(reg::COMMAND, &enable.to_le_bytes());
        }
        let line = pin.map(|pin| {
            config.register(reg::INTERRUPT_PIN, &[pin], &[]);
            slot.pirqs.line(slot.at, pin)
        });
        let function = Arc::new(Function {
            name,
            state: Mutex::new(FunctionState { config, intx: false }),
            bars,
            windows: Default::default(),
            decode: Arc::downgrade(&slot.decode),
            line,
            msix,
            bus_master: Arc::default(),
            changed,
        });
        if let Some(part) = &function.msix {
            function.connect(part.bar, part.msix.clone());
        }
        function.apply(&lock(&function.state));
        Ok(function)
    }
}

impl Debug for FunctionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct MsixPart {
    bar: u8,
    /// Offset of the message control word.
    control: u16,
    msix: Arc<Msix>,
}

#[derive(Debug)]
pub(super) struct FunctionState {
    config: ConfigSpace,
    /// The device asks for an interrupt by INTx.
    intx: bool,
}

/// One function of the bus. As a state unit it has its configuration space and its vectors.
pub struct Function {
    name: String,
    state: Mutex<FunctionState>,
    bars: Vec<BarInfo>,
    windows: [OnceLock<DecodeWindow>; BARS],
    decode: Weak<DecodeSpace>,
    line: Option<Arc<dyn IrqLine>>,
    msix: Option<MsixPart>,
    bus_master: Arc<AtomicBool>,
    changed: Option<Changed>,
}

impl Function {
    /// A function that is called `name` among the state units.
    pub fn builder(name: impl Into<String>, identity: &Identity) -> FunctionBuilder {
        let config = ConfigSpace::new(identity);
        let name = name.into();
        FunctionBuilder { name, config, bars: Vec::new(), msix: None, pin: None, changed: None }
    }

    /// Its BARs.
    pub fn bars(&self) -> &[BarInfo] {
        &self.bars
    }

    /// Puts `device` behind BAR `index`; it sees offsets from the start of the BAR. False: there is no such BAR, or it has a
    /// device already.
    pub fn connect(&self, index: u8, device: Arc<dyn MmioDevice>) -> bool {
        let (Some(bar), Some(slot), Some(decode)) = (
            self.bars.iter().find(|bar| bar.index == index),
            self.windows.get(usize::from(index)),
            self.decode.upgrade(),
        ) else {
            return false;
        };
        if slot.get().is_some() || slot.set(decode.window(device, bar.kind == BarKind::Io)).is_err() {
            return false;
        }
        self.apply(&lock(&self.state));
        true
    }

    /// Where BAR `index` answers: first address and bytes.
    pub fn mapped(&self, index: u8) -> Option<(u64, u64)> {
        self.windows.get(usize::from(index))?.get()?.mapped()
    }

    /// Reads as [`PciFunction::config_read`].
    pub fn config_read(&self, offset: u16, size: u8) -> u32 {
        let state = lock(&self.state);
        let value = state.config.read(offset, size);
        let intx = if state.intx { INTERRUPT_STATUS } else { 0 };
        match reg::STATUS.wrapping_sub(offset) {
            // The status word begins so many bytes into the access.
            at @ 0..4 if at < size.into() => value | intx << (8 * at),
            _ => value,
        }
    }

    /// Writes as [`PciFunction::config_write`].
    pub fn config_write(&self, offset: u16, size: u8, value: u32) {
        let mut state = lock(&self.state);
        state.config.write(offset, size, value);
        self.apply(&state);
    }

    /// Asserts or releases INTx. The line follows unless the guest has disabled it or uses MSI-X.
    pub fn set_intx(&self, asserted: bool) {
        let mut state = lock(&self.state);
        state.intx = asserted;
        self.apply_intx(&state);
    }

    /// The interrupt of `vector`, if the guest uses MSI-X: whether it does. Otherwise the device asserts INTx.
    pub fn notify(&self, vector: u16) -> bool {
        let Some(MsixPart { control, msix, .. }) = &self.msix else { return false };
        let enabled = Msix::enabled(lock(&self.state).config.word(*control));
        if enabled {
            msix.notify(vector);
        }
        enabled
    }

    /// Its vectors, if it has any.
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.msix.as_ref().map(|part| &part.msix)
    }

    /// Its access to `ram`, which it has while bus mastering is on.
    pub fn dma(&self, ram: Arc<GuestRam>) -> DmaMemory {
        DmaMemory { ram, bus_master: self.bus_master.clone() }
    }

    fn uses_msix(&self, config: &ConfigSpace) -> bool {
        self.msix.as_ref().is_some_and(|part| Msix::enabled(config.word(part.control)))
    }

    fn apply_intx(&self, state: &FunctionState) {
        if let Some(line) = &self.line {
            let disabled = state.config.word(reg::COMMAND) & command::INTX_DISABLE != 0;
            line.set(state.intx && !disabled && !self.uses_msix(&state.config));
        }
    }

    /// Has everything follow the configuration space.
    fn apply(&self, state: &FunctionState) {
        let bus_master = state.config.word(reg::COMMAND) & command::BUS_MASTER != 0;
        self.bus_master.store(bus_master, Ordering::Release);
        for bar in &self.bars {
            if let Some(window) = self.windows.get(usize::from(bar.index)).and_then(OnceLock::get) {
                window.place(bar.place(&state.config));
            }
        }
        self.apply_intx(state);
        if let Some(MsixPart { control, msix, .. }) = &self.msix {
            msix.set_control(state.config.word(*control), bus_master);
        }
        if let Some(changed) = &self.changed {
            changed(&state.config);
        }
    }

    /// All that the guest can have changed.
    pub(crate) fn saved(&self) -> SavedFunction {
        let state = lock(&self.state);
        SavedFunction {
            config: state.config.save(),
            intx: state.intx,
            msix: self.msix.as_ref().map(|part| part.msix.save()),
        }
    }

    /// Takes over what [`saved`](Self::saved) gave.
    pub(crate) fn take(&self, saved: &SavedFunction) -> Result<(), RestoreError> {
        let SavedFunction { config, intx, msix } = saved;
        let mut state = lock(&self.state);
        let config = state.config.with(config)?;
        check(!*intx || self.line.is_some(), "intx", intx, "false: the function has no pin")?;
        match (&self.msix, msix) {
            (Some(part), Some(vectors)) => {
                part.msix.check(vectors)?;
                part.msix.restore(vectors);
            }
            (None, None) => {}
            (part, _) => {
                let expected = if part.is_some() { "the function's vectors" } else { "absent" };
                check(false, "msix", msix.as_ref().map_or("absent", |_| "there"), expected)?;
            }
        }
        *state = FunctionState { config, intx: *intx };
        self.apply(&state);
        Ok(())
    }
}

impl PciFunction for Function {
    fn function(&self) -> &Function {
        self
    }
}

impl StateUnit for Function {
    fn name(&self) -> &str {
        &self.name
    }

    fn save(&self) -> Section {
        Section::of(&self.saved())
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        self.take(&section.open()?)
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        state.config.reset();
        state.intx = false;
        if let Some(part) = &self.msix {
            part.msix.reset();
        }
        self.apply(&state);
    }
}

impl Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = format_args!("{:#x}", lock(&self.state).config.dword(0));
        f.debug_struct("Function")
            .field("name", &self.name)
            .field("identity", &identity)
            .finish_non_exhaustive()
    }
}

/// A function's access to memory.
#[derive(Clone, Debug)]
pub struct DmaMemory {
    ram: Arc<GuestRam>,
    bus_master: Arc<AtomicBool>,
}

impl DmaMemory {
    /// The memory: checked accesses, whose writes are recorded. `None` while bus mastering is off. To be asked anew for each
    /// turn of work.
    pub fn get(&self) -> Option<&GuestMemoryMmap<PageBitmap>> {
        self.bus_master.load(Ordering::Acquire).then(|| self.ram.memory())
    }
}
