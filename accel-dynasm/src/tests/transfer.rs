//! Changes of privilege in translated code.

use accel_api::{Segment, gpr};
use x86_core::alu::flag;
use x86_core::bits::{CR4_SMAP, EFER_SCE};
use x86_core::rights::{CODE64, DATA, DPL3};
use x86_core::soft::Executor;
use x86_core::testing::blocks::{Pair, Program, SCENES, Scene};
use x86_core::{Cpu, Fault, seg};

use super::config;
use crate::config::Config;
use crate::engine::Engine;
use crate::host::HostCpu;

/// A program, and what its system calls lead to: in the same pages, which the kernel may use here, too.
struct Caller {
    code: Vec<u8>,
    /// Offset of the kernel's.
    kernel: u64,
}

impl Caller {
    /// `before` and `after` the system call, over and over, and `kernel` in between; it ends behind the kernel's code.
    fn new(before: &[u8], after: &[u8], kernel: &[u8]) -> Self {
        let mut code = vec![0x41, 0xbc, 4, 0, 0, 0]; // mov r12d, 4
        let turn = [before, &[0x0f, 0x05], after, &[0x41, 0xff, 0xcc]].concat(); // syscall; dec r12d
        code.extend(&turn);
        code.extend([0x75, (-(turn.len() as i8) - 2) as u8, 0xeb, kernel.len() as u8]); // jnz; jmp
        let start = code.len() as u64;
        code.extend(kernel);
        Self { code, kernel: start }
    }

    /// Runs in user scenes. How it ended, the same in all; and how often x86-core's functions were called.
    fn run(&self, config: &Config, adjust: impl Fn(&mut Cpu, &Scene)) -> (Result<(), Fault>, [u64; 2]) {
        let mut all = Vec::new();
        for scene in SCENES.iter().filter(|s| s.cpl == 3) {
            let mut pair = Pair::<Engine>::new(scene, &config.clone().into());
            let end = pair.check("a system call", &Program::new(0x80, &self.code), 7, &|cpu| {
                enter_program(cpu);
                cpu.msrs.lstar = cpu.rip + self.kernel;
                adjust(cpu, scene);
            });
            let calls = pair.executor().calls();
            let count = |name| calls.iter().find(|(n, _)| n == name).map_or(0, |(_, count)| *count);
            all.push((end.expect("an end"), [count("syscall"), count("sysretq")]));
        }
        assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
        all[0]
    }
}

/// The program's privilege, whatever the last turn left.
fn enter_program(cpu: &mut Cpu) {
    cpu.segs[seg::CS] = Segment::flat(0x2b, CODE64 | DPL3);
    cpu.segs[seg::SS] = Segment::flat(0x23, DATA | DPL3);
    cpu.efer |= EFER_SCE;
    cpu.msrs.star = 0x1b << 48 | 0x0b << 32;
    cpu.msrs.fmask = 0x4_7700;
    cpu.set_rflags(cpu.rflags() & flag::ARITH | flag::IF | flag::ID);
    cpu.update_mode();
    cpu.leave = false;
}

const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];
const FAST: [u64; 2] = [0, 0];

fn default() -> Config {
    Config::clone(&config(HostCpu::detect()))
}

/// As many hosts as there are ways to store vector registers.
fn hosts() -> [Config; 3] {
    let host = HostCpu { bmi2: false, avx: false, ..HostCpu::detect() };
    [default(), Config { counting: true, ..default() }, Config { host, ..default() }]
}

#[test]
fn flags_are_masked_and_come_back() {
    // sbb r13, r14; pushfq; add [rsp], r15
    let before = [0x4d, 0x19, 0xf5, 0x9c, 0x4c, 0x01, 0x3c, 0x24];
    // pushfq; setc bl; lea r9, [r9 + r11]; lea r8, [r8 + rcx]
    let kernel = [&[0x9c, 0x0f, 0x92, 0xc3, 0x4f, 0x8d, 0x0c, 0x19, 0x4d, 0x8d, 0x04, 0x08][..], &SYSRETQ];
    let caller = Caller::new(&before, &[0x9c, 0x49, 0xff, 0xc3], &kernel.concat()); // pushfq; inc r11
    for config in hosts() {
        for mask in [0, 0x4_7700, u64::MAX, flag::CF, flag::OF | flag::SF, flag::AF, flag::DF | flag::IF] {
            for flags in [flag::IF, flag::IF | flag::DF, flag::IOPL | flag::NT, flag::ID] {
                let end = caller.run(&config, |cpu, _| {
                    cpu.msrs.fmask = mask;
                    cpu.set_rflags(cpu.rflags() & flag::ARITH | flags);
                });
                assert_eq!(end, (Ok(()), FAST), "{mask:#x} {flags:#x}");
            }
        }
    }
}

/// They are in the host's registers where the program uses them, and in memory while the kernel runs, unless it uses them too.
#[test]
fn vector_registers_survive() {
    let paddq = [0x66, 0x0f, 0xd4, 0xc1]; // paddq xmm0, xmm1
    let psubq = [0x66, 0x0f, 0xfb, 0xc8]; // psubq xmm1, xmm0
    let cpuid = [0x0f, 0xa2, 0xb9, 9, 0, 0, 0]; // cpuid; mov ecx, 9
    let keep = [0x49, 0x89, 0xc9]; // mov r9, rcx
    let back = [0x4c, 0x89, 0xc9]; // mov rcx, r9
    for config in hosts() {
        for before in [&paddq[..], &[]] {
            for after in [&psubq[..], &[]] {
                for work in [&[][..], &paddq, &cpuid, &[cpuid, cpuid].concat()] {
                    let kernel = [&keep[..], work, &back, &SYSRETQ].concat();
                    let end = Caller::new(before, after, &kernel).run(&config, |_, _| ());
                    assert_eq!(end, (Ok(()), FAST));
                }
            }
        }
    }
}

/// The kernel may not touch the program's data, and the program may.
#[test]
fn smap() {
    for config in hosts() {
        let adjust = |cpu: &mut Cpu, scene: &Scene| {
            cpu.cr4 |= CR4_SMAP;
            cpu.update_mode();
            cpu.leave = false;
            cpu.gpr[gpr::RBX] = scene.data + 8;
        };
        let access = [0x48, 0x01, 0x0b]; // add [rbx], rcx
        let end = Caller::new(&access, &access, &SYSRETQ).run(&config, adjust);
        assert_eq!(end, (Ok(()), FAST));
        let kernel = [&access[..], &SYSRETQ].concat();
        let (end, _) = Caller::new(&access, &access, &kernel).run(&config, adjust);
        assert!(matches!(end, Err(fault) if fault.vector() == x86_core::vector::PF), "{end:?}");
        // With AC set it may: not masked; nor by the program itself.
        let (end, calls) = Caller::new(&access, &access, &kernel).run(&config, |cpu, scene| {
            adjust(cpu, scene);
            cpu.msrs.fmask = 0;
            cpu.set_rflags(cpu.rflags() | flag::AC);
        });
        assert_eq!(end, Ok(()));
        assert!(calls.iter().all(|n| *n > 0), "{calls:?}");
    }
}

/// What x86-core has to do.
#[test]
fn the_unusual() {
    let expect = |kernel: &[u8], end: Result<(), Fault>, adjust: &dyn Fn(&mut Cpu)| {
        let kernel = [kernel, &SYSRETQ].concat();
        let caller = Caller::new(&[], &[], &kernel);
        let (found, calls) = caller.run(&default(), |cpu, _| adjust(cpu));
        assert_eq!(found, end, "{kernel:02x?}");
        calls
    };
    // mov rcx, 1 << 47: not canonical. And the end of the addresses a program has, where there is no code: a fault of what
    // comes next.
    let shifted = [0x48, 0xc7, 0xc1, 1, 0, 0, 0, 0x48, 0xc1, 0xe1];
    assert_eq!(expect(&[&shifted[..], &[47]].concat(), Err(Fault::GP0), &|_| ()), [0, 4]);
    let (end, calls) =
        Caller::new(&[], &[], &[&shifted[..], &[46], &SYSRETQ].concat()).run(&default(), |_, _| ());
    assert!(matches!(end, Err(fault) if fault.vector() == x86_core::vector::PF), "{end:?}");
    assert_eq!(calls, FAST);
    // or r11, TF, or AC.
    for bit in [flag::TF, flag::AC] {
        let mut or = vec![0x49, 0x81, 0xcb];
        or.extend((bit as i32).to_le_bytes());
        let calls = expect(&or, Ok(()), &|_| ());
        assert!(calls[1] >= 16, "{calls:?}");
    }
    // EFER.SCE off.
    assert_eq!(expect(&[], Err(Fault::UD), &|cpu| cpu.efer &= !EFER_SCE), [4, 0]);
    // An NMI waits: it could be taken behind SYSRET.
    let calls = expect(&[], Ok(()), &|cpu| (cpu.nmi_pending, cpu.nmi_masked) = (true, true));
    assert_eq!(calls, [0, 16]);
}

/// A program that does nothing but system calls.
#[test]
fn requests_are_seen() {
    for scene in SCENES.iter().filter(|s| s.cpl == 3) {
        // syscall: where SYSRET, behind it, leads back to
        let code = [&[0x0f, 0x05][..], &[0x48, 0x83, 0xe9, 2], &SYSRETQ].concat(); // sub rcx, 2
        super::loops_until_asked_with(scene, 0, &code, |cpu| {
            enter_program(cpu);
            cpu.msrs.lstar = cpu.rip + 2;
        });
    }
}
