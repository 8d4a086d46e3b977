//! The ways between Rust and host code: entry, exits, changes of privilege, and the host's exceptions.

pub(crate) mod signals;
pub(crate) mod stubs;
pub(crate) mod transfer;
