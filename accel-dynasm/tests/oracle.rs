//! Single instructions, translated, against the host's processor.

use testkit::oracle::case::CodeSize;
use testkit::oracle::soft::backend;
use testkit::oracle::{Config, run};

/// Random cases of 64-bit code, the same every time. `ORACLE_SEED` and `ORACLE_CASES` choose others, `ORACLE_FILTER`
/// instructions by name.
#[test]
#[expect(clippy::print_stderr, reason = "the seed must be seen to be of use")]
fn instructions_do_what_the_processor_does() {
    let config = Config {
        size: Some(CodeSize::Bits64),
        backend: Some(backend::<accel_dynasm::Engine>),
        ..Config::from_environment(100_000)
    };
    let report = match run(&config) {
        Err(reason) => return testkit::skip("the instruction oracle on the translator", &reason.to_string()),
        Ok(report) => report,
    };
    eprintln!("{report}");
    assert!(report.findings.is_empty(), "translated code differs from the host's (seed {})", report.seed);
}
