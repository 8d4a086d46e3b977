//! What the devices are saved as: the format of their sections.
//!
//! These types are apart from those that the devices run on. A change of a field here is a new version of its section
//! ([`state::Saved::VERSION`]), and what older versions said is read by [`state::Saved::upgrade`]. The conversions take both
//! types apart without `..`, so that a new field does not compile until it is handled, and refuse what no device can have.

pub(crate) mod acpi_pm;
pub(crate) mod balloon;
pub(crate) mod dma_page;
pub(crate) mod i8042;
pub(crate) mod ioapic;
pub(crate) mod output;
pub(crate) mod pci;
pub(crate) mod pic;
pub(crate) mod pit;
pub(crate) mod rtc;
pub(crate) mod uart;
pub(crate) mod virtio;
pub(crate) mod watchdog;
