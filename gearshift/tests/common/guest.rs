//! Debian's guests and libraries, which are fetched when they are not in the cache.

use std::io::Write as _;
use std::process::{Output, Stdio};

use guests::debian::{self, Flavour};

/// Whether a guest is there. Fails if it cannot be had, unless told to stay offline.
pub fn have(flavour: Flavour) -> bool {
    if debian::cached(flavour).is_some() {
        return true;
    }
    if offline("Debian guest") {
        return false;
    }
    debian::fetch(flavour, &mut |_| {}).expect("the Debian guest (GEARSHIFT_OFFLINE=1 skips this test)");
    true
}

/// Runs the program with `script` typed into its guest's shell, to its end.
pub fn typed(arguments: &[&str], script: &str) -> Output {
    let mut child = super::gearshift(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Whether Debian's libraries are there; likewise.
pub fn have_libraries() -> bool {
    if debian::cached_libraries().is_some() {
        return true;
    }
    if offline("libraries of Debian's") {
        return false;
    }
    debian::fetch_libraries(&mut |_| {}).expect("the libraries (GEARSHIFT_OFFLINE=1 skips this test)");
    true
}

/// Whether nothing may be fetched. Says that the test is skipped then.
fn offline(what: &str) -> bool {
    let offline = std::env::var("GEARSHIFT_OFFLINE").is_ok_and(|value| value == "1");
    if offline {
        // Past the harness, which would capture it.
        let line = format!("SKIPPED: no {what} in the cache, and GEARSHIFT_OFFLINE=1\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    offline
}
