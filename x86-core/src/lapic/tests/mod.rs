//! Tests against the tables and rules of the Intel SDM vol. 3, chapter 11; each names its section.

mod access;
mod hostile;
mod inbox;
mod ipi;
mod modes;
mod priority;
mod state;
mod timer;

use std::sync::{Arc, Mutex};

use super::*;

/// Time does not matter to the test.
const T0: Now = Now { ns: 0, tsc: 0 };

/// Registers' numbers: MSR minus 0x800, xAPIC offset divided by 16.
const ID: u32 = 0x02;
const TPR: u32 = 0x08;
const PPR: u32 = 0x0a;
const EOI: u32 = 0x0b;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
const SVR: u32 = 0x0f;
const ISR: u32 = 0x10;
const TMR: u32 = 0x18;
const IRR: u32 = 0x20;
const ESR: u32 = 0x28;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const LVT_LINT1: u32 = 0x36;
const LVT_ERROR: u32 = 0x37;
const INITIAL: u32 = 0x38;
const CURRENT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;
const SELF_IPI: u32 = 0x3f;

#[derive(Default)]
struct EoiLog(Mutex<Vec<u8>>);

impl ApicHost for EoiLog {
    fn eoi(&self, vector: u8) {
        self.0.lock().unwrap().push(vector);
    }
}

/// Some vCPUs' local APICs on one bus, with logs of kicks and EOI broadcasts.
struct Rig {
    bus: Arc<ApicBus>,
    lapics: Vec<Lapic>,
    kicks: Arc<Mutex<Vec<usize>>>,
    eois: Arc<EoiLog>,
}

const CONFIG: LapicConfig =
    LapicConfig { bsp: false, x2apic: true, eoi_suppression: true, phys_addr_bits: 40 };

impl Rig {
    /// As after power-up, the first the bootstrap processor.
    fn reset(ids: &[u32]) -> Self {
        let kicks = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&kicks);
        let kick = Arc::new(move |vcpu: usize| log.lock().unwrap().push(vcpu));
        let bus = Arc::new(ApicBus::new(ids.iter().copied(), kick));
        let eois = Arc::new(EoiLog::default());
        let lapics = (0..ids.len())
            .map(|vcpu| {
                let config = LapicConfig { bsp: vcpu == 0, ..CONFIG };
                Lapic::new(Arc::clone(&bus), vcpu, config, eois.clone()).unwrap()
            })
            .collect();
        Self { bus, lapics, kicks, eois }
    }

    /// Software-enabled in xAPIC mode.
    fn xapic(ids: &[u32]) -> Self {
        let mut rig = Self::reset(ids);
        for lapic in &mut rig.lapics {
            lapic.write(SVR, 0x1ff);
        }
        rig
    }

    /// Software-enabled in x2APIC mode.
    fn x2apic(ids: &[u32]) -> Self {
        let mut rig = Self::reset(ids);
        for lapic in &mut rig.lapics {
            lapic.set_apic_base(lapic.apic_base() | BASE_X2APIC).unwrap();
            lapic.write(SVR, 0x1ff);
        }
        rig
    }

    /// Which vCPUs have an interrupt, with its vector; takes and ends them.
    fn receivers(&mut self) -> Vec<(usize, u8)> {
        let mut all = Vec::new();
        for (vcpu, lapic) in self.lapics.iter_mut().enumerate() {
            while let Some(vector) = lapic.pending_vector() {
                assert_eq!(lapic.accept(vector), vector);
                lapic.write(EOI, 0);
                all.push((vcpu, vector));
            }
        }
        all
    }

    fn take_kicks(&self) -> Vec<usize> {
        std::mem::take(&mut self.kicks.lock().unwrap())
    }

    fn take_eois(&self) -> Vec<u8> {
        std::mem::take(&mut self.eois.0.lock().unwrap())
    }
}

/// Register access in whichever mode the local APIC is in, at time zero or a given one.
trait Registers {
    fn write_at(&mut self, register: u32, value: u64, now: Now);
    fn read_at(&mut self, register: u32, now: Now) -> u64;
    fn write(&mut self, register: u32, value: u64) {
        self.write_at(register, value, T0);
    }
    fn read(&mut self, register: u32) -> u64 {
        self.read_at(register, T0)
    }
}

impl Registers for Lapic {
    fn write_at(&mut self, register: u32, value: u64, now: Now) {
        if self.is_x2apic() {
            self.write_msr(0x800 + register, value, now).unwrap();
        } else {
            self.mmio_write(u64::from(register) << 4, 4, value, now);
        }
    }

    fn read_at(&mut self, register: u32, now: Now) -> u64 {
        if self.is_x2apic() {
            self.read_msr(0x800 + register, now).unwrap()
        } else {
            self.mmio_read(u64::from(register) << 4, 4, now)
        }
    }
}

const fn ns(ns: u64) -> Now {
    Now { ns, tsc: 0 }
}
