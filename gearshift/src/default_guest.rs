//! What is booted when no kernel is named.
//!
//! Debian's kernel and a busybox shell, from the cache or through the host's apt. A host that cannot have it (no
//! network, no apt, no such package) gets the guest that is built in. A cache that cannot be written or a package that
//! is damaged is an error: the user can do something about it.

use guests::debian::{self, FetchError, Flavour};
use guests::embedded;
use machine::Source;

use crate::failure::Failure;
use crate::stdio::say;

/// What to boot.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) kernel: Source,
    pub(crate) initrd: Option<Source>,
    /// It is a Linux kernel.
    pub(crate) linux: bool,
}

/// The default guest. `built_in_will_do`: no file of the user's is meant for Debian's kernel.
///
/// # Errors
/// See the module's description.
pub(crate) fn obtain(offline: bool, built_in_will_do: bool) -> Result<Guest, Failure> {
    let result = match debian::cached(Flavour::Cloud) {
        Some(guest) => Ok(guest),
        None if offline => {
            Err(FetchError::Network("told to stay offline, and the cache has no guest".into()))
        }
        None => {
            say(
                "fetching the default guest, Debian's cloud kernel and busybox, once, through this host's apt",
            );
            debian::fetch(Flavour::Cloud, &mut |line| say(line))
        }
    };
    match result {
        Ok(guest) => Ok(Guest {
            name: format!("Debian's {}", guest.version),
            kernel: guest.kernel.into(),
            initrd: Some(guest.initrd.into()),
            linux: true,
        }),
        Err(error) if built_in_will_do && out_of_reach(&error) => {
            say(format_args!("no Debian guest ({error}): booting the small built-in guest instead"));
            Ok(Guest {
                name: "the built-in guest".into(),
                kernel: Source::bytes("the built-in guest", embedded::ELF),
                initrd: None,
                linux: false,
            })
        }
        Err(error) => Err(error.into()),
    }
}

/// This host cannot have the guest now, and nothing is wrong with it.
fn out_of_reach(error: &FetchError) -> bool {
    matches!(
        error,
        FetchError::NoTool(_) | FetchError::Network(_) | FetchError::NoPackage(_) | FetchError::Apt(_)
    )
}
