//! Classes of user-space work without any library but the C one: `user-suite [--millis N] [CLASS...]`.
//!
//! How it measures, checks and reports is [`suite_runner`]'s. `guests::suite` builds it as a static executable for the
//! baseline x86-64 and makes an initramfs of it, so that the same file runs on the host and in guests.

mod avx;
mod control;
mod float;
mod generate;
mod hash;
mod integer;
mod memory;
mod system;
mod threads;

use std::process::ExitCode;
use suite_runner::Class;

const CLASSES: &[Class] = &[
    Class {
        name: "integer",
        about: "list, matrix, state machine and CRC in turn",
        make: || Ok(integer::mix()),
        expected: 0xc698,
    },
    Class {
        name: "calls",
        about: "recursive Fibonacci numbers",
        make: || Ok(control::calls()),
        expected: 10_946,
    },
    Class {
        name: "indirect",
        about: "calls through a table of eight",
        make: || Ok(control::indirect()),
        expected: 0xd5b6_1926_1fd8_996a,
    },
    Class {
        name: "chase",
        about: "pointer chase over 4 MiB",
        make: || Ok(memory::chase()),
        expected: 0xd104_d03f_1e0e_33ed,
    },
    Class {
        name: "stream",
        about: "copy, scale, add over arrays of 256 KiB",
        make: || Ok(memory::stream()),
        expected: 0x3b54_56fb_c4b5_4000,
    },
    Class {
        name: "nbody",
        about: "five bodies, scalar doubles",
        make: || Ok(float::nbody()),
        expected: 0x5726_1fb1_e616_3695,
    },
    Class {
        name: "matrix",
        about: "48 x 48 doubles by SSE2 intrinsics",
        make: || Ok(float::matrix()),
        expected: float::PRODUCT,
    },
    Class {
        name: "avx2",
        about: "the same product by AVX2 intrinsics, where the processor has them",
        make: avx::matrix,
        expected: float::PRODUCT,
    },
    Class {
        name: "sha256",
        about: "SHA-256 of 16 KiB",
        make: || Ok(hash::sha256()),
        expected: 0x58c8_ab9f_b362_4756,
    },
    Class {
        name: "string",
        about: "the C library's copy, move, compare and search",
        make: || Ok(memory::string()),
        expected: 0x6f77_2bc3_0443_a61e,
    },
    Class {
        name: "codegen",
        about: "512 new functions, generated, made executable and called",
        make: generate::new_functions,
        expected: generate::NEW_FUNCTIONS,
    },
    Class {
        name: "rewrite",
        about: "one function, rewritten and called 1000 times",
        make: generate::one_function,
        expected: generate::ONE_FUNCTION,
    },
    Class {
        name: "threads-1",
        about: "eight pieces of integer work on one thread",
        make: || Ok(threads::work(1)),
        expected: threads::WORK,
    },
    Class {
        name: "threads-2",
        about: "the same eight pieces on two threads",
        make: || Ok(threads::work(2)),
        expected: threads::WORK,
    },
    Class {
        name: "getppid",
        about: "a thousand system calls",
        make: || Ok(system::getppid()),
        expected: 1000,
    },
    Class {
        name: "forkexec",
        about: "fork, exec of itself, wait",
        make: || Ok(system::fork_exec()),
        expected: system::CHILD_STATUS,
    },
    Class {
        name: "pipe",
        about: "fifty bytes to another process and back",
        make: || Ok(system::pipe()),
        expected: 0xfef4_a463_dc76_6abd,
    },
    Class {
        name: "pagefault",
        about: "map, touch and unmap 256 pages",
        make: || Ok(system::page_faults()),
        expected: 0x60c6_4565_c854_4800,
    },
];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(system::CHILD) {
        return ExitCode::from(system::CHILD_STATUS as u8);
    }
    suite_runner::main("user-suite", CLASSES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_computes_what_it_should_again_and_again() {
        // The one that executes this very program anew would run the tests again.
        suite_runner::check_all(CLASSES.iter().filter(|class| class.name != "forkexec"));
    }
}
