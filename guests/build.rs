//! Assembles the guests of `asm/` into ELF files that the library includes.

// Of the builder, this program needs less than its other users do; and nothing here is another crate's to see.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]

#[path = "asm/mod.rs"]
mod asm;
#[path = "src/bare/mod.rs"]
mod bare;

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=asm");
    println!("cargo::rerun-if-changed=src/bare");
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?;
    let out = Path::new(&out);

    fs::write(out.join("embedded.elf"), asm::embedded::assemble()?)?;
    let mut tables = format!("const LOOP_NAMES: &[&str] = &{:?};\n", asm::embedded::NAMES);
    tables.push_str("const PROGRAMS: &[(&str, u64, &[u8])] = &[\n");
    for program in asm::micro::ALL {
        let name = program.name;
        fs::write(out.join(format!("{name}.elf")), program.assemble()?)?;
        writeln!(
            tables,
            "    ({name:?}, {}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.elf\"))),",
            program.iterations
        )?;
    }
    tables.push_str("];\n");
    tables.push_str(
        "type ModeTable = &'static [(&'static str, &'static str, &'static [u8], &'static [&'static str])];\n",
    );
    tables.push_str("const MODE_PROGRAMS: ModeTable = &[\n");
    for program in asm::modes::ALL {
        let (name, about) = (program.name, program.about);
        let (elf, checks) = program.assemble()?;
        fs::write(out.join(format!("{name}.elf")), elf)?;
        writeln!(
            tables,
            "    ({name:?}, {about:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.elf\")), &{checks:?}),",
        )?;
    }
    tables.push_str("];\n");
    fs::write(out.join("tables.rs"), tables)?;
    Ok(())
}
