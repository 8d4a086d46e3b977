//! The suite every backend passes, on the interpreter.

testkit::conformance!(interp, |_: &str| Ok(accel_interp::create().expect("the interpreter runs everywhere")));
