//! The project's suite for the lab: what the KVM backend must pass on hardware KVM.
//!
//! 1. The test programs of `accel-kvm`, conformance suite among them, told that KVM is promised: what they leave out then
//!    they do by name, because QEMU's processor differs from silicon there.
//! 2. `gearshift probe`: KVM is there, it is hardware, and `auto` takes it.
//! 3. Debian's kernel under `gearshift run --accel kvm`, with one and with two vCPUs, to its power-off.
//!
//! Each runs in a machine of its own, freshly booted, so that none can spoil another.

use super::image::Contents;
use super::machine::Lab;
use super::say;
use crate::cargo::{self, Executable};
use crate::test::Count;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a step's output is written through: passed on, kept, and its tests counted.
struct Watched<W> {
    to: W,
    kept: Vec<u8>,
    /// Where the line begins that has not ended yet.
    line: usize,
    count: Count,
}

impl<W: Write> Watched<W> {
    fn new(to: W) -> Self {
        Self { to, kept: Vec::new(), line: 0, count: Count::default() }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.kept.extend_from_slice(&bytes[..n]);
        while let Some(length) = self.kept[self.line..].iter().position(|byte| *byte == b'\n') {
            let line = &self.kept[self.line..self.line + length];
            self.count.line(&String::from_utf8_lossy(line));
            self.line += length + 1;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Runs everything, whatever fails; prints a summary. 0 if all went well, else 1.
#[expect(clippy::print_stdout, reason = "the result of a command-line tool")]
pub(super) fn run(lab: &Lab) -> Result<u8> {
    let start = Instant::now();
    let scratch = Scratch::new()?;
    let tests = tests()?;
    let gearshift = scratch.stripped(&cargo::gearshift()?)?;
    let mut passed = 0;
    let mut failed = Vec::new();
    let mut count = Count::default();
    let mut step = |name: &str, outcome: Result<()>| match outcome {
        Ok(()) => passed += 1,
        Err(error) => {
            say(&format!("lab: FAILED: {name}: {error:#}"));
            failed.push(name.to_owned());
        }
    };
    say("lab: tests of accel-kvm");
    // On one processor: with several, each on a thread of the host, QEMU's do not see each other's changes of code in time.
    step("tests of accel-kvm", run_tests(&lab.with_cpus(1), &scratch, &tests, &mut count));
    say("lab: gearshift probe");
    step("gearshift probe", probe(lab, &gearshift));
    for vcpus in [1, 2] {
        let name = format!("Debian's kernel on KVM, {vcpus} vCPU(s)");
        say(&format!("lab: {name}"));
        step(&name, boot(&lab.with_cpus(vcpus), &gearshift, vcpus, &["--accel", "kvm"]));
    }
    say("lab: Debian's kernel, handed on between the accelerators");
    // Short visits: on an emulated processor software is slow beside KVM.
    let visits = [
        ("2s", "jit"),
        ("2500ms", "kvm"),
        ("4s", "interp"),
        ("4500ms", "kvm"),
        ("6s", "jit"),
        ("6500ms", "interp"),
    ];
    let visits: Vec<_> = visits.iter().chain(&[("7s", "kvm")]).map(|(at, to)| format!("{at}={to}")).collect();
    let mut hand_on = vec!["--accel", "kvm", "--verify-switches"];
    visits.iter().for_each(|visit| hand_on.extend(["--switch-at", visit]));
    step("changes of accelerator", boot(&lab.with_cpus(1), &gearshift, 1, &hand_on));
    let Count { passed: tests, failed: broken, ignored, skipped, optional, .. } = count;
    println!(
        "kvm-lab: {passed} steps passed, {} failed; tests: {tests} passed, {broken} failed, {ignored} ignored, \
         {skipped} skipped, {optional} left out because the processor is emulated; {} s",
        failed.len(),
        start.elapsed().as_secs()
    );
    for name in &failed {
        println!("kvm-lab: failed: {name}");
    }
    Ok(u8::from(!failed.is_empty()))
}

/// The test programs of the KVM backend.
fn tests() -> Result<Vec<Executable>> {
    let mut found = cargo::executables(&["test", "--no-run", "--package", "accel-kvm"])?;
    found.retain(|executable| executable.test);
    ensure!(!found.is_empty(), "accel-kvm has no tests");
    Ok(found)
}

/// All of them in one machine, one after the other.
fn run_tests(lab: &Lab, scratch: &Scratch, tests: &[Executable], count: &mut Count) -> Result<()> {
    const EACH: &str = "status=0; for test in tests/*; do ./$test || status=1; done; exit $status";
    let mut contents = Contents::default();
    for (n, test) in (1..).zip(tests) {
        contents.add_as(&scratch.stripped(&test.path)?, &format!("lab/tests/{n}-{}", test.name))?;
    }
    let mut output = Watched::new(io::stdout());
    let command = ["env", "GEARSHIFT_KVM=required", "RUST_BACKTRACE=0", "sh", "-c", EACH].map(str::to_owned);
    let status = lab.run(&contents, &command, &mut output)?;
    count.add(&output.count);
    check_tests(status, tests.len(), &output.count)
}

fn check_tests(status: u8, programs: usize, count: &Count) -> Result<()> {
    ensure!(status == 0 && count.failed == 0, "exit status {status}, {} failed", count.failed);
    ensure!(count.programs as usize == programs, "{} of {programs} programs gave a result", count.programs);
    ensure!(count.passed > 0, "no test ran");
    let not_run = count.skipped + count.ignored;
    ensure!(not_run == 0, "{not_run} test(s) did not run, where there is KVM");
    Ok(())
}

fn probe(lab: &Lab, gearshift: &Path) -> Result<()> {
    let mut contents = Contents::default();
    contents.add_as(gearshift, "lab/gearshift")?;
    let mut output = Watched::new(io::stdout());
    let command = ["gearshift", "probe", "--json"].map(str::to_owned);
    let status = lab.run(&contents, &command, &mut output)?;
    ensure!(status == 0, "exit status {status}");
    check_probe(&output.text())
}

/// KVM is available, of the best quality, and what `auto` takes.
fn check_probe(json: &str) -> Result<()> {
    let json: Value = serde_json::from_str(json).context("what it prints is no JSON")?;
    let accelerators = json["accelerators"].as_array().context("no list of accelerators")?;
    let kvm = accelerators.iter().find(|a| a["name"] == "kvm").context("it does not know kvm")?;
    if kvm["status"] != "available" || kvm["quality"] != "hardware" || json["auto"] != "kvm" {
        bail!("kvm is {}, {}, and auto takes {}", kvm["status"], kvm["quality"], json["auto"]);
    }
    Ok(())
}

/// Boots to a script that looks at its processors, and powers off.
fn boot(lab: &Lab, gearshift: &Path, vcpus: u32, options: &[&str]) -> Result<()> {
    let guest = lab.guest();
    let mut contents = Contents::default();
    contents.add_as(gearshift, "lab/gearshift")?;
    contents.add_as(&guest.kernel, "lab/vmlinuz")?;
    contents.add_as(&guest.initrd, "lab/initrd")?;
    let cmdline = r#"console=ttyS0 quiet reboot=t panic=-1 gearshift.script="uname -a; free""#;
    let vcpus_text = vcpus.to_string();
    let run = ["gearshift", "run", "--cpus", &vcpus_text, "--mem", "512M"];
    let files = ["--kernel", "vmlinuz", "--initrd", "initrd", "--cmdline", cmdline];
    let command: Vec<_> =
        run.into_iter().chain(options.iter().copied()).chain(files).map(str::to_owned).collect();
    let mut output = Watched::new(io::stdout());
    let status = lab.run(&contents, &command, &mut output)?;
    let text = output.text();
    check_boot(status, vcpus, &text)?;
    if options.contains(&"--switch-at") { check_changes(&text) } else { Ok(()) }
}

/// The guest was handed on at least twice, and nobody refused it.
fn check_changes(text: &str) -> Result<()> {
    let line =
        text.lines().find(|line| line.contains(" changes of accelerator")).context("no change was told")?;
    let told = line.trim_start_matches("gearshift: ");
    let count: u64 = told.split(' ').next().and_then(|n| n.parse().ok()).context("no number of changes")?;
    ensure!(count >= 2 && !line.contains("refused"), "{line}");
    Ok(())
}

fn check_boot(status: u8, vcpus: u32, console: &str) -> Result<()> {
    ensure!(status == 0, "exit status {status}");
    let cpus = format!("CPUS {vcpus}");
    for line in ["INIT-REACHED", &cpus, "GUEST-DONE status: 0"] {
        ensure!(console.lines().any(|l| l.starts_with(line)), "the guest did not say {line:?}");
    }
    Ok(())
}

/// A folder for programs without their debug information, of which there is much: an emulated processor copies it.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("gearshift-kvm-suite-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// A copy of the program without debug information.
    pub(super) fn stripped(&self, program: &Path) -> Result<PathBuf> {
        let copy = self.0.join(program.file_name().context("a program has a name")?);
        let status = Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&copy)
            .arg(program)
            .stdin(Stdio::null())
            .status()
            .context("cannot run strip (Debian: binutils)")?;
        ensure!(status.success(), "strip {} failed", program.display());
        Ok(copy)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing is lost if it stays.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hardware_that_auto_takes_will_do() {
        let json = |status: &str, quality: &str, auto: &str| {
            format!(
                r#"{{"auto":"{auto}","accelerators":[{{"name":"interp"}},
                    {{"name":"kvm","status":"{status}","quality":"{quality}"}}]}}"#
            )
        };
        check_probe(&json("available", "hardware", "kvm")).unwrap();
        check_probe(&json("available", "degraded", "kvm")).unwrap_err();
        check_probe(&json("available", "hardware", "interp")).unwrap_err();
        check_probe(&json("absent", "hardware", "kvm")).unwrap_err();
        check_probe(r#"{"accelerators":[]}"#).unwrap_err();
        check_probe("gearshift: no").unwrap_err();
    }

    #[test]
    fn a_boot_must_have_said_everything() {
        let console = "INIT-REACHED uptime: 1\r\nCPUS 2\r\nLinux\r\nGUEST-DONE status: 0\r\n";
        check_boot(0, 2, console).unwrap();
        check_boot(22, 2, console).unwrap_err();
        check_boot(0, 1, console).unwrap_err();
        check_boot(0, 2, &console.replace("DONE status: 0", "DONE status: 1")).unwrap_err();
    }

    #[test]
    fn a_skipped_test_is_a_failure_here() {
        let mut output = Watched::new(io::sink());
        output.write_all(b"test result: ok. 2 passed; 0 failed; 0 ignored; 0 mea").unwrap();
        check_tests(0, 1, &output.count).unwrap_err();
        output.write_all(b"sured; 0 filtered out\n").unwrap();
        check_tests(0, 1, &output.count).unwrap();
        check_tests(101, 1, &output.count).unwrap_err();
        check_tests(0, 2, &output.count).unwrap_err();
        output.write_all(b"SKIPPED (optional): x\n").unwrap();
        check_tests(0, 1, &output.count).unwrap();
        output.write_all(b"SKIPPED: no /dev/kvm\n").unwrap();
        check_tests(0, 1, &output.count).unwrap_err();
    }
}
