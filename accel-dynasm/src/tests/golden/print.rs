//! Host code as text, with names for all that differs from process to process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::offset_of;
use std::ptr::without_provenance;

use accel_api::x86::{Segment, Ymm};
use iced_x86::{
    Decoder, DecoderOptions, Formatter as _, Instruction, NasmFormatter, SymbolResolver, SymbolResult,
};
use x86_core::{Cpu, INLINE_TLB_ENTRIES, TLB_ENTRIES, TlbEntry, TlbMode};

use crate::jit_context::addresses::{Addresses, entry};
use crate::jit_context::{CLASSES, GROUPS, JUMP_ENTRIES, KEPT, VICTIMS, VcpuMemory};
use crate::translate::output::{NOTHING, Output, RETIRED, Site, SiteKind, Stub, Target};
use crate::translate::plan::lazy_flags::{LazyFlags, Place};

/// Where the code lies, the vCPU's memory, and the request word.
pub(super) const CODE: u64 = 0x1_0000;
const MEMORY: usize = 0x1000_0000;
const REQUESTS: usize = 0x7f12_3456_7000;

pub(super) fn addresses() -> Addresses {
    Addresses::new(without_provenance::<VcpuMemory>(MEMORY), without_provenance(REQUESTS))
}

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Names of addresses: where each begins, how many bytes it is for.
pub(super) struct Names {
    places: BTreeMap<u64, (String, u64)>,
}

impl Names {
    fn add(&mut self, at: i64, len: usize, name: &str) {
        self.places.insert(at as u64, (name.to_owned(), len as u64));
    }

    pub(super) fn new(tlb: TlbMode) -> Self {
        let a = addresses();
        let mut names = Self { places: BTreeMap::new() };
        let mut add = |at: i64, len: usize, name: &str| names.add(at, len, name);
        for (r, name) in GPR.iter().enumerate() {
            add(a.gpr(r as u8).into(), 8, &format!("cpu.{name}"));
        }
        for (at, name) in [
            (a.flags, "cpu.flags"),
            (a.rip, "cpu.rip"),
            (a.code_page, "cpu.code_page"),
            (a.system_flags, "cpu.system_flags"),
            (a.kernel_gs_base, "cpu.kernel_gs_base"),
            (a.tsc_offset, "cpu.tsc_offset"),
            (a.lease_since, "cpu.lease.since"),
            (a.lease_removed, "cpu.lease.removed"),
            (a.tsc_aux, "cpu.tsc_aux"),
            (a.cr0, "cpu.cr0"),
            (a.cr2, "cpu.cr2"),
            (a.cr3, "cpu.cr3"),
            (a.cr4, "cpu.cr4"),
            (a.inline_tlb_filled, "cpu.inline_tlb.filled"),
            (a.host_rsp(), "jit.host_rsp"),
            (a.target(), "jit.target"),
            (a.vectors(), "jit.vectors"),
            (a.user_vectors(), "jit.user_vectors"),
            (a.was_user(), "jit.was_user"),
            (a.dispatcher(), "jit.dispatcher"),
            (a.rax(), "jit.rax"),
            (a.ea(), "jit.ea"),
            (a.instructions(), "jit.instructions"),
            (a.temporary(), "jit.temporary"),
            (a.waiting(), "jit.waiting"),
            (a.site(), "jit.site"),
            (a.refills(), "jit.refills"),
            (a.saved_flags(), "jit.flags"),
        ] {
            add(at.into(), 8, name);
        }
        for (index, name) in ["es", "cs", "ss", "ds", "fs", "gs"].into_iter().enumerate() {
            add(a.segment_base(index).into(), 8, &format!("cpu.{name}.base"));
            add(a.selector(index).into(), 2, &format!("cpu.{name}.selector"));
            for (offset, len, field) in [
                (offset_of!(Segment, limit), 4, "limit"),
                (offset_of!(Segment, attributes), 2, "attributes"),
                (offset_of!(Segment, unusable), 1, "unusable"),
            ] {
                add(i64::from(a.segment(index)) + offset as i64, len, &format!("cpu.{name}.{field}"));
            }
        }
        (0..KEPT).for_each(|n| add(a.kept(n as u8).into(), 8, &format!("jit.kept{n}")));
        (0..GROUPS).for_each(|n| add(a.group(n as u8).into(), 8, &format!("jit.group{n}")));
        for class in 0..CLASSES {
            let len = 8 * (JUMP_ENTRIES + VICTIMS);
            add(a.negated(class).into(), len, &format!("jump_cache{class}.address"));
            add(a.code(class).into(), len, &format!("jump_cache{class}.code"));
        }
        add(a.tlb(tlb as usize).into(), TLB_ENTRIES * size_of::<TlbEntry>(), "tlb");
        for write in [false, true] {
            let kind = if write { "write" } else { "read" };
            for number in 0..INLINE_TLB_ENTRIES {
                let (tag, addend) = a.inline_tlb(tlb as usize, write, number);
                add(tag.into(), 8, &format!("inline_tlb.{kind}{number}.tag"));
                add(addend.into(), 8, &format!("inline_tlb.{kind}{number}.addend"));
            }
        }
        for (offset, len, name) in [
            (offset_of!(Cpu, cpl), 1, "cpu.cpl"),
            (offset_of!(Cpu, efer), 8, "cpu.efer"),
            (offset_of!(Cpu, data_table), 8, "cpu.data_table"),
            (offset_of!(Cpu, nmi_masked), 1, "cpu.nmi_masked"),
            (offset_of!(Cpu, msrs.fmask), 8, "cpu.fmask"),
            (offset_of!(Cpu, msrs.star), 8, "cpu.star"),
            (offset_of!(Cpu, msrs.lstar), 8, "cpu.lstar"),
            (offset_of!(Cpu, gdtr.base), 8, "cpu.gdtr.base"),
            (offset_of!(Cpu, gdtr.limit), 2, "cpu.gdtr.limit"),
        ] {
            add(i64::from(a.cpu) + offset as i64, len, name);
        }
        for r in 0..16 {
            add(a.vector(r).into(), size_of::<Ymm>(), &format!("cpu.ymm{r}"));
            add(a.fault_vector(r).into(), size_of::<Ymm>(), &format!("jit.fault_ymm{r}"));
        }
        add(REQUESTS as i64, 4, "requests");
        names
    }

    pub(super) fn of(&self, address: u64) -> Option<String> {
        let inside = |at: &u64, len: &u64| address < at + len;
        let mut before = self.places.range(..=address).rev();
        let (at, (name, _)) = before.find(|(at, (_, len))| inside(at, len))?;
        Some(match address - at {
            distance if name == "tlb" => tlb_entry(distance),
            0 => name.clone(),
            distance => format!("{name}+{distance}"),
        })
    }
}

/// A field of an entry of the soft TLB; of the one that a register selects, where code has the address of the first.
fn tlb_entry(distance: u64) -> String {
    let size = size_of::<TlbEntry>() as u64;
    let field = match (distance % size) as i32 {
        entry::READ => "read",
        entry::WRITE => "write",
        _ => "addend",
    };
    match distance / size {
        0 => format!("tlb.{field}"),
        n => format!("tlb[{n}].{field}"),
    }
}

/// What the formatter asks for names.
struct Resolver {
    names: BTreeMap<u64, String>,
}

impl SymbolResolver for Resolver {
    fn symbol(
        &mut self,
        _: &Instruction,
        _: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        self.names.get(&address).map(|name| SymbolResult::with_str(address, name))
    }
}

pub(super) fn guest_instruction(ins: &Instruction) -> String {
    let mut text = String::new();
    NasmFormatter::new().format(ins, &mut text);
    text
}

pub(super) fn instructions(code: &[u8], at: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, code, at, DecoderOptions::NONE).into_iter().collect()
}

/// Addresses of host code that something leads to, by name.
fn labels(code: &[Instruction], out: &Output) -> BTreeMap<u64, String> {
    let end = code.last().map_or(CODE, Instruction::next_ip);
    let mut all: Vec<u64> = code
        .iter()
        .filter(|ins| relocation(out, ins).is_none())
        .map(Instruction::near_branch_target)
        .collect();
    let offsets = out.sites.iter().flat_map(|site| [site.retry, site.next]);
    let offsets = offsets.chain(out.jumps.iter().flat_map(|jump| [jump.ask, jump.load.0]));
    let offsets = offsets.chain(out.faults.iter().map(|fault| fault.at));
    all.extend(offsets.filter(|offset| *offset != 0).map(|offset| CODE + u64::from(offset)));
    all.retain(|at| (CODE..end).contains(at));
    all.sort_unstable();
    all.dedup();
    let mut labels: BTreeMap<u64, String> =
        all.into_iter().enumerate().map(|(n, at)| (at, format!("L{n}"))).collect();
    for (at, name) in [(out.far_entry, "far_entry"), (out.retired, "retired"), (out.entry, "entry")] {
        labels.insert(CODE + u64::from(at), name.to_owned());
    }
    labels
}

/// Host code, each guest instruction before what it has become, and the metadata.
pub(super) fn listing(names: &Names, guest: &[u8], address: u64, code: &[u8], out: &Output) -> String {
    let host = instructions(code, CODE);
    let labels = labels(&host, out);
    let guest: BTreeMap<u64, Instruction> = Decoder::with_ip(64, guest, address, x86_core::DECODER_OPTIONS)
        .into_iter()
        .map(|i| (i.ip(), i))
        .collect();
    let mut text = String::new();
    for ins in &host {
        for (_, offset) in out.starts.iter().filter(|(at, _)| CODE + u64::from(*at) == ins.ip()) {
            let ins = guest.get(&((address & !0xfff) + u64::from(*offset)));
            let line = ins.map_or_else(|| "(out of line)".to_owned(), guest_instruction);
            let _ = writeln!(text, "  ; {line}");
        }
        if let Some(label) = labels.get(&ins.ip()) {
            let _ = writeln!(text, "{label}:");
        }
        let _ = writeln!(text, "        {}", host_instruction(names, &labels, relocation(out, ins), ins));
    }
    let _ = writeln!(
        text,
        "\n{} guest instructions, {} bytes of them, lines {:#x}; {} bytes of host code{}",
        out.instructions,
        out.length,
        out.lines,
        code.len(),
        if out.flags_matter { "; flags at the start matter" } else { "" },
    );
    let label = |offset: u32| match offset {
        0 => "-",
        _ => labels.get(&(CODE + u64::from(offset))).map_or("?", String::as_str),
    };
    for (n, site) in out.sites.iter().enumerate() {
        let Site { kind, offset, rest, retry, next, flags } = site;
        let _ = write!(
            text,
            "site {n}: {} at +{offset}, retry {}, next {}",
            site_kind(kind),
            label(*retry),
            label(*next)
        );
        let _ = writeln!(text, ", rest {rest}, flags {}", recipe(out, *flags, "in the host's"));
    }
    for (n, jump) in out.jumps.iter().enumerate() {
        let _ = write!(
            text,
            "jump {n}: asks at {}, to {} page",
            label(jump.ask),
            if jump.far { "another" } else { "this" }
        );
        let host = if jump.host_flags { "in the host's, or " } else { "" };
        let _ = writeln!(
            text,
            ", flags {host}{}, loaded at {}",
            recipe(out, jump.known, "not known"),
            label(jump.load.0)
        );
    }
    for fault in &out.faults {
        let flags = recipe(out, fault.flags, "in the host's");
        let _ = writeln!(
            text,
            "fault at {}: +{}, rest {}, flags {flags}",
            label(fault.at),
            fault.offset,
            fault.rest
        );
    }
    for (n, ins) in out.helpers.iter().enumerate() {
        let _ = writeln!(text, "helper {n}: {}", guest_instruction(ins));
    }
    text
}

/// What the last field of an instruction is to be filled with.
fn relocation(out: &Output, ins: &Instruction) -> Option<Target> {
    let field = (ins.next_ip() - CODE).wrapping_sub(4) as u32;
    let mut found = out.relocations.iter().filter(|relocation| relocation.field == field);
    found.next().map(|relocation| relocation.target)
}

fn stub_name(stub: Stub, class: usize, vectors: bool) -> String {
    let name = match stub {
        Stub::Lookup => "lookup",
        Stub::TlbMiss => "tlb_miss",
        Stub::Helper => "helper",
        Stub::Poll => "poll",
        Stub::Syscall => "syscall",
        Stub::Sysret => "sysret",
        Stub::Iret => "iret",
        Stub::IretSmap => "iret_smap",
        Stub::JumpCacheVictims => return format!("jump_cache_victim{class}"),
    };
    format!("{name}{}", if vectors { "_vectors" } else { "" })
}

pub(super) fn host_instruction(
    names: &Names,
    labels: &BTreeMap<u64, String>,
    relocation: Option<Target>,
    ins: &Instruction,
) -> String {
    let near = ins.is_jmp_short_or_near() || ins.is_jcc_short_or_near() || ins.is_jcx_short();
    let mut known: BTreeMap<u64, String> = BTreeMap::new();
    if near {
        let to = ins.near_branch_target();
        let name = match relocation {
            Some(Target::Stub { stub, class, vectors }) => Some(stub_name(stub, class, vectors)),
            _ => labels.get(&to).cloned(),
        };
        known.extend(name.map(|name| (to, name)));
    } else {
        let immediates: Vec<u64> = (0..ins.op_count()).filter_map(|n| ins.try_immediate(n).ok()).collect();
        for address in immediates.iter().copied().chain([ins.memory_displacement64()]) {
            known.extend(names.of(address).map(|name| (address, name)));
        }
        let number = match relocation {
            Some(Target::Site(n)) => Some(format!("site{n}")),
            Some(Target::IndirectSite(n)) => Some(format!("indirect_site{n}")),
            Some(Target::Jump(n)) => Some(format!("jump{n}")),
            _ => immediates.contains(&RETIRED.into()).then(|| "retired_block".to_owned()),
        };
        known.extend(immediates.first().copied().zip(number));
    }
    let mut text = String::new();
    NasmFormatter::with_options(Some(Box::new(Resolver { names: known })), None).format(ins, &mut text);
    text
}

fn site_kind(kind: &SiteKind) -> String {
    match kind {
        SiteKind::Access { size, write } => {
            format!("{} of {size} bytes", if *write { "store" } else { "load" })
        }
        SiteKind::Group { size, write } => {
            format!("group of {size} bytes, {}", if *write { "stored to" } else { "loaded from" })
        }
        SiteKind::Refill => "refill of an inline TLB entry".to_owned(),
        SiteKind::Helper(n) => format!("helper {n}"),
        SiteKind::Begun(n) => format!("helper {n}, begun"),
        SiteKind::Indirect { moved } => format!("computed jump, RSP moved by {}", -moved),
        SiteKind::Next => "what follows the block".to_owned(),
        SiteKind::Poll => "poll".to_owned(),
    }
}

/// A recipe for the flags.
fn recipe(out: &Output, number: u32, none: &str) -> String {
    if number == NOTHING { none.to_owned() } else { flags(&out.recipes[number as usize]) }
}

fn flags(lazy: &LazyFlags) -> String {
    let mut parts = Vec::new();
    if lazy.first.is_none() {
        parts.push("saved".to_owned());
    }
    for replay in lazy.replays() {
        let operands = replay.operands.map(|operand| match operand.place {
            Place::Register(r) if operand.plus == 0 => GPR[usize::from(r)].to_owned(),
            Place::Register(r) => format!("{}{:+}", GPR[usize::from(r)], operand.plus),
            Place::Kept(n) if operand.plus == 0 => format!("kept{n}"),
            Place::Kept(n) => format!("kept{n}{:+}", operand.plus),
            Place::Constant => operand.plus.to_string(),
        });
        parts.push(
            format!("{:?}{} {}", replay.operation, 8 * replay.size, operands.join(", ")).to_lowercase(),
        );
    }
    parts.join(", then ")
}

const _: () = assert!(TlbMode::Supervisor as usize == 0 && size_of::<Cpu>() < MEMORY);
