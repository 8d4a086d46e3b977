//! The command line: what may be typed, and what `--help` says of it.
//!
//! Spellings of QEMU are understood where they mean the same: `-accel kvm -smp 2 -m 512 -append ...`, `-enable-kvm`,
//! `-machine accel=kvm:tcg`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use backends::disk::DiskOptions;
use backends::net::NetOptions;
use backends::vsock::VsockOptions;
use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use guests::debian::Flavour;
use machine::OnWatchdog;

use crate::config;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::gears::GearArgs;
use crate::jit::JitArgs;
use crate::size;

const ABOUT: &str = "A virtual machine monitor: one PC, on any accelerator";

const LONG_ABOUT: &str = "\
Gearshift runs an x86-64 PC whose machine model is the same on every accelerator: what executes the guest's \
instructions is chosen when it starts, by name or by what works best on this host, and can be exchanged while it runs.

Without a kernel and without a disk it boots its default guest: Debian's unmodified cloud kernel and a busybox shell, fetched once through \
this host's apt (no root needed), verified, and kept in the cache folder.";

const EXAMPLES: &str = "\
Examples:
  gearshift run
          Boot the default guest to a shell; `poweroff -f` or Ctrl-a x ends it
  gearshift run --cpus 2 --mem 1G --kernel /boot/vmlinuz --initrd /boot/initrd.img
          Boot a kernel of your own
  gearshift run --disk debian.qcow2
          Boot what is installed on a disk
  gearshift run --guest i386
          Boot Debian's 32-bit kernel, fetched like the default guest
  gearshift run --net user,hostfwd=tcp:2222:22
          With a network: out as this user, and `ssh -p 2222 localhost` in
  gearshift run --accel interp --cmdline 'console=ttyS0 quiet'
          Choose what executes the guest, and what the kernel is told
  gearshift run --accel jit,interp --switch-every 50ms
          Hand the running guest on between accelerators
  echo 'uname -a; poweroff -f' | gearshift run > log
          Without a terminal: standard input is typed, standard output is the console
  gearshift probe --json
          What works on this host, for programs";

const COMPARE_EXAMPLES: &str = "\
Examples:
  gearshift compare --peer qemu-tcg --native --html page.html
          Everything that works here, QEMU's TCG and the host beside each other, as a page
  gearshift compare --quick
          About half a minute
  gearshift compare micro user/sha256 --accel kvm,interp
          Some guests on some backends
  gearshift compare boot --json new.json --against old.json
          What has become slower beyond noise
  gearshift compare boot micro --accel jit --cpu x86-64-v3 --peer gearshift=old/gearshift
          This build and another one, pair by pair
  gearshift compare ./kernel.elf --cmdline n=5
          A kernel of your own, on every backend";

const IMAGE_EXAMPLES: &str = "\
Examples:
  gearshift image create disk.qcow2 20G
          An empty image that grows as it is written
  gearshift image create top.qcow2 --backing disk.qcow2 --backing-format qcow2
          One that shows another, which stays as it is
  gearshift image info --json disk.qcow2
          Format, sizes and backing file, for programs
  gearshift image convert --format raw top.qcow2 /srv/disk.raw
          A copy without its backing file
  gearshift image resize disk.qcow2 40G
          More space; the guest makes use of it";

const KEYS: &str = "\
Keys, when standard input is a terminal (which is then in raw mode, so that Ctrl-c goes to the guest):
  Ctrl-a x  quit
  Ctrl-a s  show what the vCPUs have done
  Ctrl-a g  change gear: the next accelerator takes the guest over
  Ctrl-a b  show the balloon; Ctrl-a + gives the guest 64 MiB back, Ctrl-a - takes 64 MiB more
  Ctrl-a p  press the power button: a guest that listens shuts down
  Ctrl-a a  send Ctrl-a to the guest
  Ctrl-a h  help
They are seen at once, unless the guest has left 1 MiB of what was typed or pasted unread; then a signal such as SIGTERM \
ends the run.";

const FILES: &str = "\
Environment:
  GEARSHIFT_OFFLINE     1: as --offline
  GEARSHIFT_CACHE       cache folder (else $XDG_CACHE_HOME/gearshift, else ~/.cache/gearshift)
  GEARSHIFT_KVM_DEVICE  KVM's device (else /dev/kvm)
  GEARSHIFT_SILENCE     seconds without a byte from the guest after which a line says so (else 10; 0: never)
  GEARSHIFT_LOG         what to log to standard error, such as `debug` or `machine=trace`";

#[derive(Debug, Parser)]
#[command(name = "gearshift", version, about = ABOUT, long_about = LONG_ABOUT, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = false, after_help = after_help())]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest and connect its serial console to this terminal
    #[command(after_help = after_run_help())]
    Run(Box<RunArgs>),
    /// Show the accelerators of this build and whether they work on this host
    Probe {
        /// Print JSON (docs/using.md tells the format)
        #[arg(long)]
        json: bool,
    },
    /// Run the same guests on every backend, beside peers and the host, and show times, ratios and disagreements
    ///
    /// Each run is a process pinned to one core; rounds are interleaved (A B C C B A) after a warm-up. A ratio comes with
    /// its 95 % confidence interval. What could not run is marked with the reason. Ctrl-c ends the measuring, and what
    /// there is is shown and written.
    #[command(after_help = after_compare_help())]
    Compare(Box<compare::Options>),
    /// Run one guest of a comparison; what `compare` starts
    #[command(name = crate::compare::WORKER, hide = true)]
    CompareGuest(compare::worker::Options),
    /// Look for what a disk boots; what `run` starts
    #[command(name = crate::disk_boot::HELPER, hide = true)]
    BootDiskHelper(crate::disk_boot::HelperArgs),
    /// Show, check or describe configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make, show, resize and convert disk images
    #[command(subcommand, after_help = after_image_help())]
    Image(crate::image::ImageCommand),
    /// Print a completion script, for example `gearshift completions bash`
    Completions {
        /// The shell it is for
        shell: clap_complete::Shell,
    },
    /// Print the manual page, for example for `man -l -`
    Man,
}

/// What is done with configurations.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the configuration that `gearshift run` would have with these options, as JSON
    Show(Box<RunArgs>),
    /// Check a configuration file
    Validate {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the JSON Schema of configuration files
    Schema,
}

/// What to run, and on what.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Take options from a JSON file: names without dashes and their values; what is typed wins
    ///
    /// `gearshift config schema` tells what can be there, `gearshift config show` prints one. The sections `boot-source` and
    /// `machine-config` of Firecracker's files are understood, too. Paths count from the current folder.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// What executes the guest: `auto`, a name, or names in order of preference
    ///
    /// `auto` takes the best by what it measures on this host; of a list the first that works is taken. Either passes over
    /// what cannot give the CPU model or the vCPUs, and a line tells why something that sounds better was not taken. A
    /// single name is taken or refused, never replaced. The guest's processor has what all of a list that work here can
    /// give. `gearshift probe` shows the names.
    #[arg(long, value_name = "LIST", default_value = "auto", value_delimiter = ',')]
    pub(crate) accel: Vec<String>,

    /// CPU model the guest sees: `host`, `x86-64-v3` (with AVX2) or `x86-64-v2`
    ///
    /// `host` has what this host's processor and all accelerators of the list have. The others are for guests that are to
    /// move between hosts: they are the same everywhere, and are refused, by the feature's name, where something of them is
    /// lacking.
    #[arg(long, value_name = "MODEL", default_value = machine::DEFAULT_MODEL)]
    pub(crate) cpu: String,

    /// Number of vCPUs
    #[arg(long, alias = "smp", value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) cpus: u32,

    /// Memory, such as 512M or 2G; a plain number is MiB
    #[arg(long, alias = "memory", value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) mem: u64,

    /// Kernel: a bzImage (vmlinuz), a Linux vmlinux or an ELF file with a PVH note, 32- or 64-bit [default: the disk's, or Debian's]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// Debian's kernel for a guest without --kernel: cloud, generic or i386 [default: cloud, if there is no disk]
    ///
    /// `cloud` is made for virtual machines, `generic` for any PC, `i386` for 32-bit ones. The generic ones are told
    /// `cryptomgr.notests` unless --cmdline says otherwise. A guest named here is fetched or refused, never replaced.
    #[arg(long, value_name = "NAME", conflicts_with = "kernel")]
    pub(crate) guest: Option<Flavour>,

    /// Initial RAM disk [default: the disk's, or with the default kernel a busybox shell]
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// Kernel command line [default: the disk's, or console=ttyS0 panic=-1]
    ///
    /// With `panic=-1` a kernel that panics resets the machine at once, which ends the run with its own exit code.
    /// With an AMD processor, Linux finds `tsc_early_khz=` and the frequency in front.
    #[arg(long, alias = "append", value_name = "STRING", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,

    /// A disk: an image or a block device; may be given several times
    ///
    /// Without --kernel and --guest, the first disk with a kernel is booted: kernel, initial RAM disk and command line are those of
    /// the default entry of GRUB or the boot loader specification, or /vmlinuz and the newest kernel of /boot, on ext4 (ext2, ext3),
    /// partitioned (GPT, MBR) or not. `console=ttyS0` is added where the entry names no console.
    ///
    /// `FILE[,format=raw|qcow2|vmdk][,readonly=on][,snapshot=on][,serial=S][,cache=writeback|none][,backing=allow]`, a comma in
    /// the file's name written twice. The guest finds /dev/vda, /dev/vdb and so on, in this order. With `snapshot=on` what it
    /// writes goes when the run ends. A raw image wants its format named, unless it cannot be mistaken. A backing file outside
    /// the image's folder wants `backing=allow`.
    #[arg(long, value_name = "FILE[,OPTION=VALUE...]", value_parser = clap::value_parser!(DiskOptions))]
    pub(crate) disk: Vec<DiskOptions>,

    /// A network card and what it is plugged into; may be given several times
    ///
    /// `user[,hostfwd=tcp|udp:[ADDR:]HOST:GUEST]...[,restrict=on][,host=on]` is a network in process, without privileges: the guest is 10.0.2.15 (by DHCP), the gateway 10.0.2.2, the name server 10.0.2.3; it reaches what
    /// this host's routes lead to, but this host's loopback only with `host=on`, at the gateway's address, and nothing with
    /// `restrict=on`. `hostfwd` leads from a port of this host's, on 127.0.0.1 unless an address is given, to one of the guest's.
    /// `tap=IF` is an interface of this host's kernel, made for this user by root. `socket=PATH` is a cable to another guest of
    /// this host (or to QEMU's `-netdev stream`): who comes first listens, the next connects; a comma in PATH is written twice.
    /// Behind each there may be `mac=M`, `mtu=N`, and `rate=SIZE`, a bound on the bytes a second, such as 10M, in each direction.
    #[arg(long, value_name = "KIND[,OPTION=VALUE...]", value_parser = clap::value_parser!(NetOptions))]
    pub(crate) net: Vec<NetOptions>,

    /// A virtio socket device (vsock), whose other end is a Unix socket of the host: `PATH[,cid=N]`
    ///
    /// A program connects to PATH, writes `CONNECT PORT` and a newline, reads `OK` and a number, and is connected to that port
    /// of the guest. What the guest connects to at port P of CID 2 is the Unix socket PATH_P. The guest's CID is 3 unless told. A
    /// comma in PATH is written twice.
    #[arg(long, value_name = "PATH[,cid=N]", value_parser = clap::value_parser!(VsockOptions))]
    pub(crate) vsock: Option<VsockOptions>,

    /// A balloon, by which the guest gives SIZE of its memory back to the host at first; 0 is possible
    ///
    /// What the guest reports as free goes back to the host, too. Ctrl-a b shows how it stands, Ctrl-a + and Ctrl-a - change it.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) balloon: Option<u64>,

    /// A watchdog (Intel 6300ESB) that resets the machine, or with `=action=poweroff` ends the run
    ///
    /// That is when a driver has started its timer and does not reset it in time. What `--on-reset` says holds for it, too.
    #[arg(long, value_name = "action=THEN", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "action=reset", value_parser = on_watchdog)]
    pub(crate) watchdog: Option<OnWatchdog>,

    /// What happens when the guest resets the machine: `end` (exit code 16) or `restart` [default: end; restart for a disk's kernel]
    ///
    /// `restart` starts it again with the kernel, the initial RAM disk and the command line of the first start, as often as
    /// it wants.
    #[arg(long, value_name = "THEN")]
    pub(crate) on_reset: Option<Then>,

    /// What happens when a vCPU shuts down by a triple fault: `end` (exit code 14, with a dump) or `restart`
    ///
    /// Some kernels reset the machine by one.
    #[arg(long, value_name = "THEN", default_value = "end")]
    pub(crate) on_triple_fault: Then,

    /// Write what the guest sends to port 0xe9 to standard error
    #[arg(long)]
    pub(crate) debug_console: bool,

    /// Tell at the end what the vCPUs have done
    #[arg(long)]
    pub(crate) stats: bool,

    /// Fetch nothing: the default guest comes from the cache, or is the built-in one
    #[arg(long, env = "GEARSHIFT_OFFLINE", hide_env = true)]
    #[arg(value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) offline: bool,

    #[command(flatten, next_help_heading = "Changing gear")]
    pub(crate) gears: GearArgs,

    #[command(flatten, next_help_heading = "JIT")]
    pub(crate) jit: JitArgs,
}

/// `action=reset` or `action=poweroff`.
fn on_watchdog(text: &str) -> Result<OnWatchdog, String> {
    match text {
        "action=reset" => Ok(OnWatchdog::Reset),
        "action=poweroff" => Ok(OnWatchdog::PowerOff),
        _ => Err(format!("'{text}': take action=reset or action=poweroff")),
    }
}

/// What happens to a machine that is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Then {
    /// The run is over.
    End,
    /// The machine starts again.
    Restart,
}

impl From<Then> for machine::OnReset {
    fn from(then: Then) -> Self {
        match then {
            Then::End => Self::End,
            Then::Restart => Self::Restart,
        }
    }
}

fn exit_codes() -> String {
    format!("Exit codes:\n{}", ExitCode::table())
}

fn after_help() -> String {
    [EXAMPLES, &exit_codes(), FILES].join("\n\n")
}

fn after_compare_help() -> String {
    [COMPARE_EXAMPLES, &exit_codes(), FILES].join("\n\n")
}

fn after_image_help() -> String {
    [IMAGE_EXAMPLES, &exit_codes()].join("\n\n")
}

fn after_run_help() -> String {
    [KEYS, EXAMPLES, &exit_codes(), FILES].join("\n\n")
}

/// The command's definition.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// The same for the manual page: titles and texts.
pub(crate) fn sections() -> Vec<(&'static str, String)> {
    let split = |text: &str| text.split_once('\n').map(|(_, body)| body.to_owned()).unwrap_or_default();
    vec![
        ("keys on a terminal", split(KEYS)),
        ("examples", split(EXAMPLES)),
        ("exit codes", ExitCode::table()),
        ("environment", split(FILES)),
    ]
}

/// What QEMU calls options that there are here too; the last two say what is so anyway.
const QEMU: [(&str, Option<&str>); 9] = [
    ("-accel", Some("--accel")),
    ("-cpu", Some("--cpu")),
    ("-smp", Some("--cpus")),
    ("-m", Some("--mem")),
    ("-kernel", Some("--kernel")),
    ("-initrd", Some("--initrd")),
    ("-append", Some("--cmdline")),
    ("-nographic", None),
    ("-no-reboot", None),
];

/// Replaces QEMU's spellings. What follows an option that takes a value stays as it is.
fn normalise(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let takes_value = |word: &str| QEMU.iter().any(|(_, ours)| *ours == Some(word));
    let (mut out, mut is_value) = (Vec::new(), false);
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        if !is_value {
            if let Some((_, ours)) = QEMU.iter().find(|(theirs, _)| argument == *theirs) {
                is_value = ours.is_some();
                out.extend(ours.map(OsString::from));
                continue;
            }
            if argument == "-enable-kvm" {
                out.extend(["--accel", machine::KVM.0].map(OsString::from));
                continue;
            }
            if argument == "-machine" || argument == "-M" {
                // Of a machine's properties there is none but what runs it.
                match arguments.next_if(|value| accelerators_of(value).is_some()) {
                    Some(value) => {
                        out.push("--accel".into());
                        out.extend(accelerators_of(&value).map(OsString::from));
                    }
                    None => out.push("--machine".into()),
                }
                continue;
            }
        }
        is_value = !is_value && argument.to_str().is_some_and(takes_value);
        out.push(argument);
    }
    out
}

/// The list of accelerators in QEMU's `-machine accel=kvm:tcg`, in our form.
fn accelerators_of(value: &OsStr) -> Option<String> {
    let list = value.to_str()?.strip_prefix("accel=")?;
    (!list.contains(',')).then(|| list.replace(':', ","))
}

/// What clap makes of the command line.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Something to do, and what it was made of.
    Do(Cli, Box<ArgMatches>),
    /// A text that was asked for.
    Show(String),
}

/// Parses the command line, the program's name first.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, Failure> {
    let words = normalise(arguments);
    let read = match command().try_get_matches_from(&words) {
        Ok(matches) => matches,
        Err(error) => return not_parsed(&error),
    };
    let merged = config::merge(command, &words, &read)?.map(|words| command().try_get_matches_from(words));
    match merged {
        None => finish(read),
        Some(Ok(matches)) => finish(matches),
        Some(Err(error)) => not_parsed(&error),
    }
}

fn finish(matches: ArgMatches) -> Result<Parsed, Failure> {
    match Cli::from_arg_matches(&matches) {
        Ok(cli) => Ok(Parsed::Do(cli, Box::new(matches))),
        Err(error) => not_parsed(&error),
    }
}

/// A text that was asked for, or why not.
fn not_parsed(error: &clap::Error) -> Result<Parsed, Failure> {
    if error.use_stderr() {
        return Err(Failure::new(ExitCode::Usage, one_line(&error.to_string())));
    }
    Ok(Parsed::Show(error.to_string()))
}

/// clap's message without its synopsis, in one line.
fn one_line(message: &str) -> String {
    let mut parts = Vec::new();
    for paragraph in message.split("\n\n") {
        let text = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        if !text.is_empty() && !text.starts_with("Usage:") && !text.starts_with("For more information") {
            parts.push(text.trim_start_matches("error: ").to_owned());
        }
    }
    parts.push("`gearshift help COMMAND` tells more".to_owned());
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_args(words: &[&str]) -> RunArgs {
        let words = ["gearshift", "run"].iter().chain(words).map(OsString::from);
        match parse(words).unwrap() {
            Parsed::Do(Cli { command: Command::Run(args) }, _) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn refused(words: &[&str]) -> Failure {
        parse(["gearshift"].iter().chain(words).map(OsString::from)).unwrap_err()
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn qemu_spellings_mean_the_same() {
        let words =
            "-accel kvm -accel tcg -cpu x -smp 3 -m 256 -kernel k -initrd i -append -m -nographic -no-reboot";
        let qemu = run_args(&words.split(' ').collect::<Vec<_>>());
        let words = "--accel kvm,tcg --cpu x --cpus 3 --mem 256M --kernel k --initrd i --cmdline -m";
        let ours = run_args(&words.split(' ').collect::<Vec<_>>());
        assert_eq!(format!("{qemu:?}"), format!("{ours:?}"));
        assert_eq!(
            (qemu.accel, qemu.mem, qemu.cmdline.as_deref()),
            (vec!["kvm".into(), "tcg".into()], 256 << 20, Some("-m"))
        );
    }

    #[test]
    fn qemu_spellings_of_accelerators() {
        for (words, accel) in [
            ("-accel kvm", "kvm"),
            ("-accel tcg", "tcg"),
            ("-enable-kvm", "kvm"),
            ("-machine accel=kvm:tcg", "kvm,tcg"),
            ("-M accel=tcg", "tcg"),
            ("-accel kvm -accel tcg", "kvm,tcg"),
        ] {
            let args = run_args(&words.split(' ').collect::<Vec<_>>());
            assert_eq!(args.accel.join(","), accel, "{words}");
        }
        assert_eq!(run_args(&["--cmdline", "-enable-kvm"]).cmdline.as_deref(), Some("-enable-kvm"));
        for words in
            [&["run", "-machine", "q35,accel=kvm"][..], &["run", "-M", "microvm"], &["run", "-machine"]]
        {
            assert!(refused(words).message.contains("--machine"), "{words:?}");
        }
    }

    #[test]
    fn defaults() {
        let args = run_args(&[]);
        assert_eq!((args.accel, args.cpus, args.mem), (vec!["auto".to_owned()], 1, 512 << 20));
        assert!(args.kernel.is_none() && args.cmdline.is_none() && !args.stats);
    }

    #[test]
    fn bad_usage_is_one_line_that_names_the_thing() {
        for (words, thing) in [
            (&["run", "--mem", "lots"][..], "lots"),
            (&["run", "--cpus", "many"], "many"),
            (&["run", "--cpus", "-1"], "-1"),
            (&["run", "--cpu"], "--cpu"),
            (&["run", "--meme", "1"], "--mem"),
            (&["run", "--guest", "hurd"], "there are cloud, generic and i386"),
            (&["run", "--guest", "i386", "--kernel", "k"], "--kernel"),
            (&["ruin"], "ruin"),
            (&[], "subcommand"),
            (&["completions", "dos"], "dos"),
        ] {
            let failure = refused(words);
            assert_eq!(failure.code, ExitCode::Usage);
            assert!(failure.message.contains(thing), "{}", failure.message);
            assert!(
                !failure.message.contains('\n') && !failure.message.contains("error:"),
                "{}",
                failure.message
            );
        }
    }
}
