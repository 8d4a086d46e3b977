//! The one tokio runtime of the process, for everything that back ends and the control plane do.

use std::io;
use std::sync::OnceLock;
use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that poll futures. Device work is short between awaits and the vCPUs need the processors.
const WORKERS: usize = 2;

/// Threads that may sit in a system call at once: one batch of one queue each.
const BLOCKING: usize = 32;

/// The runtime, started by the first call. It lives as long as the process.
///
/// # Errors
/// The host's error where it gave no threads; the same for all later calls.
pub fn runtime() -> io::Result<&'static Handle> {
    static RUNTIME: OnceLock<Result<Runtime, (io::ErrorKind, String)>> = OnceLock::new();
    let build = || {
        Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING)
            .thread_name("backend")
            .enable_all()
            .build()
            .map_err(|e| (e.kind(), e.to_string()))
    };
    match RUNTIME.get_or_init(build) {
        Ok(runtime) => Ok(runtime.handle()),
        Err((kind, text)) => {
            Err(io::Error::new(*kind, format!("cannot start the threads of back ends: {text}")))
        }
    }
}
