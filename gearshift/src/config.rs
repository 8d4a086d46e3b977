//! Configuration files: all that the options of `run` say, as JSON.
//!
//! 1. A key is the name of an option without its dashes, so that whatever can be typed can be written down, and the other way.
//!    What is typed wins over what the file says.
//! 2. The sections `boot-source` and `machine-config` of Firecracker's files are understood as far as the machine has what
//!    they are about; anything else is refused by its name.
//! 3. The schema is made from the options, as the help is.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use serde_json::{Map, Value, json};

use crate::exit_code::ExitCode;
use crate::failure::Failure;

/// Bytes that a configuration can have.
const MOST: u64 = 1 << 20;
/// Options that are not part of a configuration.
const OUTSIDE: [&str; 3] = ["config", "help", "version"];

/// A key, and what it stands for on the command line.
type Entry = (String, Value);

/// What is wrong with the file at `path`, in one line.
fn refused(path: &Path, reason: impl std::fmt::Display) -> Failure {
    let message = format!(
        "configuration {}: {reason}; `gearshift config schema` tells what can be there",
        path.display()
    );
    Failure::new(ExitCode::Usage, message)
}

/// Adds to `words`, of which clap has made `matches`, what the configuration file says that they name.
///
/// # Errors
/// A file that cannot be read, is no JSON, or says what no option says.
pub(crate) fn merge(
    command: impl FnOnce() -> Command,
    words: &[OsString],
    matches: &ArgMatches,
) -> Result<Option<Vec<OsString>>, Failure> {
    let Some((name, given)) = run_options(matches) else { return Ok(None) };
    let Some(path) = given.get_one::<std::path::PathBuf>("config") else { return Ok(None) };
    let command = command();
    let options = name.iter().try_fold(&command, |command, name| command.find_subcommand(name));
    let Some(options) = options else { return Ok(None) };
    let typed = |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let mut words = words.to_vec();
    for (key, value) in read(path)? {
        let Some(arg) = find(options, &key) else {
            return Err(refused(path, format_args!("there is no option `{key}`")));
        };
        let conflicts = options.get_arg_conflicts_with(arg);
        if !typed(arg) && !conflicts.into_iter().any(typed) {
            words.extend(spell(arg, &key, &value).map_err(|reason| refused(path, reason))?);
        }
    }
    Ok(Some(words))
}

/// The command that takes the options of `run`, by its names, and what was typed for it.
fn run_options(matches: &ArgMatches) -> Option<(Vec<&str>, &ArgMatches)> {
    match matches.subcommand()? {
        ("run", given) => Some((vec!["run"], given)),
        ("config", inner) => match inner.subcommand()? {
            ("show", given) => Some((vec!["config", "show"], given)),
            _ => None,
        },
        _ => None,
    }
}

/// What the file at `path` says, Firecracker's sections translated.
///
/// # Errors
/// It cannot be read, or is no JSON object.
fn read(path: &Path) -> Result<Vec<Entry>, Failure> {
    let lost = |error: std::io::Error| {
        Failure::new(ExitCode::File, format!("configuration {} cannot be read: {error}", path.display()))
    };
    let mut text = String::new();
    File::open(path).map_err(lost)?.take(MOST + 1).read_to_string(&mut text).map_err(lost)?;
    if text.len() as u64 > MOST {
        return Err(refused(path, "it is longer than 1 MiB"));
    }
    let all: Map<String, Value> = serde_json::from_str(&text).map_err(|error| refused(path, error))?;
    let mut entries: Vec<Entry> = Vec::new();
    for (key, value) in all {
        let known = match key.as_str() {
            "boot-source" => firecracker(&key, &value, boot_source),
            "machine-config" => firecracker(&key, &value, machine_config),
            _ => Ok(vec![(key, value)]),
        };
        for (key, value) in known.map_err(|reason| refused(path, reason))? {
            if entries.iter().any(|(other, _)| *other == key) {
                return Err(refused(path, format_args!("`{key}` is given twice")));
            }
            entries.push((key, value));
        }
    }
    Ok(entries)
}

/// What a field of a section of Firecracker's is here: an option, or nothing. `None`: it asks for what there is not.
type Field = fn(&str, &Value) -> Option<Option<&'static str>>;

fn firecracker(section: &str, value: &Value, field: Field) -> Result<Vec<Entry>, String> {
    let Value::Object(fields) = value else { return Err(format!("`{section}` is no object")) };
    let mut entries = Vec::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match field(name, value) {
            Some(Some(key)) => entries.push((key.to_owned(), value.clone())),
            Some(None) => {}
            None => {
                return Err(format!("`{section}` asks for `{name}`: {value}, which this machine has not"));
            }
        }
    }
    Ok(entries)
}

fn boot_source(name: &str, _: &Value) -> Option<Option<&'static str>> {
    match name {
        "kernel_image_path" => Some(Some("kernel")),
        "initrd_path" => Some(Some("initrd")),
        "boot_args" => Some(Some("cmdline")),
        _ => None,
    }
}

fn machine_config(name: &str, value: &Value) -> Option<Option<&'static str>> {
    match (name, value) {
        ("vcpu_count", _) => Some(Some("cpus")),
        // A plain number is MiB here, too.
        ("mem_size_mib", _) => Some(Some("mem")),
        ("smt", Value::Bool(false)) | ("track_dirty_pages", Value::Bool(_)) => Some(None),
        ("cpu_template" | "huge_pages", Value::String(none)) if none == "None" => Some(None),
        _ => None,
    }
}

fn find<'a>(options: &'a Command, key: &str) -> Option<&'a Arg> {
    options.get_arguments().find(|arg| arg.get_long() == Some(key) && is_inside(arg))
}

fn is_inside(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| !OUTSIDE.contains(&long)) && !arg.is_hide_set()
}

fn is_flag(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// It may stand alone, or with a value.
fn has_optional_value(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|range| range.min_values() == 0 && range.max_values() > 0)
}

fn is_list(arg: &Arg) -> bool {
    arg.get_value_delimiter().is_some() || matches!(arg.get_action(), ArgAction::Append)
}

/// `key` with `value` as on the command line.
fn spell(arg: &Arg, key: &str, value: &Value) -> Result<Vec<OsString>, String> {
    let with = |text: &str| OsString::from(format!("--{key}={text}"));
    let plain = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("`{key}` cannot be {other}")),
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Bool(on) if is_flag(arg) || has_optional_value(arg) => {
            Ok(on.then(|| OsString::from(format!("--{key}"))).into_iter().collect())
        }
        _ if is_flag(arg) => Err(format!("`{key}` is true or false, not {value}")),
        Value::Array(items) if is_list(arg) => items.iter().map(|item| Ok(with(&plain(item)?))).collect(),
        value => Ok(vec![with(&plain(value)?)]),
    }
}

/// The options of `given`, defaults included, as a configuration.
pub(crate) fn show(command: &Command, given: &ArgMatches) -> Value {
    let mut all = Map::new();
    for arg in command.get_arguments().filter(|arg| is_inside(arg)) {
        let (id, key) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
        let raw = given.get_raw(id).into_iter().flatten();
        let texts: Vec<String> = raw.map(|text| text.to_string_lossy().into_owned()).collect();
        let value = match texts.as_slice() {
            _ if is_flag(arg) => Value::Bool(given.get_flag(id)),
            [] => continue,
            [one] if is_number(arg.get_value_parser()) => {
                one.parse::<u64>().map_or_else(|_| Value::String(one.clone()), Value::from)
            }
            [one] => Value::String(one.clone()),
            several => Value::from(several),
        };
        all.insert(key.to_owned(), value);
    }
    Value::Object(all)
}

fn is_number(parser: &ValueParser) -> bool {
    let id = parser.type_id();
    id == std::any::TypeId::of::<u32>() || id == std::any::TypeId::of::<u64>()
}

/// The JSON Schema (2020-12) of configuration files.
pub(crate) fn schema(run: &Command) -> Value {
    let string = json!({ "type": "string" });
    let number_or_string = json!({ "type": ["string", "integer"] });
    let mut properties = Map::new();
    for arg in run.get_arguments().filter(|arg| is_inside(arg)) {
        let names: Vec<String> =
            arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        let one = match () {
            () if is_flag(arg) => json!({ "type": "boolean" }),
            () if has_optional_value(arg) => json!({ "type": ["boolean", "string", "integer"] }),
            () if !names.is_empty() => json!({ "enum": names }),
            () if is_list(arg) => json!({ "anyOf": [string, { "type": "array", "items": string }] }),
            () => number_or_string.clone(),
        };
        let Value::Object(mut one) = one else { continue };
        if let Some(help) = arg.get_help() {
            one.insert("description".to_owned(), Value::String(help.to_string()));
        }
        if let [default] = arg.get_default_values() {
            one.insert("default".to_owned(), Value::String(default.to_string_lossy().into_owned()));
        }
        properties.insert(arg.get_long().unwrap_or_default().to_owned(), Value::Object(one));
    }
    properties.insert(
        "boot-source".to_owned(),
        json!({
            "description": "As in Firecracker's files",
            "type": "object",
            "properties": { "kernel_image_path": string, "initrd_path": string, "boot_args": string },
            "additionalProperties": false,
        }),
    );
    properties.insert(
        "machine-config".to_owned(),
        json!({
            "description": "As in Firecracker's files",
            "type": "object",
            "properties": {
                "vcpu_count": { "type": "integer" },
                "mem_size_mib": { "type": "integer" },
                "smt": { "const": false },
                "track_dirty_pages": { "type": "boolean" },
                "cpu_template": { "const": "None" },
                "huge_pages": { "const": "None" },
            },
            "additionalProperties": false,
        }),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of gearshift run",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}
