//! State units: save, restore and reset of everything in a machine that has state.
//!
//! 1. A [`StateUnit`] is a device, the clock, the interrupt cell, RAM: whatever a guest can find changed. A machine hands out
//!    the list of its units ([`Units`]), and reset, snapshot, switch and migration are short walks over that list.
//! 2. A unit is saved as a [`Section`]: a version and a body. The body is a *saved type* of the unit as JSON, apart from the
//!    type that the unit runs on, so that the unit may change while old sections stay readable.
//! 3. A section is untrusted: it may be damaged, from another version, or made by somebody. A unit that cannot take one refuses
//!    it with a [`RestoreError`] that names field and value, and is as it was before; it never mends a value silently.
//! 4. The order of the list is the order of restore and reset: a controller comes before the devices that drive its inputs.

mod section;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod units;

pub use section::{MAX_BODY, RestoreError, Saved, Section, check};
pub use units::{UnitError, Units};

use std::fmt::Debug;

/// Something with state.
///
/// `save` and `restore` are called while the machine is paused or was never started: no vCPU runs and no timer expires.
/// `reset` likewise.
pub trait StateUnit: Send + Sync + Debug {
    /// The name of its section, the same in every machine of this shape: `pic`, `uart0`.
    fn name(&self) -> &str;

    /// All that the guest can observe. Times in it are nanoseconds or ticks of VM time. Does not change the unit.
    fn save(&self) -> Section;

    /// Takes over what [`save`](Self::save) gave, here or in another process, and drives the unit's outputs accordingly.
    ///
    /// # Errors
    /// The section is damaged, from a version that cannot be read, or holds a value that no unit can have. The unit is unchanged.
    fn restore(&self, section: &Section) -> Result<(), RestoreError>;

    /// Platform reset: what the RESET pin does. Outputs are driven to their reset level. What a battery or the user holds stays.
    fn reset(&self);

    /// Finishes work that is under way on other threads, and begins none until [`release`](Self::release). Nothing of the unit
    /// changes by itself when this returns.
    fn quiesce(&self) {}

    /// Ends [`quiesce`](Self::quiesce).
    fn release(&self) {}
}
