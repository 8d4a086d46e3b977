//! Any bytes as a kernel: the loader must take or refuse them, never panic, hang or leave the guest's RAM.
//!
//! `cargo +nightly fuzz run kernel_loader`
#![no_main]

use std::cell::OnceCell;

use accel_api::GuestRam;
use libfuzzer_sys::fuzz_target;
use machine::Source;
use machine::boot::{self, BootSpec};
use machine::memory_map::{ACPI_AREA, MIB, MemoryMap};

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
        let spec = BootSpec { kernel: &kernel, initrd: Some(&initrd), cmdline: "quiet", rsdp: ACPI_AREA };
        if let Ok(state) = boot::load(ram, map, &spec) {
            assert!(state.rip < 1 << 32, "the entry is in what the page tables map");
        }
    });
});
