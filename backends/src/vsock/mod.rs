//! The host's side of virtio-vsock: Unix sockets, in the manner of Firecracker's hybrid vsock.
//!
//! 1. A program of the host connects to the socket [`VsockOptions::path`] and writes `CONNECT port\n`. If somebody in the guest
//!    listens there it reads `OK hostport\n`, and the stream is the connection; else it reads the end of the stream.
//! 2. A connection of the guest to port P of the host (CID 2) goes to the Unix socket `path_P`. Where nobody listens, it is refused.
//! 3. [`VsockHost`] has no thread: the device calls [`VsockHost::poll`] when [`VsockHost::events`] is readable, gives it the guest's
//!    packets and asks it for those to the guest.
//! 4. The guest is hostile. What it can have is bounded: connections, bytes on their way to a socket ([`BUFFER`] for each
//!    connection, which its credit says), refusals it has not read. A packet that cannot be ends its connection.

mod connection;
pub(crate) mod host;
mod options;
mod packet;
mod socket_file;
#[cfg(test)]
mod tests;

pub use connection::BUFFER;
pub use host::{MAX_CONNECTIONS, VsockError, VsockHost};
pub use options::VsockOptions;
pub use packet::{Header, MAX_DATA, Op};
pub use socket_file::SocketFile;
