//! The interpreter backend.

use std::sync::Arc;

use accel_api::{AccelError, Accelerator, Probe};

/// Whether the interpreter works here.
pub fn probe() -> Probe {
    Probe::Absent { reason: "this build has no interpreter".into(), remedy: None }
}

/// Makes the backend.
///
/// # Errors
/// This build has none.
pub fn create() -> Result<Arc<dyn Accelerator>, AccelError> {
    Err(AccelError::Host { what: "interpreter", source: std::io::ErrorKind::Unsupported.into() })
}
