//! What a device is plugged into on the host.
//!
//! A device (virtio-blk, virtio-net) knows its registers and queues and nothing of files or sockets; it holds an
//! `Arc<dyn BlockBackend>` or `Arc<dyn NetBackend>` of this crate. Four rules hold for both traits:
//!
//! 1. **One boxed future a batch.** `async-trait` boxes the future of each call, so a call takes all requests that the
//!    device found in its queue.
//! 2. **Bytes are owned.** Guest RAM changes under the host's feet and must never be a `&[u8]`; the device copies
//!    between guest memory and the buffers of requests, and marks the pages it wrote.
//! 3. **Failures go to the guest.** No call fails as a whole because of a request. A request carries its own result,
//!    the guest sees an I/O error, the host's log one line at a bounded rate.
//! 4. **Back ends do not know vCPUs.** Calls run on [`runtime()`]; whatever blocks does so in its pool of threads.

pub mod disk;
pub mod net;
mod rate;
mod runtime;
pub mod vsock;

pub use rate::Rate;
pub use runtime::runtime;
