//! The command line program. `gearshift --help` tells what it does; the machine itself is the `machine` library.
//!
//! 1. [`cli`] defines what may be typed; [`exit_code`] what the process's exit code says; [`failure`] the one line
//!    that tells why it gives up.
//! 2. [`run`] runs a guest, the default one from [`default_guest`], with [`console`] between the guest and standard
//!    input, [`terminal`] and [`signals`] to leave the terminal as it was, and [`silence`] for whoever sees nothing.
//! 3. [`compare`] runs guests on everything that can, and shows the numbers.
//! 4. [`probe`] and [`documents`] print what is asked for.

mod cli;
mod compare;
mod console;
mod default_guest;
mod documents;
mod escape;
mod exit_code;
mod failure;
mod probe;
mod run;
mod signals;
mod silence;
mod size;
mod stats;
mod stdio;
mod terminal;
mod translator;
mod typed_ahead;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

use cli::{Cli, Command, Parsed};
use exit_code::ExitCode;
use failure::Failure;

fn main() -> std::process::ExitCode {
    if let Some(filter) = std::env::var("GEARSHIFT_LOG").ok().and_then(|text| text.parse::<Targets>().ok()) {
        let lines = tracing_subscriber::fmt::layer().with_writer(|| stdio::Errors).with_ansi(false);
        let subscriber = tracing_subscriber::registry().with(lines).with(filter);
        tracing::subscriber::set_global_default(subscriber).expect("the only one to set it is here");
    }
    let code = match cli::parse(std::env::args_os()).and_then(execute) {
        Ok(code) => code,
        Err(Failure { code, message }) => {
            stdio::say(message);
            code
        }
    };
    stdio::flush_errors();
    code.into()
}

fn execute(parsed: Parsed) -> Result<ExitCode, Failure> {
    match parsed {
        Parsed::Show(text) => stdio::print(text)?,
        Parsed::Do(Cli { command: Command::Run(args) }) => return run::run(*args),
        Parsed::Do(Cli { command: Command::Probe { json } }) => probe::probe(json)?,
        Parsed::Do(Cli { command: Command::Compare(options) }) => return compare::run(&options),
        Parsed::Do(Cli { command: Command::CompareGuest(options) }) => return Ok(compare::work(&options)),
        Parsed::Do(Cli { command: Command::Completions { shell } }) => {
            stdio::print(documents::completions(shell))?;
        }
        Parsed::Do(Cli { command: Command::Man }) => stdio::print(documents::manual()?)?,
    }
    Ok(ExitCode::Success)
}
