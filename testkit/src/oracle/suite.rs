//! The oracle as the test of a backend, which `cargo xtask oracle --accel` runs with choices of its own.

use std::str::FromStr;

use x86_core::soft::Executor;

use super::case::CodeSize;
use super::soft::backend;
use super::{Config, FINDING, Report, Verdict, run};

/// What the environment says, if it says something that can be read.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

impl Config {
    /// `cases` cases under the first seed, unless the environment chooses others: `ORACLE_SEED` and `ORACLE_CASES`,
    /// `ORACLE_CASE` one of them by its number, `ORACLE_FILTER` instructions by name, `ORACLE_BITS` a size of code;
    /// `ORACLE_STRICT=true` compares undefined flags, too. `ORACLE_SHARD=n/m` is a part of the cases.
    pub fn from_environment(cases: u64) -> Self {
        let bits: Option<u32> = setting("ORACLE_BITS");
        let shard = setting::<String>("ORACLE_SHARD").and_then(|text| {
            text.split_once('/').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)))
        });
        Self {
            seed: setting("ORACLE_SEED").unwrap_or(1),
            cases: setting("ORACLE_CASES").unwrap_or(cases),
            only: setting("ORACLE_CASE"),
            filter: setting("ORACLE_FILTER"),
            size: CodeSize::ALL.into_iter().find(|size| bits == Some(size.bitness())),
            strict: setting("ORACLE_STRICT").unwrap_or(false),
            shard: shard.unwrap_or((0, 1)),
            ..Self::default()
        }
    }
}

/// Says what `report` of the test `what` comes to. Differences on a processor that the oracle has not run on before are no
/// failure, but are told past the test harness, which would swallow them.
///
/// # Panics
/// The verdict is [`Verdict::Wrong`].
#[expect(clippy::print_stderr, reason = "the seed must be seen to be of use")]
pub fn settle(what: &str, report: &Report) {
    match report.verdict() {
        Verdict::Same => eprintln!("{report}"),
        Verdict::Found => crate::tell(&format!("{FINDING}{what}: {report}")),
        Verdict::Wrong => {
            eprintln!("{report}");
            panic!("{what} differs from the host's processor (seed {})", report.seed);
        }
    }
}

/// Runs `cases` random cases, the same every time unless [`Config::from_environment`] is told otherwise, on the executor `E`
/// of the accelerator `accel`; of code of `size` unless it is told of another.
///
/// # Panics
/// It differs from the host's processor, and that is known well enough; or, where ORACLE_REQUIRED is set, the host does
/// not let us find out.
pub fn suite<E: Executor<Config: Default>>(accel: &'static str, size: Option<CodeSize>, cases: u64) {
    let told = Config::from_environment(cases);
    let config = Config { size: told.size.or(size), accel: Some((accel, backend::<E>)), ..told };
    let report = match run(&config) {
        Err(reason) if std::env::var_os("ORACLE_REQUIRED").is_none() => {
            return crate::skip(&format!("the instruction oracle on {accel}"), &reason.to_string());
        }
        other => other.expect("a host that runs instructions natively"),
    };
    settle(accel, &report);
    let (part, parts) = config.shard;
    assert!(report.cases > 0 || parts > 1 && part > 0, "no case was run");
}
