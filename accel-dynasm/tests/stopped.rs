//! The guest's time while the process is stopped, alone in its process.

#[test]
fn a_stop_costs_the_guest_one_lease() {
    let accel = accel_dynasm::create().expect("this host lets us translate");
    testkit::stopped::a_stop_costs_the_guest_one_lease(&accel);
}
