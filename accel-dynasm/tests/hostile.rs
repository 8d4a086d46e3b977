//! Random guests against the JIT, for HOSTILE_SECONDS (15 unless told), from HOSTILE_SEED.

#[test]
fn random_guests_do_no_harm() {
    testkit::hostile::suite(&accel_dynasm::create().expect("this host lets us translate"));
}
