//! The instruction oracle: random instructions with hostile operands on the host's processor and in the software CPU.
//!
//! 1. `select` says which instructions are tried and which are not, `encode` makes encodings of them, `generate` the
//!    registers and memory to go with them. Everything follows from a seed and the case's number.
//! 2. `native` runs a case on the host, `soft` in the software CPU: same addresses, same rights, same state.
//! 3. `compare` looks at everything that the manual defines; `known` holds the few differences that are expected, by
//!    processor (`generation`), and `verdict` says what one more means. The segments of both are in `segments`.
//! 4. `minimise` takes away the inputs that do not matter; [`run()`] puts it together and reports.
//! 5. `suite` makes a test of it for each backend that executes instructions itself.
//! 6. `coverage` lists what is tried, and what tests the rest.

pub mod case;
pub mod compare;
pub mod coverage;
mod encode;
pub mod generate;
pub mod generation;
mod known;
mod minimise;
pub mod native;
pub mod rng;
mod run;
pub mod segments;
pub mod select;
pub mod soft;
mod suite;
mod verdict;

pub use run::{Config, Finding, Report, run};
pub use suite::{settle, suite};
pub use verdict::{FINDING, Verdict};
