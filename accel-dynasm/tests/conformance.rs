//! The suite every backend passes, on the JIT.

testkit::conformance!(jit, |_: &str| accel_dynasm::create().map_err(|e| e.to_string()));
