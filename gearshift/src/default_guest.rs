//! What is booted when no kernel is named.
//!
//! Debian's kernel and a busybox shell, from the cache or through the host's apt. A host that cannot have it (no
//! network, no apt, no such package) gets the guest that is built in. A cache that cannot be written or a package that
//! is damaged is an error: the user can do something about it. So is a guest that was asked for by name and cannot be
//! had.

use std::borrow::Cow;

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
    /// What it is told unless the user says otherwise.
    pub(crate) cmdline: Cow<'static, str>,
}

/// For a Linux kernel: use the serial port, and reset at once on a panic.
pub(crate) const CMDLINE: &str = "console=ttyS0 panic=-1";
/// For one that tests every cipher it has at each boot, which takes an interpreter longer than all the rest.
const CMDLINE_NO_TESTS: &str = "console=ttyS0 panic=-1 cryptomgr.notests";

/// The guest of that name, or the default guest. `built_in_will_do`: no file of the user's is meant for Debian's kernel.
///
/// # Errors
/// See the module's description.
pub(crate) fn obtain(name: Option<Flavour>, offline: bool, built_in_will_do: bool) -> Result<Guest, Failure> {
    let flavour = name.unwrap_or(Flavour::Cloud);
    let reason = match debian::cached(flavour) {
        Some(guest) => return Ok(debians(flavour, guest)),
        None if offline => "told to stay offline, and the cache has none".to_owned(),
        None => {
            let kind = if name.is_none() { "default" } else { flavour.name() };
            say(format_args!(
                "fetching the {kind} guest, Debian's {} kernel and busybox, once, through this host's apt",
                flavour.name()
            ));
            match debian::fetch(flavour, &mut |line| say(line)) {
                Ok(guest) => return Ok(debians(flavour, guest)),
                Err(error) if out_of_reach(&error) => error.to_string(),
                Err(error) => return Err(missing(name, &error)),
            }
        }
    };
    if name.is_some() || !built_in_will_do {
        return Err(missing(name, &reason));
    }
    say(format_args!("no Debian guest ({reason}): booting the small built-in guest instead"));
    Ok(Guest {
        name: "the built-in guest".into(),
        kernel: Source::bytes("the built-in guest", embedded::ELF),
        initrd: None,
        cmdline: Cow::Borrowed(""),
    })
}

fn debians(flavour: Flavour, guest: DefaultGuest) -> Guest {
    Guest {
        name: format!("Debian's {}", guest.version),
        kernel: guest.kernel.into(),
        initrd: Some(guest.initrd.into()),
        cmdline: Cow::Borrowed(if flavour == Flavour::Cloud { CMDLINE } else { CMDLINE_NO_TESTS }),
    }
}

fn missing(name: Option<Flavour>, reason: &dyn std::fmt::Display) -> Failure {
    let kind = name.map_or("default", Flavour::name);
    Failure::new(
        ExitCode::Fetch,
        format!("the {kind} guest cannot be obtained: {reason}; or name a kernel with --kernel"),
    )
}

/// This host cannot have the guest now, and nothing is wrong with it.
fn out_of_reach(error: &FetchError) -> bool {
    matches!(
        error,
        FetchError::NoTool(_) | FetchError::Network(_) | FetchError::NoPackage(_) | FetchError::Apt(_)
    )
}
