//! The guest's time while the process is stopped, alone in its process.

#[test]
fn a_stop_costs_the_guest_one_lease() {
    let accel = accel_interp::create().expect("the interpreter runs everywhere");
    testkit::stopped::a_stop_costs_the_guest_one_lease(&accel);
}
