//! The suite every backend passes, on the interpreter.

testkit::conformance!(interp, accel_interp::create().expect("the interpreter runs everywhere"));
