//! Single instructions, by the interpreter's blocks, against the host's processor.

#[test]
fn instructions_do_what_the_processor_does() {
    testkit::oracle::suite::<accel_interp::Engine>("interp", None, 100_000);
}
