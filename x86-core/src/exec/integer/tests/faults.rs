//! Faults: what is raised, and that nothing has changed then.

use accel_api::x86::{Segment, gpr};

use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::{Mode, bits};
use crate::testing::{cpu, peek, poke, run};
use crate::{Cpu, Exec, Fault, vector};

/// Not present.
const ABSENT: u64 = 0x5000;
/// Present, not writable.
const READ_ONLY: u64 = 0x6000;

/// A vCPU with the first 2 MiB mapped to themselves by 4 KiB pages, two of them special.
pub(super) fn paged() -> Box<Cpu> {
    let mut c = cpu(Mode::Long);
    const TABLES: u64 = 0x2_0000;
    for (level, entry) in [(0, TABLES + 0x1003), (1, TABLES + 0x2003), (2, TABLES + 0x3003)] {
        c.system_store(TABLES + 0x1000 * level, entry).unwrap();
    }
    for page in 0..512u64 {
        let rights = match page << 12 {
            ABSENT => 0,
            READ_ONLY => 1,
            _ => 3,
        };
        c.system_store(TABLES + 0x3000 + 8 * page, page << 12 | rights).unwrap();
    }
    c.cr3 = TABLES;
    c.cr0 |= bits::CR0_PG | bits::CR0_WP;
    c.tlb.flush_all();
    c.update_mode();
    c
}

/// Runs `code`, which must raise a page fault at `address` with error code `error` and change no register or flag.
fn expect_pf(c: &mut Cpu, code: &[u8], address: u64, error: u32) {
    let (gpr, flags) = (c.gpr, c.flags);
    assert_eq!(run(c, code), Err(Fault::with_code(vector::PF, error)), "{code:02x?}");
    assert_eq!(c.fault_address, address, "{code:02x?}");
    assert_eq!((c.gpr, c.flags), (gpr, flags), "{code:02x?}");
}

#[test]
fn page_faults_come_before_any_change() {
    let mut c = paged();
    c.set_rflags(flag::CF | flag::AF);
    c.gpr = [0x11; 16];
    c.gpr[gpr::RDI] = ABSENT;
    let reads: &[&[u8]] = &[
        &[0x03, 0x07],       // add eax, [rdi]
        &[0x3b, 0x07],       // cmp eax, [rdi]
        &[0x0f, 0x40, 0x07], // cmovo eax, [rdi]: read though the condition fails
        &[0x0f, 0xb6, 0x07], // movzx eax, byte [rdi]
        &[0xf7, 0x27],       // mul dword [rdi]
        &[0xf7, 0x37],       // div dword [rdi]
        &[0x0f, 0xaf, 0x07], // imul eax, [rdi]
        &[0x0f, 0xbc, 0x07], // bsf eax, [rdi]
        &[0x0f, 0xa3, 0x07], // bt [rdi], eax
        &[0xff, 0x37],       // push [rdi]
        &[0xae],             // scasb
    ];
    for code in reads {
        expect_pf(&mut c, code, ABSENT, 0);
    }
    c.gpr[gpr::RDI] = READ_ONLY;
    c.gpr[gpr::RSP] = 0x8000;
    let writes: &[&[u8]] = &[
        &[0x01, 0x07],             // add [rdi], eax
        &[0xf0, 0x01, 0x07],       // lock add [rdi], eax
        &[0xff, 0x07],             // inc dword [rdi]
        &[0xf7, 0x17],             // not dword [rdi]
        &[0xc1, 0x27, 0],          // shl dword [rdi], 0: written all the same
        &[0x0f, 0xa4, 0x07, 1],    // shld [rdi], eax, 1
        &[0x87, 0x07],             // xchg [rdi], eax
        &[0x0f, 0xc1, 0x07],       // xadd [rdi], eax
        &[0x0f, 0xb1, 0x07],       // cmpxchg [rdi], eax: written though it differs
        &[0x0f, 0xc7, 0x0f],       // cmpxchg8b [rdi]
        &[0x48, 0x0f, 0xc7, 0x0f], // cmpxchg16b [rdi]
        &[0x0f, 0xab, 0x07],       // bts [rdi], eax
        &[0x0f, 0x90, 0x07],       // seto [rdi]
        &[0x8f, 0x07],             // pop [rdi]
        &[0xaa],                   // stosb
        &[0x89, 0x07],             // mov [rdi], eax
    ];
    for code in writes {
        expect_pf(&mut c, code, READ_ONLY, 3);
    }
    c.gpr[gpr::RSP] = ABSENT + 0x1004;
    expect_pf(&mut c, &[0x50], ABSENT + 0xffc, 2); // push rax, the lower half of it in the absent page
    // A bit far behind the operand's address.
    c.gpr[gpr::RDI] = 0x4000;
    c.gpr[gpr::RAX] = 0x1234 * 8;
    expect_pf(&mut c, &[0x48, 0x0f, 0xb3, 0x07], 0x5230, 2); // btr [rdi], rax
    c.gpr[gpr::RDI] = ABSENT + 0x1800;
    c.gpr[gpr::RAX] = -0x1000i64 as u64;
    c.gpr[gpr::RDI] = ABSENT + 0x1100;
    expect_pf(&mut c, &[0x48, 0x0f, 0xa3, 0x07], ABSENT + 0xf00, 0); // bt [rdi], rax
}

#[test]
fn page_crossing_stores_are_all_or_nothing() {
    let mut c = paged();
    poke(&mut c, ABSENT - 4, &[9; 4]);
    c.gpr[gpr::RDI] = ABSENT - 4;
    for code in [&[0x48, 0x89, 0x07][..], &[0x48, 0x01, 0x07], &[0xf0, 0x48, 0x01, 0x07], &[0x48, 0xab]] {
        expect_pf(&mut c, code, ABSENT, 2);
        assert_eq!(peek(&mut c, ABSENT - 4, 4), [9; 4]);
    }
}

#[test]
fn division_errors() {
    // Intel SDM vol. 2A, DIV and IDIV.
    let mut c = cpu(Mode::Long);
    let cases: &[(&[u8], u64, u64, u64)] = &[
        (&[0xf7, 0xf1], 1, 0, 0),                      // by zero
        (&[0xf7, 0xf1], 0, 5, 5),                      // quotient of 33 bits
        (&[0x48, 0xf7, 0xf1], 0, 5, 5),                // of 65 bits
        (&[0xf6, 0xf1], 0x500, 0, 5),                  // of 9 bits
        (&[0x66, 0xf7, 0xf9], 0x8000, 0xffff, 0xffff), // -32768 / -1
        (&[0x48, 0xf7, 0xf9], 1 << 63, u64::MAX, u64::MAX),
    ];
    for &(code, rax, rdx, rcx) in cases {
        (c.gpr[gpr::RAX], c.gpr[gpr::RDX], c.gpr[gpr::RCX]) = (rax, rdx, rcx);
        let before = c.gpr;
        assert_eq!(run(&mut c, code), Err(Fault::DE), "{code:02x?}");
        assert_eq!(c.gpr, before);
    }
}

#[test]
fn addresses_that_are_not_canonical() {
    let mut c = cpu(Mode::Long);
    (c.gpr[gpr::RDI], c.gpr[gpr::RBP], c.gpr[gpr::RSP]) = (1 << 47, 1 << 47, 1 << 47);
    assert_eq!(run(&mut c, &[0x8b, 0x07]), Err(Fault::GP0)); // mov eax, [rdi]
    assert_eq!(run(&mut c, &[0x8b, 0x45, 0]), Err(Fault::SS0)); // mov eax, [rbp]
    assert_eq!(run(&mut c, &[0x58]), Err(Fault::SS0)); // pop rax
    c.gpr[gpr::RBP] = (1 << 47) - 4;
    assert_eq!(run(&mut c, &[0x48, 0x8b, 0x45, 0]), Err(Fault::SS0)); // its upper half
    assert_eq!(run(&mut c, &[0x48, 0x0f, 0xc7, 0x0f]), Err(Fault::GP0)); // cmpxchg16b [rdi]
}

#[test]
fn cmpxchg16b_wants_alignment() {
    let mut c = cpu(Mode::Long);
    c.gpr[gpr::RDI] = 0x2008;
    assert_eq!(run(&mut c, &[0x48, 0x0f, 0xc7, 0x0f]), Err(Fault::GP0));
    assert_eq!(run(&mut c, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]), Err(Fault::GP0));
    // Alignment comes before the canonical form.
    c.gpr[gpr::RBP] = (1 << 47) + 8;
    assert_eq!(run(&mut c, &[0x48, 0x0f, 0xc7, 0x4d, 0x00]), Err(Fault::GP0));
    c.gpr[gpr::RBP] = 1 << 47;
    assert_eq!(run(&mut c, &[0x48, 0x0f, 0xc7, 0x4d, 0x00]), Err(Fault::SS0));
    c.gpr[gpr::RDI] = 0x2010;
    (c.gpr[gpr::RAX], c.gpr[gpr::RDX], c.gpr[gpr::RBX], c.gpr[gpr::RCX]) = (0, 0, 7, 8);
    run(&mut c, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]).unwrap();
    assert_eq!(peek(&mut c, 0x2010, 16), [7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    run(&mut c, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]).unwrap();
    assert_eq!((c.gpr[gpr::RAX], c.gpr[gpr::RDX], c.flags.zf()), (7, 8, false));
}

#[test]
fn segments_are_checked_outside_64_bit_mode() {
    // Intel SDM vol. 3, 5.3 to 5.5.
    let mut c = cpu(Mode::Protected32);
    c.segs[seg::DS].limit = 0x2fff;
    c.segs[seg::SS].limit = 0x2fff;
    (c.gpr[gpr::RBX], c.gpr[gpr::RBP], c.gpr[gpr::RSP]) = (0x2ffd, 0x2ffd, 0x3000);
    let try_all = |c: &mut Cpu, codes: &[(&[u8], Exec)]| {
        for (code, want) in codes {
            assert_eq!(run(c, code), *want, "{code:02x?}");
        }
    };
    try_all(
        &mut c,
        &[
            (&[0x8b, 0x03], Err(Fault::GP0)),       // mov eax, [ebx]
            (&[0x66, 0x8b, 0x03], Ok(())),          // mov ax, [ebx]
            (&[0x8b, 0x45, 0], Err(Fault::SS0)),    // mov eax, [ebp]
            (&[0x36, 0x01, 0x03], Err(Fault::SS0)), // add ss:[ebx], eax
            (&[0x58], Err(Fault::SS0)),             // pop eax
            (&[0x50], Ok(())),                      // push eax
        ],
    );
    c.segs[seg::DS] = Segment::flat(0x10, 0xc091); // read-only data
    try_all(
        &mut c,
        &[(&[0x8b, 0x03], Ok(())), (&[0x89, 0x03], Err(Fault::GP0)), (&[0x87, 0x03], Err(Fault::GP0))],
    );
    c.segs[seg::DS].unusable = true;
    try_all(&mut c, &[(&[0x8b, 0x03], Err(Fault::GP0)), (&[0x8d, 0x03], Ok(()))]);
}

#[test]
fn bound_checks_signed_bounds() {
    let mut c = cpu(Mode::Protected32);
    poke(&mut c, 0x2000, &[(-5i32 as u32).to_le_bytes(), 7u32.to_le_bytes()].concat());
    c.gpr[gpr::RBX] = 0x2000;
    for (index, ok) in [(-6i32, false), (-5, true), (0, true), (7, true), (8, false)] {
        c.gpr[gpr::RAX] = u64::from(index as u32);
        let want = if ok { Ok(()) } else { Err(Fault::BR) };
        assert_eq!(run(&mut c, &[0x62, 0x03]), want, "{index}");
    }
    c.gpr[gpr::RAX] = 0xfffa; // ax: between the words -5 and -1?
    assert_eq!(run(&mut c, &[0x66, 0x62, 0x03]), Err(Fault::BR));
    c.gpr[gpr::RAX] = 0xfffc;
    assert_eq!(run(&mut c, &[0x66, 0x62, 0x03]), Ok(()));
}
