//! x87, MMX and the instructions that save and restore vector state.
//!
//! 1. `stack.rs` manages the register stack in Rust: TOP, tags, stack faults, and how the status word takes up what an
//!    operation raised. `host.rs` computes: one instruction on the host's own x87 unit under the guest's control word.
//! 2. `transfer.rs`, `arith.rs`, `math.rs` and `control.rs` are the x87 instructions by family.
//! 3. `mmx.rs` has the arithmetic on MMX registers, `mixed.rs` moves, and the instructions that also name
//!    an XMM or general register.
//! 4. `image.rs` and `xsave.rs` move state to and from memory, `mxcsr.rs` knows where MXCSR is.

mod arith;
mod control;
mod host;
mod image;
mod math;
mod mixed;
mod mmx;
mod stack;
#[cfg(test)]
mod tests;
mod transfer;
mod xsave;

pub(super) fn register(table: &mut super::Table) {
    transfer::register(table);
    arith::register(table);
    math::register(table);
    control::register(table);
    mmx::register(table);
    mixed::register(table);
    image::register(table);
    xsave::register(table);
}
