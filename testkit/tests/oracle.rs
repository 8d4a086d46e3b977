//! The software CPU against the host's processor.

use testkit::oracle::{Config, run};

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// 200,000 random cases. `ORACLE_SEED` and `ORACLE_CASES` choose others, `ORACLE_FILTER` instructions by name.
#[test]
#[expect(clippy::print_stderr, reason = "the seed must be seen to be of use")]
fn instructions_do_what_the_processor_does() {
    let time = std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_secs());
    let config = Config {
        seed: setting("ORACLE_SEED").unwrap_or(time),
        cases: setting("ORACLE_CASES").unwrap_or(200_000),
        filter: std::env::var("ORACLE_FILTER").ok(),
        ..Config::default()
    };
    match run(&config) {
        Err(reason) => eprintln!("SKIPPED: the instruction oracle cannot run here: {reason}"),
        Ok(report) => {
            eprintln!("{report}");
            assert!(
                report.findings.is_empty(),
                "the software CPU differs from the host's (seed {})",
                report.seed
            );
        }
    }
}
