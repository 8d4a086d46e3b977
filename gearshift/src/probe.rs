//! `gearshift probe`: the accelerators of this build on this host.

use std::fmt::Write as _;

use accel_api::x86::MODEL_NAMES;
use accel_api::{AccelError, Accelerator, Available, Measured, Probe, duration_text};
use machine::{AccelChoice, BackendOptions, Descriptor, JitOptions, Needs, Registry, TscFrequency};
use serde::Serialize;
use std::sync::Arc;

use crate::failure::Failure;
use crate::stdio;

/// The answer, as `--json` prints it. Fields may be added; a change of meaning raises `format`.
#[derive(Debug, Serialize)]
struct Report {
    format: u32,
    host: Host,
    accelerators: Vec<Entry>,
    /// What `--accel auto` takes.
    auto: Option<&'static str>,
    /// Why it is that one, if something else sounded better.
    auto_because: Option<String>,
}

#[derive(Debug, Serialize)]
struct Host {
    cpus: usize,
    memory_bytes: Option<u64>,
    tsc_khz: u32,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: &'static str,
    aliases: Vec<&'static str>,
    summary: &'static str,
    /// `available`, `absent` or `broken`.
    status: &'static str,
    /// Of an available one: `hardware`, `translated`, `interpreted` or `degraded`.
    quality: Option<&'static str>,
    /// What stands behind it, such as a kernel module.
    provider: Option<String>,
    /// Nanoseconds, where they were measured.
    measured: Option<Speed>,
    /// Kind of what is missing, of an absent one.
    missing: Option<&'static str>,
    /// Why it is as it is.
    reason: String,
    /// Of one that is not available: what the user can do.
    remedy: Option<String>,
    max_vcpus: Option<u32>,
    /// CPU models a guest can have.
    cpu_models: Vec<&'static str>,
}

/// [`Measured`].
#[derive(Clone, Copy, Debug, Serialize)]
struct Speed {
    ring0_ns: f64,
    ring3_ns: f64,
    native_ns: f64,
    exit_ns: f64,
}

impl From<Measured> for Speed {
    fn from(measured: Measured) -> Self {
        let Measured { ring0_ns, ring3_ns, native_ns, exit_ns } = measured;
        Self { ring0_ns, ring3_ns, native_ns, exit_ns }
    }
}

/// The accelerators of this build. Tests point `GEARSHIFT_KVM_DEVICE` at what is no KVM.
pub(crate) fn registry(jit: JitOptions) -> Registry {
    let kvm_device = std::env::var_os("GEARSHIFT_KVM_DEVICE").map(Into::into);
    Registry::builtin_with(&BackendOptions { kvm_device, jit })
}

/// Prints the table, or JSON.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn probe(json: bool) -> Result<(), Failure> {
    let registry = registry(JitOptions::default());
    let survey = registry.survey();
    let chosen = survey.choose(&AccelChoice::Auto, &Needs::default()).ok();
    let report = Report {
        format: 2,
        host: Host {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: machine::memory_map::host_memory(),
            tsc_khz: TscFrequency::of_host().khz,
        },
        accelerators: survey.probes().map(|(descriptor, probe)| entry(descriptor, probe)).collect(),
        auto: chosen.as_ref().map(|chosen| chosen.accelerator.id().0),
        auto_because: chosen.and_then(|chosen| chosen.explanation()),
    };
    if json {
        let text = serde_json::to_string_pretty(&report).map_err(Failure::output)?;
        stdio::print(text + "\n")
    } else {
        stdio::print(table(&report))
    }
}

fn entry(descriptor: &Descriptor, probe: &Probe) -> Entry {
    let mut entry = Entry {
        name: descriptor.id.0,
        aliases: descriptor.aliases.clone(),
        summary: descriptor.summary,
        status: "available",
        quality: None,
        provider: None,
        measured: None,
        missing: None,
        reason: String::new(),
        remedy: probe.remedy().map(str::to_owned),
        max_vcpus: None,
        cpu_models: Vec::new(),
    };
    match probe {
        Probe::Available(available) => match (descriptor.create)() {
            Ok(accelerator) => entry.available(available, &accelerator),
            Err(error) => entry.broken(&error),
        },
        Probe::Absent(absent) => {
            entry.status = "absent";
            entry.missing = Some(absent.kind.name());
            entry.reason.clone_from(&absent.reason);
        }
        Probe::Broken(broken) => {
            entry.status = "broken";
            entry.reason.clone_from(&broken.reason);
        }
    }
    entry
}

impl Entry {
    fn available(&mut self, available: &Available, accelerator: &Arc<dyn Accelerator>) {
        self.quality = Some(available.quality.name());
        self.provider.clone_from(&available.provider);
        self.measured = available.measured.map(Speed::from);
        self.reason.clone_from(&available.detail);
        self.max_vcpus = Some(accelerator.caps().max_vcpus.min(machine::MAX_VCPUS));
        let given = |name: &&str| {
            let needs = Needs { cpu_model: (*name).to_owned(), ..Needs::default() };
            needs.met_by(&**accelerator).is_ok()
        };
        self.cpu_models = MODEL_NAMES.iter().copied().filter(given).collect();
    }

    fn broken(&mut self, error: &AccelError) {
        (self.status, self.reason) = ("broken", error.to_string());
    }

    /// The cells of its row in the table.
    fn cells(&self) -> [String; 9] {
        let time = |of: fn(Speed) -> f64| self.measured.map_or("-".into(), |speed| duration_text(of(speed)));
        let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
        [
            self.name.to_owned(),
            if self.status == "available" { "yes" } else { "no" }.to_owned(),
            or_none(self.quality),
            or_none(self.provider.as_deref()),
            time(|speed| speed.ring0_ns),
            time(|speed| speed.ring3_ns),
            time(|speed| speed.exit_ns),
            self.max_vcpus.map_or("-".into(), |max| max.to_string()),
            if self.cpu_models.is_empty() { "-".to_owned() } else { self.cpu_models.join(", ") },
        ]
    }
}

const HEADINGS: [&str; 9] =
    ["NAME", "USABLE", "QUALITY", "PROVIDER", "RING 0", "RING 3", "EXIT", "VCPUS", "CPU MODELS"];

fn table(report: &Report) -> String {
    let rows: Vec<_> = report.accelerators.iter().map(Entry::cells).collect();
    let mut widths = HEADINGS.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let line = |cells: &[String; 9]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&HEADINGS.map(str::to_owned));
    // A String takes all that is written.
    for (entry, row) in report.accelerators.iter().zip(&rows) {
        text += &line(row);
        let _ = writeln!(text, "    {}", entry.summary);
        if !entry.reason.is_empty() {
            let _ = writeln!(text, "    {}", entry.reason);
        }
        if let Some(remedy) = &entry.remedy {
            let _ = writeln!(text, "    what helps: {remedy}");
        }
        if !entry.aliases.is_empty() {
            let _ = writeln!(text, "    also called {}", entry.aliases.join(", "));
        }
    }
    text += "RING 0 and RING 3: time for an instruction. EXIT: from the guest to its devices and back.\n\n";
    let memory = report.host.memory_bytes.map_or("memory unknown".into(), |b| format!("{} MiB", b >> 20));
    let Host { cpus, tsc_khz, .. } = report.host;
    let _ = writeln!(text, "Host: {cpus} CPUs, {memory}, TSC at {tsc_khz} kHz.");
    let auto = report.auto.unwrap_or("none: nothing works here");
    // The rows tell why not another.
    let _ = writeln!(text, "`--accel auto` takes {auto}.");
    text
}
