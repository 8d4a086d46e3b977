//! What exact backends have to do besides the conformance suite, on the interpreter.

testkit::exact!(interp, |_: &str| Ok(accel_interp::create().expect("the interpreter runs everywhere")));
