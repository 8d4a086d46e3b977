//! What the operating system does for a program: system calls, processes, pipes, page faults.
#![allow(unsafe_code)] // fork, exec, pipes and mappings are raw system calls

use std::hint::black_box;
use std::ptr;
use suite_runner::Unit;

/// Argument that makes this program end at once with [`CHILD_STATUS`].
pub(crate) const CHILD: &str = "--child";
/// Exit status of that.
pub(crate) const CHILD_STATUS: u64 = 42;

pub(crate) fn getppid() -> Unit {
    // SAFETY: getppid takes nothing and cannot fail.
    let parent = unsafe { libc::getppid() };
    Box::new(move || {
        let mut same = 0;
        for _ in 0..1000 {
            // SAFETY: as above; syscall(2) itself, since a C library might remember the answer.
            same += u64::from(unsafe { libc::syscall(libc::SYS_getppid) } == i64::from(parent));
        }
        same
    })
}

pub(crate) fn fork_exec() -> Unit {
    Box::new(|| {
        // SAFETY: this program has one thread, so its child may do anything; it executes or ends. Strings and the
        // array of pointers live across the call.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let argv = [c"user-suite".as_ptr(), c"--child".as_ptr(), ptr::null()];
                libc::execv(c"/proc/self/exe".as_ptr(), argv.as_ptr());
                libc::_exit(127);
            }
            status(child)
        }
    })
}

/// Waits for a child; its exit status, or all ones.
fn status(child: i32) -> u64 {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    if child > 0 && waited == child && libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status) as u64
    } else {
        u64::MAX
    }
}

const ROUND_TRIPS: u8 = 50;

/// The other process: it sends back what it gets, plus one, until the pipe is closed.
struct Echo {
    to: i32,
    from: i32,
    child: i32,
}

impl Echo {
    fn start() -> Option<Self> {
        let (mut there, mut back) = ([0; 2], [0; 2]);
        // SAFETY: both arrays have room for two descriptors. The child of this one-threaded program uses system calls
        // on its own byte and descriptors only, and ends.
        unsafe {
            if libc::pipe(there.as_mut_ptr()) != 0 || libc::pipe(back.as_mut_ptr()) != 0 {
                return None;
            }
            let child = libc::fork();
            if child == 0 {
                libc::close(there[1]);
                libc::close(back[0]);
                let mut byte = 0u8;
                while libc::read(there[0], (&raw mut byte).cast(), 1) == 1 {
                    byte = byte.wrapping_add(1);
                    libc::write(back[1], (&raw const byte).cast(), 1);
                }
                libc::_exit(0);
            }
            libc::close(there[0]);
            libc::close(back[1]);
            (child > 0).then_some(Self { to: there[1], from: back[0], child })
        }
    }

    fn ask(&self, byte: u8) -> Option<u8> {
        let mut answer = 0u8;
        // SAFETY: one byte is written from, and one read to, a byte.
        let done = unsafe {
            libc::write(self.to, (&raw const byte).cast(), 1) == 1
                && libc::read(self.from, (&raw mut answer).cast(), 1) == 1
        };
        done.then_some(answer)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // SAFETY: our own descriptors, not used afterwards. The child then reads the end and exits.
        unsafe {
            libc::close(self.to);
            libc::close(self.from);
        }
        status(self.child);
    }
}

pub(crate) fn pipe() -> Unit {
    let echo = Echo::start();
    Box::new(move || {
        let Some(echo) = &echo else { return u64::MAX };
        (0..ROUND_TRIPS)
            .fold(0u64, |sum, n| sum.wrapping_mul(3).wrapping_add(echo.ask(n).map_or(u64::MAX, u64::from)))
    })
}

pub(crate) fn page_faults() -> Unit {
    const PAGES: usize = 256;
    const PAGE: usize = 4096;
    Box::new(|| {
        // SAFETY: an anonymous private mapping wherever the kernel likes; it is checked, used within its length, and
        // unmapped. Small pages, so that each is a fault.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(ptr::null_mut(), PAGES * PAGE, protection, flags, -1, 0);
            if start == libc::MAP_FAILED {
                return u64::MAX;
            }
            libc::madvise(start, PAGES * PAGE, libc::MADV_NOHUGEPAGE);
            let mut sum = 0u64;
            for page in 0..PAGES {
                let byte = start.cast::<u8>().add(page * PAGE + page % 64);
                sum = sum.wrapping_mul(5).wrapping_add(u64::from(byte.read_volatile()));
                byte.write_volatile(page as u8 | 1);
                sum = sum.wrapping_mul(5).wrapping_add(u64::from(black_box(byte).read_volatile()));
            }
            libc::munmap(start, PAGES * PAGE);
            sum
        }
    })
}
