//! Single instructions, translated, against the host's processor.

use testkit::oracle::case::CodeSize;

#[test]
fn instructions_do_what_the_processor_does() {
    // Code of other sizes is interpreted.
    testkit::oracle::suite::<accel_dynasm::Dispatcher>("jit", Some(CodeSize::Bits64), 100_000);
}
