//! ACPI fixed hardware (ACPI specification 6.5, 4.8) and the reset register at port 0xcf9.
//!
//! 1. One block of [`ACPI_PM_LEN`] ports: PM1a event (status, enable), PM1a control, PM timer. ACPI mode is always
//!    on: SCI_EN reads 1 and there is no SMI command port. Writing SLP_EN with [`SLP_TYP_S5`] powers off.
//! 2. The PM timer counts at [`PM_TIMER_HZ`] from the VM's start, 32 bits wide (the FADT must set `TMR_VAL_EXT`). It
//!    is a function of the clock, exact at every read.
//! 3. SCI is a level: a status bit whose enable bit is set. Sources are the timer's carry and the power
//!    button, [`AcpiPm::press_power_button`].
//!
//! DEVNOTE: there is no general-purpose event block; nothing here raises such events yet, and the FADT may say so by
//! a length of 0. Sleep states other than S5 are not offered and their SLP_TYP values are ignored.

use std::sync::{Arc, Mutex};

use state::{RestoreError, Section, StateUnit};

use crate::saved::acpi_pm::{SavedAcpiPm, SavedResetControl};
use crate::traits::{Clock, IrqLine, MachineControl, MmioDevice, PioDevice, TimedDevice, TimerHost};
use crate::util::{lock, ns_of_tick, read_bytes, ticks_at, write_bytes};

/// PM timer frequency in Hz (4.8.3.3).
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// First port of the block where firmware puts it: PM1a event block, `PM1a_EVT_BLK`, 4 bytes.
pub const ACPI_PM_PORT: u16 = 0x600;
/// Length of the block in ports.
pub const ACPI_PM_LEN: u16 = 12;
/// Offset of `PM1a_CNT_BLK`, 2 bytes.
pub const PM1_CONTROL_OFFSET: u16 = 4;
/// Offset of `PM_TMR_BLK`, 4 bytes.
pub const PM_TIMER_OFFSET: u16 = 8;
/// The SLP_TYP value of S5, for the `\_S5` package.
pub const SLP_TYP_S5: u8 = 5;
/// ISA interrupt of SCI, level-triggered.
pub const SCI_IRQ: u8 = 9;
/// Port of [`ResetControl`].
pub const RESET_PORT: u16 = 0xcf9;
/// Value the FADT's `RESET_VALUE` must have for [`ResetControl`].
pub const RESET_VALUE: u8 = 0x06;

const TMR: u16 = 1 << 0;
const GBL: u16 = 1 << 5;
const PWRBTN: u16 = 1 << 8;
const SLPBTN: u16 = 1 << 9;
const RTC: u16 = 1 << 10;
const WAK: u16 = 1 << 15;
const BM: u16 = 1 << 4;
pub(crate) const STATUS_BITS: u16 = TMR | BM | GBL | PWRBTN | SLPBTN | RTC | WAK;
pub(crate) const ENABLE_BITS: u16 = TMR | GBL | PWRBTN | SLPBTN | RTC;

const SCI_EN: u16 = 1 << 0;
const BM_RLD: u16 = 1 << 1;
const SLP_TYP: u16 = 7 << 10;
const SLP_EN: u16 = 1 << 13;
/// Bits of PM1 control that are kept.
pub(crate) const CONTROL_BITS: u16 = BM_RLD | SLP_TYP;
/// Bits of the reset control register.
pub(crate) const RESET_BITS: u8 = 0x0e;

/// Ticks from one carry (change of bit 31) to the next.
const CARRY: u64 = 1 << 31;

/// The state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AcpiPmState {
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control, without SCI_EN and the write-only bits.
    pub control: u16,
    /// Carries of the timer that status has seen.
    pub carries: u64,
}

impl AcpiPmState {
    fn new(now: u64) -> Self {
        Self { carries: ticks_at(now, PM_TIMER_HZ) / CARRY, ..Self::default() }
    }

    fn sync(&mut self, now: u64) {
        let carries = ticks_at(now, PM_TIMER_HZ) / CARRY;
        if carries > self.carries {
            self.status |= TMR;
        }
        self.carries = carries;
    }

    fn sci(&self) -> bool {
        self.status & self.enable & ENABLE_BITS != 0
    }

    fn read(&self, offset: u16, now: u64) -> u8 {
        let control = self.control | SCI_EN;
        match offset {
            0..2 => self.status.to_le_bytes()[usize::from(offset)],
            2..4 => self.enable.to_le_bytes()[usize::from(offset - 2)],
            4..6 => control.to_le_bytes()[usize::from(offset - 4)],
            8..12 => (ticks_at(now, PM_TIMER_HZ) as u32).to_le_bytes()[usize::from(offset - 8)],
            _ => 0xff,
        }
    }

    /// Returns true if the write powers the machine off.
    fn write(&mut self, offset: u16, value: u8) -> bool {
        let high = offset & 1 != 0;
        let bits = u16::from(value) << if high { 8 } else { 0 };
        let keep = if high { 0x00ff } else { 0xff00 };
        match offset {
            0..2 => self.status &= !bits,
            2..4 => self.enable = (self.enable & keep | bits) & ENABLE_BITS,
            4..6 => {
                self.control = (self.control & keep | bits) & CONTROL_BITS;
                // GBL_RLS would raise an SMI for the firmware; there is none to answer.
                return bits & SLP_EN != 0 && self.control & SLP_TYP == u16::from(SLP_TYP_S5) << 10;
            }
            _ => {}
        }
        false
    }
}

/// PM1a event and control blocks and the PM timer.
#[derive(Debug)]
pub struct AcpiPm {
    state: Mutex<AcpiPmState>,
    clock: Arc<dyn Clock>,
    sci: Arc<dyn IrqLine>,
    timers: Arc<dyn TimerHost>,
    control: Arc<dyn MachineControl>,
}

impl AcpiPm {
    /// The block; `sci` is the SCI line.
    pub fn new(
        clock: Arc<dyn Clock>,
        sci: Arc<dyn IrqLine>,
        timers: Arc<dyn TimerHost>,
        control: Arc<dyn MachineControl>,
    ) -> Arc<Self> {
        let state = Mutex::new(AcpiPmState::new(clock.now()));
        Arc::new(Self { state, clock, sci, timers, control })
    }

    /// Asks the guest to shut down, as the front panel's button does.
    pub fn press_power_button(&self) {
        self.with(|s, _| s.status |= PWRBTN);
    }

    fn with<T>(&self, f: impl FnOnce(&mut AcpiPmState, u64) -> T) -> T {
        let mut state = lock(&self.state);
        let now = self.clock.now();
        state.sync(now);
        let result = f(&mut state, now);
        self.sci.set(state.sci());
        result
    }
}

/// Its ports, by their offsets: the LPC bridge moves the block.
impl MmioDevice for AcpiPm {
    fn mmio_read(&self, offset: u64, size: u8) -> u64 {
        self.with(|s, now| read_bytes(offset as u16, size, |offset| s.read(offset, now))).into()
    }

    fn mmio_write(&self, offset: u64, size: u8, value: u64) {
        let (mut off, mut rearm) = (false, false);
        self.with(|s, _| {
            write_bytes(offset as u16, size, value as u32, |offset, v| {
                off |= s.write(offset, v);
                rearm |= offset < 4;
            });
        });
        if rearm {
            self.timers.rearm();
        }
        if off {
            self.control.power_off();
        }
    }
}

impl TimedDevice for AcpiPm {
    fn deadline(&self) -> Option<u64> {
        let state = lock(&self.state);
        let wanted = state.enable & TMR != 0 && state.status & TMR == 0;
        wanted.then(|| ns_of_tick(state.carries.saturating_add(1).saturating_mul(CARRY), PM_TIMER_HZ))
    }

    fn expire(&self, now: u64) {
        let mut state = lock(&self.state);
        state.sync(now);
        self.sci.set(state.sci());
    }
}

impl StateUnit for AcpiPm {
    fn name(&self) -> &str {
        "acpi_pm"
    }

    fn save(&self) -> Section {
        Section::of(&SavedAcpiPm::from(&*lock(&self.state)))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = AcpiPmState::try_from(section.open::<SavedAcpiPm>()?)?;
        {
            let mut state = lock(&self.state);
            *state = restored;
            self.sci.set(state.sci());
        }
        self.timers.rearm();
        Ok(())
    }

    /// Clears the registers; the timer runs on.
    fn reset(&self) {
        self.with(|s, now| *s = AcpiPmState::new(now));
    }
}

/// The reset control register, port 0xcf9 (ICH9 datasheet 13.7.5): bit 2 going from 0 to 1 resets.
///
/// Register it for the single port 0xcf9: dword accesses to 0xcf8 belong to PCI configuration.
#[derive(Debug)]
pub struct ResetControl {
    state: Mutex<ResetControlState>,
    control: Arc<dyn MachineControl>,
}

/// State of [`ResetControl`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResetControlState {
    /// The register: SYS_RST, RST_CPU, FULL_RST.
    pub value: u8,
}

impl ResetControl {
    /// The register at 0.
    pub fn new(control: Arc<dyn MachineControl>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), control })
    }
}

impl PioDevice for ResetControl {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        let value = lock(&self.state).value;
        read_bytes(port, size, |p| if p == RESET_PORT { value } else { 0xff })
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        let mut reset = false;
        write_bytes(port, size, value, |p, v| {
            if p == RESET_PORT {
                let old = std::mem::replace(&mut lock(&self.state).value, v & RESET_BITS);
                reset = v & !old & 0x04 != 0;
            }
        });
        if reset {
            self.control.reset();
        }
    }
}

impl StateUnit for ResetControl {
    fn name(&self) -> &str {
        "reset_control"
    }

    fn save(&self) -> Section {
        Section::of(&SavedResetControl::from(&*lock(&self.state)))
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let restored = ResetControlState::try_from(section.open::<SavedResetControl>()?)?;
        *lock(&self.state) = restored;
        Ok(())
    }

    fn reset(&self) {
        *lock(&self.state) = ResetControlState::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Ports;
    use crate::testing::{
        Request, Rig, Rng, TestClock, TestControl, TestLine, TestTimers, device_tests, pio_access,
    };

    struct Pm {
        dev: Arc<AcpiPm>,
        io: Arc<Ports>,
        clock: Arc<TestClock>,
        sci: Arc<TestLine>,
        timers: Arc<TestTimers>,
        control: Arc<TestControl>,
    }

    impl Rig for Pm {
        type Device = AcpiPm;
        fn new(clock: Arc<TestClock>) -> Self {
            let (sci, timers) = (Arc::new(TestLine::default()), Arc::new(TestTimers::default()));
            let control = Arc::new(TestControl::default());
            let dev = AcpiPm::new(clock.clone(), sci.clone(), timers.clone(), control.clone());
            let io = Arc::new(Ports { base: 0x600, device: dev.clone() });
            Self { dev, io, clock, sci, timers, control }
        }
        fn device(&self) -> &AcpiPm {
            &self.dev
        }
        fn access(&self, rng: &mut Rng) -> u64 {
            if rng.below(20) == 0 {
                self.dev.press_power_button();
            }
            let ports = [0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x606, 0x608, 0x60b];
            pio_access(&*self.io, &ports, rng) << 1 | u64::from(self.sci.level())
        }
        fn timed(&self) -> Option<&dyn TimedDevice> {
            Some(&*self.dev)
        }
    }

    device_tests!(Pm);

    fn pm() -> Pm {
        Pm::new(TestClock::at(0))
    }

    /// 4.8.3.3: 3.579545 MHz, monotonic, 32 bits.
    #[test]
    fn timer_is_exact_and_wraps_at_32_bits() {
        let p = pm();
        p.clock.set(1_000_000_000);
        assert_eq!(p.io.pio_read(0x608, 4), 3_579_545);
        assert_eq!(p.io.pio_read(0x609, 1), 3_579_545 >> 8 & 0xff);
        let wrap = ns_of_tick(1 << 32, PM_TIMER_HZ);
        p.clock.set(wrap - 1);
        assert_eq!(p.io.pio_read(0x608, 4), u32::MAX);
        p.clock.set(wrap);
        assert_eq!(p.io.pio_read(0x608, 4), 0);
        p.io.pio_write(0x608, 4, 5);
        assert_eq!(p.io.pio_read(0x608, 4), 0, "read only");
    }

    /// 4.8.3.1.1: TMR_STS is set when bit 31 changes.
    #[test]
    fn carry_raises_sci_if_enabled() {
        let p = pm();
        assert_eq!(p.dev.deadline(), None);
        p.io.pio_write(0x602, 2, 1);
        assert_eq!(p.timers.rearmed(), 1);
        let first = ns_of_tick(1 << 31, PM_TIMER_HZ);
        assert_eq!(p.dev.deadline(), Some(first));
        p.dev.expire(first - 1);
        assert!(!p.sci.level());
        p.clock.set(first);
        p.dev.expire(first);
        assert!(p.sci.level());
        assert_eq!((p.io.pio_read(0x600, 2), p.dev.deadline()), (1, None));
        p.io.pio_write(0x600, 2, 1);
        assert!(!p.sci.level());
        assert_eq!(p.dev.deadline(), Some(ns_of_tick(1 << 32, PM_TIMER_HZ)));
    }

    #[test]
    fn power_button() {
        let p = pm();
        p.dev.press_power_button();
        assert!(!p.sci.level());
        p.io.pio_write(0x602, 2, 0xffff);
        assert_eq!(p.io.pio_read(0x602, 2), 0x0721);
        assert!(p.sci.level());
        p.io.pio_write(0x601, 1, 0x01);
        assert!(!p.sci.level());
        assert_eq!(p.io.pio_read(0x600, 2), 0);
    }

    /// 4.8.3.2.1: only SLP_EN with the type of S5 powers off.
    #[test]
    fn sleep_control() {
        let p = pm();
        assert_eq!(p.io.pio_read(0x604, 2), 1, "SCI_EN");
        p.io.pio_write(0x604, 2, 0);
        assert_eq!(p.io.pio_read(0x604, 2), 1, "ACPI mode cannot be left");
        let s5 = u32::from(SLP_TYP_S5) << 10;
        p.io.pio_write(0x604, 2, s5 | 1);
        assert_eq!(p.control.take(), []);
        assert_eq!(p.io.pio_read(0x604, 2), s5 | 1);
        p.io.pio_write(0x604, 2, 1 << 10 | 1 << 13);
        assert_eq!(p.control.take(), []);
        p.io.pio_write(0x604, 2, s5 | 1 << 13 | 1);
        assert_eq!(p.control.take(), [Request::PowerOff]);
        assert_eq!(p.io.pio_read(0x604, 2), s5 | 1, "SLP_EN is write only");
        p.io.pio_write(0x605, 1, (s5 | 1 << 13) >> 8);
        assert_eq!(p.control.take(), [Request::PowerOff], "byte access");
        p.io.pio_write(0x602, 4, (s5 | 1 << 13) << 16);
        assert_eq!(p.control.take(), [Request::PowerOff], "dword over enable and control");
    }

    mod reset_control {
        use super::*;

        struct Cf9(Arc<ResetControl>);

        impl Rig for Cf9 {
            type Device = ResetControl;
            fn new(_: Arc<TestClock>) -> Self {
                Self(ResetControl::new(Arc::new(TestControl::default())))
            }
            fn device(&self) -> &ResetControl {
                &self.0
            }
            fn access(&self, rng: &mut Rng) -> u64 {
                pio_access(&*self.0, &[0xcf9], rng)
            }
        }

        device_tests!(Cf9);

        #[test]
        fn rising_rst_cpu_resets() {
            let control = Arc::new(TestControl::default());
            let port = ResetControl::new(control.clone());
            port.pio_write(0xcf9, 1, 0x02);
            assert_eq!((port.pio_read(0xcf9, 1), control.take()), (2, vec![]));
            port.pio_write(0xcf9, 1, RESET_VALUE.into());
            assert_eq!(control.take(), [Request::Reset]);
            port.pio_write(0xcf9, 1, 0x0e);
            assert_eq!(control.take(), []);
            port.reset();
            port.pio_write(0xcf9, 1, RESET_VALUE.into());
            assert_eq!(control.take(), [Request::Reset], "ACPI writes the value at once");
        }
    }
}
