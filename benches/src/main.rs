//! What leaving a guest costs, beside the least that the kernel's interface can do.
//!
//! Whole guests are compared by `gearshift compare`, the parts of a backend by the criterion benches of this crate. What is
//! here needs a C program beside ours, and no machine: see [`exits`].

mod exits;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Measures what leaving a guest costs")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What leaving a guest costs, beside a C program that has ioctl alone
    Exits(exits::Options),
    /// Makes events in a guest of ours; what `exits` starts
    #[command(hide = true)]
    ExitsGuest(exits::ours::Options),
}

/// A line for whoever waits.
#[expect(clippy::print_stderr, reason = "progress of a command-line tool")]
fn say(line: &str) {
    eprintln!("{line}");
}

fn main() -> ExitCode {
    let options = match Arguments::parse().what {
        What::ExitsGuest(options) => return exits::ours::main(&options),
        What::Exits(options) => options,
    };
    match exits::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            say(&format!("bench: {failure}"));
            ExitCode::from(2)
        }
    }
}
