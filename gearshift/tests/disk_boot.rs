//! `gearshift run --disk` without a kernel boots what the disk has, and refuses what has none.

mod common;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::guest::{have, typed};
use common::{gearshift, stderr, stdout};
use guests::debian::{self, Flavour};
use tempfile::TempDir;

const FILE: i32 = 10;
const MIB: u64 = 1 << 20;

/// Makes an ext4 file system of what lies in `folder`, at `offset` of `image`. False where the host has no mke2fs.
fn ext4(folder: &Path, image: &Path, offset: u64, mib: u64) -> bool {
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(folder)
        .args(["-E", &format!("offset={offset}")])
        .arg(image)
        .arg(format!("{mib}M"))
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output();
    match made {
        Ok(output) => {
            assert!(output.status.success(), "{}", stderr(&output));
            true
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let line = b"SKIPPED (optional): file systems to boot from: no mke2fs on this host\n";
            io::stderr().write_all(line).unwrap();
            false
        }
        Err(error) => panic!("mke2fs: {error}"),
    }
}

/// A folder with Debian's kernel and our initial RAM disk, as an installed system has them.
fn system(folder: &Path) {
    let guest = debian::cached(Flavour::Cloud).unwrap();
    for path in ["boot/grub", "etc", "sbin"] {
        fs::create_dir_all(folder.join(path)).unwrap();
    }
    fs::copy(guest.kernel, folder.join("boot/vmlinuz-6.10")).unwrap();
    fs::copy(guest.initrd, folder.join("boot/initrd.img-6.10")).unwrap();
    fs::write(folder.join("boot/vmlinuz-6.9"), "an older kernel").unwrap();
    fs::write(folder.join("sbin/init"), "").unwrap();
}

const GRUB: &str = r#"
set default="1>here"
menuentry 'Other' { 
	linux /boot/vmlinuz-6.9
}
submenu 'Advanced' $menuentry_id_option 'advanced' {
	menuentry 'Linux 6.10' --class debian $menuentry_id_option 'here' {
		linux	/boot/vmlinuz-6.10 root=UUID=1234 ro panic=-1 "gearshift.script=cat /proc/cmdline"
		initrd	/boot/initrd.img-6.10
	}
}
"#;

/// A GPT with one partition from 1 MiB to the last.
fn gpt(image: &Path, mib: u64) {
    let sectors = mib * MIB / 512;
    let mut entry = vec![0; 128 * 128];
    entry[..32].fill(3);
    entry[32..40].copy_from_slice(&2048u64.to_le_bytes());
    entry[40..48].copy_from_slice(&(sectors - 2049).to_le_bytes());
    let mut header = vec![0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12..16].copy_from_slice(&92u32.to_le_bytes());
    // Where it lies, where its copy would, what partitions may use, and the entries.
    for (at, sector) in [(24, 1), (32, sectors - 1), (40, 34), (48, sectors - 34), (72, 2)] {
        header[at..at + 8].copy_from_slice(&sector.to_le_bytes());
    }
    header[10] = 1;
    header[80..84].copy_from_slice(&128u32.to_le_bytes());
    header[84..88].copy_from_slice(&128u32.to_le_bytes());
    header[88..92].copy_from_slice(&crc32(&entry).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    let mut front = vec![0; 1024];
    front[446 + 4] = 0xee;
    front[446 + 8] = 1;
    front[510..512].copy_from_slice(&[0x55, 0xaa]);
    front[512..512 + 92].copy_from_slice(&header);
    front.extend(entry);
    let file = fs::File::create(image).unwrap();
    file.set_len(mib * MIB).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &front, 0).unwrap();
}

/// CRC-32 of ISO 3309.
fn crc32(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

struct Disks(TempDir);

impl Disks {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What a run with the disk of this name prints.
    fn run(&self, disk: &str, more: &[&str]) -> (Option<i32>, String, String) {
        let disk = format!("--disk={disk}");
        let arguments = [&["run", "--mem", "256M", &disk], more].concat();
        let mut command = gearshift(&arguments);
        let output = command.current_dir(self.0.path()).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), stdout(&output), stderr(&output))
    }

    #[track_caller]
    fn refused(&self, disk: &str, word: &str) {
        let (code, _, text) = self.run(disk, &[]);
        assert_eq!((code, text.lines().count()), (Some(FILE), 1), "{text}");
        for word in [word, "--kernel"] {
            assert!(text.contains(word), "no {word:?} in {text}");
        }
    }
}

#[test]
fn the_default_entry_of_a_partition_boots_from_raw_and_qcow2() {
    if !have(Flavour::Cloud) {
        return;
    }
    let disks = Disks(TempDir::new().unwrap());
    let folder = disks.path("root");
    system(&folder);
    fs::write(folder.join("boot/grub/grub.cfg"), GRUB).unwrap();
    gpt(&disks.path("a.raw"), 80);
    if !ext4(&folder, &disks.path("a.raw"), MIB, 78) {
        return;
    }
    let converted = gearshift(&["image", "convert", "--from", "raw", "a.raw", "a.qcow2"])
        .current_dir(disks.0.path())
        .output()
        .unwrap();
    assert!(converted.status.success(), "{}", stderr(&converted));
    let cmdline = "root=UUID=1234 ro panic=-1 \"gearshift.script=cat /proc/cmdline\" console=ttyS0";
    for disk in ["a.raw,format=raw", "a.qcow2"] {
        let (code, console, text) = disks.run(disk, &[]);
        assert_eq!(code, Some(0), "{text}\n{console}");
        assert!(console.contains(cmdline), "{console}");
        assert!(text.contains("\"Linux 6.10\" of a."), "{text}");
    }
    // The disk's file system is the guest's, too.
    let script = "gearshift.script=\"mount -r /dev/vda1 /tmp && ls /tmp/boot\"";
    let (code, console, text) =
        disks.run("a.raw,format=raw", &["--cmdline", &format!("console=ttyS0 {script}")]);
    assert_eq!(code, Some(0), "{text}\n{console}");
    assert!(console.contains("vmlinuz-6.9"), "{console}");
}

/// Without an entry the newest kernel boots, with the file system that it lies on as root.
#[test]
fn a_kernel_without_an_entry_boots() {
    if !have(Flavour::Cloud) {
        return;
    }
    let disks = Disks(TempDir::new().unwrap());
    let folder = disks.path("root");
    system(&folder);
    if !ext4(&folder, &disks.path("a.raw"), 0, 64) {
        return;
    }
    let disk = format!("--disk={},format=raw", disks.path("a.raw").display());
    let output = typed(&["run", "--mem", "256M", &disk], "cat /proc/cmdline; poweroff -f\n");
    let (console, text) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{text}\n{console}");
    assert!(text.contains("\"/boot/vmlinuz-6.10\" of "), "{text}");
    assert!(console.contains("root=/dev/vda ro console=ttyS0"), "{console}");
}

/// What a disk boots starts again when it resets the machine, and finds on the disk what it has written.
#[test]
fn a_reboot_starts_again() {
    if !have(Flavour::Cloud) {
        return;
    }
    let disks = Disks(TempDir::new().unwrap());
    let folder = disks.path("root");
    system(&folder);
    let script = "mount /dev/vda /tmp; test -e /tmp/twice && exit; touch /tmp/twice; umount /tmp; reboot -f";
    let config = GRUB.replace("cat /proc/cmdline", script);
    fs::write(folder.join("boot/grub/grub.cfg"), &config).unwrap();
    if !ext4(&folder, &disks.path("a.raw"), 0, 64) {
        return;
    }
    let (code, console, text) = disks.run("a.raw,format=raw", &[]);
    assert_eq!(code, Some(0), "{text}\n{console}");
    assert_eq!(text.matches("it starts again").count(), 1, "{text}");
    assert_eq!(console.matches("INIT-REACHED").count(), 2, "{console}");
    // Unless told.
    assert!(ext4(&folder, &disks.path("b.raw"), 0, 64));
    let (code, console, text) = disks.run("b.raw,format=raw", &["--on-reset", "end"]);
    assert_eq!(code, Some(16), "{text}\n{console}");
}

#[test]
fn what_cannot_be_booted_is_refused_in_one_line() {
    let disks = Disks(TempDir::new().unwrap());
    fs::write(disks.path("empty.raw"), vec![0; 4 << 20]).unwrap();
    disks.refused("empty.raw,format=raw", "no file system");
    fs::write(disks.path("tiny.raw"), vec![0; 512]).unwrap();
    disks.refused("tiny.raw,format=raw", "no file system");
    let folder = disks.path("root");
    fs::create_dir_all(folder.join("boot/grub")).unwrap();
    if !ext4(&folder, &disks.path("none.raw"), 0, 8) {
        return;
    }
    disks.refused("none.raw,format=raw", "neither an entry");
    // An escape sequence in a title does not reach the terminal.
    let config = "menuentry 'a\x1b[2Jb' {\nlinux /missing\n}\n";
    fs::write(folder.join("boot/grub/grub.cfg"), config).unwrap();
    assert!(ext4(&folder, &disks.path("missing.raw"), 0, 8));
    disks.refused("missing.raw,format=raw", "\"a?[2Jb\" names /missing, which is not there");
    fs::write(folder.join("missing"), "no kernel").unwrap();
    assert!(ext4(&folder, &disks.path("bad.raw"), 0, 8));
    let (code, _, text) = disks.run("bad.raw,format=raw", &[]);
    assert_eq!((code, text.lines().count()), (Some(FILE), 1), "{text}");
    // Damage anywhere: the process lives, and says one line.
    let whole = fs::read(disks.path("bad.raw")).unwrap();
    for seed in 0..24usize {
        let mut damaged = whole.clone();
        for n in 0..64 {
            let at = 1024 + (seed * 7919 + n * 104_729) % (256 << 10);
            damaged[at] ^= 1 << (n % 8);
        }
        fs::write(disks.path("damaged.raw"), damaged).unwrap();
        let (code, _, text) = disks.run("damaged.raw,format=raw", &[]);
        assert_eq!((code, text.lines().count()), (Some(FILE), 1), "{seed}: {text}");
    }
}

/// The process that parses a disk can read and write its pipes, and do nothing else.
#[test]
fn the_reader_has_no_rights() {
    let mut child = gearshift(&["boot-disk-helper", "--size", "1048576", "--device", "/dev/vda"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It asks for the first sectors, and waits.
    let mut request = [0; 13];
    child.stdout.as_mut().unwrap().read_exact(&mut request).unwrap();
    assert_eq!(request[..9], *b"R\0\0\0\0\0\0\0\0");
    let proc = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap();
    let (status, limits) = (proc("status"), proc("limits"));
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    assert_eq!((field("Seccomp"), field("NoNewPrivs")), (Some("2"), Some("1")), "{status}");
    for name in ["Max open files", "Max processes", "Max file size", "Max core file size"] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(line[name.len()..].split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{line}");
    }
    // A disk that cannot be read is an answer, too.
    let mut child = child;
    child.stdin.as_mut().unwrap().write_all(&[0]).unwrap();
    let mut rest = Vec::new();
    child.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(rest.first(), Some(&b'N'));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
