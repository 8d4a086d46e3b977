//! The way to a back end for callers that are not asynchronous: devices.

use super::backend::{BlockBackend, BlockRequest};
use std::io;
use std::sync::Arc;

/// Submits `batch` on [`crate::runtime`] and returns at once; `done` gets the batch with its results, on a thread of the
/// runtime, and must not block. `done` is not called where the process ends first.
///
/// # Errors
/// There is no runtime; nothing was submitted.
pub fn dispatch(
    backend: &Arc<dyn BlockBackend>,
    mut batch: Vec<BlockRequest>,
    done: impl FnOnce(Vec<BlockRequest>) + Send + 'static,
) -> io::Result<()> {
    let backend = Arc::clone(backend);
    crate::runtime()?.spawn(async move {
        backend.submit(&mut batch).await;
        done(batch);
    });
    Ok(())
}
