//! Files of the host: kinds, holes, changes; and initial RAM disks of several GiB, which are sparse here.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use accel_api::x86::gpr;
use accel_api::{GuestRam, PageFlag};
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, memfd_create, mknodat};
use vm_memory::{Bytes, GuestAddress};

use super::image::Image;
use super::tests::{Loaded, boot_from, bzimage, bzimage32, elf};
use super::*;
use crate::memory_map::{GIB, MIB, MemoryMap};

/// A file of `len` bytes, all a hole but for what is put in.
struct Sparse(File);

impl Sparse {
    fn new(len: u64) -> Self {
        let file = File::from(memfd_create("gearshift-test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        Self(file)
    }

    fn put(self, at: u64, bytes: &[u8]) -> Self {
        self.0.write_all_at(bytes, at).unwrap();
        self
    }

    fn source(&self) -> Source {
        Source::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    fn open(&self) -> Image<'static> {
        // The image keeps nothing of its source but the file.
        Image::open(Role::Initrd, Box::leak(Box::new(self.source()))).unwrap()
    }
}

fn ram(mib: u64) -> GuestRam {
    GuestRam::new(&MemoryMap::new(mib * MIB).unwrap().ram_regions()).unwrap()
}

/// Pages that were written.
fn written(ram: &GuestRam) -> usize {
    (0..ram.flags().pages()).filter(|&page| ram.flags().get(page).contains(PageFlag::DIRTY)).count()
}

/// A bzImage that says its initrd may be above 4 GiB (XLF_CAN_BE_LOADED_ABOVE_4G).
fn modern() -> Vec<u8> {
    let mut image = bzimage();
    image[0x236] |= 2;
    image
}

/// An initrd of `len` bytes that starts and ends with known bytes.
fn initrd(len: u64) -> Sparse {
    Sparse::new(len).put(0, b"start").put(len - 3, b"end")
}

fn boot_with(mib: u64, kernel: &[u8], initrd: &Sparse) -> Loaded {
    let kernel = Source::bytes("test-kernel", kernel.to_vec());
    boot_from(mib, &kernel, Some(&initrd.source()), "")
}

/// Address and length as the zero page has them: hdr.ramdisk_image and hdr.ramdisk_size with their extensions.
fn in_zero_page(b: &Loaded) -> (u64, u64) {
    let zero_page = b.state().gpr[gpr::RSI];
    let field = |low, high| u64::from(b.u32(zero_page + low)) | u64::from(b.u32(zero_page + high)) << 32;
    (field(0x218, 0xc0), field(0x21c, 0xc4))
}

#[track_caller]
fn assert_loaded(b: &Loaded, (at, len): (u64, u64)) {
    assert_eq!((&b.read::<5>(at), &b.read::<3>(at + len - 3)), (b"start", b"end"));
    assert!(written(&b.ram) < 64, "{} pages", written(&b.ram));
}

#[test]
fn an_initrd_goes_above_4_gib_where_the_kernel_says_so() {
    const LEN: u64 = 7 * GIB / 2;
    let b = boot_with(8192, &modern(), &initrd(LEN));
    let place = in_zero_page(&b);
    // RAM ends at 9 GiB, since it leaves out the fourth.
    assert_eq!(place, (9 * GIB - LEN, LEN));
    assert_loaded(&b, place);
    // Beyond 2 GiB, the limit for loaders that do not know, but below 4.
    const LESS: u64 = 9 * GIB / 4;
    for mib in [3072, 8192] {
        let b = boot_with(mib, &modern(), &initrd(LESS));
        assert_eq!(in_zero_page(&b), (3 * GIB - LESS, LESS));
        assert_loaded(&b, in_zero_page(&b));
    }
    // More than 4 GiB: the length needs its upper half.
    const MORE: u64 = 4 * GIB + 4096;
    let b = boot_with(8192, &modern(), &initrd(MORE));
    assert_eq!(in_zero_page(&b), (9 * GIB - MORE, MORE));
    assert_loaded(&b, in_zero_page(&b));
    // One that fits below the limit stays there.
    let b = boot_with(8192, &modern(), &initrd(MIB));
    assert_eq!(in_zero_page(&b), (2 * GIB - MIB, MIB));
}

#[test]
fn an_initrd_that_the_kernel_cannot_take_is_no_matter_of_memory() {
    const LEN: u64 = 9 * GIB / 4;
    let mut without_entry = modern();
    without_entry[0x236] = 2;
    let mut old = modern();
    old[0x206] = 0x0b;
    for kernel in [bzimage(), bzimage32(), without_entry, old] {
        let error = boot_with(8192, &kernel, &initrd(LEN)).error();
        for word in ["does not fit", "below 2048 MiB", "make it smaller", "bzImage"] {
            assert!(error.contains(word), "{error}");
        }
        assert!(!error.contains("more memory"), "{error}");
    }
    // PVH's module list has 64 bits; its users take 32, and RAM below 4 GiB ends at 3.
    let b = boot_with(8192, &elf(true), &initrd(LEN));
    let module = b.u64(b.state().gpr[gpr::RBX] + 16);
    assert_eq!((b.u64(module), b.u64(module + 8)), (3 * GIB - LEN, LEN));
    assert_loaded(&b, (3 * GIB - LEN, LEN));
    for kernel in [elf(true), elf(false)] {
        let error = boot_with(8192, &kernel, &initrd(3 * GIB)).error();
        assert!(error.contains("below 3072 MiB") && !error.contains("more memory"), "{error}");
    }
}

/// The remedy helps, and a mebibyte less does not.
#[test]
fn the_memory_that_is_asked_for_is_enough() {
    let lens = [20 * MIB, 700 * MIB, 9 * GIB / 4, 3 * GIB, 5 * GIB + 1];
    for (kernel, last) in [(modern(), 5), (bzimage(), 2), (bzimage32(), 2), (elf(true), 3), (elf(false), 3)] {
        for &len in &lens[..last] {
            let initrd = initrd(len);
            let b = boot_with(16, &kernel, &initrd);
            let Err(BootError::InitrdTooLarge { least_mib, room, .. }) = b.result else {
                panic!("{len:#x}: {:?}", b.result)
            };
            assert!(room < 16 * MIB, "{room}");
            assert!(boot_with(least_mib, &kernel, &initrd).result.is_ok(), "{len:#x} in {least_mib} MiB");
            assert!(
                boot_with(least_mib - 1, &kernel, &initrd).result.is_err(),
                "{len:#x} below {least_mib} MiB"
            );
        }
    }
}

#[test]
fn holes_overwrite_what_was_there_and_cost_nothing_elsewhere() {
    let ram = ram(64);
    let file = Sparse::new(32 * MIB).put(0, b"one").put(9 * MIB, b"two").put(32 * MIB - 5, b"three");
    for gpa in [MIB, 20 * MIB + 123] {
        ram.memory().write_slice(&[0xee; 9000], GuestAddress(gpa + 5 * MIB + 77)).unwrap();
        let before = written(&ram);
        file.open().copy_to(&ram, gpa, 0, 32 * MIB).unwrap();
        assert!(written(&ram) <= before + 6, "{before} {}", written(&ram));
        let read = |at, len| {
            let mut bytes = vec![0; len];
            ram.memory().read_slice(&mut bytes, GuestAddress(gpa + at)).unwrap();
            bytes
        };
        assert_eq!((read(0, 4), read(9 * MIB, 4)), (b"one\0".to_vec(), b"two\0".to_vec()));
        assert_eq!((read(32 * MIB - 6, 6), read(5 * MIB, 16384)), (b"\0three".to_vec(), vec![0; 16384]));
    }
}

#[test]
fn a_file_that_shrinks_or_changes_meanwhile_is_refused() {
    let changed = |result: Result<(), BootError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, BootError::Changed { role: Role::Initrd, .. }), "{error}");
        assert!(error.to_string().contains("changed while it was read"));
    };
    let ram = ram(16);
    let contents = vec![7; 0x8000];
    // Between opening and reading: within the data, to nothing, and where a hole was read.
    for len in [0x1000, 0] {
        let file = Sparse::new(0).put(0, &contents);
        let image = file.open();
        file.0.set_len(len).unwrap();
        changed(image.read(0x4000, &mut [0; 8]));
        changed(image.copy_to(&ram, MIB, 0, 0x8000).and_then(|()| image.check_unchanged()));
    }
    // After reading, and by a write that leaves the length alone.
    let file = Sparse::new(0).put(0, &contents);
    let image = file.open();
    image.copy_to(&ram, MIB, 0, 0x8000).unwrap();
    image.check_unchanged().unwrap();
    file.0.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    changed(image.check_unchanged());
    file.0.set_len(0x9000).unwrap();
    changed(image.check_unchanged());
}

/// No pipe is waited for, and no device is touched.
#[test]
fn only_regular_files_are_opened() {
    let folder = std::env::temp_dir().join(format!("gearshift-files-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let pipe = folder.join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let socket = folder.join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let link = folder.join("link");
    std::os::unix::fs::symlink(&pipe, &link).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&bzimage()).unwrap();
    let substitution = std::path::PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    let good = Source::bytes("kernel", bzimage());
    let results: Vec<_> = [&pipe, &link, &substitution, &folder, &socket, &"/dev/zero".into()]
        .map(|path| {
            let source = Source::from(path.clone());
            let kernel = boot_from(64, &source, None, "").error();
            (kernel, boot_from(64, &good, Some(&source), "").error())
        })
        .into();
    drop(listener);
    std::fs::remove_dir_all(&folder).unwrap();
    let expected = ["a pipe", "a pipe", "a pipe", "a folder", "a device or socket", "a device or socket"];
    for ((kernel, initrd), found) in results.iter().zip(expected) {
        for (role, error) in [("kernel", kernel), ("initrd", initrd)] {
            assert!(error.starts_with(role) && error.contains(found), "{error}");
            assert_eq!(error.contains("into a file"), found == "a pipe", "{error}");
        }
    }
}
