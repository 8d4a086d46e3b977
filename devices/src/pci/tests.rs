//! Configuration accesses, BARs, interrupts and bridges, as a guest sees them.

use std::sync::Arc;

use state::StateUnit;
use state::testing::UnitRig;

use super::testing::{Board, IDENTITY, RAM, Registers};
use super::*;
use crate::MmioDevice;
use crate::testing::Rng;
use crate::util::lock;

const AT: DeviceFunction = DeviceFunction::new(3, 0);
const WIDE: BarKind = BarKind::Memory64 { prefetchable: true };

fn bar0() -> (u16, u16) {
    (reg::BAR0, reg::BAR0 + 4)
}

/// A function with a 32-bit BAR of 4 KiB, a 64-bit one of 64 KiB and one of 32 ports.
fn three_bars(board: &Board) -> (Arc<Function>, [Arc<Registers>; 3]) {
    let function = board.add(AT, |f| {
        f.bar(0, BarKind::Memory32, 0x1000).bar(2, WIDE, 0x1_0000).bar(4, BarKind::Io, 32).intx()
    });
    let registers: [Arc<Registers>; 3] = Default::default();
    for (index, registers) in [0, 2, 4].into_iter().zip(&registers) {
        assert!(function.connect(index, registers.clone()) && !function.connect(index, registers.clone()));
    }
    assert!(!function.connect(1, registers[0].clone()), "no such BAR");
    (function, registers)
}

#[test]
fn mechanism_1_selects_by_a_dword_and_reaches_bytes() {
    let board = Board::new();
    assert_eq!(board.pio.read(0xcfc, 4), u32::MAX, "not enabled");
    board.outl(0xcf8, 0x8000_0003);
    assert_eq!(board.pio.read(0xcf8, 4), 0x8000_0000, "the lowest bits are zero");
    assert_eq!(board.pio.read(0xcfc, 4), 0x29c0_8086);
    assert_eq!((board.pio.read(0xcfd, 1), board.pio.read(0xcfe, 2)), (0x80, 0x29c0));
    assert_eq!(board.pio.read(0xcfd, 4), u32::MAX, "over the end");
    assert_eq!(board.pio.read(0xcf8, 2), 0xffff, "the register is a dword's");
    board.outl(0xcf8, 0x8000_f800);
    assert_eq!(board.pio.read(0xcfc, 4), 0x2918_8086);
    for nobody in [0x8000_f900, 0x8000_1800, 0x8001_0000, 0x80ff_f800, 0x0000_f800] {
        board.outl(0xcf8, nobody);
        board.outl(0xcfc, 0);
        assert_eq!((board.pio.read(0xcfc, 4), board.pio.read(0xcff, 1)), (u32::MAX, 0xff), "{nobody:#x}");
    }
    // The interrupt line is a byte that can be written alone.
    board.add(AT, |f| f);
    board.outl(0xcf8, 0x8000_183c);
    board.pio.write(0xcfc, 1, 11, &Arc::default());
    assert_eq!(board.pio.read(0xcfc, 4), 11);
}

#[test]
fn ecam_is_where_pciexbar_puts_it() {
    let board = Board::new();
    let set = |low, high| {
        board.bridge.config_write(host_bridge::PCIEXBAR, 4, low);
        board.bridge.config_write(host_bridge::PCIEXBAR + 4, 4, high);
    };
    assert_eq!(board.mmio.read(0xe000_0000, 4), 0xffff_ffff, "off after reset");
    assert_eq!(board.bridge.config_read(host_bridge::PCIEXBAR, 4), 0xe000_0000);
    set(0xe000_0001, 0);
    assert_eq!(board.mmio.read(0xe000_0000, 4), 0x29c0_8086);
    assert_eq!(board.mmio.read(0xe00f_8002, 2), 0x2918);
    assert_eq!(board.mmio.read(0xe00f_8000, 8), 0x0210_0007_2918_8086);
    assert_eq!(board.mmio.read(0xe00f_8100, 4), 0xffff_ffff, "256 bytes a function");
    assert_eq!(board.mmio.read(0xe00f_9000, 4), 0xffff_ffff, "nobody there");
    assert_eq!(board.mmio.read(0xe010_0000, 4), 0xffff_ffff, "no other bus");
    assert_eq!(board.mmio.read(0xefff_fffc, 4), 0xffff_ffff);
    board.poke(0xe000_0000 + u64::from(host_bridge::TOLUD), 2, 0xc00f);
    assert_eq!(board.bridge.config_read(host_bridge::TOLUD, 2), 0xc000, "written through the window");
    // 64 MiB above 4 GiB.
    set(0x0400_0005, 2);
    assert!(!board.mmio.contains(0xe000_0000));
    assert_eq!(board.mmio.read(0x2_0400_0000, 4), 0x29c0_8086);
    assert!(board.mmio.contains(0x2_07ff_ffff) && !board.mmio.contains(0x2_0800_0000));
    // Over RAM, of a reserved length, or off: nowhere.
    for (low, high) in [(0x0400_0005, 0), (0xe000_0007, 0), (0xe000_0000, 0)] {
        set(low, high);
        assert!(!board.mmio.contains(0xe000_0000) && !board.mmio.contains(0x0400_0000), "{low:#x}");
        assert_eq!(board.bridge.config_read(host_bridge::PCIEXBAR, 4), low);
    }
    set(0xe000_0001, 0);
    board.bridge.reset();
    assert!(!board.mmio.contains(0xe000_0000));
}

/// 82G33/P35 datasheet 5.1: what firmware looks at.
#[test]
fn the_host_bridge_holds_what_its_bits_can() {
    let board = Board::new();
    let bridge = &board.bridge;
    let probe = |at: u16, size: u8| {
        let before = bridge.config_read(at, size);
        bridge.config_write(at, size, u32::MAX);
        (before, bridge.config_read(at, size))
    };
    assert_eq!(probe(reg::COMMAND, 2), (0x0006, 0x0106));
    assert_eq!(probe(reg::STATUS, 2), (0x0090, 0x0090));
    assert_eq!(bridge.config_read(0x08, 4) >> 8, 0x06_0000);
    assert_eq!(probe(0x90, 4), (0, 0x3333_3330), "PAM");
    assert_eq!(probe(0x94, 4), (0x0000_0000, 0x8133_3333), "PAM, LAC");
    assert_eq!(probe(host_bridge::TOLUD, 2), (0x0010, 0xfff0));
    assert_eq!(probe(0x9e, 1), (0x38, 0xbf));
    assert_eq!(bridge.config_read(0x34, 1), 0xe0);
    assert_eq!(bridge.config_read(0xe0, 4), 0x0109_0009);
    // SMRAM: D_LCK closes and locks.
    bridge.reset();
    bridge.config_write(0x9d, 1, 0x48);
    assert_eq!(bridge.config_read(0x9d, 1), 0x4a);
    bridge.config_write(0x9d, 1, 0x58);
    assert_eq!(bridge.config_read(0x9d, 1), 0x1a, "D_OPEN is cleared");
    bridge.config_write(0x9d, 2, 0xff40);
    assert_eq!(bridge.config_read(0x9d, 2), 0x381a, "locked");
    bridge.reset();
    assert_eq!(bridge.config_read(0x9d, 2), 0x3802);
}

/// ICH9 datasheet 13.1.
#[test]
fn the_lpc_bridge_moves_the_acpi_registers() {
    let board = Board::new();
    let lpc = &board.lpc;
    assert_eq!(lpc.config_read(reg::HEADER_TYPE, 1), 0x80);
    assert_eq!((lpc.config_read(lpc::PMBASE, 4), lpc.config_read(0x60, 4)), (1, 0x8080_8080));
    lpc.config_write(lpc::PMBASE, 4, 0x0600);
    assert!(!board.pio.contains(0x600), "not enabled");
    lpc.config_write(lpc::ACPI_CNTL, 1, 0x80);
    assert_eq!((board.pio.read(0x608, 4), board.pio.read(0x60b, 1)), (8, 11));
    lpc.config_write(lpc::PMBASE, 4, 0xffff_b07f);
    assert_eq!(lpc.config_read(lpc::PMBASE, 4), 0xb001, "bits 15:7");
    assert!(!board.pio.contains(0x608));
    board.pio.write(0xb004, 2, 0x1234, &Arc::default());
    assert_eq!(*lock(&board.pm.0), [(4, 2, 0x1234)], "offsets from the base");
    lpc.config_write(lpc::PMBASE, 4, 0);
    assert!(!board.pio.contains(0) && !board.pio.contains(0xb004));
    lpc.config_write(0xf0, 4, 0xfed1_ffff);
    assert_eq!(lpc.config_read(0xf0, 4), 0xfed1_c001, "RCBA");
}

/// PCI 3.0, 6.2.5.1: a size is what all ones leave.
#[test]
fn bars_tell_their_size() {
    let board = Board::new();
    let (function, _) = three_bars(&board);
    function.config_write(reg::COMMAND, 2, 7);
    for ones in [0xffff_ffff, 0xffff_fff0, 0xffff_f000] {
        for n in 0..6 {
            function.config_write(reg::BAR0 + 4 * n, 4, ones);
        }
        let read: Vec<_> = (0..6).map(|n| function.config_read(reg::BAR0 + 4 * n, 4)).collect();
        let ports = if ones == 0xffff_f000 { 0xf001 } else { 0xffe1 };
        assert_eq!(read, [0xffff_f000, 0, 0xffff_000c, ones, ports, 0], "{ones:#x}");
        assert_eq!((function.mapped(0), function.mapped(2)), (None, None), "a probe is no place");
    }
    // Byte by byte, as hardware takes it.
    function.config_write(reg::BAR0 + 1, 1, 0x12);
    function.config_write(reg::BAR0 + 2, 2, 0xc034);
    assert_eq!(function.mapped(0), Some((0xc034_1000, 0x1000)));
    assert_eq!(function.config_read(0x30, 4), 0, "no expansion ROM");
}

#[test]
fn bars_answer_while_decode_is_on_and_move() {
    let board = Board::new();
    let (function, registers) = three_bars(&board);
    let (low, high) = bar0();
    function.config_write(low, 4, 0xc000_0000);
    function.config_write(high + 4, 4, 0x8000_0000);
    function.config_write(high + 8, 4, 0x10);
    function.config_write(reg::BAR0 + 16, 4, 0xc000);
    assert!(!board.mmio.contains(0xc000_0000) && !board.pio.contains(0xc000), "decode is off");
    function.config_write(reg::COMMAND, 2, u32::from(command::MEMORY));
    assert!(!board.pio.contains(0xc000));
    assert_eq!(board.mmio.read(0xc000_0ff8, 4), 0xff8);
    assert_eq!(board.mmio.read(0x10_8000_fff8, 8), 0xfff8);
    function.config_write(reg::COMMAND, 2, u32::from(command::MEMORY | command::IO));
    assert_eq!(board.pio.read(0xc01c, 4), 0x1c);
    board.pio.write(0xc010, 2, 7, &Arc::default());
    assert_eq!(*lock(&registers[2].0), [(0x10, 2, 7)]);
    function.config_write(low, 4, 0xd000_0000);
    assert!(!board.mmio.contains(0xc000_0000));
    assert_eq!(board.mmio.read(0xd000_0010, 4), 0x10);
    // Several are rewritten, then decode goes on: firmware does so.
    function.config_write(reg::COMMAND, 2, 0);
    function.config_write(low, 4, 0x9000_0000);
    function.config_write(high + 8, 4, 0);
    assert!(!board.mmio.contains(0xd000_0000));
    function.config_write(reg::COMMAND, 2, 2);
    assert_eq!(
        (function.mapped(0), function.mapped(2)),
        (Some((0x9000_0000, 0x1000)), Some((0x8000_0000, 0x1_0000)))
    );
    function.reset();
    assert_eq!((function.mapped(0), function.mapped(2), function.mapped(4)), (None, None, None));
    assert_eq!(function.config_read(low, 4), 0);
}

/// No address has two owners, and what is written stays written.
#[test]
fn a_place_that_is_taken_is_waited_for() {
    let board = Board::new();
    let (one, _) = three_bars(&board);
    let other = board.add(DeviceFunction::new(4, 0), |f| f.bar(0, BarKind::Memory32, 0x1000));
    assert!(other.connect(0, Arc::new(Registers::default())));
    let (low, _) = bar0();
    one.config_write(reg::COMMAND, 2, 3);
    other.config_write(reg::COMMAND, 2, 2);
    one.config_write(low, 4, 0xc000_0000);
    other.config_write(low, 4, 0xc000_0000);
    assert_eq!((one.mapped(0), other.mapped(0)), (Some((0xc000_0000, 0x1000)), None));
    assert_eq!(other.config_read(low, 4), 0xc000_0000);
    one.config_write(low, 4, 0xc100_0000);
    assert_eq!(other.mapped(0), Some((0xc000_0000, 0x1000)), "the place is free now");
    // RAM, and the end of it.
    other.config_write(low, 4, RAM.end as u32 - 0x1000);
    assert_eq!(other.mapped(0), None);
    other.config_write(low, 4, RAM.end as u32);
    assert_eq!(other.mapped(0), Some((RAM.end, 0x1000)));
    // The larger one lies over the smaller: it waits until the smaller goes.
    one.config_write(low + 8, 4, RAM.end as u32);
    one.config_write(low + 12, 4, 0);
    assert_eq!(one.mapped(2), None);
    other.config_write(reg::COMMAND, 2, 0);
    assert_eq!(one.mapped(2), Some((RAM.end, 0x1_0000)));
    // A fixed device of the machine is never pushed away.
    board
        .pio
        .add(0xc100, 8, Arc::new(decode::Ports { base: 0xc100, device: Arc::new(Registers::default()) }))
        .unwrap();
    one.config_write(low + 16, 4, 0xc100);
    assert_eq!(one.mapped(4), None);
    one.config_write(low + 16, 4, 0xc0e0);
    assert_eq!(one.mapped(4), Some((0xc0e0, 32)));
    // ECAM over a BAR and back.
    board.bridge.config_write(host_bridge::PCIEXBAR, 4, 0xc000_0001);
    assert_eq!(board.mmio.read(0xc100_0010, 4), 0x10, "the BAR was there first");
    assert!(!board.mmio.contains(0xc000_0000));
    one.config_write(low, 4, 0);
    assert_eq!(board.mmio.read(0xc000_0000, 4), 0x29c0_8086);
}

/// BARs go to and fro under accesses, on many threads: at most one answer, with the right offset.
#[test]
fn bars_move_under_accesses() {
    let board = Board::new();
    let (function, _) = three_bars(&board);
    function.config_write(reg::COMMAND, 2, 3);
    std::thread::scope(|scope| {
        for n in 0..2u32 {
            let (function, board) = (&function, &board);
            scope.spawn(move || {
                for i in 0..2000u32 {
                    function.config_write(reg::BAR0, 4, 0xc000_0000 + ((i + n) % 3) * 0x800_0000);
                    function.config_write(reg::BAR0 + 16, 4, 0xc000 + (i % 5) * 32);
                    function.config_write(reg::COMMAND, 2, i % 4);
                    board.bridge.config_write(host_bridge::PCIEXBAR, 4, 0xc000_0000 + i % 2);
                }
            });
        }
        for _ in 0..2000 {
            for at in [0xc000_0124, 0xc800_0124, 0xd000_0124] {
                let seen = board.mmio.read(at, 4);
                assert!(matches!(seen, 0x124 | 0xffff_ffff | 0), "{seen:#x}");
            }
            let seen = board.pio.read(0xc044, 4);
            assert!(matches!(seen, 4 | 0xffff_ffff), "{seen:#x}");
        }
    });
}

#[test]
fn capabilities_are_linked() {
    let board = Board::new();
    let function = board.add(AT, |f| {
        let f = f.config(|c| c.add_capability(0x09, &[16, 1, 2, 3, 0, 0], &[0, 0xf0]).map(drop)).unwrap();
        f.bar(0, BarKind::Memory32, 0x1000).msix(1, 3)
    });
    assert_eq!(function.config_read(reg::STATUS, 2), 0x10);
    assert_eq!(function.config_read(reg::CAPABILITIES, 1), 0x40);
    assert_eq!(function.config_read(0x40, 4), 0x0110_4809);
    function.config_write(0x40, 4, u32::MAX);
    assert_eq!(function.config_read(0x40, 4), 0xf110_4809, "one byte has writable bits");
    assert_eq!(function.config_read(0x48, 4), 0x0002_0011, "the last one; three vectors");
    assert_eq!((function.config_read(0x4c, 4), function.config_read(0x50, 4)), (1, 0x801));
    assert_eq!(function.config_read(0xfe, 4), 0xffff_0000, "beyond the end");
    let full = Function::builder("full", &IDENTITY)
        .config(|c| (0..100).try_for_each(|_| c.add_capability(9, &[0; 60], &[]).map(drop)));
    assert_eq!(full.unwrap_err(), PciError::Capabilities { id: 9, len: 62 });
}

#[test]
fn what_cannot_be_is_refused() {
    let board = Board::new();
    let build = |describe: fn(FunctionBuilder) -> FunctionBuilder| {
        describe(Function::builder("test", &IDENTITY))
            .build(&board.slot(AT))
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    type Describe = fn(FunctionBuilder) -> FunctionBuilder;
    let cases: [(Describe, &str); 6] = [
        (|f| f.bar(0, BarKind::Memory32, 0x1800), "power of two"),
        (|f| f.bar(0, BarKind::Io, 512), "4 to 256"),
        (|f| f.bar(5, WIDE, 0x1000), "six registers"),
        (|f| f.bar(0, WIDE, 0x1000).bar(1, BarKind::Io, 4), "another BAR"),
        (|f| f.msix(0, 0), "0 MSI-X vectors"),
        (|f| f.msix(0, 2049), "2049 MSI-X vectors"),
    ];
    for (describe, said) in cases {
        let error = build(describe);
        assert!(error.contains(said), "{error}");
    }
    board.add(AT, |f| f);
    let again = Function::builder("again", &IDENTITY).build(&board.slot(AT)).unwrap();
    assert_eq!(board.root.add(AT, again).unwrap_err(), PciError::Taken(AT));
    assert_eq!(board.root.free_place(), Ok(DeviceFunction::new(1, 0)));
    (1..31).filter(|&n| n != 3).for_each(|n| {
        board.add(DeviceFunction::new(n, 0), |f| f);
    });
    assert_eq!(board.root.free_place(), Err(PciError::Full));
}

/// 3.0, 6.2.1: bit 7 of the header type.
#[test]
fn a_device_with_two_functions_says_so() {
    let board = Board::new();
    board.add(AT, |f| f);
    assert_eq!(board.root.config_read(0, AT, reg::HEADER_TYPE, 1), 0);
    let second = DeviceFunction::new(3, 5);
    board.add(second, |f| f);
    assert_eq!(board.root.config_read(0, AT, reg::HEADER_TYPE, 1), 0x80);
    assert_eq!(board.root.config_read(0, AT, 0x0c, 4), 0x80_0000);
    assert_eq!(board.root.config_read(0, AT, 0x0c, 2), 0);
    assert_eq!(board.root.config_read(0, second, 0, 4), 0x1044_1af4);
    assert_eq!(board.root.config_read(0, DeviceFunction::new(3, 4), 0, 4), u32::MAX);
}

#[test]
fn memory_is_a_bus_masters() {
    let board = Board::new();
    let function = board.add(AT, |f| f);
    let dma = function.dma(Arc::new(accel_api::GuestRam::new(&[(0, 0x1000)]).unwrap()));
    assert!(dma.get().is_none());
    function.config_write(reg::COMMAND, 2, command::BUS_MASTER.into());
    assert!(dma.get().is_some());
    function.reset();
    assert!(dma.get().is_none());
}

/// A function with everything.
struct Whole {
    board: Board,
    function: Arc<Function>,
}

impl UnitRig for Whole {
    fn new() -> Self {
        let board = Board::new();
        let function =
            board.add(AT, |f| f.bar(0, BarKind::Memory32, 0x1000).bar(2, WIDE, 0x4000).msix(5, 4).intx());
        function.connect(0, Arc::new(Registers::default()));
        Self { board, function }
    }
    fn another(&self) -> Self {
        Self::new()
    }
    fn unit(&self) -> &dyn StateUnit {
        &*self.function
    }
    fn disturb(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        for _ in 0..100 {
            match rng.below(4) {
                0 => {
                    let msix = self.function.msix().unwrap();
                    msix.mmio_write(rng.below(16) * 4, 4, rng.next());
                    msix.notify(rng.below(5) as u16);
                }
                1 => self.function.set_intx(rng.below(2) == 0),
                _ => {
                    self.function.config_write(rng.below(260) as u16, rng.pick(&[1, 2, 4]), rng.next() as u32)
                }
            }
            self.board.messages.take();
        }
    }
}

state::unit_tests!(Whole);

/// The bridges and the root, whose outputs follow what is restored.
macro_rules! bridge_tests {
    ($name:ident, $unit:ident, $at:expr) => {
        mod $name {
            use super::*;

            struct Rig(Board);

            impl UnitRig for Rig {
                fn new() -> Self {
                    Self(Board::new())
                }
                fn another(&self) -> Self {
                    Self::new()
                }
                fn unit(&self) -> &dyn StateUnit {
                    &*self.0.$unit
                }
                fn disturb(&self, seed: u64) {
                    let mut rng = Rng::new(seed + 1);
                    for _ in 0..100 {
                        let at: DeviceFunction = $at;
                        let (offset, value) = (rng.below(256) as u16, rng.next() as u32);
                        self.0.root.config_write(0, at, offset, rng.pick(&[1, 2, 4]), value);
                        self.0.outl(0xcf8, value);
                    }
                }
            }

            state::unit_tests!(Rig);
        }
    };
}

bridge_tests!(host_bridge_unit, bridge, host_bridge::HOST_BRIDGE);
bridge_tests!(lpc_unit, lpc, lpc::LPC);
bridge_tests!(root_unit, root, host_bridge::HOST_BRIDGE);

#[test]
fn restored_functions_are_where_their_registers_say() {
    let (one, two) = (Whole::new(), Whole::new());
    one.function.config_write(reg::COMMAND, 2, 6);
    one.function.config_write(reg::BAR0, 4, 0xc000_0000);
    one.function.set_intx(true);
    two.function.restore(&one.function.save()).unwrap();
    assert_eq!(two.function.mapped(0), Some((0xc000_0000, 0x1000)));
    assert_eq!(two.board.mmio.read(0xc000_0010, 4), 0x10);
    assert_eq!(two.function.config_read(reg::STATUS, 1), 0x18, "it asks for an interrupt");
    board_moves(&one.board, &two.board);
}

fn board_moves(one: &Board, two: &Board) {
    one.bridge.config_write(host_bridge::PCIEXBAR, 4, 0xd000_0001);
    one.lpc.config_write(lpc::PMBASE, 2, 0x1000);
    one.lpc.config_write(lpc::ACPI_CNTL, 1, 0x80);
    two.bridge.restore(&one.bridge.save()).unwrap();
    two.lpc.restore(&one.lpc.save()).unwrap();
    assert_eq!(two.mmio.read(0xd000_0000, 4), 0x29c0_8086);
    assert_eq!(two.pio.read(0x1008, 4), 8);
}

/// Any access to any function is taken.
#[test]
fn random_accesses_do_no_harm() {
    for seed in 0..4 {
        let whole = Whole::new();
        let (board, mut rng) = (&whole.board, Rng::new(seed));
        for _ in 0..20_000 {
            let (size, value) = (rng.pick(&[1, 2, 4]), rng.next());
            match rng.below(6) {
                0 => board.outl(0xcf8, 0x8000_0000 | value as u32 & 0xfffc),
                1 => board.pio.write(0xcfc + rng.below(4) as u16, size, value as u32, &Arc::default()),
                2 => board.poke(0xe000_0000 + value % 0x20_0000, rng.pick(&[1, 2, 4, 8]), rng.next()),
                3 => drop(board.mmio.read(0xe000_0000 + value % 0x20_0000, rng.pick(&[1, 2, 4, 8]))),
                4 => board.bridge.config_write(host_bridge::PCIEXBAR, 4, 0xe000_0001),
                _ => board.root.config_write(0, AT, value as u16, size, rng.next() as u32),
            }
        }
    }
}
