//! The guest's time while the process is stopped, alone in its process.

mod common;

use common::hardware_kvm;

#[test]
fn a_stop_costs_the_guest_one_lease() {
    let Some(accel) = hardware_kvm("time of a stopped process on KVM") else { return };
    testkit::stopped::a_stop_costs_the_guest_one_lease(&accel);
}
