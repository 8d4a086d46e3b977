//! The interpreter accelerator: runs on every host, and is the reference for the others.
//!
//! 1. `lower.rs` decodes a run of guest instructions into a block of [`op::Op`]s; hot forms get handlers of their own
//!    (`handlers`), all others one that calls x86-core's function.
//! 2. `op.rs` is how one op passes control to the next without returning.
//! 3. `store.rs` keeps blocks by their place in RAM, `engine.rs` finds, links and drops them.
//! 4. Everything that is not executing instructions (interrupts, requests, sleeping, state) is x86-core's
//!    [`x86_core::soft`], shared with the translator.

mod engine;
mod handlers;
mod lower;
mod op;
mod store;
