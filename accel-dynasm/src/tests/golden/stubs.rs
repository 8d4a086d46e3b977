//! Stubs of the runtime as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iced_x86::{Code, Instruction, Register};
use x86_core::{DataTable, TlbMode};

use super::print::{CODE, Names, addresses, host_instruction, instructions};
use crate::dispatch::Dispatcher;
use crate::runtime::helpers::Functions;
use crate::runtime::stubs::{self, Stubs};

/// Offsets of all stubs, by name. Of those that store vector registers first, the start is where they do.
fn starts(stubs: &Stubs) -> BTreeMap<u64, String> {
    let table = &stubs.table;
    let mut starts = BTreeMap::from([
        (stubs.enter, "enter".to_owned()),
        (stubs.fault, "fault".to_owned()),
        (table.syscall[1], "syscall".to_owned()),
        (table.sysret[1], "sysret".to_owned()),
        (table.iret[1], "iret".to_owned()),
        (table.iret_smap[1], "iret_smap".to_owned()),
    ]);
    for (name, both) in [
        ("lookup", table.lookup),
        ("tlb_miss", table.tlb_miss),
        ("helper", table.helper),
        ("poll", table.poll),
    ] {
        starts.extend([(both[0], name.to_owned()), (both[1], format!("{name}_vectors"))]);
    }
    let victims = table.jump_cache_victims.iter().enumerate();
    starts.extend(victims.map(|(class, at)| (*at, format!("jump_cache_victim{class}"))));
    starts.into_iter().map(|(at, name)| (at as u64, name)).collect()
}

/// The code of one stub. It ends where the next one begins; code that several changes of privilege share is part of the last.
pub(super) fn listing(names: &Names, name: &str) -> String {
    let functions = Functions::of::<Dispatcher>();
    let stubs = stubs::emit(CODE as usize, &addresses(), true, &functions).expect("they can be assembled");
    let starts = starts(&stubs);
    let start =
        *starts.iter().find(|(_, other)| *other == name).unwrap_or_else(|| panic!("no stub {name}")).0;
    let end = starts.range(start + 1..).next().map_or(u64::MAX, |(at, _)| *at);
    let code: Vec<Instruction> =
        instructions(&stubs.code, CODE).into_iter().filter(|ins| (start..end).contains(&ins.ip())).collect();
    let inside = code.iter().map(Instruction::near_branch_target).filter(|to| (start..end).contains(to));
    let mut labels: BTreeMap<u64, String> = inside.map(|to| (to, String::new())).collect();
    labels.values_mut().enumerate().for_each(|(n, label)| *label = format!("L{n}"));
    let outside: Vec<u64> = code
        .iter()
        .map(Instruction::near_branch_target)
        .filter(|to| *to != 0 && !labels.contains_key(to))
        .collect();
    for to in outside {
        // An exit; or code that other stubs share, or that a stub goes on in.
        let n = labels.values().filter(|label| label.starts_with("shared")).count();
        let label = starts.get(&to).cloned().unwrap_or_else(|| format!("shared{n}"));
        labels.entry(to).or_insert(label);
    }
    let mut text = format!("{name}:\n");
    for ins in &code {
        // What aligns the next stub.
        if ins.mnemonic() == iced_x86::Mnemonic::Nop {
            continue;
        }
        if let Some(label) = labels.get(&ins.ip()) {
            let _ = writeln!(text, "{label}:");
        }
        let line = match ins.code() {
            // Where the program lies differs from process to process.
            Code::Mov_r64_imm64
                if ins.op0_register() == Register::RAX && names.of(ins.immediate(1)).is_none() =>
            {
                "mov rax,function".to_owned()
            }
            Code::Mov_r32_imm32 if ins.op0_register() == Register::EDI => "mov edi,cpu".to_owned(),
            Code::Mov_rm64_imm32 if data_table(ins.immediate(1)).is_some() => {
                let table = data_table(ins.immediate(1)).unwrap_or_default();
                host_instruction(names, &labels, None, ins).replace(&hexadecimal(ins.immediate(1)), table)
            }
            _ => host_instruction(names, &labels, None, ins),
        };
        let _ = writeln!(text, "        {line}");
    }
    text
}

/// The table of the soft TLB at this offset of the vCPU, by the data that it is for.
fn data_table(offset: u64) -> Option<&'static str> {
    [
        (TlbMode::Supervisor, "kernel_table"),
        (TlbMode::User, "user_table"),
        (TlbMode::SupervisorOnly, "kernel_smap_table"),
    ]
    .into_iter()
    .find(|(mode, _)| offset != 0 && DataTable::of(*mode).offset() as u64 == offset)
    .map(|(_, name)| name)
}

/// As the formatter writes numbers.
fn hexadecimal(number: u64) -> String {
    let digits = format!("{number:X}");
    let zero = if digits.starts_with(|c: char| c.is_ascii_alphabetic()) { "0" } else { "" };
    format!("{zero}{digits}h")
}
