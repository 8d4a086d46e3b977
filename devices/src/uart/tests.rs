//! Tests of the 16550A, the sequences of Linux's 8250 driver among them.

use std::thread;
use std::time::Duration;

use super::*;
use crate::output::tests::SharedSink;
use crate::testing::{Rig, Rng, TestClock, TestLine, device_tests, pio_access};

struct Com {
    uart: Arc<Uart>,
    irq: Arc<TestLine>,
    sink: SharedSink,
}

impl Com {
    fn com1() -> Self {
        let (irq, sink) = (Arc::new(TestLine::default()), SharedSink::default());
        let output = OutputQueue::new("out", sink.clone()).unwrap();
        Self { uart: Uart::new("uart0", COM1_PORT, irq.clone(), output), irq, sink }
    }
    fn read(&self, register: u16) -> u8 {
        self.uart.pio_read(COM1_PORT + register, 1) as u8
    }
    fn write(&self, register: u16, value: u8) {
        self.uart.pio_write(COM1_PORT + register, 1, value.into());
    }
    fn sent(&self) -> Vec<u8> {
        assert!(self.uart.output().flush(Duration::from_secs(20)));
        self.sink.bytes()
    }
    /// A driver with FIFO on, trigger level 8, DTR, RTS and OUT2 set, receive interrupt enabled.
    fn open(&self) {
        self.write(2, 0x81);
        self.write(4, 0x0b);
        self.write(1, 0x05);
    }
    fn drain(&self) -> Vec<u8> {
        let mut got = Vec::new();
        while self.read(5) & LSR_DR != 0 {
            got.push(self.read(0));
        }
        got
    }
}

impl Rig for Com {
    type Device = Uart;
    const RESET_FORGETS: bool = false; // host input stays

    fn new(_: Arc<TestClock>) -> Self {
        Self::com1()
    }
    fn device(&self) -> &Uart {
        &self.uart
    }
    fn access(&self, rng: &mut Rng) -> u64 {
        let seen = if rng.below(8) == 0 {
            let bytes = [rng.next() as u8; 40];
            self.uart.offer(&bytes[..rng.below(40) as usize]) as u64
        } else {
            pio_access(&*self.uart, &[0x3f8, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff], rng)
        };
        seen << 1 | u64::from(self.irq.level())
    }
}

device_tests!(Com);

/// Datasheet table III.
#[test]
fn reset_values() {
    let com = Com::com1();
    let all: Vec<u8> = (0..8).map(|r| com.read(r)).collect();
    assert_eq!(all, [0, 0, 0x01, 0, 0, 0x60, 0xb0, 0]);
}

/// `autoconfig` and `autoconfig_16550a` of drivers/tty/serial/8250/8250_port.c, register by register.
#[test]
fn linux_detects_a_16550a() {
    let com = Com::com1();
    com.write(1, 0);
    assert_eq!(com.read(1) & 0x0f, 0, "IER holds 0");
    com.write(1, 0x0f);
    assert_eq!(com.read(1) & 0x0f, 0x0f, "IER holds 0x0f");
    com.write(1, 0);
    com.write(4, 0x1a); // loopback, OUT2, RTS
    assert_eq!(com.read(6) & 0xf0, 0x90, "loopback shows CTS and DCD");
    com.write(4, 0x08);

    com.write(3, 0xbf);
    com.write(2, 0); // EFR of later parts
    com.write(3, 0);
    com.write(2, 0x01);
    assert_eq!(com.read(2) >> 6, 3, "16550A");
    com.write(3, 0x80);
    assert_ne!(com.read(2), 0, "no EFR: not a 16650");
    com.write(3, 0xbf);
    assert_ne!(com.read(2), 0, "no EFR: not a 16850");
    com.write(3, 0);
    com.write(2, 0x21);
    assert_eq!(com.read(2) >> 5, 6, "no 64-byte FIFO: not a 16750");
    com.write(3, 0x80);
    com.write(2, 0x21);
    assert_eq!(com.read(2) >> 5, 6);
    com.write(3, 0);
    com.write(1, 0x40);
    assert_eq!(com.read(1) & 0x40, 0, "no UUE: not an XScale");

    com.write(7, 0xa5);
    assert_eq!(com.read(7), 0xa5, "scratch");
    com.write(7, 0x5a);
    assert_eq!(com.read(7), 0x5a);
    com.write(2, 0);
    assert_eq!(com.read(2) >> 6, 0, "FIFOs off");
    assert_eq!(com.sent(), b"");
}

/// `serial8250_do_startup`: the tests for UART_BUG_THRE and UART_BUG_TXEN.
#[test]
fn linux_startup_finds_no_transmit_bug() {
    let com = Com::com1();
    com.write(2, 0x01);
    com.write(1, 0x02);
    assert_eq!(com.read(2) & 0x0f, 0x02);
    com.write(1, 0);
    com.write(1, 0x02);
    assert!(com.irq.level());
    assert_eq!(com.read(2) & 0x0f, 0x02, "raised anew by the 0 to 1 change");
    assert!(!com.irq.level(), "and ended by the IIR read");
    assert_eq!(com.read(2) & 0x0f, 0x01);
    com.write(1, 0x02);
    assert_eq!(com.read(2) & 0x0f, 0x01, "no change, no interrupt");
}

#[test]
fn transmit_interrupts_once_a_write() {
    let com = Com::com1();
    com.open();
    com.write(1, 0x07);
    assert_eq!(com.read(2), 0xc2);
    for &byte in b"# " {
        assert_eq!(com.read(5) & 0x60, 0x60);
        com.write(0, byte);
        assert!(com.irq.level());
        assert_eq!(com.read(2), 0xc2);
        assert!(!com.irq.level());
    }
    assert_eq!(com.sent(), b"# ");
}

/// Datasheet table IV: received data and character timeout.
#[test]
fn receive_trigger_and_timeout() {
    let com = Com::com1();
    com.open();
    com.uart.offer(b"1234567");
    assert!(com.irq.level());
    assert_eq!(com.read(2), 0xcc, "below the trigger level: character timeout");
    com.uart.offer(b"8");
    assert_eq!(com.read(2), 0xc4);
    assert_eq!(com.drain(), b"12345678");
    assert!(!com.irq.level());
    assert_eq!((com.read(2), com.read(5)), (0xc1, 0x60));
}

#[test]
fn iir_reports_causes_by_priority() {
    let com = Com::com1();
    com.write(4, 0x1f); // loopback: RI rises, the others were high
    com.write(4, 0x1b); // RI falls: TERI
    com.write(1, 0x0f);
    com.write(0, b'a'); // FIFOs off: one byte
    com.write(0, b'b'); // overrun
    assert_eq!(com.read(2), 0x06);
    assert_eq!(com.read(5), 0x63);
    assert_eq!(com.read(2), 0x04);
    assert_eq!(com.read(0), b'a');
    assert_eq!(com.read(2), 0x02);
    assert_eq!(com.read(2), 0x00, "modem status");
    assert!(com.irq.level());
    assert_eq!(com.read(6), 0xb4);
    assert_eq!(com.read(6), 0xb0, "reading clears the deltas");
    assert_eq!(com.read(2), 0x01);
    assert!(!com.irq.level());
    assert_eq!(com.sent(), b"", "loopback does not transmit");
}

#[test]
fn masking_and_unmasking_receive_keeps_the_cause() {
    let com = Com::com1();
    com.open();
    com.write(1, 0);
    com.uart.offer(b"x");
    assert!(!com.irq.level());
    com.write(1, 0x05);
    assert!(com.irq.level());
}

#[test]
fn probing_driver_does_not_eat_input() {
    let com = Com::com1();
    com.write(4, 0);
    com.uart.offer(b"typed ahead");
    com.write(2, 0x07);
    assert_eq!((com.read(5), com.read(0)), (0x60, 0));
    com.open();
    assert_eq!(com.drain(), b"typed ahead");
}

/// Linux's serial8250_do_startup: probe, clear, receive interrupt, FIFOs; the port was fresh when input came.
#[test]
fn starting_driver_does_not_eat_input() {
    let com = Com::com1();
    com.uart.offer(b"typed ahead");
    com.write(4, 0x10);
    com.write(4, 0);
    for value in [0x01, 0x07, 0x00] {
        com.write(2, value);
    }
    assert_eq!(com.read(0), 0);
    com.write(1, 0x05);
    com.write(2, 0x01);
    com.write(2, 0x81);
    com.write(4, 0x0b);
    assert_eq!(com.drain(), b"typed ahead");
}

#[test]
fn polling_guest_that_sets_nothing_up_gets_input() {
    let com = Com::com1();
    com.uart.offer(b"ab");
    assert_eq!(com.read(5), 0x61);
    assert_eq!(com.drain(), b"ab");
}

#[test]
fn fifo_control() {
    let com = Com::com1();
    com.open();
    com.uart.offer(&[b'x'; 20]);
    assert_eq!(lock(&com.uart.state).rx.len(), 16);
    com.write(2, 0x83); // clear receive FIFO
    assert_eq!(com.drain(), b"xxxx", "what had not entered the FIFO follows");
    com.uart.offer(b"yyyy");
    com.write(2, 0x02);
    assert_eq!(com.drain(), b"", "turning the FIFOs off clears them; it held all four");
}

#[test]
fn divisor_latch_hides_data_and_ier() {
    let com = Com::com1();
    com.write(3, 0x83);
    com.write(0, 0x01);
    com.write(1, 0x02);
    assert_eq!((com.read(0), com.read(1), lock(&com.uart.state).divisor), (1, 2, 0x201));
    com.write(3, 0x03);
    assert_eq!((com.read(1), com.read(3)), (0, 3));
    assert_eq!(com.sent(), b"");
}

#[test]
fn input_that_does_not_fit_waits() {
    let com = Com::com1();
    com.open();
    let text: Vec<u8> = (0..3 * BACKLOG).map(|i| (i % 253) as u8).collect();
    assert_eq!(com.uart.offer(&text), BACKLOG);
    assert_eq!(com.uart.offer(&text[BACKLOG..]), 16, "the FIFO has taken its share");
    let feeder = thread::spawn({
        let (uart, rest) = (com.uart.clone(), text[BACKLOG + 16..].to_vec());
        move || uart.feed(&rest)
    });
    let mut got = Vec::new();
    while got.len() < text.len() {
        got.extend(com.drain());
    }
    assert!(feeder.join().unwrap());
    assert!(got == text);
}

#[test]
fn closing_input_frees_the_feeder() {
    let com = Com::com1();
    com.write(4, 0);
    let feeder = thread::spawn({
        let uart = com.uart.clone();
        move || uart.feed(&[0; 2 * BACKLOG])
    });
    while lock(&com.uart.state).backlog.len() < BACKLOG {
        thread::yield_now();
    }
    com.uart.close_input();
    assert!(!feeder.join().unwrap());
}

#[test]
fn failing_output_does_not_disturb_the_guest() {
    struct Broken;
    impl io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let irq = Arc::new(TestLine::default());
    let uart = Uart::new("uart0", COM1_PORT, irq.clone(), OutputQueue::new("out", Broken).unwrap());
    uart.pio_write(COM1_PORT + 1, 1, 2);
    assert!(uart.output_error().is_none());
    for _ in 0..100_000 {
        uart.pio_write(COM1_PORT, 1, u32::from(b'\n'));
        assert!(irq.level());
    }
    assert!(uart.output().flush(Duration::from_secs(20)));
    assert_eq!(uart.output_error().unwrap().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn reset_keeps_waiting_input_and_lowers_the_line() {
    let com = Com::com1();
    com.open();
    com.uart.offer(&[7; 20]);
    com.write(1, 0x07);
    assert!(com.irq.level());
    com.uart.reset();
    assert!(!com.irq.level());
    assert_eq!(com.drain(), [7; 20]);
}
