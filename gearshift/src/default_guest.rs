//! What is booted when no kernel is named.
//!
//! Debian's kernel and a busybox shell, from the cache or through the host's apt. A host that cannot have it (no
//! network, no apt, no such package) gets the guest that is built in. A cache that cannot be written or a package that
//! is damaged is an error: the user can do something about it.

use guests::debian::{self, DefaultGuest, FetchError, Flavour};
use guests::embedded;
use machine::Source;

use crate::exit_code::ExitCode;
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
    let reason = match debian::cached(Flavour::Cloud) {
        Some(guest) => return Ok(debians(guest)),
        None if offline => "told to stay offline, and the cache has none".to_owned(),
        None => {
            say(
                "fetching the default guest, Debian's cloud kernel and busybox, once, through this host's apt",
            );
            match debian::fetch(Flavour::Cloud, &mut |line| say(line)) {
                Ok(guest) => return Ok(debians(guest)),
                Err(error) if out_of_reach(&error) => error.to_string(),
                Err(error) => return Err(missing(&error)),
            }
        }
    };
    if !built_in_will_do {
        return Err(missing(&reason));
    }
    say(format_args!("no Debian guest ({reason}): booting the small built-in guest instead"));
    Ok(Guest {
        name: "the built-in guest".into(),
        kernel: Source::bytes("the built-in guest", embedded::ELF),
        initrd: None,
        linux: false,
    })
}

fn debians(guest: DefaultGuest) -> Guest {
    Guest {
        name: format!("Debian's {}", guest.version),
        kernel: guest.kernel.into(),
        initrd: Some(guest.initrd.into()),
        linux: true,
    }
}

fn missing(reason: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        ExitCode::Fetch,
        format!("the default guest cannot be obtained: {reason}; or name a kernel with --kernel"),
    )
}

/// This host cannot have the guest now, and nothing is wrong with it.
fn out_of_reach(error: &FetchError) -> bool {
    matches!(
        error,
        FetchError::NoTool(_) | FetchError::Network(_) | FetchError::NoPackage(_) | FetchError::Apt(_)
    )
}
