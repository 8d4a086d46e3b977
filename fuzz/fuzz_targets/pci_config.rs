//! Any configuration accesses to a bus with functions of all kinds: they are taken, and no address has two owners.
//!
//! `cargo +nightly fuzz run pci_config`
#![no_main]

use std::sync::Arc;

use devices::MmioDevice;
use devices::bus::{MmioBus, PioBus};
use devices::pci::{
    BarKind, DecodeSpace, DeviceFunction, Ecam, Function, Identity, PciRoot, PciSlot, host_bridge, lpc,
};
use gearshift_fuzz::Nobody;
use libfuzzer_sys::fuzz_target;
use state::StateUnit;

/// Reads as its offsets.
#[derive(Debug)]
struct Offsets;

impl MmioDevice for Offsets {
    fn mmio_read(&self, offset: u64, _: u8) -> u64 {
        offset
    }
    fn mmio_write(&self, _: u64, _: u8, _: u64) {}
}

const RAM_END: u64 = 0x8000_0000;

fuzz_target!(|data: &[u8]| {
    let (mmio, pio) = (Arc::new(MmioBus::new()), Arc::new(PioBus::new()));
    let decode = DecodeSpace::new(mmio.clone(), pio.clone(), vec![0..RAM_END]);
    let pirqs = gearshift_fuzz::pirqs();
    let root = PciRoot::new();
    let slot = |at| PciSlot::new(at, decode.clone(), pirqs.clone(), Arc::new(Nobody));
    let bridge =
        host_bridge::new(&slot(host_bridge::HOST_BRIDGE), Ecam::new(root.clone())).expect("a bridge");
    let isa = lpc::new(&slot(lpc::LPC), Arc::new(Offsets), 12).expect("a bridge");
    root.add(host_bridge::HOST_BRIDGE, bridge.clone()).expect("its place");
    root.add(lpc::LPC, isa.clone()).expect("its place");
    pio.add_exact(0xcf8, 4, root.clone()).expect("free").add(0xcfc, 4, root.clone()).expect("free");
    let identity =
        Identity { vendor: 1, device: 2, revision: 3, class: 4, subsystem_vendor: 5, subsystem: 6 };
    let functions: Vec<_> = (1..4)
        .map(|n| {
            let at = DeviceFunction::new(n, 0);
            let function = Function::builder(format!("f{n}"), &identity)
                .bar(0, BarKind::Memory32, 0x1000 << n)
                .bar(1, BarKind::Io, 4 << n)
                .bar(2, BarKind::Memory64 { prefetchable: true }, 1 << (28 + n))
                .msix(4, 5)
                .intx()
                .build(&slot(at))
                .expect("a function");
            for bar in 0..3 {
                assert!(function.connect(bar, Arc::new(Offsets)));
            }
            root.add(at, function.clone()).expect("its place");
            function
        })
        .collect();

    for access in data.chunks_exact(9) {
        let &[what, a, b, c, d, v0, v1, v2, v3] = access else { return };
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        let at = DeviceFunction::from_bits([0, 8, 16, 24, 0xf8, c][usize::from(a) % 6]);
        let size = [1, 2, 4][usize::from(b) % 3];
        let function = &functions[usize::from(a) % 3];
        match what % 8 {
            0 => pio.write(0xcf8, 4, value, &Arc::default()),
            1 => pio.write(0xcfc + u16::from(b % 4), size, value, &Arc::default()),
            2 => drop(pio.read(0xcfc + u16::from(b % 4), size)),
            3 => mmio.write(
                0xe000_0000 + u64::from(value >> 8),
                1 << (b % 4),
                (value << 3).into(),
                &Arc::default(),
            ),
            4 => drop(mmio.read(0xe000_0000 + u64::from(value >> 8), 1 << (b % 4))),
            5 => function.set_intx(b & 1 != 0),
            6 => drop(function.notify(u16::from(b % 8))),
            _ => root.config_write(0, at, u16::from(d), size, value),
        }
        let mut places = Vec::new();
        for function in &functions {
            for bar in function.bars() {
                if let Some((start, len)) = function.mapped(bar.index) {
                    let ports = bar.kind == BarKind::Io;
                    assert!(ports || start >= RAM_END, "a BAR over RAM");
                    places.push((ports, start, start + len));
                }
            }
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            assert!(pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1, "two owners: {pair:x?}");
        }
    }
    for unit in functions.iter().chain([&bridge, &isa]) {
        let saved = unit.save();
        unit.restore(&saved).expect("what a function has saved, it takes");
        assert_eq!(unit.save(), saved);
        unit.reset();
    }
});
