//! Port I/O (vol. 1, chapter 19).

use std::sync::{Arc, Mutex};

use accel_api::x86::gpr;
use accel_api::{GpFault, IoSize, VcpuBus};

use super::*;
use crate::Fault;
use crate::alu::flag;
use crate::mode::Mode;
use crate::testing::{cpu, run};
use crate::testing_tables::*;

/// Reads give the port's number and a counter; everything is logged.
#[derive(Debug, Default)]
struct Ports(Mutex<Vec<(u16, u8, Option<u32>)>>);

impl VcpuBus for Ports {
    fn mmio_read(&self, _: u64, size: IoSize) -> u64 {
        size.ones()
    }
    fn mmio_write(&self, _: u64, _: IoSize, _: u64) {}
    fn pio_read(&self, port: u16, size: IoSize) -> u32 {
        let mut log = self.0.lock().unwrap();
        log.push((port, size as u8, None));
        0xa0b0_c0d0 + log.len() as u32
    }
    fn pio_write(&self, port: u16, size: IoSize, value: u32) {
        self.0.lock().unwrap().push((port, size as u8, Some(value)));
    }
    fn msr_read(&self, _: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }
    fn msr_write(&self, _: u32, _: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }
    fn ack_extint(&self) -> Option<u8> {
        None
    }
    fn eoi(&self, _: u8) {}
}

fn with_ports(mut c: Box<Cpu>) -> (Box<Cpu>, Arc<Ports>) {
    let ports = Arc::new(Ports::default());
    c.bus = ports.clone();
    (c, ports)
}

fn log(ports: &Ports) -> Vec<(u16, u8, Option<u32>)> {
    std::mem::take(&mut ports.0.lock().unwrap())
}

/// IN and OUT: widths, ports, upper halves.
#[test]
fn in_and_out() {
    let (mut c, ports) = with_ports(cpu(Mode::Long));
    c.gpr[gpr::RDX] = 0x1234_03f8;
    for (code, rax, entry) in [
        (&[0xecu8][..], 0xffff_ffff_ffff_ffd1, (0x3f8, 1, None)),
        (&[0x66, 0xed], 0xffff_ffff_ffff_c0d1, (0x3f8, 2, None)),
        (&[0xed], 0xa0b0_c0d1, (0x3f8, 4, None)),
        (&[0xe4, 0x60], 0xffff_ffff_ffff_ffd1, (0x60, 1, None)),
        (&[0xee], u64::MAX, (0x3f8, 1, Some(0xff))),
        (&[0xe7, 0x80], u64::MAX, (0x80, 4, Some(0xffff_ffff))),
    ] {
        c.gpr[gpr::RAX] = u64::MAX;
        run(&mut c, code).unwrap();
        assert_eq!((c.gpr[gpr::RAX], log(&ports)), (rax, vec![entry]), "{code:x?}");
    }
}

/// 19.5.2: IOPL, then the permission map: one bit a port, all ports of an access, the map's end.
#[test]
fn permission_map() {
    // (size, allowed) at port 0x3f8 + offset; the map denies 0x3f9 and 0x400.
    for (code, port, allowed) in [
        (&[0xecu8][..], 0x3f8, true),
        (&[0xec], 0x3f9, false),
        (&[0x66, 0xed], 0x3f8, false),
        (&[0xed], 0x3fa, true),
        (&[0xed], 0x3fd, false), // reaches 0x400
        (&[0xec], 0x407, true),
        (&[0xec], 0x408, false), // beyond the map
    ] {
        let (mut c, ports) = with_ports(cpu_with_tables(Mode::Long, 3));
        poke(&mut c, TSS + 0x66, &0x68u16.to_le_bytes());
        poke(&mut c, TSS + 0x68 + 0x7f, &[2, 1]);
        c.tr.limit = 0x68 + 0x81; // the byte behind the last must exist
        c.gpr[gpr::RDX] = port;
        let want = if allowed { Ok(()) } else { Err(Fault::GP0) };
        assert_eq!(run(&mut c, code), want, "{code:x?} {port:#x}");
        assert_eq!(log(&ports).len(), allowed as usize);
        c.set_rflags(flag::IOPL);
        assert_eq!(run(&mut c, code), Ok(()));
    }
}

/// INS and OUTS with REP: count, direction, address size, and progress kept when a fault ends it.
#[test]
fn strings() {
    let (mut c, ports) = with_ports(cpu(Mode::Long));
    (c.gpr[gpr::RDX], c.gpr[gpr::RCX], c.gpr[gpr::RDI]) = (0x1f0, 3, 0x3000);
    run(&mut c, &[0xf3, 0x66, 0x6d]).unwrap();
    assert_eq!((c.gpr[gpr::RCX], c.gpr[gpr::RDI], log(&ports).len()), (0, 0x3006, 3));
    assert_eq!(peek(&mut c, 0x3000, 6), [0xd1, 0xc0, 0xd2, 0xc0, 0xd3, 0xc0]);

    c.set_rflags(flag::DF);
    poke(&mut c, 0x3000, &[1, 2, 3]);
    (c.gpr[gpr::RCX], c.gpr[gpr::RSI]) = (0xf_0000_0003, 0xf_0000_3002);
    run(&mut c, &[0x67, 0xf3, 0x6e]).unwrap(); // 32-bit addresses: the upper halves go
    assert_eq!((c.gpr[gpr::RCX], c.gpr[gpr::RSI]), (0, 0x2fff));
    let values: Vec<_> = log(&ports).iter().map(|entry| entry.2.unwrap()).collect();
    assert_eq!(values, [3, 2, 1]);

    c.set_rflags(0);
    (c.gpr[gpr::RCX], c.gpr[gpr::RDI]) = (5, 0x7fff_ffff_fffe);
    assert_eq!(run(&mut c, &[0xf3, 0x6c]), Err(Fault::GP0));
    assert_eq!((c.gpr[gpr::RCX], c.gpr[gpr::RDI], c.rip), (3, 0x8000_0000_0000, 0x1000));
    assert_eq!(log(&ports).len(), 2); // the port was not read for the byte that could not be stored
}

/// A huge count gives up its turn at the instruction boundary and goes on there.
#[test]
fn endless_repeats_take_turns() {
    let (mut c, ports) = with_ports(cpu(Mode::Long));
    (c.gpr[gpr::RDX], c.gpr[gpr::RCX], c.gpr[gpr::RSI]) = (0x3f8, 1000, 0x3000);
    let mut turns = 0;
    loop {
        c.leave = false;
        run(&mut c, &[0xf3, 0x6e]).unwrap();
        turns += 1;
        if c.rip != 0x1000 {
            break;
        }
        assert!(c.leave && turns < 1000);
    }
    assert!(turns > 1);
    assert_eq!((c.gpr[gpr::RCX], c.gpr[gpr::RSI], log(&ports).len()), (0, 0x3000 + 1000, 1000));
}
