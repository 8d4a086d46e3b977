//! What exact backends have to do besides the conformance suite, on the JIT.

testkit::exact!(jit, |_: &str| accel_dynasm::create().map_err(|e| e.to_string()));
