//! Loading good, bad and mutated kernels into small memories.

use accel_api::GuestRam;
use accel_api::x86::{CpuState, gpr};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory_map::{ACPI_AREA, MIB};

/// Where all is that a kernel without segments below 1 MiB is handed.
pub(super) const LOW: Handover = Handover::LOW;

pub(super) struct Loaded {
    pub(super) ram: GuestRam,
    pub(super) result: Result<CpuState, BootError>,
}

impl Loaded {
    pub(super) fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }
    pub(super) fn u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.read(gpa))
    }
    pub(super) fn u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.read(gpa))
    }
    pub(super) fn state(&self) -> &CpuState {
        self.result.as_ref().expect("boots")
    }
    pub(super) fn error(self) -> String {
        self.result.expect_err("refused").to_string()
    }
}

const SEED: Seed = *b"thirty-two bytes that are random";

pub(super) fn boot(mib: u64, kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Loaded {
    let initrd = initrd.map(|bytes| Source::bytes("test-initrd", bytes.to_vec()));
    boot_from(mib, &Source::bytes("test-kernel", kernel.to_vec()), initrd.as_ref(), cmdline)
}

pub(super) fn boot_from(mib: u64, kernel: &Source, initrd: Option<&Source>, cmdline: &str) -> Loaded {
    let map = MemoryMap::new(mib * MIB).unwrap();
    let ram = GuestRam::new(&map.ram_regions()).unwrap();
    let spec = BootSpec { kernel, initrd, cmdline, rsdp: ACPI_AREA, seed: Some(SEED), tsc_khz: None };
    let result = load(&ram, &map, &spec);
    Loaded { ram, result }
}

/// A bzImage with one setup sector and 8 KiB of code that starts with `code`; it prefers 16 MiB.
pub(super) fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 8192];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &(8192u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    put(0x400, b"32-bit entry");
    put(0x400 + 0x200, b"64-bit entry");
    image
}

/// The same for a 32-bit processor.
pub(super) fn bzimage32() -> Vec<u8> {
    let mut image = bzimage();
    image[0x236] = 0;
    image
}

/// An ELF file with one segment of 4 KiB in the file and 8 KiB in memory at 2 MiB; with a PVH note, or Linux.
pub(crate) fn elf(pvh: bool) -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &0x20_0100u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &[2]);
    let mut segment = |at: usize, kind: u32, fields: [u64; 6]| {
        put(at, &kind.to_le_bytes());
        for (i, field) in fields.into_iter().enumerate() {
            put(at + 8 + 8 * i, &field.to_le_bytes());
        }
    };
    segment(64, 1, [0x1000, 0x20_0000, 0x20_0000, 0x1000, 0x2000, 0x1000]);
    if pvh {
        segment(120, 4, [0x200, 0, 0, 48, 48, 4]);
        // Some other note first.
        put(0x200, &[4, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0]);
        put(0x20c, b"GNU\0build\0\0\0");
        put(0x20c + 12, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
        put(0x20c + 24, b"Xen\0\x50\x01\x20\0");
    } else {
        put(0x1800, b"Linux version 6.1.0 (test)");
    }
    put(0x1100, b"code");
    image
}

/// Documentation/arch/x86/boot.rst, "64-bit Boot Protocol" and "Zero Page".
#[test]
fn bzimage_gets_a_zero_page_and_long_mode() {
    let initrd = [0x5a; 5000];
    let b = boot(64, &bzimage(), Some(&initrd), "console=ttyS0 quiet");
    let state = b.state();
    assert_eq!(state.rip, 0x100_0200);
    assert_eq!(&b.read::<12>(state.rip), b"64-bit entry");
    assert_eq!(state.gpr[gpr::RSI], LOW.zero_page());
    assert_eq!(state.rflags & 1 << 9, 0, "interrupts off");
    assert_eq!((state.segments.cs.selector, state.segments.ds.selector), (0x10, 0x18));
    assert_ne!(state.segments.cs.attributes & accel_api::x86::Segment::LONG, 0);
    assert_eq!(state.msrs.efer, 0x500);
    assert_eq!((state.control.cr0 & 0x8000_0001, state.control.cr4), (0x8000_0001, 1 << 5));

    let zp = LOW.zero_page();
    assert_eq!(b.u64(zp + 0x70), ACPI_AREA, "acpi_rsdp_addr");
    assert_eq!(b.read::<1>(zp + 0x210), [0xff], "type_of_loader");
    assert_eq!(b.u32(zp + 0x202), u32::from_le_bytes(*b"HdrS"));
    let cmdline = u64::from(b.u32(zp + 0x228));
    assert_eq!(&b.read::<20>(cmdline), b"console=ttyS0 quiet\0");
    let (at, len) = (b.u32(zp + 0x218), b.u32(zp + 0x21c));
    assert_eq!((at, len), (64 * MIB as u32 - 8192, 5000));
    assert_eq!(b.read::<5000>(at.into()), initrd);
    let [entries] = b.read(zp + 0x1e8);
    let ram: u64 = (0..u64::from(entries))
        .map(|i| zp + 0x2d0 + 20 * i)
        .filter(|&e| b.u32(e + 16) == 1)
        .map(|e| b.u64(e + 8))
        .sum();
    assert_eq!(ram, 0x9_fc00 + 63 * MIB);

    // The descriptor behind CS says what the hidden part says (Intel SDM vol. 3, 3.4.5).
    assert_eq!(b.u64(state.gdtr.base + 0x10) >> 40 & 0xf0ff, u64::from(state.segments.cs.attributes));
    assert_eq!(b.u64(state.gdtr.base + 0x18) >> 40 & 0xf0ff, u64::from(state.segments.ds.attributes));
}

/// Documentation/arch/x86/boot.rst, "32-bit Boot Protocol".
#[test]
fn bzimage_without_a_64_bit_entry_gets_protected_mode() {
    // Before protocol 2.12 there is no flag, whatever the bits say.
    let mut older = bzimage();
    older[0x206..0x208].copy_from_slice(&0x20bu16.to_le_bytes());
    for image in [bzimage32(), older] {
        let b = boot(64, &image, Some(b"initrd"), "console=ttyS0");
        let state = b.state();
        assert_eq!((state.rip, &b.read::<12>(state.rip)), (0x100_0000, b"32-bit entry"));
        let mut gpr = [0; 16];
        gpr[gpr::RSI] = LOW.zero_page();
        assert_eq!(state.gpr, gpr, "EBP, EDI and EBX must be zero");
        assert_eq!((state.control.cr0, state.control.cr4, state.msrs.efer), (0x11, 0, 0));
        assert_eq!(state.rflags, 2, "interrupts off");
        let s = &state.segments;
        assert_eq!((s.cs.selector, s.cs.base, s.cs.limit, s.cs.attributes), (0x10, 0, u32::MAX, 0xc09b));
        for data in [s.ds, s.es, s.ss] {
            assert_eq!((data.selector, data.base, data.limit, data.attributes), (0x18, 0, u32::MAX, 0xc093));
        }
        for (selector, segment) in [(0x10, s.cs), (0x18, s.ds)] {
            let descriptor = b.u64(state.gdtr.base + selector);
            assert_eq!(descriptor & 0xff_ffff_ffff, 0xffff, "base 0, limit 0xfffff");
            assert_eq!(descriptor >> 40 & 0xf0ff, u64::from(segment.attributes));
        }
        let zp = LOW.zero_page();
        assert_eq!((b.u32(zp + 0x214), b.u32(zp + 0x21c)), (0x100_0000, 6), "code32_start, ramdisk_size");
        assert_eq!(&b.read::<14>(u64::from(b.u32(zp + 0x228))), b"console=ttyS0\0");
        assert_eq!(b.u64(zp + 0x70), ACPI_AREA, "acpi_rsdp_addr");
    }
    // Moved, it is entered where it is.
    let moved = boot(8, &bzimage32(), None, "");
    assert_eq!((moved.state().rip, moved.u32(LOW.zero_page() + 0x214)), (0x20_0000, 0x20_0000));
    // And its initrd stays below what the kernel can map.
    let mut low = bzimage32();
    low[0x22c..0x230].copy_from_slice(&0x1ff_ffffu32.to_le_bytes());
    let b = boot(64, &low, Some(b"initrd"), "");
    assert_eq!(b.u32(LOW.zero_page() + 0x218), 0x1ff_f000, "ramdisk_image");
}

/// Intel SDM vol. 3, 4.5.4: walks the tables as a processor would.
#[test]
fn page_tables_map_4_gib_one_to_one() {
    let b = boot(64, &bzimage(), None, "");
    for va in [0, 0x1234, 0x100_0200, 0x3fff_ffff, 0x4000_0000, 0xfee0_0000, 0xffff_ffff_u64] {
        let mut table = b.state().control.cr3;
        for level in [39, 30] {
            let entry = b.u64(table + (va >> level & 511) * 8);
            assert_eq!(entry & 0x83, 3, "{va:#x}");
            table = entry & !0xfff;
        }
        let entry = b.u64(table + (va >> 21 & 511) * 8);
        assert_eq!((entry & 0x83, entry & !0x1f_ffff | va & 0x1f_ffff), (0x83, va));
    }
}

#[test]
fn bzimage_moves_down_when_memory_is_short() {
    assert_eq!(boot(8, &bzimage(), None, "").state().rip, 0x20_0200);
    let mut fixed = bzimage();
    fixed[0x234] = 0;
    let error = boot(8, &fixed, None, "").error();
    assert!(error.contains("test-kernel") && error.contains("ends at 8 MiB"), "{error}");
    let mut large = bzimage();
    large[0x260..0x264].copy_from_slice(&0x4000_0000u32.to_le_bytes());
    assert!(boot(512, &large, None, "").error().contains("give it more"));
}

#[test]
fn files_that_are_no_kernels_are_named() {
    for (start, expected) in [
        (&b"070701"[..], "give it as the initrd"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"", "is empty"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello\n", "a text file"),
        (b"!<arch>\ndebian-binary", "Debian package"),
        (b"\x00\x01\x02", "of no kind known here"),
        (b"MZ\0\0", "EFI program"),
    ] {
        let error = boot(16, start, None, "").error();
        assert!(error.contains("test-kernel") && error.contains(expected), "{error}");
    }
    let mut arm = vec![0; 1024];
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    assert!(boot(16, &arm, None, "").error().contains("arm64"));
    let mut arm = elf(true);
    arm[18] = 183;
    assert!(boot(16, &arm, None, "").error().contains("another processor"));
}

#[test]
fn truncated_and_old_kernels_are_refused() {
    let image = bzimage();
    let b = boot(64, &image[..image.len() - 16], None, "");
    assert!(matches!(b.result, Err(BootError::Truncated { need: 9201, have: 9200, .. })), "{:?}", b.result);
    assert!(boot(64, &image[..image.len() - 15], None, "").result.is_ok(), "the last paragraph may be short");
    assert!(matches!(boot(64, &image[..0x220], None, "").result, Err(BootError::Truncated { .. })));
    let elf = elf(true);
    assert!(matches!(boot(64, &elf[..0x1800], None, "").result, Err(BootError::Truncated { .. })));
    let mut old = image.clone();
    old[0x206] = 6;
    assert!(boot(64, &old, None, "").error().contains("older than 2.10"));
    let mut small = image;
    small[0x211] = 0;
    assert!(boot(64, &small, None, "").error().contains("zImage"));
    small[0x211] = 1;
    small[0x1fe] = 0;
    assert!(boot(64, &small, None, "").error().contains("no signature"));
    let thirty_two = bzimage32();
    assert!(matches!(boot(64, &thirty_two[..9200], None, "").result, Err(BootError::Truncated { .. })));
}

#[test]
fn what_does_not_fit_is_refused() {
    let initrd = vec![1; 15 << 20];
    let b = boot(16, &elf(true), Some(&initrd), "");
    assert!(matches!(b.result, Err(BootError::InitrdTooLarge { len, .. }) if len == 15 << 20));
    let b = boot(64, &bzimage(), None, &"x".repeat(2048));
    assert!(matches!(b.result, Err(BootError::CmdlineTooLong { len: 2048, max: 2047 })));
    assert!(boot(64, &bzimage(), None, &"x".repeat(2047)).result.is_ok());
    assert!(matches!(boot(64, &bzimage(), None, "a\0b").result, Err(BootError::CmdlineNul)));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let map = MemoryMap::new(16 * MIB).unwrap();
    let ram = GuestRam::new(&map.ram_regions()).unwrap();
    for (path, expected) in
        [("/no/such/vmlinuz", "cannot open kernel"), ("/tmp", "a folder"), ("/dev/null", "a device")]
    {
        let kernel = Source::from(path);
        let spec = BootSpec::new(&kernel, 0);
        let error = load(&ram, &map, &spec).unwrap_err().to_string();
        assert!(error.contains(path) && error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_of_the_host_loads_like_bytes() {
    let path = std::env::temp_dir().join(format!("gearshift-kernel-{}", std::process::id()));
    std::fs::write(&path, bzimage()).unwrap();
    let map = MemoryMap::new(64 * MIB).unwrap();
    let ram = GuestRam::new(&map.ram_regions()).unwrap();
    let kernel = Source::from(path.clone());
    let state = load(&ram, &map, &BootSpec::new(&kernel, 0));
    std::fs::remove_file(&path).unwrap();
    let mut code = [0; 12];
    ram.memory().read_slice(&mut code, GuestAddress(state.unwrap().rip)).unwrap();
    assert_eq!(&code, b"64-bit entry");
}

/// What the fuzz target does without end: no file may make the loader panic, hang or write outside the RAM.
#[test]
fn mutated_kernels_do_no_harm() {
    let map = MemoryMap::new(32 * MIB).unwrap();
    let ram = GuestRam::new(&map.ram_regions()).unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (mut booted, mut refused) = (0, 0);
    for case in 0..10_000 {
        let (mut image, headers) = match case % 5 {
            0 => (bzimage(), 0x1f1..0x26c),
            1 => (bzimage32(), 0x1f1..0x26c),
            2 => (elf(true), 0..0x230),
            3 => elf_tests::low(),
            _ => (elf(false), 0..0x230),
        };
        // Mutate the headers, where the addresses and sizes are.
        for _ in 0..next() % 4 + 1 {
            let at = headers.start + next() as usize % headers.len();
            let value =
                [0, 0xff, 0x7f, 0x80, next() as u8, image[at] ^ 1 << (next() % 8)][next() as usize % 6];
            let run = [1, 1, 1, 4, 8][next() as usize % 5];
            image[at..at + run].fill(value);
        }
        if next() % 8 == 0 {
            image.truncate(next() as usize % image.len());
        }
        let kernel = Source::bytes("mutant", image);
        let initrd = Source::bytes("initrd", vec![7; 4097]);
        let spec = BootSpec {
            kernel: &kernel,
            initrd: Some(&initrd),
            cmdline: "quiet",
            rsdp: ACPI_AREA,
            seed: None,
            tsc_khz: Some(1),
        };
        match load(&ram, &map, &spec) {
            Ok(state) => {
                booted += 1;
                assert!(state.rip < 1 << 32);
                // What the kernel is handed is there, wherever its segments are.
                let mut handed = [0; 4];
                let (at, magic) = match state.gpr[gpr::RBX] {
                    0 => (state.gpr[gpr::RSI] + 0x202, *b"HdrS"),
                    info => (info, 0x336e_c578u32.to_le_bytes()),
                };
                ram.memory().read_slice(&mut handed, GuestAddress(at)).unwrap();
                assert_eq!(handed, magic, "case {case}");
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    }
    assert!(booted > 500 && refused > 500, "{booted} booted, {refused} refused");
}

/// The seed is the only entry of setup_data: its address is in the header, its kind is 9 (Linux boot.rst, setup_data.h).
#[test]
fn linux_is_handed_a_seed() {
    for kernel in [bzimage(), bzimage32(), elf(false)] {
        let loaded = boot(64, &kernel, None, "");
        loaded.state();
        let at = loaded.u64(LOW.zero_page() + 0x250);
        assert_eq!((loaded.u64(at), loaded.u32(at + 8), loaded.u32(at + 12)), (0, 9, 32));
        assert_eq!(loaded.read::<32>(at + 16), SEED);
        // In memory that the kernel may use, away from all else that it is handed, so that it can be wiped out.
        assert!(at >= LOW.page_tables() + 6 * 0x1000 && at + 48 <= LOW.cmdline());
    }
    // PVH has no place for one, and without one there is no entry.
    let loaded = boot(64, &elf(true), None, "");
    loaded.state();
    assert_eq!(loaded.read(LOW.seed()), [0u8; 48]);
    let (map, kernel) = (MemoryMap::new(64 * MIB).unwrap(), Source::bytes("test-kernel", bzimage()));
    let ram = GuestRam::new(&map.ram_regions()).unwrap();
    let spec = BootSpec::new(&kernel, 0);
    let loaded = Loaded { result: load(&ram, &map, &spec), ram };
    assert_eq!((loaded.u64(LOW.zero_page() + 0x250), loaded.read(LOW.seed())), (0, [0u8; 48]));
}

/// In front of the command line, where it fits: the kernel takes 2047 bytes and the loader has no more room than it says.
#[test]
fn linux_is_told_the_frequency_of_the_tsc() {
    let long = "x".repeat(2047);
    let just = &long[..2047 - "tsc_early_khz=2596126 ".len()];
    let map = MemoryMap::new(64 * MIB).unwrap();
    for kernel in [bzimage(), bzimage32(), elf(false)] {
        for (cmdline, told) in [("quiet", true), ("", true), (just, true), (&long[..], false)] {
            let ram = GuestRam::new(&map.ram_regions()).unwrap();
            let kernel = Source::bytes("test-kernel", kernel.clone());
            let tsc_khz = Some(2_596_126);
            let spec = BootSpec { cmdline, tsc_khz, ..BootSpec::new(&kernel, 0) };
            let loaded = Loaded { result: load(&ram, &map, &spec), ram };
            loaded.state();
            let at = loaded.u32(LOW.zero_page() + 0x228);
            let bytes: [u8; 2048] = loaded.read(at.into());
            let line = std::str::from_utf8(bytes.split(|b| *b == 0).next().unwrap()).unwrap();
            let front = if told { "tsc_early_khz=2596126 " } else { "" };
            assert_eq!(line, format!("{front}{cmdline}"));
        }
    }
}

/// The host has no page where the kernel is to lie: by a write of the kernel's own (a file), or by one of this process.
#[test]
fn memory_that_the_host_cannot_give_is_no_fault_of_the_file() {
    let map = MemoryMap::new(16 * MIB).unwrap();
    let path = std::env::temp_dir().join(format!("gearshift-lost-{}", std::process::id()));
    std::fs::write(&path, elf(true)).unwrap();
    let load_short = |kernel: Source| {
        let ram = GuestRam::new(&map.ram_regions()).unwrap();
        std::fs::File::from(ram.fd().try_clone_to_owned().unwrap()).set_len(MIB).unwrap();
        let spec = BootSpec::new(&kernel, ACPI_AREA);
        (load(&ram, &map, &spec).map_err(|e| e.to_string()), ram.loss())
    };
    let (result, _) = load_short(path.clone().into());
    std::fs::remove_file(&path).unwrap();
    let error = result.unwrap_err();
    assert!(error.contains("cannot provide the page of guest RAM at 0x200000"), "{error}");
    // The builder asks when all is loaded.
    let (result, loss) = load_short(Source::bytes("test-kernel", elf(true)));
    // In which order a copy goes through a page is its own affair.
    assert!(result.is_ok() && loss.is_some_and(|gpa| gpa >> 12 == 0x200), "{result:?} {loss:x?}");
}
