//! Decimal adjustment, checked against decimal arithmetic and the tables of the manual, and SALC.

use accel_api::x86::gpr;

use crate::Fault;
use crate::alu::flag;
use crate::mode::Mode;
use crate::testing::{cpu, run};

const fn bcd(n: u64) -> u64 {
    ((n / 10) << 4) | (n % 10)
}

#[test]
fn decimal_sums_and_differences_are_right() {
    let mut c = cpu(Mode::Protected32);
    for a in 0..100 {
        for b in 0..100 {
            (c.gpr[gpr::RAX], c.gpr[gpr::RBX]) = (bcd(a), bcd(b));
            run(&mut c, &[0x00, 0xd8]).unwrap(); // add al, bl
            run(&mut c, &[0x27]).unwrap(); // daa
            assert_eq!((c.gpr[gpr::RAX], c.flags.cf()), (bcd((a + b) % 100), a + b > 99), "{a} + {b}");
            assert_eq!(c.flags.zf(), (a + b) % 100 == 0);
            c.gpr[gpr::RAX] = bcd(a);
            run(&mut c, &[0x28, 0xd8]).unwrap(); // sub al, bl
            run(&mut c, &[0x2f]).unwrap(); // das
            assert_eq!((c.gpr[gpr::RAX], c.flags.cf()), (bcd((100 + a - b) % 100), a < b), "{a} - {b}");
        }
    }
}

#[test]
fn ascii_sums_and_differences_are_right() {
    let mut c = cpu(Mode::Real);
    for a in 0..10 {
        for b in 0..10 {
            (c.gpr[gpr::RAX], c.gpr[gpr::RBX]) = (0x300 + a, b);
            run(&mut c, &[0x00, 0xd8]).unwrap();
            run(&mut c, &[0x37]).unwrap(); // aaa
            assert_eq!(c.gpr[gpr::RAX], 0x300 + (a + b) / 10 * 0x100 + (a + b) % 10);
            assert_eq!(c.flags.cf(), a + b > 9);
            c.gpr[gpr::RAX] = 0x300 + a;
            run(&mut c, &[0x28, 0xd8]).unwrap();
            run(&mut c, &[0x3f]).unwrap(); // aas
            assert_eq!(c.gpr[gpr::RAX], if a < b { 0x200 + 10 + a - b } else { 0x300 + a - b });
            assert_eq!(c.flags.cf(), a < b);
        }
    }
}

#[test]
fn aam_and_aad_are_inverse_and_aam_0_divides_by_zero() {
    let mut c = cpu(Mode::Protected16);
    for n in 0..100 {
        c.gpr[gpr::RAX] = 0xab00 + n;
        run(&mut c, &[0xd4, 10]).unwrap(); // aam
        assert_eq!(c.gpr[gpr::RAX], ((n / 10) << 8) | (n % 10));
        assert_eq!((c.flags.zf(), c.flags.sf()), (n % 10 == 0, false));
        run(&mut c, &[0xd5, 10]).unwrap(); // aad
        assert_eq!(c.gpr[gpr::RAX], n);
    }
    assert_eq!(run(&mut c, &[0xd4, 0]), Err(Fault::DE));
    assert_eq!(c.gpr[gpr::RAX], 99);
}

#[test]
fn examples_of_the_manual() {
    // Intel SDM vol. 2A, DAA and DAS.
    let mut c = cpu(Mode::Protected32);
    let cases: &[(u8, u64, u64, u64, u64)] = &[
        (0x27, 0xae, flag::SF | flag::PF, 0x14, flag::CF | flag::PF | flag::AF),
        (
            0x2f,
            0xee,
            flag::SF | flag::CF | flag::PF | flag::AF,
            0x88,
            flag::CF | flag::AF | flag::SF | flag::PF,
        ),
    ];
    for &(opcode, al, before, after, flags) in cases {
        c.gpr[gpr::RAX] = al;
        c.set_rflags(before);
        run(&mut c, &[opcode]).unwrap();
        assert_eq!((c.gpr[gpr::RAX], c.flags.to_rflags() & !flag::OF), (after, flags), "{opcode:x}");
    }
    for (carry, al) in [(flag::CF, 0xff), (0, 0)] {
        c.gpr[gpr::RAX] = 0x1234;
        c.set_rflags(carry);
        run(&mut c, &[0xd6]).unwrap(); // salc
        assert_eq!((c.gpr[gpr::RAX], c.flags.to_rflags()), (0x1200 | al, carry));
    }
}

#[test]
fn none_of_them_exists_in_64_bit_mode() {
    let mut c = cpu(Mode::Long);
    for code in [&[0x27][..], &[0x2f], &[0x37], &[0x3f], &[0xd4, 10], &[0xd5, 10], &[0xd6], &[0x60], &[0x61]]
    {
        assert_eq!(run(&mut c, code), Err(Fault::UD), "{code:02x?}");
    }
}
