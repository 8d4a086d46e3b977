//! What cannot be: one line that names the thing and what helps, an exit code of its own, no panic.

mod common;

use std::process::{Output, Stdio};

use common::{IDLE, file, gearshift, path, pvh_elf, stderr, stdout};

const USAGE: i32 = 2;
const ACCELERATOR: i32 = 4;
const CPU: i32 = 6;
const MEMORY: i32 = 8;
const FILE: i32 = 10;
const FETCH: i32 = 12;
const OUTPUT: i32 = 20;
const NETWORK: i32 = 36;

#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{:?} {text}", output.status);
    assert_eq!(text.lines().count(), 1, "not one line: {text}");
    assert!(text.starts_with("gearshift: "), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(stdout(output), "");
}

#[track_caller]
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    assert_refused(&gearshift(arguments).output().unwrap(), code, words);
}

/// Runs with a kernel that exists and would idle, and more arguments.
#[track_caller]
fn refused_with_kernel(arguments: &[&str], code: i32, words: &[&str]) {
    let kernel = file(&pvh_elf(IDLE));
    let all: Vec<_> = ["run", "--kernel", path(&kernel)].iter().chain(arguments).copied().collect();
    refused(&all, code, words);
}

#[test]
fn a_log_that_cannot_be() {
    for (value, word) in [("dbug", "`dbug`"), ("machine=loud", "no list of levels")] {
        let output = gearshift(&["probe"]).env("GEARSHIFT_LOG", value).output().unwrap();
        assert_refused(&output, USAGE, &["GEARSHIFT_LOG", word, "machine=trace"]);
    }
}

#[test]
fn sockets_balloons_and_watchdogs_that_cannot_be() {
    let taken = file(b"precious");
    refused_with_kernel(&["--vsock", "/nonexistent/v"], FILE, &["vsock", "/nonexistent/v", "make it"]);
    refused_with_kernel(&["--vsock", path(&taken)], FILE, &["something is there", "name another path"]);
    assert_eq!(std::fs::read(taken.path()).unwrap(), b"precious");
    refused_with_kernel(&["--vsock", "v,cid=2"], USAGE, &["cid=2", "take 3 to"]);
    refused_with_kernel(&["--balloon", "512M"], MEMORY, &["512 MiB is no part of 512 MiB", "--mem"]);
    refused_with_kernel(&["--watchdog=action=bark"], USAGE, &["action=bark", "take action=reset or"]);
}

#[test]
fn kernels_that_are_none() {
    let folder = std::env::temp_dir();
    refused(
        &["run", "--kernel", "/nonexistent/vmlinuz"],
        FILE,
        &["/nonexistent/vmlinuz", "No such file", "check"],
    );
    refused(&["run", "--kernel", folder.to_str().unwrap()], FILE, &["folder", "regular file"]);
    refused(&["run", "--kernel", "/dev/null"], FILE, &["/dev/null", "device"]);
    for (bytes, words) in [
        (&b""[..], ["empty", "vmlinuz"]),
        (b"just some text, repeated until it is longer than any header\n", ["text file", "vmlinuz"]),
        (b"\x1f\x8b\x08\0\0\0\0\0", ["gzip", "decompress"]),
    ] {
        let kernel = file(&bytes.repeat(40));
        refused(&["run", "--kernel", path(&kernel)], FILE, &words);
    }
}

#[test]
fn networks_that_cannot_be() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let used = format!("user,hostfwd=tcp:{port}:22");
    refused_with_kernel(&["--net", &used], NETWORK, &[&port.to_string(), "in use", "give another"]);
    // An address for documentation (RFC 5737), which no host has.
    let strange = "user,hostfwd=tcp:192.0.2.1:0:22";
    refused_with_kernel(&["--net", strange], NETWORK, &["192.0.2.1", "does not have", "0.0.0.0"]);
    for (option, word) in [
        ("tunnel", "take user"),
        ("user,mac=1", "52:54:00:12:34:56"),
        ("user,hostfwd=tcp:22", "tcp:[ADDR:]HOST:GUEST"),
        ("user,speed=fast", "options are"),
    ] {
        refused_with_kernel(&["--net", option], USAGE, &[option.split(',').next_back().unwrap(), word]);
    }
}

/// A pipe is not waited for, be it a named one without a writer or `<(...)`, which has contents.
#[test]
fn files_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let pipe = pipe.to_str().unwrap();
    refused(&["run", "--kernel", pipe], FILE, &["kernel", pipe, "a pipe", "into a file"]);
    refused_with_kernel(&["--initrd", pipe], FILE, &["initrd", pipe, "a pipe", "into a file"]);
    let folder = folder.path().to_str().unwrap();
    refused_with_kernel(&["--initrd", folder], FILE, &["initrd", folder, "a folder", "path of a file"]);
    let script = format!("exec {} run --kernel <(printf 1234)", env!("CARGO_BIN_EXE_gearshift"));
    if let Ok(output) = std::process::Command::new("bash").args(["-c", &script]).output() {
        assert_refused(&output, FILE, &["kernel", "/dev/fd/", "a pipe", "into a file"]);
    }
}

#[test]
fn elf_files_that_are_no_kernels() {
    let mut image = pvh_elf(IDLE);
    // The second program header is that of the notes.
    image[64 + 56] = 0;
    let kernel = file(&image);
    refused(&["run", "--kernel", path(&kernel)], FILE, &[path(&kernel), "PVH note", "not Linux", "bzImage"]);
}

/// A bzImage header that promises more than there is (Linux Documentation/arch/x86/boot.rst, "the real-mode kernel
/// header").
#[test]
fn truncated_kernels() {
    let mut image = vec![0; 4096];
    image[0x1f1] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200] = 0xeb;
    image[0x201] = 0x6a;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x236] = 1;
    let kernel = file(&image);
    refused(&["run", "--kernel", path(&kernel)], FILE, &[path(&kernel), "truncated", "again"]);

    let elf = pvh_elf(&[0x90; 4096]);
    let kernel = file(&elf[..1000]);
    refused(&["run", "--kernel", path(&kernel)], FILE, &["truncated"]);
}

#[test]
fn initrds() {
    refused_with_kernel(
        &["--initrd", "/nonexistent/initrd"],
        FILE,
        &["initrd", "/nonexistent/initrd", "check"],
    );
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len(64 << 20).unwrap();
    refused_with_kernel(
        &["--mem", "32M", "--initrd", path(&large)],
        FILE,
        &["initrd", "does not fit", "more memory", "at least 66M"],
    );
    // No memory helps against a kernel's limit.
    let huge = tempfile::NamedTempFile::new().unwrap();
    huge.as_file().set_len(3 << 30).unwrap();
    refused_with_kernel(&["--initrd", path(&huge)], FILE, &["initrd", "below 3072 MiB", "make it smaller"]);
}

#[test]
fn accelerators() {
    refused_with_kernel(&["--accel", "warp"], ACCELERATOR, &["`warp`", "interp"]);
    refused_with_kernel(&["--accel", "interp,warp"], ACCELERATOR, &["`warp`", "interp"]);
    refused_with_kernel(&["--accel", "interp,,interp"], ACCELERATOR, &["interp,,interp", "commas"]);
    refused_with_kernel(&["-accel", "warp"], ACCELERATOR, &["`warp`"]);
}

#[test]
fn options_of_the_jit() {
    let options = [
        &["--verify"][..],
        &["--jit-bisect", "0..1"],
        &["--dump-block", "0xffffffff81000000"],
        &["--perf-map"],
        &["--jitdump", "/tmp"],
        &["--jit-cache", "64K"],
    ];
    for option in options {
        let arguments = [option, &["--accel", "interp"]].concat();
        refused_with_kernel(&arguments, USAGE, &[option[0], "interp", "--accel jit"]);
    }
    refused_with_kernel(&["--verify", "--cpus", "2"], USAGE, &["--verify", "not 2", "--cpus"]);
    refused_with_kernel(&["--verify=0"], USAGE, &["--verify", "0"]);
    refused_with_kernel(&["--jit-bisect", "3..2"], USAGE, &["--jit-bisect", "3..2", "larger"]);
    refused_with_kernel(&["--dump-block", "main"], USAGE, &["--dump-block", "main", "0xffffffff81000000"]);
    refused_with_kernel(&["--jit-cache", "2G"], USAGE, &["--jit-cache", "2G", "32K to 1G"]);
    for folder in ["/nonexistent", "/dev/null"] {
        refused_with_kernel(&["--jitdump", folder], USAGE, &["--jitdump", folder, "name a folder"]);
    }
}

/// Names of this project's backends that a build may lack are no unknown names.
#[test]
fn accelerators_of_other_builds() {
    let probe = stdout(&gearshift(&["probe", "--json"]).output().unwrap());
    let missing = ["kvm", "jit"].iter().filter(|name| !probe.contains(&format!("\"name\": \"{name}\"")));
    for name in missing {
        refused_with_kernel(&["--accel", name], ACCELERATOR, &[name, "not in this build", "interp"]);
    }
}

#[test]
fn machines_that_cannot_be() {
    refused_with_kernel(&["--cpu", "pentium9"], CPU, &["`pentium9`", "x86-64-v2"]);
    refused_with_kernel(&["--mem", "0"], MEMORY, &["0", "512M"]);
    refused_with_kernel(&["--mem", "100K"], MEMORY, &["multiple of 1 MiB"]);
    refused_with_kernel(&["--mem", "1M"], MEMORY, &["too small"]);
    refused_with_kernel(&["--mem", "900G"], MEMORY, &["MiB", "host"]);
    for text in ["lots", "12Q", "", "-5", "999999999999G"] {
        refused_with_kernel(&["--mem", text], USAGE, &["--mem"]);
    }
    refused_with_kernel(&["--cpus", "0"], USAGE, &["0 vCPUs", "1 to"]);
    refused_with_kernel(&["--cpus", "1000"], USAGE, &["1000 vCPUs", "1 to"]);
    refused_with_kernel(&["--cpus", "two"], USAGE, &["two", "--cpus"]);
}

#[test]
fn command_lines() {
    refused_with_kernel(&["--cmdline", &"x".repeat(100_000)], USAGE, &["100000 bytes", "shorten"]);
    let linux = file(&pvh_elf(b"\xfa\xf4 Linux version 6.1"));
    let long = "x".repeat(2048);
    refused(
        &["run", "--kernel", path(&linux), "--cmdline", &long],
        USAGE,
        &["2048 bytes", "takes 2047", "shorten"],
    );
    refused(&["run", "--frobnicate"], USAGE, &["--frobnicate"]);
    refused(&["run", "--meme", "1"], USAGE, &["--meme", "--mem"]);
    refused(&["fly"], USAGE, &["fly"]);
    refused(&[], USAGE, &["subcommand"]);
}

/// Nothing is fetched for a machine that cannot be; the cache folder stays empty.
#[test]
fn bad_machines_are_refused_before_anything_is_fetched() {
    let cache = tempfile::tempdir().unwrap();
    for (arguments, code) in [(["--mem", "0"], MEMORY), (["--cpu", "z"], CPU), (["--cpus", "0"], USAGE)] {
        let mut command = gearshift(&["run"]);
        let output = command.args(arguments).env("GEARSHIFT_CACHE", cache.path()).output().unwrap();
        assert_refused(&output, code, &[]);
    }
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn a_default_guest_that_cannot_be_had() {
    let initrd = file(b"x");
    let cache = tempfile::tempdir().unwrap();
    // The built-in guest has no use for the user's initrd.
    let mut command = gearshift(&["run", "--offline", "--initrd", path(&initrd)]);
    let output = command.env("GEARSHIFT_CACHE", cache.path()).output().unwrap();
    assert_refused(&output, FETCH, &["default guest", "offline", "--kernel"]);
    // A guest that was named is not replaced by the built-in one.
    let mut command = gearshift(&["run", "--offline", "--guest", "i386"]);
    let output = command.env("GEARSHIFT_CACHE", cache.path()).output().unwrap();
    assert_refused(&output, FETCH, &["i386 guest", "offline", "--kernel"]);
    refused(&["run", "--guest", "hurd"], USAGE, &["hurd", "cloud, generic and i386"]);
    // A cache folder that is a file.
    let output = gearshift(&["run"]).env("GEARSHIFT_CACHE", initrd.path()).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(FETCH), "{text}");
    assert!(text.lines().last().unwrap().contains("cache folder"), "{text}");
}

/// A reader that goes away, as `head` does: printing commands and the guest's console alike.
#[test]
fn a_reader_that_goes_away() {
    for arguments in [&["probe"][..], &["man"], &["run", "--help"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = gearshift(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_refused(&output, OUTPUT, &["standard output", "Broken pipe"]);
    }
}

/// `gearshift probe >&-`: the runtime would quietly write to /dev/null.
#[test]
fn a_stdout_that_was_closed_from_the_start() {
    let kernel = file(&pvh_elf(IDLE));
    for arguments in [&["probe"][..], &["run", "--kernel", path(&kernel)]] {
        let program = format!("exec {} {} >&-", env!("CARGO_BIN_EXE_gearshift"), arguments.join(" "));
        let output = std::process::Command::new("sh").args(["-c", &program]).output().unwrap();
        assert_refused(&output, OUTPUT, &["standard output", "closed"]);
    }
    let status = gearshift(&["probe"]).stdout(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(0), "/dev/null is open");
}
