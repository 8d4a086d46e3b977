//! The KVM accelerator: the guest's instructions run on the processor itself, through /dev/kvm.

use accel_api::AccelId;

/// The name users choose it by.
pub const ID: AccelId = AccelId("kvm");
