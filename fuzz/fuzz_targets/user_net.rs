//! A guest that sends any frames to the user network, and a host that answers at any time: nothing may panic, what comes out
//! is well-formed, and no table exceeds its limit.
//!
//! `cargo +nightly fuzz run user_net`
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

#[path = "../../backends/user-net/tests/common/script.rs"]
mod script;

thread_local! {
    static HOST: RefCell<script::Host> = RefCell::new(script::Host::new());
}

fuzz_target!(|bytes: &[u8]| {
    HOST.with(|host| script::run(&mut host.borrow_mut(), bytes));
});
