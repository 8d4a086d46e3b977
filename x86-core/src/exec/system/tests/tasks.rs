//! Hardware task switches: Intel SDM vol. 3, chapter 8; each test names its section.

use accel_api::x86::{EventKind, InjectedEvent, Segment, gpr};

use super::*;
use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::{Mode, bits::*};
use crate::testing::{run, step};
use crate::testing_tables::*;
use crate::{Exec, Fault, dr6, vector};

/// The other task's TSS, and selectors for it.
const OTHER: u64 = 0x6800;
const OTHER_TSS: u16 = FREE;
const OTHER_GATE: u16 = FREE + 8;
const OTHER_LDT: u16 = FREE + 16;
/// Where the other task starts, and its stack.
const ENTRY: u64 = 0x7800;
const OTHER_STACK: u64 = 0xc000;

/// What the other task's TSS says of its segments.
#[derive(Clone, Copy)]
struct Selectors {
    cs: u16,
    ss: u16,
    ds: u16,
    ldt: u16,
}

const SAME_LEVEL: Selectors = Selectors { cs: CODE0, ss: DATA0, ds: DATA0, ldt: 0 };

fn poke32(c: &mut Cpu, at: u64, value: u32) {
    poke(c, at, &value.to_le_bytes());
}

/// 32-bit protected mode at level `cpl`, with an available 32-bit TSS of DPL 3 and a task gate to it.
fn two_tasks(cpl: u8, s: Selectors) -> Box<Cpu> {
    let mut c = cpu_with_tables(Mode::Protected32, cpl);
    set_descriptor(&mut c, OTHER_TSS, descriptor(OTHER as u32, 0x67, 0xe9));
    set_descriptor(&mut c, OTHER_GATE, gate(OTHER_TSS, 0, 5, 3, 0));
    set_descriptor(&mut c, OTHER_LDT, descriptor(LDT as u32, 0xff, 0x82));
    // TR is loaded, so its descriptor is busy.
    set_descriptor(&mut c, TR, descriptor(TSS as u32, 0x67, 0x8b));
    poke32(&mut c, OTHER + 0x20, ENTRY as u32);
    poke32(&mut c, OTHER + 0x24, (flag::IF | flag::ZF) as u32);
    for (n, at) in (0x28..0x48).step_by(4).enumerate() {
        poke32(&mut c, OTHER + at, 0x1111_0000 + n as u32);
    }
    poke32(&mut c, OTHER + 0x38, OTHER_STACK as u32);
    for (n, selector) in [s.ds, s.cs, s.ss, s.ds, s.ds, 0].into_iter().enumerate() {
        poke32(&mut c, OTHER + 0x48 + 4 * n as u64, selector.into());
    }
    poke32(&mut c, OTHER + 0x60, s.ldt.into());
    poke32(&mut c, OTHER + 0x64, 0);
    c
}

/// CALL or JMP far to `selector`.
fn far(c: &mut Cpu, call: bool, selector: u16) -> Exec {
    let mut code = vec![if call { 0x9a } else { 0xea }, 0xff, 0xff, 0xff, 0xff];
    code.extend(selector.to_le_bytes());
    run(c, &code)
}

fn busy(c: &mut Cpu, selector: u16) -> bool {
    peek64(c, GDT + u64::from(selector)) >> 41 & 1 != 0
}

/// 8.3, 8.4 and table 8-2: CALL nests, by the TSS's descriptor and by a gate; IRET comes back to all that was.
#[test]
fn call_and_return() {
    for selector in [OTHER_TSS, OTHER_GATE] {
        let mut c = two_tasks(0, SAME_LEVEL);
        c.gpr = std::array::from_fn(|n| 0x8000_0000 + n as u64);
        c.gpr[gpr::RSP] = STACK;
        c.segs[seg::FS] = Segment::real(0);
        c.segs[seg::FS].selector = READ_ONLY;
        c.set_rflags(flag::CF | flag::IOPL);
        let before = c.gpr;
        far(&mut c, true, selector).unwrap();

        assert_eq!(
            (c.rip, c.gpr[gpr::RSP], c.tr.selector, c.tr.base),
            (ENTRY, OTHER_STACK, OTHER_TSS, OTHER)
        );
        assert_eq!((c.gpr[gpr::RAX], c.gpr[gpr::RDI]), (0x1111_0000, 0x1111_0007));
        assert_eq!((c.rflags(), c.cr0 & CR0_TS), (2 | flag::IF | flag::ZF | flag::NT, CR0_TS));
        assert_eq!(c.segs.map(|s| s.selector), [DATA0, CODE0, DATA0, DATA0, DATA0, 0]);
        assert!(c.segs[seg::GS].unusable && c.ldtr.unusable && c.tr.attributes & 2 != 0);
        assert!(busy(&mut c, TR) && busy(&mut c, OTHER_TSS));
        assert_eq!(word(&mut c, OTHER), TR); // back link
        assert_eq!(peek32(&mut c, TSS + 0x20), 0x1007);
        assert_eq!(u64::from(peek32(&mut c, TSS + 0x24)), 2 | flag::CF | flag::IOPL);
        assert_eq!(peek32(&mut c, TSS + 0x38), STACK as u32);
        assert_eq!(word(&mut c, TSS + 0x58), READ_ONLY);

        poke(&mut c, ENTRY, &[0xcf]);
        step(&mut c).unwrap();
        assert_eq!((c.rip, c.gpr[..8].to_vec(), c.tr.selector), (0x1007, before[..8].to_vec(), TR));
        assert_eq!(c.rflags(), 2 | flag::CF | flag::IOPL);
        assert_eq!(c.segs[seg::FS].selector, READ_ONLY);
        assert!(busy(&mut c, TR) && !busy(&mut c, OTHER_TSS));
        // The other task's own image goes on behind its IRET, without NT.
        assert_eq!(peek32(&mut c, OTHER + 0x20), ENTRY as u32 + 1);
        assert_eq!(u64::from(peek32(&mut c, OTHER + 0x24)) & flag::NT, 0);
    }
}

/// Table 8-2: JMP leaves for good: the old task is available again, nothing links back, NT is the new task's own.
#[test]
fn jump() {
    for nt in [0, flag::NT] {
        let mut c = two_tasks(0, SAME_LEVEL);
        poke32(&mut c, OTHER + 0x24, nt as u32);
        poke32(&mut c, OTHER, 0xabcd);
        far(&mut c, false, OTHER_TSS).unwrap();
        assert_eq!((c.rip, c.rflags() & flag::NT), (ENTRY, nt));
        assert!(!busy(&mut c, TR) && busy(&mut c, OTHER_TSS));
        assert_eq!(word(&mut c, OTHER), 0xabcd);
    }
}

/// 6.12.2: events through a task gate nest; an error code is pushed on the new task's stack; INT n checks the gate's DPL.
#[test]
fn events() {
    for (event, return_rip, code) in [
        (InjectedEvent { vector: 0x21, kind: EventKind::ExternalInterrupt, error_code: None }, 0x5000, None),
        (InjectedEvent { vector: 8, kind: EventKind::Exception, error_code: Some(0) }, 0x5000, Some(0)),
        (
            InjectedEvent { vector: 10, kind: EventKind::Exception, error_code: Some(0x28) },
            0x5000,
            Some(0x28),
        ),
        (
            InjectedEvent { vector: 0x22, kind: EventKind::Software { length: 2 }, error_code: None },
            0x5002,
            None,
        ),
    ] {
        let mut c = two_tasks(3, SAME_LEVEL);
        set_gate(&mut c, event.vector, gate(OTHER_TSS, 0, 5, 3, 0), 0);
        c.rip = 0x5000;
        c.deliver(event).unwrap();
        assert_eq!((c.rip, c.cpl, c.tr.selector), (ENTRY, 0, OTHER_TSS), "{event:?}");
        assert!(c.has(flag::NT) && busy(&mut c, TR) && busy(&mut c, OTHER_TSS));
        assert_eq!((word(&mut c, OTHER), u64::from(peek32(&mut c, TSS + 0x20))), (TR, return_rip));
        let pushed = if code.is_some() { 4 } else { 0 };
        assert_eq!(c.gpr[gpr::RSP], OTHER_STACK - pushed);
        if let Some(code) = code {
            assert_eq!(peek32(&mut c, OTHER_STACK - 4), code);
        }
        // Back at level 3, RF set for the one that will be tried again.
        poke(&mut c, ENTRY, &[0xcf]);
        c.gpr[gpr::RSP] = OTHER_STACK;
        step(&mut c).unwrap();
        assert_eq!((c.rip, c.cpl, c.has(flag::RF)), (return_rip, 3, event.vector == 10));
    }
    let mut c = two_tasks(3, SAME_LEVEL);
    set_gate(&mut c, 0x22, gate(OTHER_TSS, 0, 5, 0, 0), 0);
    assert_eq!(run(&mut c, &[0xcd, 0x22]), Err(Fault::with_code(vector::GP, 0x22 * 8 + 2)));
    // A gate to a task that is not available: EXT tells that the program is not to blame.
    let mut c = two_tasks(0, SAME_LEVEL);
    set_descriptor(&mut c, OTHER_TSS, descriptor(OTHER as u32, 0x67, 0x8b));
    set_gate(&mut c, 0x21, gate(OTHER_TSS, 0, 5, 0, 0), 0);
    c.deliver(InjectedEvent { vector: 0x21, kind: EventKind::ExternalInterrupt, error_code: None }).unwrap();
    assert_eq!(peek32(&mut c, STACK - 16), u32::from(OTHER_TSS) | 1);
}

/// Table 8-1, rows 1 to 4, and vol. 2A, CALL: faults of the task that is left, which stays what it was.
#[test]
fn faults_of_the_old_task() {
    type Spoil = fn(&mut Cpu);
    let gp = |s: u16| Fault::gp(s);
    let cases: [(&str, u8, u16, Spoil, Fault); 11] = [
        ("TSS of DPL 0", 3, OTHER_TSS, |c| set_tss(c, 0x89, 0x67), gp(OTHER_TSS)),
        ("RPL beyond DPL", 0, OTHER_TSS | 3, |c| set_tss(c, 0x89, 0x67), gp(OTHER_TSS)),
        ("busy", 0, OTHER_TSS, |c| set_tss(c, 0x8b, 0x67), gp(OTHER_TSS)),
        ("absent", 0, OTHER_TSS, |c| set_tss(c, 0x09, 0x67), Fault::np(OTHER_TSS)),
        ("short", 0, OTHER_TSS, |c| set_tss(c, 0x89, 0x66), Fault::ts(OTHER_TSS)),
        ("short, 16 bits", 0, OTHER_TSS, |c| set_tss(c, 0x81, 0x2a), Fault::ts(OTHER_TSS)),
        ("gate of DPL 0", 3, OTHER_GATE, |c| set_task_gate(c, OTHER_TSS, 0x85), gp(OTHER_GATE)),
        ("absent gate", 0, OTHER_GATE, |c| set_task_gate(c, OTHER_TSS, 0x65), Fault::np(OTHER_GATE)),
        ("gate to the LDT", 0, OTHER_GATE, |c| set_task_gate(c, 0x0c, 0xe5), gp(0x0c)),
        ("gate to code", 0, OTHER_GATE, |c| set_task_gate(c, CODE0, 0xe5), gp(CODE0)),
        ("gate beyond the GDT", 0, OTHER_GATE, |c| set_task_gate(c, 0x100, 0xe5), gp(0x100)),
    ];
    for (what, cpl, selector, spoil, want) in cases {
        for call in [false, true] {
            let mut c = two_tasks(cpl, SAME_LEVEL);
            spoil(&mut c);
            let (gpr, segs, flags) = (c.gpr, c.segs, c.rflags());
            assert_eq!(far(&mut c, call, selector), Err(want), "{what}");
            assert_eq!((c.rip, c.gpr, c.segs, c.rflags(), c.tr.selector), (0x1000, gpr, segs, flags, TR));
            assert!(busy(&mut c, TR) && c.cr0 & CR0_TS == 0, "{what}");
        }
    }
    // IRET with NT: all of these are #TS, but a TSS that is not present.
    let cases: [(u16, u16, Fault); 5] = [
        (0, 0xeb, Fault::ts(0)),
        (0x0c, 0xeb, Fault::ts(0x0c)),
        (CODE0, 0xeb, Fault::ts(CODE0)),
        (OTHER_TSS, 0xe9, Fault::ts(OTHER_TSS)), // not busy
        (OTHER_TSS, 0x6b, Fault::np(OTHER_TSS)),
    ];
    for (link, rights, want) in cases {
        let mut c = two_tasks(0, SAME_LEVEL);
        set_tss(&mut c, rights, 0x67);
        poke(&mut c, TSS, &link.to_le_bytes());
        c.set_rflags(flag::NT);
        assert_eq!(run(&mut c, &[0xcf]), Err(want), "{link:#x} {rights:#x}");
        assert_eq!((c.rip, c.tr.selector, c.has(flag::NT)), (0x1000, TR, true));
    }
}

fn set_tss(c: &mut Cpu, rights: u16, limit: u32) {
    set_descriptor(c, OTHER_TSS, descriptor(OTHER as u32, limit, rights));
}

fn set_task_gate(c: &mut Cpu, selector: u16, rights: u64) {
    set_descriptor(c, OTHER_GATE, u64::from(selector) << 16 | rights << 40);
}

/// Table 8-1, from row 5 on: what is wrong with its segments is raised in the new task, at its first instruction.
#[test]
fn faults_of_the_new_task() {
    let s = SAME_LEVEL;
    let cases: [(&str, Selectors, Fault); 17] = [
        ("LDT that is a TSS", Selectors { ldt: TR, ..s }, Fault::ts(TR)),
        ("LDT in the LDT", Selectors { ldt: 0x0c, ..s }, Fault::ts(0x0c)),
        ("LDT beyond the GDT", Selectors { ldt: 0x100, ..s }, Fault::ts(0x100)),
        ("null CS", Selectors { cs: 0, ..s }, Fault::ts(0)),
        ("data as CS", Selectors { cs: DATA0, ..s }, Fault::ts(DATA0)),
        ("CS of another level", Selectors { cs: CODE0 | 3, ss: DATA3, ..s }, Fault::ts(CODE0)),
        ("absent CS", Selectors { cs: ABSENT_CODE, ..s }, Fault::np(ABSENT_CODE)),
        ("CS beyond the GDT", Selectors { cs: 0x100, ..s }, Fault::ts(0x100)),
        ("null SS", Selectors { ss: 0, ..s }, Fault::ts(0)),
        ("SS of another level", Selectors { ss: DATA3, ..s }, Fault::ts(DATA3)),
        ("SS that is read-only", Selectors { ss: READ_ONLY, ..s }, Fault::ts(READ_ONLY)),
        ("absent SS", Selectors { ss: ABSENT_DATA, ..s }, Fault::ss(ABSENT_DATA)),
        ("SS comes before the presence of CS", Selectors { cs: ABSENT_CODE, ss: 0, ..s }, Fault::ts(0)),
        ("DS that cannot be read", Selectors { ds: EXECUTE_ONLY, ..s }, Fault::ts(EXECUTE_ONLY)),
        ("absent DS", Selectors { ds: ABSENT_DATA, ..s }, Fault::np(ABSENT_DATA)),
        ("DS of an inner level", Selectors { cs: CODE3, ss: DATA3, ds: DATA0, ..s }, Fault::ts(DATA0)),
        ("DS beyond the GDT", Selectors { ds: 0x100, ..s }, Fault::ts(0x100)),
    ];
    for (what, selectors, want) in cases {
        let mut c = two_tasks(0, selectors);
        assert_eq!(far(&mut c, true, OTHER_TSS), Err(want), "{what}");
        assert_eq!((c.rip, c.tr.selector, c.gpr[gpr::RSP]), (ENTRY, OTHER_TSS, OTHER_STACK), "{what}");
        assert!(busy(&mut c, TR) && busy(&mut c, OTHER_TSS) && c.has(flag::NT), "{what}");
        assert_eq!(c.cpl, selectors.cs as u8 & 3);
    }
    let mut c = two_tasks(0, Selectors { ldt: OTHER_LDT, ..s });
    set_descriptor(&mut c, OTHER_LDT, descriptor(LDT as u32, 0xff, 0x02));
    assert_eq!(far(&mut c, true, OTHER_TSS), Err(Fault::ts(OTHER_LDT))); // absent
    // EIP beyond the limit.
    let mut c = two_tasks(0, Selectors { cs: CODE16, ..s });
    poke32(&mut c, OTHER + 0x20, 0x1_0000);
    assert_eq!((far(&mut c, true, OTHER_TSS), c.rip), (Err(Fault::GP0), 0x1_0000));
}

/// 8.3: segments by the LDT that the switch loads; level 3 code.
#[test]
fn segments_in_the_new_ldt() {
    let in_ldt = |index: u16, rpl: u16| (index * 8) | 4 | rpl;
    let s = Selectors { cs: in_ldt(1, 3), ss: in_ldt(2, 3), ds: in_ldt(2, 3), ldt: OTHER_LDT };
    let mut c = two_tasks(0, s);
    poke64(&mut c, LDT + 8, descriptor(0x100, 0xf_ffff, 0xc0fa));
    poke64(&mut c, LDT + 16, descriptor(0x200, 0xf_ffff, 0xc0f2));
    far(&mut c, false, OTHER_TSS).unwrap();
    assert_eq!((c.cpl, c.ldtr.base, c.segs[seg::CS].base, c.segs[seg::SS].base), (3, LDT, 0x100, 0x200));
    // Marked accessed where they lie.
    assert_eq!((peek64(&mut c, LDT + 8) >> 40 & 1, peek64(&mut c, LDT + 16) >> 40 & 1), (1, 1));
}

/// 8.6: a 16-bit TSS saves and loads 16 bits of everything, and no FS and GS. What lies above is set in the general registers
/// (test386.asm, protected_tssh.asm), and 0 in EIP and EFLAGS.
#[test]
fn sixteen_bit_tss() {
    let mut c = two_tasks(0, SAME_LEVEL);
    set_tss(&mut c, 0x81, 0x2b);
    let image: [u16; 15] = [0x1234, 0x0246, 1, 2, 3, 4, 0xc000, 6, 7, 8, DATA16, CODE16, DATA16, DATA16, 0];
    for (n, value) in image.into_iter().enumerate() {
        poke(&mut c, OTHER + 0x0e + 2 * n as u64, &value.to_le_bytes());
    }
    c.gpr[gpr::RAX] = 0xaaaa_bbbb;
    far(&mut c, true, OTHER_TSS).unwrap();
    assert_eq!((c.mode, c.rip), (Mode::Protected16, 0x1234));
    assert_eq!(c.gpr[..8], [1, 2, 3, 4, 0xc000, 6, 7, 8].map(|low| 0xffff_0000 | low));
    assert_eq!((c.rflags(), c.segs[seg::FS].unusable), (0x0246 | flag::NT, true));
    assert_eq!(peek32(&mut c, TSS + 0x28), 0xaaaa_bbbb); // the 32-bit task is saved whole
    assert_eq!(word(&mut c, OTHER), TR);
    c.gpr[gpr::RAX] = 0x5_0005;
    poke(&mut c, 0x1234, &[0xcf]);
    step(&mut c).unwrap();
    assert_eq!((c.mode, c.rip, c.gpr[gpr::RAX]), (Mode::Protected32, 0x1007, 0xaaaa_bbbb));
    // It is saved in words: what lies behind AX is CX.
    assert_eq!((word(&mut c, OTHER + 0x12), word(&mut c, OTHER + 0x14)), (5, 2));
    assert_eq!(word(&mut c, OTHER + 0x0e), 0x1235);
}

/// 8.2.1 and 18.3.1.5: CR3, the local breakpoints of DR7, and the trap of a task with its T flag set.
#[test]
fn paging_and_debugging() {
    let mut c = two_tasks(0, SAME_LEVEL);
    poke32(&mut c, OTHER + 0x1c, 0x5_0000);
    poke32(&mut c, OTHER + 0x64, 1);
    c.set_dr7(0x7ff);
    far(&mut c, false, OTHER_TSS).unwrap();
    assert_eq!((c.cr3, c.dr7, c.pending_debug), (0, 0x6aa, dr6::BT)); // no paging: CR3 is not loaded
    c.take_debug_trap().unwrap();
    assert_eq!((c.rip, c.dr6 & dr6::BT, peek32(&mut c, OTHER_STACK - 12)), (HANDLER, dr6::BT, ENTRY as u32));

    let mut c = two_tasks(0, SAME_LEVEL);
    poke32(&mut c, OTHER + 0x1c, 0x5_0000);
    // 4-MiB pages, identity, in both spaces.
    poke32(&mut c, 0x5_0000, 0x83);
    poke32(&mut c, 0x5_1000, 0x83);
    c.cr4 = CR4_PSE;
    c.write_cr3(0x5_1000).unwrap();
    c.write_cr0(c.cr0 | CR0_PG).unwrap();
    far(&mut c, true, OTHER_TSS).unwrap();
    assert_eq!(c.cr3, 0x5_0000);
    poke(&mut c, TSS + 0x1c, &0x5_1000u32.to_le_bytes());
    poke(&mut c, ENTRY, &[0xcf]);
    step(&mut c).unwrap();
    assert_eq!((c.cr3, c.rip), (0x5_1000, 0x1007));
}

/// 21.2.2: a task switch to a TSS with VM set enters virtual-8086 mode, where selectors are not checked.
#[test]
fn to_virtual_8086_mode() {
    let mut c = two_tasks(0, Selectors { cs: 0x100, ss: 0x200, ds: 0x300, ldt: 0 });
    poke32(&mut c, OTHER + 0x24, (flag::VM | flag::IOPL) as u32);
    poke32(&mut c, OTHER + 0x20, 0x42);
    far(&mut c, false, OTHER_TSS).unwrap();
    assert_eq!((c.mode, c.cpl, c.rip), (Mode::Virtual8086, 3, 0x42));
    assert_eq!((c.segs[seg::CS].base, c.segs[seg::SS].base, c.segs[seg::DS].base), (0x1000, 0x2000, 0x3000));
}

/// 8.7: there are no task switches in long mode.
#[test]
fn none_in_long_mode() {
    let mut c = cpu_with_tables(Mode::Long, 0);
    for (kind, selector) in [(0x89, FREE), (0x8b, FREE), (0x85, FREE)] {
        set_descriptor(&mut c, selector, descriptor(OTHER as u32, 0x67, kind));
        poke(&mut c, 0x3000, &[0, 0, 0, 0, selector as u8, 0]);
        c.gpr[gpr::RAX] = 0x3000;
        assert_eq!(run(&mut c, &[0xff, 0x18]), Err(Fault::gp(selector)), "{kind:#x}");
        assert_eq!(run(&mut c, &[0xff, 0x28]), Err(Fault::gp(selector)), "{kind:#x}");
    }
}

/// A page fault while the switch reads the new TSS, or writes the old one, leaves the old task as it was (8.3, step 5).
#[test]
fn page_faults_come_before_the_switch() {
    for absent in [OTHER, TSS, GDT] {
        let mut c = two_tasks(0, SAME_LEVEL);
        // The other TSS on a page of its own, the last 4 bytes of its first part before it.
        let other = 0x1_0000;
        let image = peek(&mut c, OTHER, 0x68);
        poke(&mut c, other, &image);
        set_descriptor(&mut c, OTHER_TSS, descriptor(other as u32, 0x67, 0x89));
        poke32(&mut c, 0x5_0000, 0x5_1003);
        let page = if absent == OTHER { other } else { absent };
        for n in 0..256u64 {
            // The tables are there to be read; only the writes to them fail.
            let rights = if n << 12 != page & !0xfff {
                3
            } else if absent == OTHER {
                0
            } else {
                1
            };
            poke32(&mut c, 0x5_1000 + 4 * n, (n << 12) as u32 | rights);
        }
        c.cr4 = 0;
        c.write_cr3(0x5_0000).unwrap();
        poke(&mut c, 0x1000, &[0x9a, 0, 0, 0, 0, OTHER_TSS as u8, 0]);
        c.write_cr0(c.cr0 | CR0_PG | CR0_WP).unwrap();
        let (gpr, segs) = (c.gpr, c.segs);
        c.rip = 0x1000;
        let got = step(&mut c).map_err(Fault::vector);
        assert_eq!(got, Err(vector::PF), "{absent:#x}");
        assert_eq!((c.rip, c.gpr, c.segs, c.tr.selector), (0x1000, gpr, segs, TR));
    }
}
