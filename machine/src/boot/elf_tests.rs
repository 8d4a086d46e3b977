//! ELF kernels of both classes: notes, protocols, and where segments may lie.

use accel_api::x86::gpr;

use super::tests::{LOW, Loaded, boot, elf};
use super::*;
use crate::memory_map::ACPI_AREA;

const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// An ELF file in the making. Its segments lie in the file one after the other.
struct Elf {
    class32: bool,
    machine: u16,
    entry: u64,
    segments: Vec<(u32, u64, u64, Vec<u8>)>,
}

impl Elf {
    fn new(class32: bool, entry: u64) -> Self {
        Self { class32, machine: if class32 { 3 } else { 62 }, entry, segments: Vec::new() }
    }

    /// With code at `address`, twice as much in memory as in the file.
    fn code(mut self, address: u64, code: &[u8]) -> Self {
        self.segments.push((LOAD, address, 4096, code.to_vec()));
        self
    }

    fn notes(mut self, align: u64, notes: &[u8]) -> Self {
        self.segments.push((NOTE, 0, align, notes.to_vec()));
        self
    }

    /// With a PVH entry.
    fn pvh(self, entry: u32) -> Self {
        self.notes(4, &note(4, b"Xen\0", 18, &entry.to_le_bytes()))
    }

    fn bytes(&self) -> Vec<u8> {
        let (ehsize, phentsize) = if self.class32 { (52u16, 32u16) } else { (64, 56) };
        let word = |out: &mut Vec<u8>, value: u64| match self.class32 {
            true => out.extend((value as u32).to_le_bytes()),
            false => out.extend(value.to_le_bytes()),
        };
        let mut out = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        out[4] = 2 - u8::from(self.class32);
        out.extend([2, 0]);
        out.extend(self.machine.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        word(&mut out, self.entry);
        word(&mut out, ehsize.into());
        word(&mut out, 0);
        out.extend(0u32.to_le_bytes());
        for half in [ehsize, phentsize, self.segments.len() as u16, 0, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        let mut offset = out.len() as u64 + u64::from(phentsize) * self.segments.len() as u64;
        for (kind, address, align, contents) in &self.segments {
            let len = contents.len() as u64;
            out.extend(kind.to_le_bytes());
            if !self.class32 {
                out.extend(7u32.to_le_bytes());
            }
            for value in [offset, *address, *address, len, 2 * len] {
                word(&mut out, value);
            }
            if self.class32 {
                out.extend(7u32.to_le_bytes());
            }
            word(&mut out, *align);
            offset += len;
        }
        for (.., contents) in &self.segments {
            out.extend(contents);
        }
        out
    }

    fn boot(&self) -> Loaded {
        boot(16, &self.bytes(), None, "")
    }
}

/// A file of 32 bits with two segments, one below 1 MiB, and notes in two more; and where its headers and notes are.
pub(super) fn low() -> (Vec<u8>, std::ops::Range<usize>) {
    let elf = Elf::new(true, 0).notes(8, &note(8, b"GNU\0", 5, &[0; 16])).pvh(0x8001);
    let elf = elf.code(0x8000, &[0x90; 0x300]).code(0x10_0000, b"code");
    (elf.bytes(), 0..52 + 4 * 32 + 32 + 20)
}

/// A note, padded to `align`.
fn note(align: usize, name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [name.len() as u32, desc.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    for part in [name, desc] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(align), 0);
    }
    out
}

/// Xen, docs/misc/pvh.pandoc.
#[test]
fn elf_with_a_pvh_note_starts_in_protected_mode() {
    let b = boot(16, &elf(true), Some(b"initrd"), "hello");
    let state = b.state();
    assert_eq!((state.rip, state.gpr[gpr::RBX]), (0x20_0150, LOW.pvh_info()));
    assert_eq!((state.control.cr0, state.control.cr4, state.msrs.efer), (0x11, 0, 0));
    let cs = state.segments.cs;
    assert_eq!((cs.base, cs.limit, cs.attributes), (0, u32::MAX, 0xc09b));
    let info = LOW.pvh_info();
    assert_eq!((b.u32(info), b.u32(info + 4), b.u32(info + 12)), (0x336e_c578, 1, 1));
    assert_eq!(b.u64(info + 32), ACPI_AREA);
    assert_eq!(&b.read::<6>(b.u64(info + 24)), b"hello\0");
    let module = b.u64(info + 16);
    assert_eq!(b.u64(module + 8), 6);
    assert_eq!(&b.read::<6>(b.u64(module)), b"initrd");
    let (map, entries) = (b.u64(info + 40), b.u32(info + 48));
    assert!(entries >= 4 && b.u64(map + 8) == 0x9_fc00 && b.u32(map + 16) == 1);
}

#[test]
fn linux_without_a_note_is_a_vmlinux() {
    let b = boot(16, &elf(false), None, "");
    assert_eq!((b.state().rip, &b.read::<4>(0x20_0100)), (0x20_0100, b"code"));
    assert_eq!((b.state().gpr[gpr::RSI], b.state().msrs.efer), (LOW.zero_page(), 0x500));
    let mut virtual_entry = elf(false);
    virtual_entry[24..32].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    assert!(boot(16, &virtual_entry, None, "").error().contains("not a physical address"));
    // The banner may lie anywhere, also across the steps of the search.
    for at in [0, (1 << 20) - 20, (1 << 20) - 14, (1 << 20) - 3, 1 << 20] {
        let mut code = vec![b'L'; (1 << 20) + 64];
        code[at..at + 16].copy_from_slice(b"Linux version 7.");
        let elf = Elf::new(false, 0x20_0000).code(0x20_0000, &code);
        assert_eq!(elf.boot().state().rip, 0x20_0000, "{at}");
    }
}

/// Documentation/arch/x86/boot.rst, "32-bit Boot Protocol".
#[test]
fn linux_for_32_bits_without_a_note_is_a_vmlinux_too() {
    let b = Elf::new(true, 0x10_0004).code(0x10_0000, b"codeLinux version 6.1").boot();
    let state = b.state();
    assert_eq!((state.rip, state.control.cr0, state.msrs.efer), (0x10_0004, 0x11, 0));
    assert_eq!((state.gpr[gpr::RSI], &b.read::<4>(0x10_0000)), (LOW.zero_page(), b"code"));
}

#[test]
fn what_is_neither_pvh_nor_linux_is_refused() {
    for contents in [&b"code"[..], b"Linux version ", b"Linux version %s", b"linux version 6"] {
        for class32 in [false, true] {
            let error = Elf::new(class32, 0x10_0000).code(0x10_0000, contents).boot().error();
            assert!(
                error.contains("without a PVH note and not Linux") && error.contains("bzImage"),
                "{error}"
            );
        }
    }
}

#[test]
fn files_of_32_bits_with_a_note_start_like_those_of_64() {
    for machine in [3, 62] {
        let mut elf = Elf::new(true, 0).code(0x10_0000, b"code").pvh(0x10_0002);
        elf.machine = machine;
        let b = elf.boot();
        let state = b.state();
        assert_eq!((state.rip, state.control.cr0), (0x10_0002, 0x11), "{machine}");
        assert_eq!((state.gpr[gpr::RBX], &b.read::<8>(0x10_0000)), (LOW.pvh_info(), b"code\0\0\0\0"));
    }
    for (class32, machine) in [(true, 40), (false, 3), (false, 183)] {
        let mut elf = Elf::new(class32, 0).code(0x10_0000, b"code").pvh(0x10_0000);
        elf.machine = machine;
        assert!(elf.boot().error().contains("another processor"), "{class32} {machine}");
    }
    let mut big_endian = Elf::new(true, 0).code(0x10_0000, b"code").bytes();
    big_endian[5] = 2;
    assert!(boot(16, &big_endian, None, "").error().contains("another processor"));
}

/// `.note.gnu.property` makes the segment's alignment 8, and the notes behind it keep 4.
#[test]
fn notes_are_found_in_every_segment_and_alignment() {
    let entry = 0x10_0001u32.to_le_bytes();
    let property = note(8, b"GNU\0", 5, &[2, 0, 0, 0xc0, 4, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    let linux = [note(4, b"Xen\0", 6, b"linux\0"), note(4, b"Xen\0", 7, b"2.6\0")].concat();
    let pvh = note(4, b"Xen\0", 18, &entry);
    let pvh64 = note(8, b"Xen\0", 18, &u64::from(0x10_0001u32).to_le_bytes());
    let code = |class32| Elf::new(class32, 0).code(0x10_0000, b"code");
    for class32 in [false, true] {
        let files = [
            code(class32).notes(8, &[&property[..], &pvh].concat()),
            code(class32).notes(8, &[&property[..], &linux, &pvh].concat()),
            code(class32).notes(8, &[&property[..], &pvh64].concat()),
            code(class32).notes(8, &property).notes(4, &[&linux[..], &pvh].concat()),
            code(class32).notes(4, &linux).notes(8, &property).notes(4, &pvh),
            code(class32).notes(0, &pvh),
            code(class32).notes(1, &pvh),
        ];
        for (case, elf) in files.iter().enumerate() {
            assert_eq!(elf.boot().state().rip, 0x10_0001, "case {case}, 32 bits: {class32}");
        }
    }
}

#[test]
fn entries_that_cannot_be_are_refused() {
    for entry in [0, 0xf_ffff, 0x10_0008, u32::MAX] {
        let error = Elf::new(false, 0x10_0000).code(0x10_0000, b"code").pvh(entry).boot().error();
        assert!(error.contains("not a physical address within it"), "{entry:#x}: {error}");
    }
    let high = note(8, b"Xen\0", 18, &0x1_0010_0000u64.to_le_bytes());
    let error = Elf::new(false, 0).code(0x10_0000, b"code").notes(8, &high).boot().error();
    assert!(error.contains("not a physical address within it"), "{error}");
    for len in [0, 2, 12] {
        let odd = note(4, b"Xen\0", 18, &vec![0; len]);
        let error = Elf::new(false, 0).code(0x10_0000, b"code").notes(4, &odd).boot().error();
        assert!(error.contains("has no entry point"), "{error}");
    }
}

/// What the kernel is handed gives way to its segments.
#[test]
fn segments_may_lie_below_1_mib() {
    for address in [0, 0x7c00, 0x8000, 0x1_0000, 0x2_0000, 0x9_0000, 0xc_0000, 0xd_f000] {
        for class32 in [false, true] {
            let code: Vec<u8> = (0..0x600u32).map(|i| i as u8 | 1).collect();
            let elf = Elf::new(class32, 0).code(address, &code).pvh(address as u32 + 3);
            let b = boot(16, &elf.bytes(), Some(b"initrd"), "hello");
            let state = b.state();
            assert_eq!(state.rip, address + 3, "{address:#x}");
            assert_eq!(&b.read::<0x600>(address)[..], code, "{address:#x}: overwritten");
            assert_eq!(b.read::<0x600>(address + 0x600), [0; 0x600], "{address:#x}: its second half is zero");
            let info = state.gpr[gpr::RBX];
            assert_eq!((b.u32(info), b.u32(info + 12)), (0x336e_c578, 1), "{address:#x}");
            assert_eq!(&b.read::<6>(b.u64(info + 24)), b"hello\0");
            assert_eq!(&b.read::<6>(b.u64(b.u64(info + 16))), b"initrd");
            assert_eq!(b.read::<8>(state.gdtr.base + 0x10), 0x00cf_9b00_0000_ffffu64.to_le_bytes());
        }
    }
    // One that leaves no room below 640 KiB: all goes above 1 MiB, and above the segment there.
    let elf = Elf::new(true, 0).code(0x500, &[1; 0x4_e000]).code(0x10_0000, &[2; 0x1000]).pvh(0x500);
    let b = elf.boot();
    assert_eq!(b.state().gpr[gpr::RBX], 0x10_2000 + LOW.pvh_info());
    assert_eq!((b.read::<0x1000>(0x4_d500), b.read::<0x1000>(0x10_0000)), ([1; 0x1000], [2; 0x1000]));
    // Linux's protocol goes the same way.
    let b = Elf::new(false, 0x8000).code(0x8000, b"Linux version 6").boot();
    let (state, zero_page) = (b.state(), b.state().gpr[gpr::RSI]);
    assert_ne!(zero_page, LOW.zero_page());
    assert_eq!(&b.read::<4>(zero_page + 0x202), b"HdrS");
    assert_eq!(b.u64(state.control.cr3) & !0xfff, state.control.cr3 + 0x1000);
    assert_eq!(&b.read::<15>(0x8000), b"Linux version 6");

    for (address, why) in
        [(0x9_f800, "0xa0000"), (0xb_8000, "0xa0000"), (0xd_fc00, "ACPI"), (0xf_0000, "ACPI")]
    {
        let error = Elf::new(true, 0).code(address, &[1; 0x600]).pvh(address as u32).boot().error();
        assert!(error.contains(why) && error.contains("1 MiB"), "{address:#x}: {error}");
    }
}

/// COMMAND_LINE_SIZE of Linux on x86 is 2048; it copies as much of a longer one, without the NUL, and dies.
#[test]
fn linux_has_a_limit_for_its_command_line() {
    let boot = |elf: &Elf, len| boot(16, &elf.bytes(), None, &"x".repeat(len)).result;
    let linux = Elf::new(false, 0).code(0x10_0000, b"code Linux version 6.1").pvh(0x10_0000);
    let linux32 = Elf::new(true, 0).code(0x10_0000, b"code Linux version 6.1").pvh(0x10_0000);
    let vmlinux = Elf::new(false, 0x10_0000).code(0x10_0000, b"code Linux version 6.1");
    for elf in [linux, linux32, vmlinux] {
        assert!(boot(&elf, 2047).is_ok());
        for len in [2048, 65535, 100_000] {
            let result = boot(&elf, len);
            assert!(
                matches!(result, Err(BootError::CmdlineTooLong { len: l, max: 2047 }) if l == len as u64),
                "{len}: {result:?}"
            );
        }
    }
    // Of another kernel nothing is known; it is given what there is room for.
    let other = Elf::new(false, 0).code(0x10_0000, b"code").pvh(0x10_0000);
    assert!(boot(&other, 65535).is_ok());
    assert!(matches!(boot(&other, 65536), Err(BootError::CmdlineTooLong { len: 65536, max: 65535 })));
}
