//! INTx through the wires, and MSI-X.

use std::sync::Arc;

use super::testing::Board;
use super::*;
use crate::MmioDevice;

const AT: DeviceFunction = DeviceFunction::new(3, 0);
/// Message control in the tests' function, whose first capability is MSI-X.
const CONTROL: u16 = 0x42;
const ON: u32 = 1 << 15;
const MASK_ALL: u32 = 1 << 14;

fn with_vectors(board: &Board, vectors: u16) -> (Arc<Function>, Arc<Msix>) {
    let function = board.add(AT, |f| f.msix(0, vectors).intx());
    let msix = function.msix().unwrap().clone();
    for n in 0..u64::from(vectors) {
        msix.mmio_write(16 * n, 8, 0xfee0_0000 + (n << 12));
        msix.mmio_write(16 * n + 8, 4, 0x40 + n);
    }
    function.config_write(reg::COMMAND, 2, command::BUS_MASTER.into());
    (function, msix)
}

#[test]
fn pins_of_a_device_and_of_neighbours_differ() {
    let wires: Vec<_> = (1..=4).map(|pin| Pirqs::wire(3, pin)).collect();
    assert_eq!(wires, [7, 4, 5, 6]);
    assert_eq!((Pirqs::wire(4, 1), Pirqs::wire(31, 1), Pirqs::wire(31, 4)), (4, 0, 3));
    assert_eq!((Pirqs::gsi(0), Pirqs::gsi(7)), (16, 23));
}

#[test]
fn functions_share_a_wire_and_wires_an_input() {
    let board = Board::new();
    let redirect = |pin: u64, low: u64| {
        board.ioapic.mmio_write(0, 4, 0x10 + 2 * pin);
        board.ioapic.mmio_write(0x10, 4, low);
    };
    let [a, b, c] = [(3, 0), (7, 0), (4, 0)]
        .map(|(device, function)| board.add(DeviceFunction::new(device, function), |f| f.intx()));
    // Devices 3 and 7 are on PIRQH, pin 23; device 4 is on PIRQE, pin 20.
    redirect(23, 0x8000 | 0x51);
    a.set_intx(true);
    b.set_intx(true);
    assert_eq!(board.messages.take(), [(0xfee0_0000, 0xc051)]);
    a.set_intx(false);
    board.ioapic.eoi(0x51);
    assert_eq!(board.messages.take().len(), 1, "the other still asserts it");
    b.set_intx(false);
    board.ioapic.eoi(0x51);
    assert_eq!(board.messages.take(), []);

    // To the 8259 pair only as routed.
    a.set_intx(true);
    c.set_intx(true);
    assert!(board.pic.iter().all(|line| !line.level()));
    board.lpc.config_write(lpc::PIRQ_ROUT_EH + 3, 1, 11);
    assert!(board.pic[11].level(), "an asserted wire, routed now");
    board.lpc.config_write(lpc::PIRQ_ROUT_EH, 1, 11);
    a.set_intx(false);
    assert!(board.pic[11].level(), "the other wire is routed there, too");
    board.lpc.config_write(lpc::PIRQ_ROUT_EH, 1, 10);
    assert!(!board.pic[11].level() && board.pic[10].level());
    for reserved in [0, 1, 2, 8, 13, 0x8a] {
        board.lpc.config_write(lpc::PIRQ_ROUT_EH, 1, reserved);
        assert!(board.pic.iter().all(|line| !line.level()), "{reserved:#x}");
    }
}

/// PCI 3.0, 6.2.2 and 6.2.3.
#[test]
fn intx_is_disabled_and_dropped() {
    let board = Board::new();
    let (function, _) = with_vectors(&board, 2);
    board.lpc.config_write(lpc::PIRQ_ROUT_EH + 3, 1, 10);
    let level = || board.pic[10].level();
    let status = || function.config_read(reg::STATUS, 2) & 8 != 0;
    assert!(!function.notify(0), "MSI-X is off: INTx is to be used");
    function.set_intx(true);
    assert!(level() && status());
    assert_eq!(function.config_read(0x04, 4) >> 16 & 8, 8, "as a part of a dword");
    function.config_write(reg::COMMAND, 2, command::INTX_DISABLE.into());
    assert!(!level() && status(), "asked for, but disabled");
    function.config_write(reg::COMMAND, 2, 0);
    assert!(level());
    function.config_write(CONTROL, 2, ON);
    assert!(!level(), "MSI-X takes its place");
    function.config_write(CONTROL, 2, 0);
    assert!(level());
    state::StateUnit::reset(&*function);
    assert!(!level() && !status());
}

/// 6.8.2.
#[test]
fn vectors_start_masked_and_fire_when_they_may() {
    let board = Board::new();
    let (function, msix) = with_vectors(&board, 3);
    let pending = || msix.mmio_read(0x800, 8);
    msix.notify(0);
    assert_eq!(pending(), 0, "MSI-X is off");
    function.config_write(CONTROL, 2, ON);
    assert_eq!(msix.mmio_read(12, 4), 1, "masked");
    assert!(function.notify(0) && function.notify(2));
    assert_eq!((board.messages.take(), pending()), (vec![], 0b101));
    msix.mmio_write(12, 4, 0);
    assert_eq!((board.messages.take(), pending()), (vec![(0xfee0_0000, 0x40)], 0b100));
    function.notify(0);
    assert_eq!(board.messages.take(), [(0xfee0_0000, 0x40)], "at once");
    // The function's mask is over that of the vectors.
    function.config_write(CONTROL, 2, ON | MASK_ALL);
    function.notify(0);
    function.notify(0);
    msix.mmio_write(2 * 16 + 8, 8, 0x77);
    assert_eq!((board.messages.take(), pending()), (vec![], 0b101));
    function.config_write(CONTROL, 2, ON);
    assert_eq!(board.messages.take(), [(0xfee0_0000, 0x40), (0xfee0_2000, 0x77)], "each once");
    // Not a bus master: it cannot write messages.
    function.config_write(reg::COMMAND, 2, 0);
    function.notify(2);
    assert_eq!((board.messages.take(), pending()), (vec![], 0b100));
    function.config_write(reg::COMMAND, 2, command::BUS_MASTER.into());
    assert_eq!(board.messages.take(), [(0xfee0_2000, 0x77)]);
    // Vectors that are not there.
    msix.notify(3);
    msix.notify(0xffff);
    msix.mmio_write(16 * 3, 4, 5);
    assert_eq!((msix.mmio_read(16 * 3, 4), pending(), board.messages.take()), (0, 0, vec![]));
}

#[test]
fn the_table_takes_dwords_and_qwords_and_pending_bits_are_read_only() {
    let board = Board::new();
    let (function, msix) = with_vectors(&board, 2048);
    function.config_write(CONTROL, 2, ON);
    assert_eq!(function.config_read(CONTROL, 2), ON | 2047);
    msix.mmio_write(0, 4, 0xfee0_1007);
    assert_eq!(msix.mmio_read(0, 8), 0xfee0_1004, "two bits are zero");
    msix.mmio_write(0, 8, 0x1_fee0_2000);
    assert_eq!((msix.mmio_read(4, 4), msix.mmio_read(0, 4)), (1, 0xfee0_2000));
    for (offset, size) in [(0, 1), (0, 2), (2, 4), (4, 8)] {
        msix.mmio_write(offset, size, 0);
        assert_eq!(msix.mmio_read(offset, size), u64::MAX);
    }
    assert_eq!(msix.mmio_read(0, 8), 0x1_fee0_2000);
    function.notify(2047);
    assert_eq!(msix.mmio_read(0x8000 + 2047 / 8 / 8 * 8, 8), 1 << 63);
    msix.mmio_write(0x80f8, 8, 0);
    assert_eq!(msix.mmio_read(0x80f8, 8), 1 << 63);
    assert_eq!(msix.mmio_read(0x8100, 8), 0);
}

#[test]
fn what_is_pending_is_restored_and_fires() {
    let one = Board::new();
    let (function, _) = with_vectors(&one, 2);
    function.config_write(CONTROL, 2, ON);
    function.notify(1);
    let section = state::StateUnit::save(&*function);
    let two = Board::new();
    let copy = two.add(AT, |f| f.msix(0, 2).intx());
    state::StateUnit::restore(&*copy, &section).unwrap();
    assert_eq!(two.messages.take(), [], "masked still");
    copy.msix().unwrap().mmio_write(16 + 12, 4, 0);
    assert_eq!(two.messages.take(), [(0xfee0_1000, 0x41)]);
    let other = two.add(DeviceFunction::new(5, 0), |f| f.msix(0, 3));
    let refused = state::StateUnit::restore(&*other, &section).unwrap_err().to_string();
    assert!(refused.starts_with("config is 0x1 at 0x"), "{refused}");
}
