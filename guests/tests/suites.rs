//! The user-space suites, built and run on this host for a moment: each class computes what it should.

use guests::debian;
use guests::suite::{self, Line, Suite};
use std::io::Write as _;

/// Builds `suite` and runs each of its classes a few times.
fn run(suite: Suite) {
    let program = suite::build(suite, suite::source(), &mut |_| {}).unwrap();
    let classes = program.classes().unwrap();
    let output = program.native().args(["--millis", "0"]).output().unwrap();
    let console = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{console}{}", String::from_utf8_lossy(&output.stderr));
    for class in classes {
        match suite::parse(&class.name, &console) {
            Some(Line::Measured { units: 3.., ns, best, .. }) => {
                assert!(ns >= 3 * best && best > 0, "{console}")
            }
            Some(Line::Unavailable(reason)) if class.name == "avx2" => {
                assert!(!std::is_x86_feature_detected!("avx2"), "{reason}");
            }
            other => panic!("{}: {other:?}", class.name),
        }
    }
    // What is no class is bad usage, and no class is run.
    let output = program.native().args(["--millis", "0", "nothing"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
}

#[test]
fn our_own_code() {
    run(Suite::User);
}

#[test]
fn the_libraries_of_debian() {
    // Fails if they cannot be had, unless told to stay offline.
    let offline = std::env::var("GEARSHIFT_OFFLINE").is_ok_and(|value| value == "1");
    if debian::cached_libraries().is_none() && offline {
        std::io::stderr().write_all(b"SKIPPED: no libraries of Debian's in the cache to run\n").unwrap();
        return;
    }
    run(Suite::Libraries);
}
