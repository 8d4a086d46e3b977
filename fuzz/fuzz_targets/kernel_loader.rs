//! Any bytes as a kernel: the loader must take or refuse them, never panic, hang or leave the guest's RAM; what it hands to
//! a kernel must not lie in the kernel's segments.
//!
//! `cargo +nightly fuzz run kernel_loader`
#![no_main]

use std::cell::OnceCell;

use accel_api::GuestRam;
use accel_api::x86::gpr;
use libfuzzer_sys::fuzz_target;
use machine::Source;
use machine::boot::{self, BootSpec};
use machine::memory_map::{ACPI_AREA, MIB, MemoryMap};
use vm_memory::{Bytes, GuestAddress};

/// Longer than Linux takes.
const LONG: &str = match std::str::from_utf8(&[b'x'; 3000]) {
    Ok(text) => text,
    Err(_) => "",
};

thread_local! {
    static MACHINE: OnceCell<(MemoryMap, GuestRam)> = const { OnceCell::new() };
}

fuzz_target!(|image: &[u8]| {
    MACHINE.with(|machine| {
        let (map, ram) = machine.get_or_init(|| {
            let map = MemoryMap::new(32 * MIB).expect("a size that can be");
            let ram = GuestRam::new(&map.ram_regions()).expect("32 MiB");
            (map, ram)
        });
        let kernel = Source::bytes("fuzz", image.to_vec());
        let initrd = Source::bytes("initrd", vec![0; 5000]);
        // A long line makes the loader look for Linux's banner.
        let cmdline = if image.len() % 2 == 0 { "quiet" } else { LONG };
        let spec = BootSpec {
            kernel: &kernel,
            initrd: Some(&initrd),
            cmdline,
            rsdp: ACPI_AREA,
            seed: Some([7; 32]),
            tsc_khz: Some(1),
        };
        if let Ok(state) = boot::load(ram, map, &spec) {
            assert!(state.rip < 1 << 32, "the entry is in what the page tables map");
            let (at, magic) = match state.gpr[gpr::RBX] {
                0 => (state.gpr[gpr::RSI] + 0x202, u32::from_le_bytes(*b"HdrS")),
                info => (info, 0x336e_c578),
            };
            let handed: u32 = ram.memory().read_obj(GuestAddress(at)).expect("RAM");
            assert_eq!(handed, magic, "what is handed over is there");
        }
    });
});
