//! What the build script wrote: the ELF files and their tables.

include!(concat!(env!("OUT_DIR"), "/tables.rs"));

pub(crate) const EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/embedded.elf"));
pub(crate) const EMBEDDED_LOOPS: &[&str] = LOOP_NAMES;
pub(crate) const MICRO: &[(&str, u64, &[u8])] = PROGRAMS;
pub(crate) const MODES: ModeTable = MODE_PROGRAMS;
