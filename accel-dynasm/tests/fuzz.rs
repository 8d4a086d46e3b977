//! The fuzz targets against the JIT: a fixed number of inputs under a fixed seed, or as
//! [`testkit::hostile::fuzz::suite`] is told.

#[test]
fn hostile_states_do_no_harm() {
    testkit::hostile::fuzz::suite(&accel_dynasm::create().expect("this host lets us translate"));
}
