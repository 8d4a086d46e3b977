//! Hosts that do not let a process translate: what they refuse is told, and nothing else happens.
#![allow(unsafe_code)] // takes memory and system calls away from this process

use std::ptr::null_mut;

use accel_api::{Absent, AbsentKind, Probe};

fn absent() -> Absent {
    match accel_dynasm::probe() {
        Probe::Absent(absent) => absent,
        other => panic!("{other:?}"),
    }
}

/// Refuses this thread all mappings that can be executed, as SELinux and systemd do.
fn forbid_executable_memory() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// Offsets in `seccomp_data`: the call's number, and the low half of its third argument.
    const NUMBER: u32 = 0;
    const PROTECTION: u32 = 16 + 2 * 8;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD, NUMBER, 0, 0),
        step(EQUAL, libc::SYS_mmap as u32, 1, 0),
        step(EQUAL, libc::SYS_mprotect as u32, 0, 3),
        step(LOAD, PROTECTION, 0, 0),
        step(ANY_BIT, libc::PROT_EXEC as u32, 0, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32, 0, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program is complete, and concerns this thread only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program), 0, "no seccomp");
    }
}

/// Takes all that is free below 2 GiB; what was taken.
fn exhaust_low_memory() -> Vec<(*mut libc::c_void, usize)> {
    let mut taken = Vec::new();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_32BIT;
    let mut len = 1 << 30;
    while len >= 4096 {
        // SAFETY: a new mapping, which is not used.
        let at = unsafe { libc::mmap(null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            len /= 2;
        } else {
            taken.push((at, len));
        }
    }
    // Where MAP_32BIT does not look: below 1 GiB.
    const PIECE: usize = 1 << 20;
    for at in (PIECE..1 << 30).step_by(PIECE) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping, which takes the place of no other.
        let at = unsafe { libc::mmap(at as *mut libc::c_void, PIECE, libc::PROT_NONE, flags, -1, 0) };
        if at != libc::MAP_FAILED {
            taken.push((at, PIECE));
        }
    }
    taken
}

/// One test, since the second half is about the process as a whole.
#[test]
fn what_the_host_refuses_is_told() {
    assert!(matches!(accel_dynasm::probe(), Probe::Available(_)), "{:?}", accel_dynasm::probe());

    let refused = std::thread::spawn(|| {
        forbid_executable_memory();
        absent()
    });
    let refused = refused.join().expect("no panic");
    assert_eq!(refused.kind, AbsentKind::MissingCapability);
    assert!(refused.reason.contains("executable"), "{refused:?}");
    assert!(refused.remedy.is_some_and(|r| r.contains("execmem")));

    let taken = exhaust_low_memory();
    let full = absent();
    for (at, len) in taken {
        // SAFETY: ours, and not used.
        unsafe { libc::munmap(at, len) };
    }
    assert_eq!(full.kind, AbsentKind::MissingCapability);
    assert!(full.reason.contains("below 2 GiB"), "{full:?}");
    assert!(full.remedy.is_some_and(|r| !r.contains("execmem")), "another remedy");

    assert!(matches!(accel_dynasm::probe(), Probe::Available(_)), "{:?}", accel_dynasm::probe());
}
