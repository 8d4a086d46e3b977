//! `gearshift probe`: the accelerators of this build on this host.

use std::fmt::Write as _;

use accel_api::{CpuModel, MODEL_NAMES, Probe, Quality};
use machine::{AccelChoice, Descriptor, Registry, TscFrequency};
use serde::Serialize;

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
    /// What there is to say: measurements, or what is missing.
    detail: String,
    /// Of an absent one: what the user can do.
    remedy: Option<String>,
    max_vcpus: Option<u32>,
    /// CPU models a guest can have.
    cpu_models: Vec<&'static str>,
}

/// Prints the table, or JSON.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn probe(json: bool) -> Result<(), Failure> {
    let registry = Registry::builtin();
    let host = Host {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: machine::memory_map::host_memory(),
        tsc_khz: TscFrequency::of_host().khz,
    };
    let report = Report {
        format: 1,
        accelerators: registry.list().iter().map(|d| entry(d, host.tsc_khz)).collect(),
        host,
        auto: registry.choose(&AccelChoice::Auto).ok().map(|chosen| chosen.accelerator.id().0),
    };
    if json {
        let text = serde_json::to_string_pretty(&report).map_err(Failure::output)?;
        stdio::print(text + "\n")
    } else {
        stdio::print(table(&report))
    }
}

fn entry(descriptor: &Descriptor, tsc_khz: u32) -> Entry {
    let mut entry = Entry {
        name: descriptor.id.0,
        aliases: descriptor.aliases.clone(),
        summary: descriptor.summary,
        status: "available",
        quality: None,
        detail: String::new(),
        remedy: None,
        max_vcpus: None,
        cpu_models: Vec::new(),
    };
    match (descriptor.probe)() {
        Probe::Available { quality, detail } => {
            entry.quality = Some(match quality {
                Quality::Degraded => "degraded",
                Quality::Interpreted => "interpreted",
                Quality::Translated => "translated",
                Quality::Hardware => "hardware",
            });
            entry.detail = detail;
            match (descriptor.create)() {
                Ok(accelerator) => {
                    let caps = accelerator.caps();
                    let gives = |name: &str| {
                        CpuModel::named(name, 1, tsc_khz).is_ok_and(|mut model| {
                            model.fit(&caps.features);
                            model.features.missing_from(&caps.features).is_empty()
                        })
                    };
                    entry.max_vcpus = Some(caps.max_vcpus.min(machine::MAX_VCPUS));
                    entry.cpu_models = MODEL_NAMES.iter().copied().filter(|name| gives(name)).collect();
                }
                Err(error) => (entry.status, entry.detail) = ("broken", error.to_string()),
            }
        }
        Probe::Absent { reason, remedy } => {
            (entry.status, entry.detail, entry.remedy) = ("absent", reason, remedy);
        }
        Probe::Broken(reason) => (entry.status, entry.detail) = ("broken", reason),
    }
    entry
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    // A String takes all that is written.
    let _ = writeln!(text, "{:<8} {:<10} {:<12} {:>9}  CPU MODELS", "NAME", "STATUS", "QUALITY", "MAX VCPUS");
    for entry in &report.accelerators {
        let max = entry.max_vcpus.map_or("-".into(), |max| max.to_string());
        let (quality, models) = (entry.quality.unwrap_or("-"), entry.cpu_models.join(", "));
        let _ = writeln!(text, "{:<8} {:<10} {quality:<12} {max:>9}  {models}", entry.name, entry.status);
        let _ = writeln!(text, "         {}", entry.summary);
        if !entry.detail.is_empty() {
            let _ = writeln!(text, "         {}", entry.detail);
        }
        if let Some(remedy) = &entry.remedy {
            let _ = writeln!(text, "         {remedy}");
        }
        if !entry.aliases.is_empty() {
            let _ = writeln!(text, "         also called {}", entry.aliases.join(", "));
        }
    }
    let memory = report.host.memory_bytes.map_or("memory unknown".into(), |b| format!("{} MiB", b >> 20));
    let _ = writeln!(
        text,
        "\nHost: {} CPUs, {memory}, TSC at {} kHz. `--accel auto` takes {}.",
        report.host.cpus,
        report.host.tsc_khz,
        report.auto.unwrap_or("none: nothing works here")
    );
    text
}
