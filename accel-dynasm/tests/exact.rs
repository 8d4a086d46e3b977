//! What exact backends have to do besides the conformance suite, on the translator.

testkit::exact!(jit, |_: &str| accel_dynasm::create().map_err(|e| e.to_string()));
