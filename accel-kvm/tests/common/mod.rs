//! What the tests of the backend share.

use std::sync::Arc;

use accel_api::Accelerator;

/// KVM, where it has hardware behind it; else says by the test's name that it is skipped, which with
/// `GEARSHIFT_KVM=required` is a failure.
pub(crate) fn hardware_kvm(test: &str) -> Option<Arc<dyn Accelerator>> {
    match accel_kvm::create() {
        Ok(accel) if testkit::processor::has_virtualisation() => Some(accel),
        other => {
            let required = std::env::var("GEARSHIFT_KVM").is_ok_and(|value| value == "required");
            assert!(!required, "no KVM with hardware behind it: {other:?}");
            testkit::skip(test, "no hardware KVM here");
            None
        }
    }
}
