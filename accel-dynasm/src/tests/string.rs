//! String instructions in translated code.

use accel_api::x86::gpr;
use x86_core::Cpu;
use x86_core::alu::flag;
use x86_core::testing::blocks::{Pair, Program, SCENES, Scene};

use super::config;
use crate::dispatch::Dispatcher;
use crate::host::HostCpu;

/// MOVSB, MOVSW, MOVSD, MOVSQ and their likes of STOS: code, and bytes an element.
const MOVS: [(&[u8], u64); 4] = [(&[0xa4], 1), (&[0x66, 0xa5], 2), (&[0xa5], 4), (&[0x48, 0xa5], 8)];
const STOS: [(&[u8], u64); 4] = [(&[0xaa], 1), (&[0x66, 0xab], 2), (&[0xab], 4), (&[0x48, 0xab], 8)];

const REP: &[u8] = &[0xf3];

/// An instruction, made to look at flags and R10 and R11 on both sides. One of these for each: code that changes often
/// is interpreted.
struct Bench {
    pair: Pair<Dispatcher>,
    program: Program,
}

impl Bench {
    fn new(scene: &Scene, host: HostCpu, instruction: &[u8]) -> Self {
        // add r10, r11; ...; adc r11, r10
        let code = [&[0x4d, 0x01, 0xda][..], instruction, &[0x4d, 0x11, 0xd3]].concat();
        Self { pair: Pair::new(scene, &config(host)), program: Program::new(0x40, &code) }
    }

    /// How often x86-core's functions are called for it, once the TLB knows the pages; each result is compared.
    fn calls(&mut self, adjust: &dyn Fn(&mut Cpu)) -> u64 {
        let mut count = || {
            let _ = self.pair.check("by hand", &self.program, 3, adjust);
            // What ends a program is not translated either.
            self.pair
                .executor()
                .helper_counts
                .list()
                .iter()
                .filter(|(name, _)| name != "ud2")
                .map(|(_, n)| n)
                .sum::<u64>()
        };
        let first = count();
        count() - first
    }
}

fn at(to: u64, from: u64, count: u64) -> impl Fn(&mut Cpu) {
    move |cpu| (cpu.gpr[gpr::RDI], cpu.gpr[gpr::RSI], cpu.gpr[gpr::RCX]) = (to, from, count)
}

#[test]
fn within_pages() {
    let old = HostCpu { bmi2: false, ..HostCpu::detect() };
    for (host, scenes) in [(HostCpu::detect(), &SCENES[..]), (old, &SCENES[..2])] {
        for scene in scenes {
            for (code, size) in MOVS.into_iter().chain(STOS) {
                let mut repeated = Bench::new(scene, host, &[REP, code].concat());
                for (to, from, bytes) in [
                    (0x1000, 0, 0x1000),
                    (0x1000, 0x2000, 0x1000),
                    (0x1123, 0x87, 0x48),
                    (0xff8, 0x1ff8, 8),
                    (0x100, 0x100, 0x40),
                    // Overlapping, so that what was stored is loaded again, in part or not.
                    (0x101, 0x100, 0x40),
                    (0x100, 0x101, 0x40),
                    (0x108, 0x100, 0x80),
                    (0x140, 0x100, 0x80),
                    (0x123, 0x456, 0),
                ] {
                    let adjust = at(scene.data + to, scene.data + from, bytes / size);
                    assert_eq!(repeated.calls(&adjust), 0, "{code:02x?} {to:#x} {from:#x}");
                }
                let adjust = at(scene.data + 0x1000 - size, scene.data + 0x1ff8, 77);
                assert_eq!(Bench::new(scene, host, code).calls(&adjust), 0, "{code:02x?}");
            }
        }
    }
}

/// Across pages, to where nothing can be stored, to where there is nothing, downwards.
#[test]
fn what_takes_more() {
    let host = HostCpu::detect();
    for scene in &SCENES {
        for (code, size) in MOVS.into_iter().chain(STOS) {
            let stos = STOS.contains(&(code, size));
            let mut repeated = Bench::new(scene, host, &[REP, code].concat());
            for (to, from, count) in [
                (0x1000, 0, 0x1000 / size + 1),
                (0x801, 0, 0x800 / size),
                (0x400, 0x2800, 0x800 / size + 1),
                (0x2010, 0, 3),
                (0x1ff0, 0, 0x40),
                (0x3ff0, 0, 0x40),
                (0x1000, 0, 1 << 52),
                (0x1000, 0, u64::MAX / size),
                (0x1000, 0, u64::MAX),
                (0x7_0000, 0, 1),
                (1 << 50, 0, 1),
                (0x7_0008, 0, 0),
            ] {
                let n = repeated.calls(&at(scene.data.wrapping_add(to), scene.data + from, count));
                assert!(n > 0 || stos && from != 0, "{code:02x?} {to:#x} {from:#x} {count:#x}");
            }
            let down = |cpu: &mut Cpu| {
                at(scene.data + 0x1100, scene.data + 0x800, 5)(cpu);
                cpu.set_rflags(cpu.rflags() | flag::DF);
            };
            assert!(repeated.calls(&down) > 0);
            assert!(Bench::new(scene, host, code).calls(&down) > 0);
        }
    }
}

/// Behind the instruction, and over it.
#[test]
fn over_code() {
    for scene in &SCENES {
        for (code, _) in MOVS.into_iter().chain(STOS) {
            for whole in [code, &[REP, code].concat()] {
                for (offset, count) in [(0x300, 3), (0x3e, 1)] {
                    let over = at(scene.code + offset, scene.code + 0x300, count);
                    let _ = Bench::new(scene, HostCpu::detect(), whole).calls(&|cpu| {
                        over(cpu);
                        cpu.gpr[gpr::RAX] = 0x9090_9090_9090_9090;
                    });
                }
            }
        }
    }
}

/// Addresses of other forms, and other prefixes.
#[test]
fn other_forms() {
    for scene in &SCENES[..2] {
        for prefixes in
            [&[0x64][..], &[0x65], &[0x67], &[0x2e], &[0x64, 0x67], &[0xf2], &[0xf2, 0xf3], &[0xf3, 0xf2]]
        {
            for prefix in [&[][..], REP] {
                for (code, _) in MOVS.into_iter().chain(STOS) {
                    let whole = [prefix, prefixes, code].concat();
                    let mut bench = Bench::new(scene, HostCpu::detect(), &whole);
                    for from in [0x28, scene.data + 0x1428] {
                        let _ = bench.calls(&at(scene.data + 0x40, from, 7));
                    }
                }
            }
        }
    }
}
