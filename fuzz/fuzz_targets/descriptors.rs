//! Descriptor tables and task states at the ends of RAM, in devices, wrapping.
//!
//! `cargo +nightly fuzz run descriptors`
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use testkit::hostile::fuzz::{Bench, TARGETS};

thread_local! {
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| {
    let target = TARGETS.iter().find(|target| target.name == "descriptors").expect("a target of this name");
    BENCH.with_borrow_mut(|bench| {
        let bench = bench.get_or_insert_with(|| {
            Bench::new(&accel_interp::create().expect("the interpreter runs everywhere"))
        });
        bench.run(target, data);
    });
});
