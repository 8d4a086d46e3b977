//! Small guests on this host's KVM, wherever the device opens and whatever is behind it: the same command lines as on the
//! interpreter, with only `--accel` changed.

mod common;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::Output;

use common::{file, gearshift, path, pvh_elf, stderr, stdout};

/// Runs a guest of these bytes of 32-bit code on `accel`.
fn run(accel: &str, code: &[u8]) -> Output {
    let kernel = file(&pvh_elf(code));
    gearshift(&["run", "--accel", accel, "--mem", "16M", "--kernel", path(&kernel)]).output().unwrap()
}

/// Whether KVM can be tried; says so, past the test harness, where it cannot.
fn kvm_opens(test: &str) -> bool {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            let line = format!("SKIPPED (optional): {test}: /dev/kvm: {error}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            false
        }
    }
}

/// Prints through the serial port, computes, reads the RTC, and leaves a value.
#[test]
fn the_same_guest_ends_alike_on_both() {
    if !kvm_opens("the same guest on KVM and on the interpreter") {
        return;
    }
    #[rustfmt::skip]
    let code = [
        0x66, 0xba, 0xf8, 0x03,       // mov dx, 0x3f8
        0xb0, b'G', 0xee,             // mov al, 'G'; out dx, al
        0xb0, b'!', 0xee,             // mov al, '!'; out dx, al
        0xb0, 0x0d, 0xe6, 0x70,       // mov al, 0xd; out 0x70, al
        0xe4, 0x71,                   // in al, 0x71: valid RAM and time
        0x24, 0x80, 0xc0, 0xe8, 0x05, // and al, 0x80; shr al, 5
        0x66, 0xba, 0xf4, 0x00, 0xee, // mov dx, 0xf4; out dx, al
        0xf4,                         // hlt
    ];
    for accel in ["interp", "kvm"] {
        let output = run(accel, &code);
        let (code, text) = (output.status.code(), stdout(&output));
        assert_eq!((code, text.as_str()), (Some(9), "G!"), "{accel}: {}", stderr(&output));
    }
}

/// A guest that jumps to where no RAM is: KVM cannot fetch from there. The end names the instruction, shows the vCPU and
/// says what may help.
#[test]
fn what_kvm_cannot_do_ends_the_run_with_its_own_code() {
    if !kvm_opens("what KVM cannot do") {
        return;
    }
    // mov eax, 0xd0000000; jmp eax
    let output = run("kvm", &[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(24), "{text}");
    assert!(text.contains("0xd0000000") && text.contains("RIP=00000000d0000000"), "{text}");
    assert!(text.contains("--accel interp") && !text.contains("panicked"), "{text}");
}
