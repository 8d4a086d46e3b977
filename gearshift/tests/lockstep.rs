//! The JIT, checked block by block while small guests run: what `gearshift run --verify` does.

mod common;

use std::sync::{Arc, Mutex};

use common::accelerators::{Console, end, end_and};
use guests::{micro, modes};
use machine::{BackendOptions, GuestEnd, JitOptions, Machine, MachineBuilder, Registry, Source};

/// A machine on the JIT with these options; `None`, told past the harness, where it is not in this build.
fn jit(jit: JitOptions) -> Option<MachineBuilder> {
    let registry = Registry::builtin_with(&BackendOptions { jit, ..BackendOptions::default() });
    let Some(jit) = registry.find("jit") else {
        let line = b"SKIPPED (optional): lockstep: the JIT is not in this build\n";
        std::io::Write::write_all(&mut std::io::stderr(), line).unwrap();
        return None;
    };
    let machine = Machine::builder().accelerator((jit.create)().unwrap());
    Some(machine.memory(64 << 20).cpu_model("x86-64-v3"))
}

/// The sum of a counter.
fn counter(machine: &Machine, name: &str) -> u64 {
    let stats = machine.stats().unwrap();
    stats.iter().flat_map(|vcpu| &vcpu.counters).filter(|(other, _)| *other == name).map(|(_, n)| n).sum()
}

#[test]
fn benchmark_guests_do_in_translation_what_their_instructions_do() {
    for guest in micro::all() {
        let n = if guest.iterations < 100_000 { 20 } else { 5_011 };
        let Some(machine) = jit(JitOptions { verify: Some(3), ..Default::default() }) else {
            return;
        };
        let console = Console::default();
        let machine = machine
            .kernel(Source::bytes(guest.name, guest.elf))
            .cmdline(format!("n={n}"))
            .console(console.clone())
            .start()
            .unwrap();
        let (end, compared) = end_and(&machine, |machine| counter(machine, "blocks_compared"));
        assert_eq!(end, GuestEnd::PowerOff, "{}: {}", guest.name, console.text());
        let report = micro::Report::find(&console.text()).unwrap();
        assert_eq!(report.checksum, guest.expected(n), "{}", guest.name);
        assert!(compared > 30, "{}: {compared}", guest.name);
    }
}

#[test]
fn guests_in_every_mode_do_too() {
    for guest in modes::all() {
        let Some(machine) = jit(JitOptions { verify: Some(1), ..Default::default() }) else {
            return;
        };
        let machine = machine.kernel(Source::bytes(guest.name, guest.elf)).start().unwrap();
        let end = end(&machine);
        let GuestEnd::DebugExit(value) = end else { panic!("{}: {end}", guest.name) };
        assert_eq!(guest.verdict(value), Ok(()));
    }
}

/// A constant of this guest's that is mistranslated, and how a user comes from that to the block.
#[test]
fn a_mistranslation_is_found_and_narrowed_to_its_block() {
    const CONSTANT: u32 = 0x0100_0193;
    let guest = micro::find("smc").unwrap();
    let run = |options: JitOptions| {
        let options = JitOptions { sabotage: Some(CONSTANT), ..options };
        let machine = jit(options)?;
        let console = Console::default();
        let machine =
            machine.kernel(Source::bytes(guest.name, guest.elf)).cmdline("n=1").console(console.clone());
        Some((end(&machine.start().unwrap()), console.text()))
    };
    let Some((diverged, _)) = run(JitOptions { verify: Some(1), ..Default::default() }) else {
        return;
    };
    let GuestEnd::BackendBug { summary, report, .. } = diverged else { panic!("{diverged}") };
    assert!(summary.contains("registers differ"), "{summary}");
    for word in [" ! rax", "interpreted", "imul eax,ecx,1000193h", "imul eax,ecx,1000192h"] {
        assert!(report.text.contains(word), "{word}\n{}", report.text);
    }
    // Which is what the settings for another run say.
    assert!(report.by_check);
    let [("verify", all), ("only", range)] = &report.settings[..] else { panic!("{report:?}") };
    assert_eq!(all, "1");
    let range = range.split_once("..");
    let hash = u64::from_str_radix(range.unwrap().0.trim_start_matches("0x"), 16).unwrap();
    let checked =
        |only| run(JitOptions { verify: Some(1), only: Some(only), ..Default::default() }).unwrap().0;
    let again = checked(hash..=hash);
    assert!(matches!(&again, GuestEnd::BackendBug { summary: other, .. } if *other == summary), "{again}");

    // Without it, the guest's result is halved down to a block: this or the other one, which the guest itself writes.
    let is_wrong = |low, high| {
        let (end, text) = run(JitOptions { only: Some(low..=high), ..Default::default() }).unwrap();
        assert_eq!(end, GuestEnd::PowerOff);
        micro::Report::find(&text).unwrap().checksum != guest.expected(1)
    };
    let (mut low, mut high) = (0, u64::MAX);
    while low < high {
        let middle = low + (high - low) / 2;
        (low, high) = if is_wrong(low, middle) { (low, middle) } else { (middle + 1, high) };
    }
    assert!(is_wrong(low, low) && matches!(checked(low..=low), GuestEnd::BackendBug { .. }), "{low:#x}");
}

#[test]
fn a_block_is_shown_with_what_it_became() {
    let texts = Arc::new(Mutex::new(Vec::new()));
    let (list, guest) = (texts.clone(), micro::find("smc").unwrap());
    let show =
        Some((guest_entry(guest.elf), Arc::new(move |text: String| list.lock().unwrap().push(text)) as _));
    let Some(machine) = jit(JitOptions { show, ..Default::default() }) else { return };
    let console = Console::default();
    let machine =
        machine.kernel(Source::bytes(guest.name, guest.elf)).cmdline("n=9").console(console).start().unwrap();
    assert_eq!(end(&machine), GuestEnd::PowerOff);
    let texts = texts.lock().unwrap();
    let text = texts.first().expect("the block was translated");
    assert!(text.starts_with("block 0x") && text.contains("bytes of host code"), "{text}");
    assert!(text.contains("(ways out)"), "{text}");
}

/// Where the constant of the guest's function lies: `imul eax, ecx, 0x01000193` (69 /r id).
fn guest_entry(elf: &[u8]) -> u64 {
    let at = elf.windows(6).position(|bytes| bytes == [0x69, 0xc1, 0x93, 0x01, 0x00, 0x01]).unwrap() as u64;
    // The segment that holds it (ELF-64 object file format, program headers).
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    let (headers, count) = (word(32) as usize, u16::from_le_bytes([elf[56], elf[57]]));
    (0..usize::from(count))
        .map(|n| headers + 56 * n)
        .find_map(|header| {
            let (offset, address, size) = (word(header + 8), word(header + 16), word(header + 32));
            (offset <= at && at < offset + size && elf[header] == 1).then(|| at - offset + address)
        })
        .unwrap()
}
