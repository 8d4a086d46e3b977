//! `gearshift run`: one guest from its start to its end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use accel_api::AccelId;
use backends::disk::DiskImage;
use backends::vsock::{SocketFile, VsockHost};
use machine::{AccelChoice, GuestEnd, Machine, Needs, Phase};

use crate::cli::{RunArgs, Then};
use crate::default_guest::{self, CMDLINE, Guest};
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::gears::{Choice, GearArgs, Gears};
use crate::jit::{self, Shown};
use crate::silence::{Heard, Silence};
use crate::stdio::{self, say, say_all};
use crate::terminal::RawMode;
use crate::{console, disk_boot, probe, signals, stats};

/// Runs a guest.
///
/// # Errors
/// Whatever keeps it from starting.
pub(crate) fn run(args: RunArgs) -> Result<ExitCode, Failure> {
    // Looked at first: nothing is worth fetching for a console that nobody can read.
    let output = stdio::output()?;
    let choice: AccelChoice = args.accel.join(",").parse()?;
    let needs = Needs { cpu_model: args.cpu.clone(), vcpus: args.cpus };
    args.jit.check(args.cpus)?;
    let shown = Shown::default();
    let registry = probe::registry(args.jit.options(args.stats, &shown));
    let survey = registry.survey();
    let mut chosen = survey.choose(&choice, &needs)?;
    let set = args.gears.set(&survey, &choice, &needs, &mut chosen)?;
    let explanation = chosen.explanation();
    let id = chosen.accelerator.id();
    let other = registry.simplest().filter(|other| *other != id);
    args.jit.check_accelerator(id)?;
    let silence = Arc::new(Silence::default());
    let mut builder = Machine::builder()
        .accelerator(chosen.accelerator.clone())
        .offered(chosen.caps)
        .cpus(args.cpus)
        .memory(args.mem)
        .cpu_model(&args.cpu)
        .on_triple_fault(args.on_triple_fault.into())
        .on_phase(|phase| {
            if phase == Phase::Resetting {
                say("the guest resets the machine; it starts again");
            }
        })
        .on_notice(say)
        .console(Heard::new(output, &silence));
    if let Some(bytes) = args.balloon {
        builder = builder.balloon(balloon_pages(bytes, args.mem)?);
    }
    if let Some(then) = args.watchdog {
        builder = builder.watchdog(then);
    }
    if args.debug_console {
        builder = builder.debug_console(Heard::new(io::stderr(), &silence));
    }
    let mut disks = Vec::new();
    for options in &args.disk {
        let disk =
            DiskImage::open(options).map_err(|error| Failure::new(ExitCode::File, error.to_string()))?;
        let disk = Arc::new(disk);
        disks.push((options.path.as_path(), Arc::clone(&disk)));
        builder = builder.disk(disk);
    }
    let mut sockets = Vec::new();
    for (n, options) in args.net.iter().enumerate() {
        let (mac, network) =
            options.connect(n).map_err(|error| Failure::new(ExitCode::Network, error.to_string()))?;
        network.says.iter().for_each(say);
        sockets.extend(network.file);
        builder = builder.net(network.backend, mac.0);
    }
    if let Some(options) = args.vsock {
        let host =
            VsockHost::new(options).map_err(|error| Failure::new(ExitCode::File, error.to_string()))?;
        sockets.push(host.socket_file().clone());
        builder = builder.vsock(host);
    }
    builder.check()?;

    let from_disk = args.kernel.is_none() && args.guest.is_none() && !disks.is_empty();
    // What boots itself is to be there again when it reboots.
    let then = args.on_reset.unwrap_or(if from_disk { Then::Restart } else { Then::End });
    builder = builder.on_reset(then.into());
    let guest = match args.kernel {
        Some(path) => {
            let cmdline = CMDLINE.into();
            Guest { name: path.display().to_string(), kernel: path.into(), initrd: None, cmdline }
        }
        None if from_disk => disk_boot::obtain(&disks)?,
        None => default_guest::obtain(args.guest, args.offline, args.initrd.is_none())?,
    };
    let cmdline = args.cmdline.unwrap_or_else(|| guest.cmdline.into_owned());
    builder = builder.cmdline(&*cmdline).kernel(guest.kernel);
    if let Some(initrd) = args.initrd.map(Into::into).or(guest.initrd) {
        builder = builder.initrd(initrd);
    }
    let machine = Arc::new(builder.build()?);
    if let Some(line) = explanation {
        say(line);
    }
    let mib = args.mem >> 20;
    say(format_args!("{id} runs {} on {} vCPU ({}) with {mib} MiB", guest.name, args.cpus, args.cpu));
    if args.gears.verify_switches {
        machine.verify_switches(true);
    }
    let choice = Choice { registry, wanted: choice, needs, first: chosen.accelerator };
    let gears = Arc::new(Gears::new(machine.clone(), set, choice));
    let result = silence
        .watch(machine.clone(), cmdline)
        .map_err(|error| Failure::new(ExitCode::Host, format!("no thread for the console: {error}")))
        .and_then(|()| supervise(&machine, &gears, &args.gears, args.stats, other, &sockets));
    silence.end();
    shown.print();
    result
}

/// The pages of a balloon of `bytes` in a machine with `memory` bytes.
fn balloon_pages(bytes: u64, memory: u64) -> Result<u32, Failure> {
    let pages = u32::try_from(bytes >> 12).ok().filter(|_| bytes < memory || bytes == 0);
    pages.ok_or_else(|| {
        let message = format!(
            "a balloon of {} MiB is no part of {} MiB of memory; take less, or give the guest more by --mem",
            bytes >> 20,
            memory >> 20
        );
        Failure::new(ExitCode::Memory, message)
    })
}

/// Runs the machine to its end with the console connected. `other` is an accelerator to go back to, `sockets` go with the machine.
fn supervise(
    machine: &Arc<Machine>,
    gears: &Arc<Gears>,
    schedule: &GearArgs,
    with_stats: bool,
    other: Option<AccelId>,
    sockets: &[SocketFile],
) -> Result<ExitCode, Failure> {
    let host = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Failure::new(ExitCode::Host, format!("{what}: {error}"))
    };
    stdio::detach_errors().map_err(host("no thread for standard error"))?;
    let caught = signals::watch(machine.clone()).map_err(host("cannot handle signals"))?;
    let raw = RawMode::enter().map_err(host("the terminal cannot be put into raw mode"))?;
    if raw.is_some() {
        say("Ctrl-a x quits, Ctrl-a h helps");
    }
    let quit = console::connect(machine.clone(), gears.clone(), raw.is_some())
        .map_err(host("cannot read standard input"))?;
    let started = Instant::now();
    let resumed = machine.resume();
    let end = thread::scope(|scope| {
        let (running, ended) = mpsc::channel();
        let follow = move || gears.follow(schedule, &ended);
        thread::Builder::new().name("gears".into()).spawn_scoped(scope, follow).map_err(host("no thread"))?;
        let end = match resumed {
            // A signal or key may have been faster; the end tells which.
            Ok(()) | Err(machine::MachineError::Ended(_)) => Ok(machine.wait_end()),
            Err(error) => Err(Failure::from(error)),
        };
        // The schedule is over.
        drop::<mpsc::Sender<()>>(running);
        end
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let counters = if with_stats { machine.stats().ok() } else { None };
    // Writes out what the guest has sent.
    machine.wait();
    drop(raw);
    // Threads have the machine still, so that what belongs to it is not dropped.
    sockets.iter().for_each(SocketFile::remove);
    caught.die();
    if let Some(list) = counters {
        say_all(format_args!("{}", stats::text(&list)));
        say(stats::speed(&list, seconds));
    }
    if let Some(line) = gears.summary() {
        say(line);
    }
    outcome(end, quit.load(Ordering::SeqCst), other)
}

/// Tells the user how it ended.
fn outcome(end: GuestEnd, quit: bool, other: Option<AccelId>) -> Result<ExitCode, Failure> {
    let code = match &end {
        GuestEnd::PowerOff => ExitCode::Success,
        GuestEnd::Reset | GuestEnd::Panicked | GuestEnd::Watchdog => ExitCode::Reset,
        GuestEnd::TripleFault { .. } => ExitCode::TripleFault,
        GuestEnd::DebugExit(value) => ExitCode::DebugExit(*value),
        GuestEnd::ConsoleLost { reason } => return Err(Failure::output(reason)),
        GuestEnd::Unsupported { .. } => ExitCode::Unsupported,
        GuestEnd::BackendBug { report, .. } if report.by_check => ExitCode::Diverged,
        GuestEnd::Stopped if quit => ExitCode::UserQuit,
        _ => ExitCode::Host,
    };
    if quit && end == GuestEnd::Stopped {
        say("quit");
    } else {
        say(format_args!("{end}{}", remedy(&end, other)));
    }
    if let GuestEnd::TripleFault { dump }
    | GuestEnd::Unsupported { dump, .. }
    | GuestEnd::BackendBug { dump, .. }
    | GuestEnd::HostError { dump: Some(dump), .. } = &end
    {
        say_all(dump);
    }
    if let GuestEnd::BackendBug { report, .. } = &end {
        say_all(&report.text);
        if let Some(options) = jit::options_of(report) {
            say(format_args!("to see it again: {}", jit::again(std::env::args_os(), &options)));
        }
    }
    Ok(code)
}

/// What helps against `end`, as the rest of its line; `other` is an accelerator to go back to.
fn remedy(end: &GuestEnd, other: Option<AccelId>) -> String {
    match (end, other) {
        (GuestEnd::Unsupported { .. }, Some(other)) => {
            format!("; another may, for example with --accel {other}")
        }
        (GuestEnd::BackendBug { .. }, Some(other)) => format!("; --accel {other} does without it"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use accel_api::BackendReport;
    use machine::{CpuDump, INTERP};

    use super::*;

    #[test]
    fn an_end_comes_with_what_helps() {
        let dump = Box::new(CpuDump { vcpu: 0, reason: String::new(), state: None });
        let unsupported = GuestEnd::Unsupported { reason: "VPANDN".to_owned(), dump: dump.clone() };
        let bug = GuestEnd::BackendBug {
            summary: "translated code went wrong".to_owned(),
            report: Box::new(BackendReport::default()),
            dump,
        };
        let line = |end: &GuestEnd, other| format!("{end}{}", remedy(end, other));
        assert_eq!(
            line(&unsupported, Some(INTERP)),
            "the accelerator cannot go on: VPANDN; another may, for example with --accel interp"
        );
        assert_eq!(line(&bug, Some(INTERP)), "translated code went wrong; --accel interp does without it");
        assert_eq!(line(&bug, None), "translated code went wrong");
        assert_eq!(line(&GuestEnd::PowerOff, Some(INTERP)), "the guest powered off");
    }
}
