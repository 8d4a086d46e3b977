//! What KVM is worth on this host.

use std::path::Path;

use accel_api::{Absent, AbsentKind, AccelError, Available, Broken, Measured, Probe, Quality, duration_text};

use crate::calibrate::{CalibrateError, calibrate};
use crate::device;
use crate::provider::Provider;

/// A ring that is so many times slower than it should be is emulated. Hardware comes nowhere near it, emulation is far
/// beyond; between the two lies what a good interpreter makes of such code.
const EMULATED: f64 = 10.0;

/// Finds out whether KVM's device at `path` works, and how well, by running a guest. Takes some milliseconds.
pub fn probe(path: &Path) -> Probe {
    let kvm = match device::open(path) {
        Ok(kvm) => kvm,
        Err(error) => return Probe::Absent(error.absent()),
    };
    match calibrate(kvm) {
        Ok(measured) => {
            let (quality, detail) = assess(&measured);
            let provider = Provider::of_host().module();
            Probe::Available(Available { quality, detail, provider, measured: Some(measured) })
        }
        Err(error) => failed(&error),
    }
}

fn assess(measured: &Measured) -> (Quality, String) {
    let Measured { ring0_ns, ring3_ns, native_ns, exit_ns } = *measured;
    let emulated = |ns: f64| ns > EMULATED * native_ns;
    let text = match (emulated(ring0_ns) || ring0_ns > EMULATED * ring3_ns, emulated(ring3_ns)) {
        (false, false) => {
            let [ring0, ring3, exit] = [ring0_ns, ring3_ns, exit_ns].map(duration_text);
            let text = format!("{ring0} an instruction in ring 0, {ring3} in ring 3, {exit} an exit");
            return (Quality::Hardware, text);
        }
        (true, false) => {
            format!("ring 0 is emulated on this host, {} an instruction", duration_text(ring0_ns))
        }
        (false, true) => {
            format!("ring 3 is emulated on this host, {} an instruction", duration_text(ring3_ns))
        }
        (true, true) => {
            format!("guests are emulated on this host, {} an instruction", duration_text(ring0_ns))
        }
    };
    (Quality::Degraded, text)
}

fn failed(error: &CalibrateError) -> Probe {
    let errno = match error {
        CalibrateError::Make(AccelError::Host { source, .. }) => source.raw_os_error(),
        _ => None,
    };
    let reason = error.to_string();
    if matches!(errno, Some(libc::EBUSY | libc::ENOMEM)) {
        let remedy = Some("stop other programs that virtualise or use much memory".to_owned());
        return Probe::Absent(Absent { kind: AbsentKind::Busy, reason, remedy });
    }
    let remedy = Some("look for KVM in the host's kernel log (dmesg)".to_owned());
    Probe::Broken(Broken { reason, remedy })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn assess_of(ring0_ns: f64, ring3_ns: f64, native_ns: f64) -> (Quality, String) {
        assess(&Measured { ring0_ns, ring3_ns, native_ns, exit_ns: 1500.0 })
    }

    #[test]
    fn hardware_runs_both_rings_about_as_fast_as_the_host() {
        let (quality, text) = assess_of(0.31, 0.3, 0.29);
        assert_eq!(quality, Quality::Hardware);
        assert_eq!(text, "0.31 ns an instruction in ring 0, 0.30 ns in ring 3, 1.5 us an exit");
        // A machine that is emulated itself: slow, but its KVM is no slower than the rest of it.
        assert_eq!(assess_of(60.0, 20.0, 12.0).0, Quality::Hardware);
    }

    #[test]
    fn emulation_is_named_with_its_price() {
        for (ring0, ring3, text) in [
            (1100.0, 0.3, "ring 0 is emulated on this host, 1.1 us an instruction"),
            (0.3, 50.0, "ring 3 is emulated on this host, 50 ns an instruction"),
            (50.0, 50.0, "guests are emulated on this host, 50 ns an instruction"),
        ] {
            assert_eq!(assess_of(ring0, ring3, 0.3), (Quality::Degraded, text.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_made_is_broken_unless_it_is_only_busy() {
        let make = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            failed(&CalibrateError::Make(AccelError::Host { what: "KVM_CREATE_VCPU", source }))
        };
        assert!(matches!(make(libc::EBUSY), Probe::Absent(Absent { kind: AbsentKind::Busy, .. })));
        let broken = make(libc::EINVAL);
        assert!(matches!(broken, Probe::Broken(_)) && broken.remedy().unwrap().contains("dmesg"));
        assert!(broken.to_string().contains("KVM_CREATE_VCPU"), "{broken}");
        let stopped = CalibrateError::Stopped { ring: 0, why: "cannot emulate".to_owned() };
        assert!(failed(&stopped).to_string().contains("ring 0: cannot emulate"));
    }

    /// On whatever host the tests run: if a device opens, guests have a speed, or are told to be broken.
    #[test]
    fn this_host() {
        let started = std::time::Instant::now();
        let probe = probe(Path::new(device::DEFAULT_PATH));
        let took = started.elapsed();
        match &probe {
            Probe::Available(Available { measured: Some(measured), .. }) => {
                let Measured { ring0_ns, ring3_ns, native_ns, exit_ns } = *measured;
                for ns in [ring0_ns, ring3_ns, native_ns] {
                    assert!(ns > 0.01 && ns < 1e6, "{measured:?}");
                }
                assert!(exit_ns > 10.0 && exit_ns < 1e8, "{measured:?}");
            }
            Probe::Available(other) => panic!("not measured: {other:?}"),
            Probe::Absent(_) | Probe::Broken(_) => {
                // Past the harness, which would keep it to itself.
                let line = format!("SKIPPED (optional): speed of KVM: {probe}\n");
                io::Write::write_all(&mut io::stderr(), line.as_bytes()).unwrap();
                assert!(probe.remedy().is_some(), "{probe:?}");
            }
        }
        assert!(took.as_secs() < 10, "{took:?}");
    }
}
