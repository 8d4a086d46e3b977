//! Guest RAM as a state unit: its section says how memory is laid out; the contents are kept apart, in a file of their own.

use std::sync::Arc;

use accel_api::GuestRam;
use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, Section, StateUnit, check};

/// The unit of a machine's RAM and ROM.
#[derive(Debug)]
pub(crate) struct RamUnit(Arc<GuestRam>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRam {
    /// Guest-physical address and bytes of each region, in the order of the contents.
    regions: Vec<(u64, u64)>,
}

impl Saved for SavedRam {
    const VERSION: u32 = 1;
}

impl RamUnit {
    pub(crate) fn new(ram: Arc<GuestRam>) -> Arc<Self> {
        Arc::new(Self(ram))
    }

    fn regions(&self) -> Vec<(u64, u64)> {
        self.0.regions().iter().map(|region| (region.gpa(), region.size())).collect()
    }
}

impl StateUnit for RamUnit {
    fn name(&self) -> &str {
        "ram"
    }

    fn save(&self) -> Section {
        Section::of(&SavedRam { regions: self.regions() })
    }

    /// Compares: regions are made when a machine is built.
    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let SavedRam { regions } = section.open()?;
        let own = self.regions();
        check(
            regions == own,
            "regions",
            format_args!("{regions:x?}"),
            format_args!("{own:x?}, as in this machine"),
        )
    }

    /// All zero, and of no cost to the host again.
    fn reset(&self) {
        self.0.clear();
    }
}
