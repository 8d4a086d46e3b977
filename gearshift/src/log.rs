//! The log of the machine and of this program, for who asks for it by GEARSHIFT_LOG.

use std::env::{self, VarError};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::stdio;

const VARIABLE: &str = "GEARSHIFT_LOG";
/// Who logs.
const CRATES: [&str; 2] = ["gearshift", "machine"];

/// Starts the log, if it is asked for.
///
/// # Errors
/// What is asked for is no level and no part of ours.
pub(crate) fn start() -> Result<(), Failure> {
    let text = match env::var(VARIABLE) {
        Ok(text) if text.is_empty() => return Ok(()),
        Ok(text) => text,
        Err(VarError::NotPresent) => return Ok(()),
        Err(VarError::NotUnicode(text)) => return Err(wrong(&text.to_string_lossy(), "it is no text")),
    };
    let filter = filter(&text)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(|| stdio::Errors).with_ansi(false);
    let subscriber = tracing_subscriber::registry().with(lines).with(filter);
    tracing::subscriber::set_global_default(subscriber).expect("the only one to set it is here");
    Ok(())
}

fn filter(text: &str) -> Result<Targets, Failure> {
    let filter: Targets = text.parse().map_err(|_| wrong(text, "it is no list of levels"))?;
    for (target, _) in filter.iter() {
        // A level that is spelt wrong is taken for a part that does not exist.
        if !CRATES.contains(&target.split("::").next().unwrap_or_default()) {
            return Err(wrong(text, &format!("there is no level and no part `{target}`")));
        }
    }
    Ok(filter)
}

fn wrong(text: &str, why: &str) -> Failure {
    let remedy =
        "give a level (error, warn, info, debug, trace), or parts with levels, such as `machine=trace`";
    Failure::new(ExitCode::Usage, format!("{VARIABLE} is `{text}`: {why}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_parts_are_taken_and_mistakes_are_named() {
        for good in ["debug", "machine=trace", "warn,machine::clock=debug", "gearshift", "TRACE"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for (bad, part) in [("dbug", "`dbug`"), ("machine=loud", "no list"), ("kvm=debug", "`kvm`")] {
            let Failure { code, message } = filter(bad).unwrap_err();
            assert_eq!(code, ExitCode::Usage);
            assert!(message.contains(part) && message.contains("machine=trace"), "{message}");
        }
    }
}
