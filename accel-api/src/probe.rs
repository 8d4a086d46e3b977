//! What a backend says of itself on this host, before anything is made.

/// Outcome of probing a backend.
#[derive(Clone, PartialEq, Debug)]
pub enum Probe {
    /// It works here.
    Available {
        /// How it ranks.
        quality: Quality,
        /// One line for the user: provider, measured costs.
        detail: String,
    },
    /// This host does not have what it needs.
    Absent {
        /// What is missing.
        reason: String,
        /// What the user can do about it, if anything.
        remedy: Option<String>,
    },
    /// What it needs is there and does not work.
    Broken(String),
}

/// Rank of a backend on this host; the best is the greatest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Quality {
    /// Works, far slower than software would be (for example KVM whose provider emulates ring 0).
    Degraded,
    /// Interprets.
    Interpreted,
    /// Translates.
    Translated,
    /// Runs on the hardware.
    Hardware,
}
