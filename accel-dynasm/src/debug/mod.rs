//! What looks at translated code from outside: comparison with single instructions, listings, perf, and bugs on purpose.

pub(crate) mod divergence;
pub(crate) mod injected_bug;
pub(crate) mod jitdump;
pub(crate) mod listing;
pub(crate) mod lockstep;
pub(crate) mod perf_map;
