//! Sources of the guests that the build script assembles. See `src/bare` for the machine they find.

pub mod embedded;
pub mod micro;
pub mod modes;
