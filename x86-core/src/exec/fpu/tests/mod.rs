//! Against the host itself: the same instruction bytes run natively from an FXSAVE image and here.
//!
//! The native side may leave unmasked exceptions pending: nothing waits for them before FNINIT.
#![allow(unsafe_code)] // machine code is written to an executable page and called

mod control;
mod mmx;
mod native;
mod state;
mod x87;
