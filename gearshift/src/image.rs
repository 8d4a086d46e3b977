//! `gearshift image`: disk images outside of a machine.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backends::disk::tools::{self, ImageInfo, Target, ToolError};
use backends::disk::{BackingPolicy, DiskOptions, Format, OpenError};
use clap::{Args, Subcommand};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::{size, stdio};

/// What to do with an image.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an empty image
    ///
    /// A raw image is as large as its disk and takes space on the host as it is written; a qcow2 image grows as it is written,
    /// and can stand on a backing file.
    Create(CreateArgs),
    /// Show format, sizes and backing file of an image
    ///
    /// It takes no locks: a running machine may have the image.
    Info {
        /// The image
        file: PathBuf,
        /// Its format: raw, qcow2 or vmdk
        ///
        /// Without it, a name that ends in .qcow2 is qcow2, and what begins like no image format is raw.
        #[arg(long, value_name = "FORMAT")]
        format: Option<Format>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Give an image another size
    ///
    /// Partitions and file systems inside stay as they are.
    Resize {
        /// The image
        file: PathBuf,
        /// Its new size, such as 20G; a plain number is MiB
        #[arg(value_parser = size::parse)]
        size: u64,
        /// Its format: raw or qcow2
        #[arg(long, value_name = "FORMAT")]
        format: Option<Format>,
        /// The new size may be the smaller one: what lies behind it is lost
        #[arg(long)]
        shrink: bool,
        /// Backing files may lie outside of the image's folder
        #[arg(long)]
        backing_allow: bool,
    },
    /// Copy an image into a new one, of another format or without its backing file
    Convert(ConvertArgs),
}

/// An image to be made.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The new image
    file: PathBuf,
    /// Size of its disk, such as 20G; a plain number is MiB [default: that of the backing file]
    #[arg(value_parser = size::parse, required_unless_present = "backing")]
    size: Option<u64>,
    /// Its format: raw or qcow2 [default: qcow2 if its name ends in .qcow2, else raw]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// What it shows where nothing was written: another image, by a name that holds from the new image's folder
    #[arg(long, value_name = "FILE", requires = "backing_format")]
    backing: Option<String>,
    /// The format of the backing file: raw, qcow2 or vmdk
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    backing_format: Option<Format>,
    /// Replace a file of that name
    #[arg(long)]
    force: bool,
}

/// An image to be copied.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The image to read
    source: PathBuf,
    /// The new image
    target: PathBuf,
    /// The format of the image to read: raw, qcow2 or vmdk
    #[arg(long, value_name = "FORMAT")]
    from: Option<Format>,
    /// The format of the new image: raw or qcow2 [default: qcow2 if its name ends in .qcow2, else raw]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Replace a file of that name
    #[arg(long)]
    force: bool,
    /// Backing files may lie outside of the source's folder
    #[arg(long)]
    backing_allow: bool,
}

/// Does it.
///
/// # Errors
/// The line for the user.
pub(crate) fn run(command: ImageCommand) -> Result<ExitCode, Failure> {
    match command {
        ImageCommand::Create(args) => create(&args)?,
        ImageCommand::Info { file, format, json } => {
            let info = tools::info(&file, format)?;
            stdio::print(if json { programs(&file, &info) } else { people(&file, &info) })?;
        }
        ImageCommand::Resize { file, size, format, shrink, backing_allow } => {
            tools::resize(&options(file, format, backing_allow), size, shrink)?;
        }
        ImageCommand::Convert(args) => convert(args)?,
    }
    Ok(ExitCode::Success)
}

fn create(args: &CreateArgs) -> Result<(), Failure> {
    let target = target(&args.file, args.format, args.force);
    let backing = args.backing.as_deref().zip(args.backing_format);
    let size = match (args.size, backing) {
        (Some(size), _) => size,
        (None, Some((name, format))) => {
            let folder = args.file.parent().unwrap_or(Path::new(""));
            tools::info(&folder.join(name), Some(format))?.size.next_multiple_of(512)
        }
        (None, None) => return Err(Failure::new(ExitCode::Usage, "an image needs a size, such as 20G")),
    };
    Ok(tools::create(&target, size, backing)?)
}

fn convert(args: ConvertArgs) -> Result<(), Failure> {
    let target = target(&args.target, args.format, args.force);
    let source = options(args.source, args.from, args.backing_allow);
    // A signal ends the copy, which takes its temporary file along.
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGHUP, SIGINT, SIGTERM] {
        let value = usize::try_from(number).unwrap_or_default();
        signal_hook::flag::register_usize(number, Arc::clone(&signal), value)
            .map_err(|e| Failure::new(ExitCode::Host, format!("signals cannot be caught: {e}")))?;
    }
    let mut progress = Progress::new();
    let done = tools::convert(&source, &target, &mut |done, all| {
        progress.show(done, all);
        signal.load(Ordering::Relaxed) == 0
    });
    progress.end();
    if let (Err(_), number @ 1..) = (&done, signal.load(Ordering::Relaxed)) {
        stdio::flush_errors();
        // Does not return for a signal that ends the process.
        let _ = signal_hook::low_level::emulate_default_handler(i32::try_from(number).unwrap_or(SIGTERM));
    }
    Ok(done?)
}

fn options(path: PathBuf, format: Option<Format>, allow: bool) -> DiskOptions {
    let backing = if allow { BackingPolicy::Allow } else { BackingPolicy::Folder };
    DiskOptions { format, backing, ..DiskOptions::new(path) }
}

fn target(path: &Path, format: Option<Format>, overwrite: bool) -> Target {
    let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("qcow2"));
    let format = format.unwrap_or(if named { Format::Qcow2 } else { Format::Raw });
    Target { path: path.to_owned(), format, overwrite }
}

fn people(path: &Path, info: &ImageInfo) -> String {
    let mut text = format!(
        "image      {}\nformat     {}\ndisk       {} ({} bytes)\non host    {}\n",
        path.display(),
        info.format,
        amount(info.size),
        info.size,
        amount(info.allocated),
    );
    if let Some(cluster) = info.cluster {
        text += &format!("cluster    {cluster} bytes\n");
    }
    if let Some(backing) = &info.backing {
        // The image says this: nothing in it may reach the terminal as control characters.
        let format = info.backing_format.as_deref().unwrap_or("raw, as the image names no format");
        text += &format!("backing    {} ({})\n", backing.escape_debug(), format.escape_debug());
    }
    text
}

fn programs(path: &Path, info: &ImageInfo) -> String {
    let value = json!({
        "image": path.to_string_lossy(),
        "format": info.format.name(),
        "size": info.size,
        "allocated": info.allocated,
        "cluster": info.cluster,
        "backing": info.backing,
        "backing_format": info.backing_format,
    });
    format!("{value:#}\n")
}

/// A number of bytes for people.
fn amount(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    let unit = units.get(power).unwrap_or(&"EiB");
    if power == 0 {
        format!("{bytes} {unit}")
    } else {
        format!("{:.1} {unit}", bytes as f64 / (1u64 << (10 * power)) as f64)
    }
}

/// A line on the terminal that says how far it is.
struct Progress {
    terminal: bool,
    shown: Option<u64>,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), shown: None }
    }

    fn show(&mut self, done: u64, all: u64) {
        let percent = u128::from(done) * 100 / u128::from(all.max(1));
        let percent = u64::try_from(percent).unwrap_or(100);
        if self.terminal && self.shown != Some(percent) {
            self.shown = Some(percent);
            stdio::say_all(format_args!("\r{percent:3} % of {}", amount(all)));
        }
    }

    fn end(&mut self) {
        if self.shown.take().is_some() {
            stdio::say_all("\r\x1b[K");
        }
    }
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Self {
        let code = match &error {
            ToolError::Size(_) | ToolError::Shrink { .. } | ToolError::Format(_) | ToolError::Exists(_) => {
                ExitCode::Usage
            }
            ToolError::Open(OpenError::Option { .. }) => ExitCode::Usage,
            ToolError::Open(_) | ToolError::NotAFile(_) => ExitCode::File,
            ToolError::Host { .. } => ExitCode::Host,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_for_people() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (512, "512 bytes"),
            (1536, "1.5 KiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }
}
