//! Skeleton.
pub mod lapic;
