//! What is x86's of the seam: the state of a vCPU and the model of its processor.
//!
//! The traits beside this module speak of *a* state ([`CpuState`]) and *a* model ([`CpuModel`]), which they take from here,
//! because there is no guest of another architecture yet. One that comes has a module of its own beside this one; RAM, page
//! flags, kicks, exits, errors and the host's time know no architecture.
//!
//! 1. [`CpuState`] and its parts: what backends exchange.
//! 2. [`CpuModel`]: [`CpuFeatures`], the [`Signature`] they allow, what is told of [`Speculation`]; CPUID follows from it.
//! 3. MSRs that only hold a value are [`Msrs`]' own, the same on every backend.

mod cpuid;
mod features;
mod lapic_state;
mod model;
mod msr;
mod signature;
mod speculation;
mod state;

pub use cpuid::*;
pub use features::*;
pub use lapic_state::*;
pub use model::*;
pub use signature::*;
pub use speculation::*;
pub use state::*;
