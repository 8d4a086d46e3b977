testkit::conformance!(kvm, accel_kvm::create().unwrap());
