//! The software CPU against the host's processor.

use testkit::oracle::case::CodeSize;
use testkit::oracle::{Config, run, select, settle};

/// A million random cases, the same every time. `ORACLE_SEED` and `ORACLE_CASES` choose others, `ORACLE_FILTER`
/// instructions by name.
#[test]
#[expect(clippy::print_stderr, reason = "the seed must be seen to be of use")]
fn instructions_do_what_the_processor_does() {
    let config = Config::from_environment(1_000_000);
    let report = match run(&config) {
        Err(reason) => return eprintln!("SKIPPED: the instruction oracle cannot run here: {reason}"),
        Ok(report) => report,
    };
    settle("the software CPU", &report);
    if config.filter.is_some() || config.cases < 1_000_000 {
        return;
    }
    // Every instruction that can be tried here was tried.
    for size in CodeSize::ALL {
        if report.unavailable.iter().any(|(not, _)| *not == size) {
            continue;
        }
        let untried: Vec<_> = select::codes(&select::features(), size)
            .into_iter()
            .filter(|&code| !report.coverage.contains_key(&(code, size)))
            .collect();
        assert!(untried.is_empty(), "{size:?}: {untried:?}");
    }
}
