//! The suite every backend passes, on the translator.

testkit::conformance!(jit, |_: &str| accel_dynasm::create().map_err(|e| e.to_string()));
