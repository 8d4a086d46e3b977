//! Changes of privilege in translated code.

use accel_api::x86::{DescriptorTable, Segment, gpr};
use x86_core::alu::flag;
use x86_core::bits::{CR4_SMAP, EFER_SCE};
use x86_core::rights::{CODE64, DATA, DPL3};
use x86_core::testing::blocks::{Pair, Program, SCENES, Scene};
use x86_core::testing::poke;
use x86_core::{Cpu, Fault, seg};

use super::config;
use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::host::HostCpu;

/// A program, and what its system calls lead to: in the same pages, which the kernel may use here, too.
struct Caller {
    code: Vec<u8>,
    /// Offset of the kernel's.
    kernel: u64,
}

/// How it ended, and how often x86-core's functions for SYSCALL, SYSRETQ and IRETQ were called.
type End = (Result<(), Fault>, [u64; 3]);

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

    /// Runs in user scenes; what comes of it is the same in all.
    fn run(&self, config: &Config, adjust: impl Fn(&mut Cpu, &Scene)) -> End {
        let all = self.each(config, adjust);
        assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
        all[0]
    }

    fn each(&self, config: &Config, adjust: impl Fn(&mut Cpu, &Scene)) -> Vec<End> {
        let mut all = Vec::new();
        for scene in SCENES.iter().filter(|s| s.cpl == 3) {
            let mut pair = Pair::<Dispatcher>::new(scene, &config.clone().into());
            let end = pair.check("a system call", &Program::new(0x80, &self.code), 7, &|cpu| {
                enter_program(cpu);
                cpu.msrs.lstar = cpu.rip + self.kernel;
                adjust(cpu, scene);
            });
            let calls = pair.executor().helper_counts.list();
            let count = |name| calls.iter().find(|(n, _)| n == name).map_or(0, |(_, count)| *count);
            all.push((end.expect("an end"), [count("syscall"), count("sysretq"), count("iretq")]));
        }
        all
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
const FAST: [u64; 3] = [0; 3];

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

/// They are in the host's registers where the program uses them, and in memory while the kernel runs, unless it uses
/// them too.
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
        assert!(calls[..2].iter().all(|n| *n > 0), "{calls:?}");
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
    // mov rcx, 1 << 47: not canonical. And the end of the addresses a program has, where there is no code: a fault of
    // what comes next.
    let shifted = [0x48, 0xc7, 0xc1, 1, 0, 0, 0, 0x48, 0xc1, 0xe1];
    assert_eq!(expect(&[&shifted[..], &[47]].concat(), Err(Fault::GP0), &|_| ()), [0, 4, 0]);
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
    assert_eq!(expect(&[], Err(Fault::UD), &|cpu| cpu.efer &= !EFER_SCE), [4, 0, 0]);
    // An NMI waits: it could be taken behind SYSRET.
    let calls = expect(&[], Ok(()), &|cpu| _ = cpu.lapic.inbox().post_nmi());
    assert_eq!(calls, [0, 16, 0]);
}

/// Descriptors, in the data's last page.
const GDT: u64 = 0x3000;
const KERNEL_CODE: u8 = 0x08;
const KERNEL_DATA: u8 = 0x10;
const USER_DATA: u8 = 0x23;
const USER_CODE: u8 = 0x2b;

fn descriptor_at(scene: &Scene, selector: u8) -> u64 {
    scene.data + GDT + u64::from(selector & !7)
}

fn set_descriptor(cpu: &mut Cpu, scene: &Scene, selector: u8, descriptor: u64) {
    poke(cpu, descriptor_at(scene, selector), &descriptor.to_le_bytes());
}

/// A GDT, and no data segments.
fn with_descriptors(cpu: &mut Cpu, scene: &Scene) {
    for (selector, descriptor) in [
        (0, 0),
        (KERNEL_CODE, 0x00af_9b00_0000_ffff),
        (KERNEL_DATA, 0x00cf_9300_0000_ffff),
        (0x18, 0x00cf_fb00_0000_ffff),
        (USER_DATA, 0x00cf_f300_0000_ffff),
        (USER_CODE, 0x00af_fb00_0000_ffffu64),
    ] {
        set_descriptor(cpu, scene, selector, descriptor);
    }
    cpu.gdtr = DescriptorTable { base: scene.data + GDT, limit: 0x2f };
    for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
        (cpu.segs[index].selector, cpu.segs[index].unusable) = (0, true);
    }
    cpu.nmi_masked = false;
}

/// mov r9, rsp; push `ss`; push r9; push r11; push `cs`; push `to`, which is RCX or R8; iretq.
fn iret(cs: u8, ss: u8, to: &[u8]) -> Vec<u8> {
    [&[0x49, 0x89, 0xe1, 0x6a, ss, 0x41, 0x51, 0x41, 0x53, 0x6a, cs], to, &[0x48, 0xcf]].concat()
}

const PUSH_RCX: &[u8] = &[0x51];
const PUSH_R8: &[u8] = &[0x41, 0x50];

fn iret_to_program() -> Vec<u8> {
    iret(USER_CODE, USER_DATA, PUSH_RCX)
}

/// To what comes behind it.
fn iret_to_kernel(ss: u8) -> Vec<u8> {
    let iret = iret(KERNEL_CODE, ss, PUSH_R8);
    [&[0x4c, 0x8d, 0x05, iret.len() as u8, 0, 0, 0], &iret[..]].concat() // lea r8, [behind]
}

#[test]
fn iret_from_the_kernel() {
    let paddq = [0x66, 0x0f, 0xd4, 0xc1];
    let sbb = [0x4d, 0x19, 0xf5, 0x9c]; // sbb r13, r14; pushfq
    for config in hosts() {
        for kernel in [
            iret_to_program(),
            [iret_to_kernel(KERNEL_DATA), SYSRETQ.into()].concat(),
            [iret_to_kernel(0), SYSRETQ.into()].concat(),
            [&paddq[..], &iret_to_program()].concat(),
            [&paddq[..], &iret_to_kernel(0), &paddq, &iret_to_program()].concat(),
            [&iret_to_kernel(0)[..], &paddq, &iret_to_kernel(0), &sbb, &iret_to_program()].concat(),
        ] {
            for (before, after) in [(&sbb[..], &sbb[..]), (&paddq, &sbb), (&sbb, &paddq), (&paddq, &paddq)] {
                for flags in [flag::IF, flag::DF | flag::ID, flag::IOPL] {
                    let end = Caller::new(before, after, &kernel).run(&config, |cpu, scene| {
                        with_descriptors(cpu, scene);
                        cpu.set_rflags(cpu.rflags() & flag::ARITH | flags);
                    });
                    assert_eq!(end, (Ok(()), FAST), "{kernel:02x?} {before:02x?} {after:02x?} {flags:#x}");
                }
            }
        }
    }
}

/// IRET that x86-core has to look at, and what comes of it is the same.
#[test]
fn unusual_irets() {
    type Adjust<'a> = &'a dyn Fn(&mut Cpu, &Scene);
    let each = |kernel: &[u8], adjust: Adjust<'_>| {
        let all = Caller::new(&[], &[], kernel).each(&default(), |cpu, scene| {
            with_descriptors(cpu, scene);
            adjust(cpu, scene);
        });
        assert!(all.iter().all(|(_, calls)| calls[2] > 0), "{kernel:02x?}: {all:?}");
        all
    };
    let slow = |kernel: &[u8], adjust: Adjust<'_>| {
        let all = each(kernel, adjust);
        assert!(all.iter().all(|one| one.0 == all[0].0), "{kernel:02x?}: {all:?}");
        all[0].0
    };
    let to_program = iret_to_program();
    let to_kernel = [iret_to_kernel(KERNEL_DATA), SYSRETQ.into()].concat();
    for (kernel, code, data) in [(&to_program, USER_CODE, USER_DATA), (&to_kernel, KERNEL_CODE, KERNEL_DATA)]
    {
        for selector in [code, data] {
            // P, S, DPL, writable or readable, conforming or expanding down, accessed, L or D/B, a base, a limit, AVL.
            for bit in [47, 44, 45, 46, 41, 42, 40, 53, 54, 30, 3, 52] {
                each(kernel, &|cpu, scene| {
                    let at = descriptor_at(scene, selector);
                    let old: u64 = cpu.system_load(at).expect("RAM");
                    set_descriptor(cpu, scene, selector, old ^ 1 << bit);
                });
            }
        }
        // The table ends before one of them.
        assert!(slow(kernel, &|cpu, _| cpu.gdtr.limit = u16::from(code.min(data) & !7) + 6).is_err());
        assert!(slow(kernel, &|cpu, _| cpu.gdtr.limit = 0).is_err());
        assert_eq!(slow(kernel, &|cpu, _| cpu.nmi_masked = true), Ok(()));
        assert_eq!(slow(kernel, &|cpu, scene| cpu.gpr[gpr::RSP] = scene.data + 0x1010), Ok(()));
    }
    // Data segments that are not the program's, and that are.
    for rights in [DATA, DATA | DPL3] {
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let end = slow(&to_program, &|cpu, _| cpu.segs[index] = Segment::flat(0x10, rights));
            assert_eq!(end, Ok(()));
        }
    }
    // Null selectors that are not 0.
    for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let end = slow(&to_program, &|cpu, _| {
            cpu.segs[index] =
                Segment { selector: 3, base: 0x1234_5000, unusable: true, ..Segment::default() };
        });
        assert_eq!(end, Ok(()));
    }
    // Selectors: null, of the LDT, of another level.
    for (cs, ss) in
        [(0, 0x23), (3, 0x23), (0x2f, 0x23), (0x2b, 3), (0x2b, 0), (0x2b, 0x27), (0x2b, 0x20), (0x29, 0x21)]
    {
        assert!(slow(&iret(cs, ss, PUSH_RCX), &|_, _| ()).is_err(), "{cs:#x} {ss:#x}");
    }
    for (cs, ss) in [(0x0c, 0), (0x08, 0x14), (0x08, 3), (0x08, 0x13), (0x28, 0x10)] {
        assert!(slow(&iret(cs, ss, PUSH_RCX), &|_, _| ()).is_err(), "{cs:#x} {ss:#x}");
    }
    // or r11, the flag. RF is the run loop's.
    for bit in [flag::TF, flag::NT, flag::AC, flag::VM, flag::VIF, flag::VIP] {
        let or = [&[0x49, 0x81, 0xcb][..], &(bit as i32).to_le_bytes()].concat();
        assert_eq!(slow(&[&or[..], &to_program].concat(), &|_, _| ()), Ok(()), "{bit:#x}");
        each(&[&or[..], &to_kernel].concat(), &|_, _| ());
    }
    // mov rcx, 1 << 47
    let far = [0x48, 0xc7, 0xc1, 1, 0, 0, 0, 0x48, 0xc1, 0xe1, 47];
    assert_eq!(slow(&[&far[..], &to_program].concat(), &|_, _| ()), Err(Fault::GP0));
}

/// Where the kernel may not touch what is the program's.
#[test]
fn iret_under_smap() {
    for scene in SCENES.iter().filter(|s| s.cpl == 0) {
        for open in [0, flag::AC] {
            for kernel in [&iret_to_kernel(0)[..], &iret_to_kernel(KERNEL_DATA), &iret_to_program()] {
                let mut pair = Pair::<Dispatcher>::new(scene, &default().into());
                let end = pair.check("iret", &Program::new(0, kernel), 1, &|cpu| {
                    with_descriptors(cpu, scene);
                    cpu.segs[seg::CS] = Segment::flat(KERNEL_CODE.into(), CODE64);
                    cpu.segs[seg::SS] = Segment::flat(KERNEL_DATA.into(), DATA);
                    cpu.cr4 |= CR4_SMAP;
                    cpu.set_rflags(cpu.rflags() & flag::ARITH | open);
                    cpu.update_mode();
                    cpu.leave = false;
                    (cpu.gpr[11], cpu.gpr[gpr::RCX]) = (flag::IF | flag::CF, cpu.rip);
                });
                // A program has no pages here.
                let end = end.expect("an end");
                assert_eq!(end.is_err(), kernel == iret_to_program(), "{end:?}");
                let calls = pair.executor().helper_counts.list();
                // Once, before the TLB knows the GDT.
                assert_eq!(calls.iter().any(|(name, n)| name == "iretq" && *n > 1), open != 0, "{calls:?}");
            }
        }
    }
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
