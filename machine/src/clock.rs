//! VM time, derived from the host's.
//!
//! 1. Guest TSC = [`host_time`] + offset on every backend, so the guest reads time without an exit. The host's time is its
//!    TSC, less what passed while this process could not run.
//! 2. The devices' clock is the *same* count, converted to nanoseconds with the *same* frequency that CPUID announces.
//!    A kernel that measures its TSC against the 8254 or the PM timer therefore finds exactly what CPUID says, however
//!    slow or noisy the host is: both sides stretch alike.
//! 3. Frozen time stands still for devices; the offset given by [`VmClock::thaw`] makes the TSC agree again.

use std::arch::x86_64::__cpuid;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use accel_api::host_time;
use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, Section, StateUnit, check};

use crate::host;

/// How the frequency of the host's TSC became known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TscSource {
    /// CPUID leaf 0x15 (Intel SDM vol. 2A, CPUID).
    CrystalLeaf,
    /// The timing leaf 0x4000_0010 of the hypervisor this runs under.
    HypervisorLeaf,
    /// Measured against CLOCK_MONOTONIC_RAW.
    Measured,
}

/// Frequency of the host's TSC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TscFrequency {
    /// In kHz.
    pub khz: u32,
    /// How it became known.
    pub source: TscSource,
}

/// Long enough that the error of two clock readings, some 20 ns as the least disturbed of many, is below 10 ppm; no
/// longer, because every machine's start waits for it.
const MEASURE: Duration = Duration::from_millis(4);
/// Enough to find out whether a leaf tells the truth.
const CHECK: Duration = Duration::from_millis(1);
/// Readings of which the least disturbed one counts.
const READINGS: usize = 24;

impl TscFrequency {
    /// Finds the frequency; takes some 5 ms on an idle host.
    ///
    /// What a leaf says is believed when a short measurement agrees to 2 %: hypervisors pass leaf 0x15 on while they
    /// scale the TSC.
    pub fn of_host() -> Self {
        let leaves =
            [(hypervisor_leaf(), TscSource::HypervisorLeaf), (crystal_leaf(), TscSource::CrystalLeaf)];
        let told = leaves.into_iter().filter_map(|(khz, source)| Some(Self { khz: khz?, source })).next();
        if let Some(told) = told {
            let measured = measure(CHECK);
            if told.khz.abs_diff(measured) <= measured / 50 {
                return told;
            }
            tracing::debug!(?told, measured, "CPUID is wrong about the TSC");
        }
        Self { khz: measure(MEASURE), source: TscSource::Measured }
    }
}

fn crystal_leaf() -> Option<u32> {
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid(0x15);
    tsc_khz_of(leaf.eax, leaf.ebx, leaf.ecx)
}

/// kHz of a TSC that runs at `numerator / denominator` times a crystal of `crystal_hz`.
fn tsc_khz_of(denominator: u32, numerator: u32, crystal_hz: u32) -> Option<u32> {
    let hz = u64::from(crystal_hz) * u64::from(numerator);
    let khz = hz.checked_div(u64::from(denominator))? / 1000;
    u32::try_from(khz).ok().filter(|&khz| khz > 0)
}

fn hypervisor_leaf() -> Option<u32> {
    const TIMING: u32 = 0x4000_0010;
    let under_hypervisor = __cpuid(1).ecx >> 31 == 1;
    let last = if under_hypervisor { __cpuid(0x4000_0000).eax } else { 0 };
    // Bounded above: a host without hypervisor leaves gives the contents of some other leaf.
    (TIMING..=0x4000_ffff).contains(&last).then(|| __cpuid(TIMING).eax).filter(|&khz| khz > 0)
}

/// kHz of the TSC by the raw clock over `span`.
fn measure(span: Duration) -> u32 {
    let (tsc, ns) = reading();
    std::thread::sleep(span);
    let (tsc_end, ns_end) = reading();
    let (ticks, ns) = (tsc_end.saturating_sub(tsc), ns_end.saturating_sub(ns).max(1));
    let khz = u128::from(ticks) * 1_000_000 / u128::from(ns);
    u32::try_from(khz).unwrap_or(u32::MAX).max(1)
}

/// TSC and raw clock at the same moment: of several readings, the one the host disturbed least.
fn reading() -> (u64, u64) {
    let one = || {
        let before = host::rdtsc();
        let ns = host::raw_clock();
        let took = host::rdtsc().saturating_sub(before);
        (took, before + took / 2, ns)
    };
    let (_, tsc, ns) = (0..READINGS).map(|_| one()).min().unwrap_or_else(one);
    (tsc, ns)
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    /// The host's time at which VM time was 0.
    Running { base: u64 },
    /// Ticks of VM time passed.
    Frozen { ticks: u64 },
}

/// The clock of one VM: the devices' only source of time.
#[derive(Debug)]
pub struct VmClock {
    khz: u32,
    mode: RwLock<Mode>,
}

impl VmClock {
    /// A clock frozen at 0, for a guest TSC of `khz` (at least 1).
    pub fn new(khz: u32) -> Self {
        Self { khz: khz.max(1), mode: RwLock::new(Mode::Frozen { ticks: 0 }) }
    }

    /// Frequency of the guest's TSC.
    pub fn khz(&self) -> u32 {
        self.khz
    }

    /// Guest TSC of a vCPU whose offset is what [`thaw`](Self::thaw) gave.
    pub fn ticks(&self) -> u64 {
        // Read under the lock: a reading from before a thaw must not meet the base after it.
        match &*self.mode.read().unwrap_or_else(PoisonError::into_inner) {
            Mode::Running { base } => host_time::now().saturating_sub(*base),
            Mode::Frozen { ticks } => *ticks,
        }
    }

    /// Stops time. Freezing twice changes nothing.
    pub fn freeze(&self) {
        let mut mode = self.mode.write().unwrap_or_else(PoisonError::into_inner);
        if let Mode::Running { base } = *mode {
            *mode = Mode::Frozen { ticks: host_time::now().saturating_sub(base) };
        }
    }

    /// Lets time go on where it stopped, and gives the TSC offset (guest less the host's time, modulo 2^64) that vCPUs must have
    /// from now on. A running clock is left alone.
    pub fn thaw(&self) -> u64 {
        let mut mode = self.mode.write().unwrap_or_else(PoisonError::into_inner);
        let base = match *mode {
            Mode::Running { base } => base,
            Mode::Frozen { ticks } => host_time::now().wrapping_sub(ticks),
        };
        *mode = Mode::Running { base };
        base.wrapping_neg()
    }
}

/// Frequencies of the TSC that differ by less, in parts per million, are taken as one: so much do measurements differ.
const SAME_PPM: u64 = 250;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedClock {
    /// Frequency of the guest's TSC.
    khz: u32,
    /// Ticks of VM time passed.
    ticks: u64,
}

impl Saved for SavedClock {
    const VERSION: u32 = 1;
}

impl StateUnit for VmClock {
    fn name(&self) -> &str {
        "clock"
    }

    fn save(&self) -> Section {
        Section::of(&SavedClock { khz: self.khz, ticks: self.ticks() })
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let SavedClock { khz, ticks } = section.open()?;
        let near = u64::from(khz.abs_diff(self.khz)) * 1_000_000 <= u64::from(self.khz) * SAME_PPM;
        check(near, "khz", khz, format_args!("within {SAME_PPM} ppm of {}", self.khz))?;
        // Centuries: what is beyond would wrap while the guest runs.
        check(ticks >> 62 == 0, "ticks", ticks, "less than 2^62")?;
        let mut mode = self.mode.write().unwrap_or_else(PoisonError::into_inner);
        *mode = match *mode {
            Mode::Frozen { .. } => Mode::Frozen { ticks },
            Mode::Running { .. } => Mode::Running { base: host_time::now().wrapping_sub(ticks) },
        };
        Ok(())
    }

    /// Time goes on through a reset, as a battery's does.
    fn reset(&self) {}
}

impl devices::Clock for VmClock {
    fn now(&self) -> u64 {
        ns_of_ticks(self.ticks(), self.khz)
    }
}

fn ns_of_ticks(ticks: u64, khz: u32) -> u64 {
    let ns = u128::from(ticks) * 1_000_000 / u128::from(khz);
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use devices::Clock;
    use state::testing::UnitRig;

    use super::*;

    struct Frozen(VmClock);

    impl UnitRig for Frozen {
        const RESET_FORGETS: bool = false; // time goes on

        fn new() -> Self {
            Self(VmClock::new(1_000_000))
        }
        fn another(&self) -> Self {
            Self::new()
        }
        fn unit(&self) -> &dyn StateUnit {
            &self.0
        }
        fn disturb(&self, seed: u64) {
            *self.0.mode.write().unwrap() = Mode::Frozen { ticks: seed << 40 };
        }
    }

    state::unit_tests!(Frozen);

    #[test]
    fn measurements_agree_with_each_other_and_with_the_leaf() {
        let (a, b) = (measure(MEASURE), measure(MEASURE));
        assert!(a.abs_diff(b) < a / 1000, "{a} {b}");
        let told = TscFrequency::of_host();
        assert!(told.khz.abs_diff(a) <= a / 40, "{told:?} {a}");
    }

    /// Intel SDM vol. 2A, CPUID leaf 15H: TSC = crystal * EBX / EAX.
    #[test]
    fn crystal_arithmetic() {
        assert_eq!(tsc_khz_of(2, 216, 24_000_000), Some(2_592_000));
        assert_eq!(tsc_khz_of(0, 216, 24_000_000), None);
        assert_eq!(tsc_khz_of(2, 216, 0), None);
        assert_eq!(tsc_khz_of(1, u32::MAX, u32::MAX), None);
    }

    #[test]
    fn conversion_is_exact_and_does_not_overflow() {
        assert_eq!(ns_of_ticks(2_596_146_000, 2_596_146), 1_000_000_000);
        assert_eq!(ns_of_ticks(u64::MAX, 1), u64::MAX);
        assert_eq!(ns_of_ticks(u64::MAX, 4_000_000), u64::MAX / 4);
    }

    #[test]
    fn devices_and_guest_tsc_see_one_time() {
        let clock = VmClock::new(TscFrequency::of_host().khz);
        let offset = clock.thaw();
        let (before, now, after) =
            (host_time::now().wrapping_add(offset), clock.now(), host_time::now().wrapping_add(offset));
        assert!((ns_of_ticks(before, clock.khz())..=ns_of_ticks(after, clock.khz())).contains(&now));
    }

    #[test]
    fn frozen_time_stands_still_and_goes_on_without_a_step() {
        let clock = VmClock::new(1_000_000);
        assert_eq!(clock.ticks(), 0);
        let first = clock.thaw();
        assert_eq!(clock.thaw(), first);
        clock.freeze();
        let stopped = clock.ticks();
        std::thread::sleep(Duration::from_millis(2));
        clock.freeze();
        assert_eq!(clock.ticks(), stopped);
        let second = clock.thaw();
        assert_ne!(first, second);
        let guest = host_time::now().wrapping_add(second);
        assert!(guest >= stopped && guest - stopped < 1_000_000_000, "{stopped} {guest}");
    }
}
