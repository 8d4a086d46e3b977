//! Completion scripts and the manual page, made from the command line's definition.

use std::ffi::OsString;

use clap::ArgMatches;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::{self, ConfigCommand};
use crate::config;
use crate::failure::Failure;

/// The completion script for `shell`.
pub(crate) fn completions(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "gearshift", &mut text);
    text
}

/// What a `config` command prints.
///
/// # Errors
/// The file to be checked is no configuration.
pub(crate) fn configuration(command: &ConfigCommand, matches: &ArgMatches) -> Result<String, Failure> {
    let definition = cli::command();
    let value = match command {
        ConfigCommand::Validate { file } => {
            let words = ["gearshift", "run", "--config"].map(OsString::from).into_iter();
            cli::parse(words.chain([file.into()]))?;
            return Ok(format!("{}: valid\n", file.display()));
        }
        ConfigCommand::Schema => definition.find_subcommand("run").map(config::schema),
        ConfigCommand::Show(_) => {
            let given = matches.subcommand().and_then(|(_, config)| config.subcommand());
            let show = definition.find_subcommand("config").and_then(|config| config.find_subcommand("show"));
            show.zip(given).map(|(show, (_, given))| config::show(show, given))
        }
    };
    Ok(format!("{:#}\n", value.unwrap_or_default()))
}

/// The manual page in roff: one page, with a section for each command that has options.
///
/// # Errors
/// None in practice: it is written to memory.
pub(crate) fn manual() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    render(&mut text).map_err(Failure::output)?;
    Ok(text)
}

fn render(text: &mut Vec<u8>) -> std::io::Result<()> {
    let mut command = cli::command();
    command.build();
    let page = Man::new(command.clone());
    page.render_title(text)?;
    page.render_name_section(text)?;
    page.render_synopsis_section(text)?;
    page.render_description_section(text)?;
    for part in command.get_subcommands().filter(|part| part.get_name() != "help" && !part.is_hide_set()) {
        let name = part.get_name().to_uppercase();
        section(&name, part, text)?;
        for inner in part.get_subcommands().filter(|inner| inner.get_name() != "help") {
            section(&format!("{name} {}", inner.get_name().to_uppercase()), inner, text)?;
        }
    }
    for (title, body) in cli::sections() {
        let lines: String = body.lines().map(|line| format!("{}\n", escape(line))).collect();
        text.extend(format!(".SH \"{}\"\n.nf\n{lines}.fi\n", title.to_uppercase()).into_bytes());
    }
    Ok(())
}

/// The section of one command.
fn section(name: &str, command: &clap::Command, text: &mut Vec<u8>) -> std::io::Result<()> {
    let mut options = Vec::new();
    Man::new(command.clone()).render_options_section(&mut options)?;
    let options = String::from_utf8_lossy(&options).into_owned();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let title = format!(".SH \"GEARSHIFT {name}\"\n{about}.\n");
    text.extend(options.replacen(".SH OPTIONS\n", &title, 1).into_bytes());
    Ok(())
}

/// A line of text for roff: no escapes, no requests, no typographic hyphens.
fn escape(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    /// Every long option of every command.
    fn flags() -> Vec<String> {
        let command = cli::command();
        let of = |c: &clap::Command| {
            c.get_arguments().filter_map(|a| a.get_long()).map(str::to_owned).collect::<Vec<_>>()
        };
        let flags: Vec<_> = command.get_subcommands().filter(|c| !c.is_hide_set()).flat_map(of).collect();
        assert!(flags.len() >= 11, "{flags:?}");
        flags
    }

    #[test]
    fn the_manual_page_has_every_flag_and_every_exit_code() {
        let page = String::from_utf8(manual().unwrap()).unwrap();
        for flag in flags() {
            let flag = flag.replace('-', "\\-");
            assert!(page.contains(&format!("\\-\\-{flag}")), "{flag}\n{page}");
        }
        for word in
            ["GEARSHIFT RUN", "GEARSHIFT PROBE", "triple fault", "EXIT CODES", "Ctrl\\-a x", "EXAMPLES"]
        {
            assert!(page.contains(word), "{word}\n{page}");
        }
    }

    #[test]
    fn completions_have_every_flag_for_every_shell() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions(*shell)).unwrap();
            for flag in flags() {
                assert!(script.contains(&flag), "{shell}: {flag}");
            }
        }
    }
}
