//! Classes of user-space work that Debian's own libraries do: `library-suite [--millis N] [CLASS...]`.
//!
//! How it measures, checks and reports is [`suite_runner`]'s. The libraries are opened by soname when a class is made
//! ([`library`]); `guests::suite` starts this program by the loader of Debian's C library, with a folder that holds
//! exactly the packages' files, on the host and in guests alike. A library chooses by CPUID what it executes, though.

mod crypto;
mod data;
mod library;
mod lua;
mod lzma;
mod sqlite;
mod zlib;

use std::process::ExitCode;
use suite_runner::Class;

const CLASSES: &[Class] = &[
    Class {
        name: "zlib",
        about: "deflate and inflate 32 KiB of text (libz)",
        make: zlib::round_trip,
        expected: zlib::CRC,
    },
    Class {
        name: "xz",
        about: "LZMA2 encoding and decoding of 16 KiB of text (liblzma)",
        make: lzma::round_trip,
        expected: lzma::CRC,
    },
    Class {
        name: "sqlite",
        about: "inserts, an index, queries and updates of 200 rows in memory (libsqlite3)",
        make: sqlite::rows,
        expected: sqlite::FOLD,
    },
    Class {
        name: "lua",
        about: "sieve, strings and a sort in an interpreted program (liblua5.4)",
        make: lua::program,
        expected: lua::RESULT,
    },
    Class {
        name: "openssl",
        about: "SHA-256 of 16 KiB (libcrypto)",
        make: crypto::sha256,
        expected: crypto::DIGEST,
    },
];

fn main() -> ExitCode {
    suite_runner::main("library-suite", CLASSES)
}
