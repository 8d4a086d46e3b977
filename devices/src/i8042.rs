//! The keyboard controller (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
//! Controller") with a keyboard that nobody types on, and port 0x92.
//!
//! 1. Its use today is the reset pulse, command 0xfe, and the A20 bit that old code sets.
//! 2. All else is there so that a probe ends quickly: the controller passes its self test, the keyboard answers
//!    every command, and the auxiliary port is absent in a way drivers find at once (the loop command answers from
//!    the keyboard's side, the interface test reports an error). A silent port costs Linux half a second a command.
//! 3. Answers wait in a short queue; each raises IRQ 1 if the command byte allows it.
//!
//! DEVNOTE: A20 is a bit without effect; address line 20 is never masked, as on every machine since UEFI. The bit in
//! the output port and the one in port 0x92 are separate, since each driver polls only its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use state::{RestoreError, Section, StateUnit};

use crate::saved::i8042::{SavedI8042, SavedPort92};
use crate::traits::{IrqLine, MachineControl, PioDevice};
use crate::util::{lock, read_bytes, write_bytes};

/// Port of data; status and command are at `I8042_DATA_PORT + 4`.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Port of status and command.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// Port of [`Port92`].
pub const PORT_92: u16 = 0x92;
/// ISA interrupt of the keyboard.
pub const I8042_IRQ: u8 = 1;

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_NOT_LOCKED: u8 = 0x10;

const CTR_KBD_IRQ: u8 = 0x01;
const CTR_SYSTEM: u8 = 0x04;
const CTR_KBD_OFF: u8 = 0x10;
const CTR_AUX_OFF: u8 = 0x20;
const CTR_TRANSLATE: u8 = 0x40;

const OUT_NO_RESET: u8 = 0x01;
const OUT_A20: u8 = 0x02;

pub(crate) const QUEUE: usize = 16;
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

/// The state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct I8042State {
    /// Command byte, RAM byte 0.
    pub ctr: u8,
    /// RAM bytes 1..=31.
    pub ram: [u8; 31],
    /// Output port; bit 1 is A20.
    pub output_port: u8,
    /// The last write went to the command port.
    pub last_was_command: bool,
    /// Controller command that waits for its data byte.
    pub command: Option<u8>,
    /// Keyboard command that waits for its data byte.
    pub keyboard_command: Option<u8>,
    /// Scan code set the keyboard was told to use, 1..=3.
    pub scancode_set: u8,
    /// Bytes for port 0x60; the first is in the output buffer.
    pub queue: VecDeque<u8>,
}

impl I8042State {
    fn new() -> Self {
        Self {
            ctr: CTR_SYSTEM | CTR_TRANSLATE | CTR_KBD_IRQ | CTR_AUX_OFF,
            ram: [0; 31],
            output_port: OUT_NO_RESET | OUT_A20,
            last_was_command: false,
            command: None,
            keyboard_command: None,
            scancode_set: 2,
            queue: VecDeque::new(),
        }
    }

    fn answer(&mut self, bytes: &[u8]) {
        let room = QUEUE.saturating_sub(self.queue.len());
        self.queue.extend(bytes.iter().take(room));
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_NOT_LOCKED | self.ctr & STATUS_SYSTEM;
        if !self.queue.is_empty() {
            status |= STATUS_OUTPUT_FULL;
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    /// Returns true if the command pulses the reset line.
    fn write_command(&mut self, command: u8) -> bool {
        self.last_was_command = true;
        self.command = None;
        match command {
            0x20 => self.answer(&[self.ctr]),
            0x21..=0x3f => self.answer(&[self.ram[usize::from(command - 0x21)]]),
            0x60..=0x7f | 0xd1..=0xd4 => self.command = Some(command),
            0xa7 => self.ctr |= CTR_AUX_OFF,
            0xa8 => self.ctr &= !CTR_AUX_OFF,
            // Auxiliary interface: clock line stuck low, that is, nothing there.
            0xa9 => self.answer(&[0x01]),
            0xaa => {
                self.queue.clear();
                self.keyboard_command = None;
                self.ctr |= CTR_SYSTEM;
                self.answer(&[0x55]);
            }
            0xab => self.answer(&[0x00]),
            0xad => self.ctr |= CTR_KBD_OFF,
            0xae => self.ctr &= !CTR_KBD_OFF,
            0xc0 => self.answer(&[0xa0]), // input port: keyboard not inhibited, colour display
            0xd0 => self.answer(&[self.output_port]),
            0xdd => self.output_port &= !OUT_A20,
            0xdf => self.output_port |= OUT_A20,
            // Pulse the output bits that are 0; bit 0 is the processor's reset.
            0xf0..=0xff => return command & 1 == 0,
            _ => {}
        }
        false
    }

    /// Returns true if the output port pulls the reset line.
    fn write_data(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match self.command.take() {
            Some(0x60) => self.ctr = value & 0x7f,
            Some(command @ 0x61..=0x7f) => self.ram[usize::from(command - 0x61)] = value,
            Some(0xd1) => {
                self.output_port = value | OUT_NO_RESET;
                return value & OUT_NO_RESET == 0;
            }
            // Without an auxiliary port the byte comes back on the keyboard's side.
            Some(0xd2 | 0xd3) => self.answer(&[value]),
            Some(0xd4) => self.answer(&[RESEND]),
            _ => self.write_keyboard(value),
        }
        false
    }

    /// PS/2 reference, "Keyboards", commands from the system.
    fn write_keyboard(&mut self, value: u8) {
        // The keyboard answers even if the guest had switched its interface off: sending switches it on.
        self.ctr &= !CTR_KBD_OFF;
        match self.keyboard_command.take() {
            Some(0xf0) if value == 0 => self.answer(&[ACK, self.scancode_set]),
            Some(0xf0) if value <= 3 => {
                self.scancode_set = value;
                self.answer(&[ACK]);
            }
            Some(0xf0) => self.answer(&[RESEND]),
            // Parameter of LEDs or typematic rate. A command may come instead of it.
            Some(_) if value < 0x80 => self.answer(&[ACK]),
            _ => match value {
                0xed | 0xf0 | 0xf3 => {
                    self.keyboard_command = Some(value);
                    self.answer(&[ACK]);
                }
                0xee => self.answer(&[0xee]),
                // Translation turns the second identity byte 0x83 into 0x41.
                0xf2 if self.ctr & CTR_TRANSLATE != 0 => self.answer(&[ACK, 0xab, 0x41]),
                0xf2 => self.answer(&[ACK, 0xab, 0x83]),
                0xf5 | 0xf6 => {
                    self.scancode_set = 2;
                    self.answer(&[ACK]);
                }
                0xf4 | 0xf7..=0xfa => self.answer(&[ACK]),
                0xff => {
                    self.scancode_set = 2;
                    self.answer(&[ACK, 0xaa]);
                }
                _ => self.answer(&[RESEND]),
            },
        }
    }
}

/// The keyboard controller at ports 0x60 and 0x64.
#[derive(Debug)]
pub struct I8042 {
    state: Mutex<I8042State>,
    irq: Arc<dyn IrqLine>,
    control: Arc<dyn MachineControl>,
}

impl I8042 {
    /// A controller after reset; `irq` is IRQ 1.
    pub fn new(irq: Arc<dyn IrqLine>, control: Arc<dyn MachineControl>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(I8042State::new()), irq, control })
    }

    /// The A20 bit of the output port.
    pub fn a20(&self) -> bool {
        lock(&self.state).output_port & OUT_A20 != 0
    }

    fn with<T>(&self, f: impl FnOnce(&mut I8042State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = f(&mut state);
        self.irq.set(!state.queue.is_empty() && state.ctr & CTR_KBD_IRQ != 0);
        result
    }
}

impl PioDevice for I8042 {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        self.with(|s| {
            read_bytes(port, size, |p| match p {
                I8042_DATA_PORT => {
                    let byte = s.queue.pop_front().unwrap_or(0);
                    // One edge a byte: the next one fills the buffer only after the line has fallen.
                    self.irq.set(false);
                    byte
                }
                I8042_COMMAND_PORT => s.status(),
                _ => 0xff,
            })
        })
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        let mut reset = false;
        self.with(|s| {
            write_bytes(port, size, value, |p, v| {
                reset |= match p {
                    I8042_DATA_PORT => s.write_data(v),
                    I8042_COMMAND_PORT => s.write_command(v),
                    _ => false,
                }
            });
        });
        if reset {
            self.control.reset();
        }
    }
}

impl StateUnit for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn save(&self) -> Section {
        Section::of(&SavedI8042::from(&*lock(&self.state)))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = I8042State::try_from(section.open::<SavedI8042>()?)?;
        self.with(|s| *s = restored);
        Ok(())
    }

    fn reset(&self) {
        self.with(|s| *s = I8042State::new());
    }
}

/// Port 0x92, "system control port A": fast A20 (bit 1) and fast reset (bit 0 going from 0 to 1).
#[derive(Debug)]
pub struct Port92 {
    state: Mutex<Port92State>,
    control: Arc<dyn MachineControl>,
}

/// State of [`Port92`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port92State {
    /// The register.
    pub value: u8,
}

impl Port92State {
    fn new() -> Self {
        Self { value: OUT_A20 }
    }
}

impl Port92 {
    /// A20 on, no reset.
    pub fn new(control: Arc<dyn MachineControl>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(Port92State::new()), control })
    }
}

impl PioDevice for Port92 {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        let value = lock(&self.state).value;
        read_bytes(port, size, |p| if p == PORT_92 { value } else { 0xff })
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        let mut reset = false;
        write_bytes(port, size, value, |p, v| {
            if p == PORT_92 {
                let old = std::mem::replace(&mut lock(&self.state).value, v & 0x03);
                reset = v & !old & 1 != 0;
            }
        });
        if reset {
            self.control.reset();
        }
    }
}

impl StateUnit for Port92 {
    fn name(&self) -> &str {
        "port_92"
    }

    fn save(&self) -> Section {
        Section::of(&SavedPort92::from(&*lock(&self.state)))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = Port92State::try_from(section.open::<SavedPort92>()?)?;
        *lock(&self.state) = restored;
        Ok(())
    }

    fn reset(&self) {
        *lock(&self.state) = Port92State::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Request, Rig, Rng, TestClock, TestControl, TestLine, device_tests, pio_access};

    struct Kbc {
        dev: Arc<I8042>,
        irq: Arc<TestLine>,
        control: Arc<TestControl>,
    }

    impl Kbc {
        fn ready() -> Self {
            let (irq, control) = (Arc::new(TestLine::default()), Arc::new(TestControl::default()));
            Self { dev: I8042::new(irq.clone(), control.clone()), irq, control }
        }
        fn command(&self, v: u8) {
            self.dev.pio_write(0x64, 1, v.into());
        }
        fn data(&self, v: u8) {
            self.dev.pio_write(0x60, 1, v.into());
        }
        fn status(&self) -> u8 {
            self.dev.pio_read(0x64, 1) as u8
        }
        fn answers(&self) -> Vec<u8> {
            let mut got = Vec::new();
            while self.status() & 1 != 0 {
                got.push(self.dev.pio_read(0x60, 1) as u8);
            }
            got
        }
    }

    impl Rig for Kbc {
        type Device = I8042;
        fn new(_: Arc<TestClock>) -> Self {
            Self::ready()
        }
        fn device(&self) -> &I8042 {
            &self.dev
        }
        fn access(&self, rng: &mut Rng) -> u64 {
            pio_access(&*self.dev, &[0x60, 0x64], rng) << 1 | u64::from(self.irq.level())
        }
    }

    device_tests!(Kbc);

    mod port_92 {
        use super::*;

        struct P92(Arc<Port92>);

        impl Rig for P92 {
            type Device = Port92;
            fn new(_: Arc<TestClock>) -> Self {
                Self(Port92::new(Arc::new(TestControl::default())))
            }
            fn device(&self) -> &Port92 {
                &self.0
            }
            fn access(&self, rng: &mut Rng) -> u64 {
                pio_access(&*self.0, &[0x92], rng)
            }
        }

        device_tests!(P92);

        #[test]
        fn resets_on_the_rising_bit_only() {
            let control = Arc::new(TestControl::default());
            let port = Port92::new(control.clone());
            assert_eq!(port.pio_read(0x92, 1), 0x02);
            port.pio_write(0x92, 1, 0);
            assert_eq!((port.pio_read(0x92, 1), control.take()), (0, vec![]));
            port.pio_write(0x92, 1, 0x03);
            port.pio_write(0x92, 1, 0x03);
            assert_eq!(control.take(), [Request::Reset]);
        }
    }

    #[test]
    fn reset_commands() {
        let k = Kbc::ready();
        k.command(0xfe);
        assert_eq!(k.control.take(), [Request::Reset]);
        k.command(0xff);
        k.command(0xd1);
        k.data(0xcf);
        assert_eq!(k.control.take(), []);
        k.command(0xd1);
        k.data(0xce);
        assert_eq!(k.control.take(), [Request::Reset]);
    }

    /// What drivers/input/serio/i8042.c asks at start, in its order.
    #[test]
    fn linux_probe() {
        let k = Kbc::ready();
        assert_eq!(k.status() & 0x01, 0, "nothing to flush");
        k.command(0xaa);
        assert_eq!(k.answers(), [0x55]);
        k.command(0x20);
        let ctr = k.answers()[0];
        k.command(0x60);
        k.data(ctr & !0x03 | 0x30); // both ports off, no interrupts
        assert!(!k.irq.level());
        k.command(0x20);
        assert_eq!(k.answers(), [ctr & !0x03 | 0x30]);
        // Auxiliary port: the answer lacks AUXDATA (bit 5), then the test reports an error.
        k.command(0xd3);
        k.data(0x5a);
        assert_eq!(k.status() & 0x21, 0x01);
        assert_eq!(k.answers(), [0x5a]);
        k.command(0xa9);
        assert!(!matches!(k.answers()[..], [0x00] | [0xfa] | [0xff]));
        // Keyboard, drivers/input/keyboard/atkbd.c with translation on.
        k.command(0x60);
        k.data(0x45);
        for (commands, answer) in [
            (&[0xf2][..], &[0xfa, 0xab, 0x41][..]),
            (&[0xf5], &[0xfa]),
            (&[0xed, 0x00], &[0xfa, 0xfa]),
            (&[0xf3, 0x00], &[0xfa, 0xfa]),
            (&[0xf0, 0x02], &[0xfa, 0xfa]),
            (&[0xf0, 0x00], &[0xfa, 0xfa, 0x02]),
            (&[0xf4], &[0xfa]),
            (&[0xee], &[0xee]),
            (&[0xff], &[0xfa, 0xaa]),
            (&[0x01], &[0xfe]),
        ] {
            commands.iter().for_each(|&c| k.data(c));
            assert!(k.irq.level());
            assert_eq!(k.answers(), answer, "commands {commands:x?}");
            assert!(!k.irq.level());
        }
    }

    #[test]
    fn each_byte_is_an_edge_of_irq_1() {
        let k = Kbc::ready();
        k.data(0xf2);
        assert_eq!(k.irq.rises(), 1);
        k.answers();
        assert_eq!(k.irq.rises(), 3);
    }

    #[test]
    fn a20_and_output_port() {
        let k = Kbc::ready();
        assert!(k.dev.a20());
        k.command(0xdd);
        assert!(!k.dev.a20());
        k.command(0xd1);
        k.data(0xdf);
        assert!(k.dev.a20());
        k.command(0xd0);
        assert_eq!(k.answers(), [0xdf]);
    }

    #[test]
    fn status_tells_command_from_data_and_self_test() {
        let k = Kbc::ready();
        k.command(0xae);
        assert_eq!(k.status(), 0x1c);
        k.data(0xf4);
        assert_eq!(k.status(), 0x15);
    }

    #[test]
    fn queue_is_bounded() {
        let k = Kbc::ready();
        (0..1000).for_each(|_| k.data(0xf2));
        assert_eq!(k.answers().len(), QUEUE);
    }
}
