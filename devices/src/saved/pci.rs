//! Saved types of PCI: the root and what every function has.

use serde::{Deserialize, Serialize};
use state::Saved;

use crate::pci::SavedVector;

/// The configuration space of a function, the level of its INTx, its vectors. The function checks them: what it may hold is its
/// own to know ([`crate::pci::Function`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedFunction {
    /// 64 dwords.
    pub(crate) config: Vec<u32>,
    pub(crate) intx: bool,
    pub(crate) msix: Option<Vec<SavedVector>>,
}

impl Saved for SavedFunction {
    const VERSION: u32 = 1;
}

/// The root bus.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPciRoot {
    /// The address register of mechanism 1.
    pub(crate) address: u32,
}

impl Saved for SavedPciRoot {
    const VERSION: u32 = 1;
}
