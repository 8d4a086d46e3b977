//! The pair of 8259A interrupt controllers (Intel 8259A datasheet, order 231468; ICH9 datasheet 5.8).
//!
//! 1. Sixteen inputs: the master's IR0..7 are IRQ 0..7, the slave's are IRQ 8..15, the slave's INT goes to the
//!    master's IR2. Ports 0x20/0x21 and 0xa0/0xa1.
//! 2. An *edge* input latches its request on the rising edge; a *level* input requests while it is asserted. Which
//!    is which stands in the ELCR (0x4d0/0x4d1), one bit an input; as in the ICH, ICW1's LTIM is ignored.
//! 3. A chip asks for service when a request that is not masked has a higher priority than everything in service.
//!    The master's wish is the INTR wire. The processor answers with an INTA cycle, [`Pic::ack`], which moves the
//!    request from IRR to ISR and gives the vector; a request that has gone by then gives the spurious IRQ 7 or 15.
//!
//! DEVNOTE: on silicon a latched edge is forgotten if the input falls before INTA. Here it stays latched, as in
//! other machine models: the vCPU may be scheduled out in between, and the interrupt would be lost for a reason
//! the guest cannot see. Buffered mode and the 8080 vector format have no meaning on a PC and are accepted silently.

use std::sync::{Arc, Mutex};

use state::{RestoreError, Section, StateUnit};

use crate::saved::pic::SavedPic;
use crate::traits::{IrqLine, PioDevice};
use crate::util::{lock, read_bytes, write_bytes};

/// Inputs that may be made level-triggered, master and slave (ICH9 13.4.10): not the timer, keyboard, cascade,
/// RTC and FPU.
pub(crate) const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];
const CASCADE: u8 = 2;

const ICW1: u8 = 0x10;
const ICW1_IC4: u8 = 0x01;
const ICW1_SINGLE: u8 = 0x02;
const ICW4_AEOI: u8 = 0x02;
const ICW4_SFNM: u8 = 0x10;
const OCW3: u8 = 0x08;

/// Which word the next write to the odd port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum InitStep {
    /// Never initialised: INTR stays low.
    #[default]
    Reset,
    /// ICW2 comes next.
    Icw2,
    /// ICW3 comes next.
    Icw3,
    /// ICW4 comes next.
    Icw4,
    /// Initialised: OCW1.
    Ready,
}

/// One 8259A.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChipState {
    /// Inputs as they are driven now.
    pub lines: u8,
    /// Edges latched and not yet served.
    pub edges: u8,
    /// In-service register.
    pub isr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// Level-triggered inputs.
    pub elcr: u8,
    /// ICW1 as last written.
    pub icw1: u8,
    /// Vector of IR0: ICW2, low three bits clear.
    pub base: u8,
    /// ICW3 as last written.
    pub icw3: u8,
    /// ICW4 as last written.
    pub icw4: u8,
    /// Place in the initialisation sequence.
    pub step: InitStep,
    /// Input with the lowest priority, 0..=7; the one after it has the highest.
    pub lowest: u8,
    /// Rotate on automatic EOI.
    pub rotate_aeoi: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// A read of the even port gives ISR, not IRR.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
}

impl ChipState {
    fn new() -> Self {
        Self { lowest: 7, ..Self::default() }
    }

    fn irr(&self) -> u8 {
        (self.lines & self.elcr) | (self.edges & !self.elcr)
    }

    fn set_line(&mut self, n: u8, level: bool) {
        let bit = 1 << n;
        if level {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// Rank of the highest-priority bit of `set`: 0 is first, 8 none.
    fn rank(&self, set: u8) -> u8 {
        (0..8).find(|r| set & self.bit_of_rank(*r) != 0).unwrap_or(8)
    }

    fn bit_of_rank(&self, rank: u8) -> u8 {
        1 << self.input_of_rank(rank)
    }

    fn input_of_rank(&self, rank: u8) -> u8 {
        (self.lowest + 1 + rank) & 7
    }

    /// The input that wants service now (8259A "Fully Nested Mode", "Special Mask Mode").
    fn pending(&self, master: bool) -> Option<u8> {
        if self.step != InitStep::Ready {
            return None;
        }
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        // Special fully nested mode: a slave in service may interrupt again.
        if master && self.icw4 & ICW4_SFNM != 0 {
            in_service &= !(1 << CASCADE);
        }
        let rank = self.rank(self.irr() & !self.imr);
        (rank < self.rank(in_service)).then(|| self.input_of_rank(rank))
    }

    /// The second INTA pulse (or a poll read) for input `n`.
    fn serve(&mut self, n: u8) {
        let bit = 1 << n;
        self.edges &= !bit;
        if self.icw4 & ICW4_AEOI == 0 {
            self.isr |= bit;
        } else if self.rotate_aeoi {
            self.lowest = n;
        }
    }

    /// Returns what the poll byte reads as (8259A "Poll Command").
    fn poll(&mut self, master: bool) -> u8 {
        self.poll = false;
        match self.pending(master) {
            Some(n) => {
                self.serve(n);
                0x80 | n
            }
            None => 0,
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            // 8259A "Initialization Command Words 1 and 2", items a to f.
            *self = Self {
                lines: self.lines,
                elcr: self.elcr,
                base: self.base,
                icw3: self.icw3,
                icw1: value,
                step: InitStep::Icw2,
                ..Self::new()
            };
        } else if value & OCW3 != 0 {
            match value >> 5 & 3 {
                2 => self.special_mask = false,
                3 => self.special_mask = true,
                _ => {}
            }
            match value & 3 {
                2 => self.read_isr = false,
                3 => self.read_isr = true,
                _ => {}
            }
            self.poll = value & 0x04 != 0;
        } else {
            self.write_ocw2(value);
        }
    }

    /// 8259A figure 8, "Operation Command Word Format", OCW2.
    fn write_ocw2(&mut self, value: u8) {
        let n = value & 7;
        match value >> 5 {
            0 => self.rotate_aeoi = false,
            4 => self.rotate_aeoi = true,
            command @ (1 | 5) => {
                // In special mask mode the masked levels are hidden from the non-specific EOI.
                let seen = if self.special_mask { self.isr & !self.imr } else { self.isr };
                let rank = self.rank(seen);
                if rank < 8 {
                    let n = self.input_of_rank(rank);
                    self.isr &= !(1 << n);
                    if command == 5 {
                        self.lowest = n;
                    }
                }
            }
            3 => self.isr &= !(1 << n),
            7 => {
                self.isr &= !(1 << n);
                self.lowest = n;
            }
            6 => self.lowest = n,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.icw1 & ICW1_IC4 != 0 { InitStep::Icw4 } else { InitStep::Ready };
        match self.step {
            InitStep::Icw2 => {
                self.base = value & 0xf8;
                self.step = if self.icw1 & ICW1_SINGLE != 0 { after_icw3 } else { InitStep::Icw3 };
            }
            InitStep::Icw3 => {
                self.icw3 = value;
                self.step = after_icw3;
            }
            InitStep::Icw4 => {
                self.icw4 = value & 0x1f;
                self.step = InitStep::Ready;
            }
            InitStep::Reset | InitStep::Ready => self.imr = value,
        }
    }
}

/// State of both chips.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PicState {
    /// IRQ 0..7.
    pub master: ChipState,
    /// IRQ 8..15.
    pub slave: ChipState,
}

impl PicState {
    fn new() -> Self {
        Self { master: ChipState::new(), slave: ChipState::new() }
    }

    fn chip(&mut self, slave: bool) -> &mut ChipState {
        if slave { &mut self.slave } else { &mut self.master }
    }

    /// Carries the slave's INT to the master's IR2.
    fn cascade(&mut self) {
        let wants = self.slave.pending(false).is_some();
        self.master.set_line(CASCADE, wants);
    }

    /// The slave drops INT while it is being served and raises it anew for the next request: an edge.
    fn serve_slave(&mut self, n: u8) {
        self.slave.serve(n);
        self.master.set_line(CASCADE, false);
    }

    fn ack(&mut self) -> Option<u8> {
        if self.master.step != InitStep::Ready {
            return None;
        }
        let Some(n) = self.master.pending(true) else {
            return Some(self.master.base | 7);
        };
        self.master.serve(n);
        if n != CASCADE {
            return Some(self.master.base | n);
        }
        match self.slave.pending(false) {
            Some(n) => {
                self.serve_slave(n);
                Some(self.slave.base | n)
            }
            None => Some(self.slave.base | 7),
        }
    }

    fn read(&mut self, port: u16) -> u8 {
        let slave = port & 0xff80 == 0x80;
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => {
                let chip = self.chip(slave);
                if chip.poll {
                    let byte = chip.poll(!slave);
                    if slave && byte & 0x80 != 0 {
                        self.master.set_line(CASCADE, false);
                    }
                    return byte;
                }
                match (port & 1, chip.read_isr) {
                    (1, _) => chip.imr,
                    (_, true) => chip.isr,
                    (_, false) => chip.irr(),
                }
            }
            0x4d0 => self.master.elcr,
            0x4d1 => self.slave.elcr,
            _ => 0xff,
        }
    }

    fn write(&mut self, port: u16, value: u8) {
        let slave = port & 0xff80 == 0x80;
        match port {
            0x20 | 0xa0 => self.chip(slave).write_command(value),
            0x21 | 0xa1 => self.chip(slave).write_data(value),
            0x4d0 => self.master.elcr = value & ELCR_WRITABLE[0],
            0x4d1 => self.slave.elcr = value & ELCR_WRITABLE[1],
            _ => {}
        }
    }
}

/// The 8259A pair.
///
/// Ports: 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1.
#[derive(Debug)]
pub struct Pic {
    state: Mutex<PicState>,
    intr: Arc<dyn IrqLine>,
}

impl Pic {
    /// First ports of the three ranges to register, each two ports long.
    pub const PORTS: [u16; 3] = [0x20, 0xa0, 0x4d0];

    /// A pair after RESET; `intr` is the wire to the processors.
    pub fn new(intr: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(PicState::new()), intr })
    }

    /// Runs `f` on the state, then brings cascade and INTR up to date.
    fn with<T>(&self, f: impl FnOnce(&mut PicState) -> T) -> T {
        let mut state = lock(&self.state);
        let result = f(&mut state);
        state.cascade();
        self.intr.set(state.master.pending(true).is_some());
        result
    }

    /// Drives input `irq` (0..=15). IRQ 2 is the cascade and cannot be driven; higher numbers are ignored.
    pub fn set_irq(&self, irq: u8, level: bool) {
        match irq {
            CASCADE | 16.. => {}
            0..8 => self.with(|s| s.master.set_line(irq, level)),
            8..16 => self.with(|s| s.slave.set_line(irq - 8, level)),
        }
    }

    /// Input `irq` as a wire.
    pub fn line(self: &Arc<Self>, irq: u8) -> Arc<dyn IrqLine> {
        Arc::new(PicLine { pic: self.clone(), irq })
    }

    /// The INTA cycle: takes the highest request into service and returns its vector. If the request has gone,
    /// the spurious vector (IR7 of the chip that was asked). `None` before the guest has initialised the master.
    pub fn ack(&self) -> Option<u8> {
        self.with(PicState::ack)
    }

    /// The level of INTR.
    pub fn pending(&self) -> bool {
        lock(&self.state).master.pending(true).is_some()
    }
}

impl PioDevice for Pic {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        self.with(|s| read_bytes(port, size, |p| s.read(p)))
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        self.with(|s| {
            write_bytes(port, size, value, |p, v| {
                s.write(p, v);
                s.cascade();
            })
        });
    }
}

impl StateUnit for Pic {
    fn name(&self) -> &str {
        "pic"
    }

    fn save(&self) -> Section {
        Section::of(&SavedPic::from(&*lock(&self.state)))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = PicState::try_from(section.open::<SavedPic>()?)?;
        self.with(|s| *s = restored);
        Ok(())
    }

    /// Devices keep driving their lines through a reset of the controller; so the levels are kept.
    fn reset(&self) {
        self.with(|s| {
            let lines = [s.master.lines & !(1 << CASCADE), s.slave.lines];
            *s = PicState::new();
            [s.master.lines, s.slave.lines] = lines;
        });
    }
}

#[derive(Debug)]
struct PicLine {
    pic: Arc<Pic>,
    irq: u8,
}

impl IrqLine for PicLine {
    fn set(&self, level: bool) {
        self.pic.set_irq(self.irq, level);
    }
}

#[cfg(test)]
mod tests;
