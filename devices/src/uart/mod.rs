//! The serial port: a 16550A UART (National Semiconductor PC16550D datasheet, TL/C/8652).
//!
//! 1. The transmitter is infinitely fast: THR is empty again as soon as it is written. Bytes go to an
//!    [`OutputQueue`], which batches them; the vCPU waits behind the access if the host does not keep up.
//! 2. Host input waits in a backlog of [`BACKLOG`] bytes in front of the receive FIFO and enters the FIFO as the
//!    guest drains it; so there is no overrun. [`Uart::offer`] takes what fits, [`Uart::feed`] waits for room.
//! 3. The host honours hardware flow control: input enters the FIFO while the guest asserts RTS or has the receive
//!    interrupt enabled, or has not touched the modem control register since reset (bare guests that poll). A
//!    driver that probes the port and turns its FIFOs on does not eat what was typed, or piped in, before it started:
//!    what came in and was not read goes back in front of what waits.
//! 4. The interrupt is a level: the enabled and pending causes ORed, in the priority of datasheet table IV.
//!
//! The crate `vm-superio` offers a serial port too. It has no FIFO control, reports two causes ORed into one IIR
//! value, drops the pending cause on any IIR read and signals edges only, so it would have to be rewritten to serve
//! a level interrupt; hence a model of our own.
//!
//! DEVNOTE: on a PC, OUT2 gates the interrupt. Guests written against other machine models leave it clear, so
//! it is ignored here.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use state::{RestoreError, Section, StateUnit};

use crate::output::OutputQueue;
use crate::saved::uart::SavedUart;
use crate::traits::{IrqLine, PioDevice};
use crate::util::{lock, read_bytes, write_bytes};
use crate::waiting::Waiter;

/// First port of COM1.
pub const COM1_PORT: u16 = 0x3f8;
/// ISA interrupt of COM1.
pub const COM1_IRQ: u8 = 4;
/// Ports a UART occupies.
pub const UART_PORTS: u16 = 8;
/// Bytes of host input that may wait for the guest.
pub const BACKLOG: usize = 4096;

pub(crate) const FIFO: usize = 16;

const IER_RDI: u8 = 0x01;
const IER_THRI: u8 = 0x02;
const IER_RLSI: u8 = 0x04;
const IER_MSI: u8 = 0x08;

const IIR_NONE: u8 = 0x01;
const IIR_MSI: u8 = 0x00;
const IIR_THRI: u8 = 0x02;
const IIR_RDI: u8 = 0x04;
const IIR_RLSI: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RX: u8 = 0x02;
pub(crate) const FCR_KEPT: u8 = 0xc9;

const LCR_DLAB: u8 = 0x80;

const MCR_DTR: u8 = 0x01;
const MCR_RTS: u8 = 0x02;
const MCR_OUT1: u8 = 0x04;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;

const LSR_DR: u8 = 0x01;
const LSR_OE: u8 = 0x02;
const LSR_THRE: u8 = 0x20;
const LSR_TEMT: u8 = 0x40;

const MSR_TERI: u8 = 0x04;
const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;

/// The state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UartState {
    /// Divisor latch.
    pub divisor: u16,
    /// Interrupt enable register.
    pub ier: u8,
    /// FIFO control register: enable, DMA mode, trigger level.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Modem status register: levels and deltas.
    pub msr: u8,
    /// Scratch register.
    pub scr: u8,
    /// The guest has written the modem control register.
    pub mcr_touched: bool,
    /// Overrun error, until LSR is read.
    pub overrun: bool,
    /// The THR-empty cause is pending.
    pub thr_empty: bool,
    /// Receive FIFO.
    pub rx: VecDeque<u8>,
    /// Host input that waits.
    pub backlog: VecDeque<u8>,
}

impl UartState {
    /// Datasheet table III, "Reset Configuration".
    fn new() -> Self {
        Self {
            divisor: 12,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr: MSR_CTS | MSR_DSR | MSR_DCD,
            scr: 0,
            mcr_touched: false,
            overrun: false,
            thr_empty: false,
            rx: VecDeque::new(),
            backlog: VecDeque::new(),
        }
    }

    fn depth(&self) -> usize {
        if self.fcr & FCR_ENABLE != 0 { FIFO } else { 1 }
    }

    /// Bytes that raise the received-data cause (datasheet 8.4, FCR bits 7:6).
    fn trigger(&self) -> usize {
        match (self.fcr & FCR_ENABLE != 0, self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    fn accepts_input(&self) -> bool {
        self.mcr & MCR_LOOP == 0 && (!self.mcr_touched || self.mcr & MCR_RTS != 0 || self.ier & IER_RDI != 0)
    }

    /// Moves host input into the receive FIFO. Returns whether the backlog got shorter.
    fn refill(&mut self) -> bool {
        let mut moved = false;
        while self.accepts_input() && self.rx.len() < self.depth() {
            let Some(byte) = self.backlog.pop_front() else { break };
            self.rx.push_back(byte);
            moved = true;
        }
        moved
    }

    /// Takes back what has come in and was not read: the line had better waited.
    fn take_back(&mut self) {
        if self.mcr & MCR_LOOP == 0 {
            while let Some(byte) = self.rx.pop_back() {
                self.backlog.push_front(byte);
            }
        }
    }

    /// The pending cause of highest priority that is enabled (datasheet table IV).
    fn cause(&self) -> u8 {
        if self.ier & IER_RLSI != 0 && self.overrun {
            IIR_RLSI
        } else if self.ier & IER_RDI != 0 && !self.rx.is_empty() {
            // Below the trigger level the character timeout reports the data. Its four character times have
            // always passed: the line is infinitely fast.
            if self.rx.len() >= self.trigger() { IIR_RDI } else { IIR_TIMEOUT }
        } else if self.ier & IER_THRI != 0 && self.thr_empty {
            IIR_THRI
        } else if self.ier & IER_MSI != 0 && self.msr & 0x0f != 0 {
            IIR_MSI
        } else {
            IIR_NONE
        }
    }

    /// Modem inputs: a peer that is always ready, or in loopback the outputs (datasheet 8.6, MCR bit 4).
    fn update_modem(&mut self) {
        let mut levels = MSR_CTS | MSR_DSR | MSR_DCD;
        if self.mcr & MCR_LOOP != 0 {
            let wired = [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)];
            levels = wired.iter().filter(|w| self.mcr & w.0 != 0).fold(0, |m, w| m | w.1);
        }
        let mut deltas = (self.msr ^ levels) >> 4;
        if levels & MSR_RI != 0 {
            deltas &= !MSR_TERI; // only the trailing edge of RI counts
        }
        self.msr = levels | (self.msr & 0x0f) | deltas;
    }

    fn read(&mut self, register: u16) -> u8 {
        match register {
            0 if self.lcr & LCR_DLAB != 0 => self.divisor as u8,
            1 if self.lcr & LCR_DLAB != 0 => (self.divisor >> 8) as u8,
            0 => self.rx.pop_front().unwrap_or(0),
            1 => self.ier,
            2 => {
                let cause = self.cause();
                if cause == IIR_THRI {
                    self.thr_empty = false;
                }
                if self.fcr & FCR_ENABLE != 0 { cause | IIR_FIFO } else { cause }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let mut lsr = LSR_THRE | LSR_TEMT;
                if !self.rx.is_empty() {
                    lsr |= LSR_DR;
                }
                if std::mem::take(&mut self.overrun) {
                    lsr |= LSR_OE;
                }
                lsr
            }
            6 => {
                let msr = self.msr;
                self.msr &= 0xf0;
                msr
            }
            7 => self.scr,
            _ => 0xff,
        }
    }

    /// Returns the byte to transmit, if there is one.
    fn write(&mut self, register: u16, value: u8) -> Option<u8> {
        match register {
            0 if self.lcr & LCR_DLAB != 0 => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if self.lcr & LCR_DLAB != 0 => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            0 => {
                self.thr_empty = true;
                if self.mcr & MCR_LOOP == 0 {
                    return Some(value);
                }
                if self.rx.len() < self.depth() {
                    self.rx.push_back(value);
                } else {
                    self.overrun = true;
                }
            }
            1 => {
                // Enabling the THR-empty interrupt while THR is empty raises it. Linux starts every transmission
                // this way and tests for it (UART_BUG_TXEN).
                if value & !self.ier & IER_THRI != 0 {
                    self.thr_empty = true;
                }
                self.ier = value & 0x0f;
            }
            2 => {
                // Datasheet 8.4: changing bit 0 clears the FIFOs; the other bits count only if bit 0 is set.
                let toggled = (value ^ self.fcr) & FCR_ENABLE != 0;
                // Linux enables the receive interrupt just before the FIFOs.
                if value & !self.fcr & FCR_ENABLE != 0 {
                    self.take_back();
                }
                if toggled || (value & FCR_ENABLE != 0 && value & FCR_CLEAR_RX != 0) {
                    self.rx.clear();
                }
                self.fcr = if value & FCR_ENABLE != 0 { value & FCR_KEPT } else { 0 };
            }
            3 => self.lcr = value,
            4 => {
                // The first write tells a driver from a bare guest; it will reset the FIFOs next.
                if !self.mcr_touched {
                    self.take_back();
                }
                self.mcr = value & 0x1f;
                self.mcr_touched = true;
                self.update_modem();
            }
            7 => self.scr = value,
            _ => {}
        }
        None
    }
}

/// A 16550A at eight consecutive ports.
#[derive(Debug)]
pub struct Uart {
    name: &'static str,
    base: u16,
    state: Mutex<UartState>,
    /// The backlog has room, or input was closed.
    room: Condvar,
    input_closed: Mutex<bool>,
    irq: Arc<dyn IrqLine>,
    output: Arc<OutputQueue>,
}

impl Uart {
    /// The port called `name` at `base` after reset, interrupting through `irq`, transmitting to `output`.
    pub fn new(name: &'static str, base: u16, irq: Arc<dyn IrqLine>, output: Arc<OutputQueue>) -> Arc<Self> {
        Arc::new(Self {
            name,
            base,
            state: Mutex::new(UartState::new()),
            room: Condvar::new(),
            input_closed: Mutex::new(false),
            irq,
            output,
        })
    }

    /// Where the port transmits: to flush it, close it, or ask for its error.
    pub fn output(&self) -> &Arc<OutputQueue> {
        &self.output
    }

    /// The error that ended the output, if one did. The guest does not notice; what it sends is dropped.
    pub fn output_error(&self) -> Option<Arc<io::Error>> {
        self.output.error()
    }

    /// Takes as much host input as there is room for; returns how many bytes of `bytes` that was.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        self.with(|s| {
            let n = bytes.len().min(BACKLOG.saturating_sub(s.backlog.len()));
            s.backlog.extend(&bytes[..n]);
            n
        })
    }

    /// Takes all of `bytes`, waiting for the guest to make room. Returns false if input was closed before the end.
    pub fn feed(&self, mut bytes: &[u8]) -> bool {
        loop {
            bytes = &bytes[self.offer(bytes)..];
            if bytes.is_empty() {
                return true;
            }
            let mut state = lock(&self.state);
            while state.backlog.len() >= BACKLOG {
                if *lock(&self.input_closed) {
                    return false;
                }
                state = self.room.wait(state).unwrap_or_else(|e| e.into_inner());
            }
        }
    }

    /// Ends every [`feed`](Self::feed) that waits, now and later.
    pub fn close_input(&self) {
        // Under the state lock, so that no feeder is between its check and its wait.
        let _state = lock(&self.state);
        *lock(&self.input_closed) = true;
        self.room.notify_all();
    }

    /// Runs `f`, then lets input follow and drives the interrupt line.
    fn with<T>(&self, f: impl FnOnce(&mut UartState) -> T) -> T {
        let mut state = lock(&self.state);
        let result = f(&mut state);
        if state.refill() {
            self.room.notify_all();
        }
        self.irq.set(state.cause() != IIR_NONE);
        result
    }
}

impl PioDevice for Uart {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        self.with(|s| read_bytes(port, size, |p| s.read(p.wrapping_sub(self.base))))
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        let mut sent = [None; 4];
        self.with(|s| {
            let mut slots = sent.iter_mut();
            write_bytes(port, size, value, |p, v| {
                if let Some(slot) = slots.next() {
                    *slot = s.write(p.wrapping_sub(self.base), v);
                }
            });
        });
        sent.into_iter().flatten().for_each(|byte| self.output.push(byte));
    }

    fn throttle(&self, waiter: &Arc<Waiter>) {
        self.output.wait_for_room(waiter);
    }
}

impl StateUnit for Uart {
    fn name(&self) -> &str {
        self.name
    }

    fn save(&self) -> Section {
        Section::of(&SavedUart::from(&*lock(&self.state)))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = UartState::try_from(section.open::<SavedUart>()?)?;
        self.with(|s| *s = restored);
        Ok(())
    }

    /// Input that the guest has not read yet stays: it belongs to the user, not to the port.
    fn reset(&self) {
        self.with(|s| {
            let mut unread = std::mem::take(&mut s.backlog);
            if s.mcr & MCR_LOOP == 0 {
                std::mem::swap(&mut unread, &mut s.rx);
                unread.append(&mut s.rx);
            }
            *s = UartState { backlog: unread, ..UartState::new() };
        });
    }
}

#[cfg(test)]
mod tests;
