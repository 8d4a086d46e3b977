//! The command line program. `gearshift --help` tells what it does; the machine itself is the `machine` library.
//!
//! 1. [`cli`] defines what may be typed; [`exit_code`] what the process's exit code says; [`failure`] the one line
//!    that tells why it gives up.
//! 2. [`run`] runs a guest, the default one from [`default_guest`], with [`console`] between the guest and standard
//!    input, [`terminal`] and [`signals`] to leave the terminal as it was, and [`silence`] for whoever sees nothing.
//!    [`disk_boot`] finds what a disk boots, in a process without rights.
//! 3. [`compare`] runs guests on everything that can, and shows the numbers.
//! 4. [`image`] makes and converts disk images.
//! 5. [`probe`] and [`documents`] print what is asked for; [`log`] is for who wants to see inside.

mod balloon;
mod cli;
mod compare;
mod config;
mod console;
mod default_guest;
mod disk_boot;
mod documents;
mod duration;
mod escape;
mod exit_code;
mod failure;
mod gears;
mod image;
mod jit;
mod log;
mod probe;
mod run;
mod signals;
mod silence;
mod size;
mod stats;
mod stdio;
mod terminal;
mod typed_ahead;

use clap::ArgMatches;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cli::{Cli, Command, Parsed};
use exit_code::ExitCode;
use failure::Failure;

fn main() -> std::process::ExitCode {
    let done = cli::parse(std::env::args_os()).and_then(|parsed| {
        log::start()?;
        // A file that reaches a limit of the host's is an error of that write, not the process's end.
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)))
            .map_err(|e| Failure::new(ExitCode::Host, format!("signals cannot be caught: {e}")))?;
        execute(parsed)
    });
    let code = match done {
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
        Parsed::Do(Cli { command }, matches) => return carry_out(command, &matches),
    }
    Ok(ExitCode::Success)
}

fn carry_out(command: Command, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => return run::run(*args),
        Command::Probe { json } => probe::probe(json)?,
        Command::Compare(options) => return compare::run(&options),
        Command::CompareGuest(options) => return Ok(compare::work(&options)),
        Command::BootDiskHelper(args) => return Ok(disk_boot::help(&args)),
        Command::Config(command) => stdio::print(documents::configuration(&command, matches)?)?,
        Command::Image(command) => return image::run(command),
        Command::Completions { shell } => stdio::print(documents::completions(shell))?,
        Command::Man => stdio::print(documents::manual()?)?,
    }
    Ok(ExitCode::Success)
}
