//! A guest that writes anything anywhere: no panic, no hang, invariants hold.

use super::*;

struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Often the edges of a field, sometimes anything.
    fn value(&mut self) -> u64 {
        let anything = self.next();
        match self.next() % 6 {
            0 => anything,
            1 => anything & 0xffff_ffff,
            2 => anything & 0xff,
            3 => 1 << (anything % 64),
            4 => anything % 3,
            _ => anything & 0x7_00ff,
        }
    }
}

#[test]
fn random_pokes() {
    for seed in 1..=8u64 {
        let mut random = XorShift(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut rig = Rig::reset(&[0, 1, 0x21]);
        let mut now = Now::default();
        for _ in 0..40_000 {
            let step = random.next();
            now.ns = now.ns.wrapping_add(step % 500_000);
            now.tsc = now.tsc.wrapping_add(step % 1_000_000);
            if step.is_multiple_of(5000) {
                now = Now { ns: random.next(), tsc: random.next() };
            }
            let at = (random.next() % 3) as usize;
            let value = random.value();
            let register = random.next() % 0x110;
            let lapic = &mut rig.lapics[at];
            match random.next() % 16 {
                0..=3 => {
                    let _ = lapic.write_msr(0x800 + register as u32, value, now);
                }
                4..=6 => lapic.mmio_write(register << 4, 4, value, now),
                7 => {
                    let _ = lapic.write_msr(MSR_TSC_DEADLINE, value, now);
                }
                8 => {
                    let _ = lapic.read_msr(0x800 + register as u32, now);
                }
                9 => drop(lapic.mmio_read(value, step as u8, now)),
                10 => lapic.mmio_write(random.next(), step as u8, value, now),
                11 => {
                    let base = DEFAULT_BASE | value & (BASE_X2APIC | BASE_ENABLED);
                    let _ = lapic.set_apic_base(if step.is_multiple_of(4) { value } else { base });
                }
                12 => {
                    lapic.expire(now);
                    if lapic.take_init() {
                        lapic.init();
                    }
                    lapic.take_sipi();
                    lapic.take_nmi();
                    if lapic.extint_pending() {
                        lapic.accept_extint();
                    }
                    if let Some(vector) = lapic.pending_vector() {
                        assert!(vector >= 16);
                        assert_eq!(lapic.accept(vector), vector);
                    }
                    lapic.accept(value as u8);
                }
                13 => {
                    if let Some(message) = ApicMessage::from_msi(0xfee0_0000 | value & 0xf_ffff, step as u32)
                    {
                        rig.bus.deliver(&message, None);
                    }
                }
                14 => rig.bus.set_lint0(value & 1 != 0),
                _ => {
                    let state = lapic.save(now);
                    lapic.load(&state, now).unwrap();
                    assert_eq!(lapic.save(now), state);
                    let _ = lapic.set_cr8(value);
                }
            }
            rig.kicks.lock().unwrap().clear();
            rig.eois.0.lock().unwrap().clear();
        }
    }
}

/// A loaded state is as hostile as a guest.
#[test]
fn random_states() {
    let mut random = XorShift(42);
    let mut rig = Rig::reset(&[0]);
    let lapic = &mut rig.lapics[0];
    let mut loaded = 0;
    for _ in 0..20_000 {
        let mut next = || random.value();
        let set = |value: u64| {
            VectorSet::from_registers(std::array::from_fn(|at| value.rotate_left(7 * at as u32) as u32))
        };
        let state = LapicState {
            apic_id: 0,
            apic_base: DEFAULT_BASE | next() & (BASE_ENABLED | BASE_X2APIC),
            tpr: next() as u8,
            irr: set(next()).0,
            isr: set(next()).0,
            tmr: set(next()).0,
            xapic_id: next() as u8,
            ldr: next() as u32,
            dfr: next() as u32,
            svr: next() as u32,
            esr: next() as u32,
            esr_new: next() as u32,
            icr: next(),
            lvt_timer: next() as u32,
            lvt_thermal: next() as u32,
            lvt_perf: next() as u32,
            lvt_lint0: next() as u32,
            lvt_lint1: next() as u32,
            lvt_error: next() as u32,
            timer_initial: next() as u32,
            timer_divide: next() as u32,
            timer_remaining_ns: next(),
            tsc_deadline: next(),
            init: next() & 1 != 0,
            sipi: u8::try_from(next()).ok(),
            extint: next() & 1 != 0,
        };
        state.timer_current();
        let now = Now { ns: random.next(), tsc: 0 };
        if lapic.load(&state, now).is_err() {
            continue;
        }
        loaded += 1;
        let mut normal = state.clone();
        normal.normalise();
        let expected = normal.clone();
        normal.normalise();
        assert_eq!(normal, expected, "normalising twice is once");
        let later = Now { ns: random.next(), tsc: random.next() };
        lapic.read_msr(0x839, later).ok();
        lapic.mmio_read(0x390, 4, later);
        let saved = lapic.save(later);
        lapic.load(&saved, later).unwrap();
        assert_eq!(lapic.save(later), saved);
        while let Some(vector) = lapic.pending_vector() {
            assert_eq!(lapic.accept(vector), vector);
        }
    }
    assert!(loaded > 1000, "{loaded}");
}
