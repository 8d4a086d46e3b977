//! Random guests against the interpreter, for HOSTILE_SECONDS (15 unless told), from HOSTILE_SEED.

#[test]
fn random_guests_do_no_harm() {
    testkit::hostile::suite(&accel_interp::create().expect("the interpreter runs everywhere"));
}
