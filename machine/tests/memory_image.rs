//! Memory images on every accelerator of this host: ROM at the reset vector, states of an embedder's own, several vCPUs.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use accel_api::x86::{CpuState, MpState, Segment, gpr};
use accel_api::{AccelId, Accelerator, Probe, Quality};
use machine::memory_map::{MIB, MemoryMap};
use machine::{GuestEnd, Machine, MachineBuilder, MemoryImage, Registry, Source};

#[allow(dead_code, unreachable_pub)] // its `main` has no caller here
#[path = "../examples/rom.rs"]
mod rom;

#[allow(dead_code)] // likewise
#[path = "../examples/xen/multiboot.rs"]
mod multiboot;

use multiboot::{FLAGS, MAGIC, Module};

#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Console {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

fn skipped(id: AccelId, why: &str) {
    let line = format!("SKIPPED (optional): memory images on {id}: {why}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Calls `test` with each accelerator that works here. A KVM without hardware behind it emulates ring 0 in parts.
fn each(test: impl Fn(&str, Arc<dyn Accelerator>)) {
    let mut tested = 0;
    for descriptor in Registry::builtin().list() {
        match (descriptor.probe)() {
            Probe::Available(it) if it.quality != Quality::Degraded => {
                test(descriptor.id.0, (descriptor.create)().unwrap());
                tested += 1;
            }
            Probe::Available(it) => skipped(descriptor.id, &it.detail),
            Probe::Absent(it) => skipped(descriptor.id, &it.reason),
            broken => panic!("{broken:?}"),
        }
    }
    assert!(tested > 0 || Registry::builtin().list().is_empty());
}

fn machine(accelerator: Arc<dyn Accelerator>, image: MemoryImage) -> MachineBuilder {
    Machine::builder().accelerator(accelerator).memory(2 << 20).memory_image(image)
}

#[test]
fn the_example_runs_from_the_reset_vector() {
    each(|id, accelerator| {
        let console = Console::default();
        let end = rom::run(accelerator, console.clone()).unwrap();
        assert_eq!((end, console.text().as_str()), (GuestEnd::DebugExit(rom::CODE), rom::TEXT), "{id}");
    });
}

/// Intel SDM vol. 3, table 10-1.
#[test]
fn registers_are_those_of_reset() {
    each(|id, accelerator| {
        let machine = machine(accelerator, MemoryImage::new()).cpus(2).build().unwrap();
        let states = machine.save_vcpus().unwrap();
        for (vcpu, mp) in [(0, MpState::Running), (1, MpState::WaitForSipi)] {
            let (state, mut reset) = (&states[vcpu as usize], CpuState::reset(vcpu));
            (reset.tsc_offset, reset.mp) = (state.tsc_offset, mp);
            let mut state = state.clone();
            state.normalise();
            reset.normalise();
            assert_eq!(state.diff(&reset), [], "{id}, vCPU {vcpu}");
        }
    });
}

/// 32-bit code that stores to ROM and to RAM and tells in its exit code whether each store is there.
#[test]
fn rom_keeps_what_it_has_and_ram_takes_stores() {
    let code = [
        0xc6, 0x05, 0x00, 0x00, 0x10, 0x00, 0x05, // mov byte [0x100000], 5
        0xc6, 0x05, 0x03, 0xff, 0xff, 0xff, 0x99, // mov byte [0xffffff03], 0x99
        0xa0, 0x00, 0x00, 0x10, 0x00, // mov al, [0x100000]
        0x02, 0x05, 0x03, 0xff, 0xff, 0xff, // add al, [0xffffff03]: 7 in the ROM
        0x02, 0x05, 0x00, 0xf0, 0xff, 0xff, // add al, [0xfffff000]: before the contents, ones
        0xe6, 0xf4, // out 0xf4, al
        0xf4, // hlt
    ];
    let mut rom = vec![0; 0x100];
    rom[3] = 7;
    each(|id, accelerator| {
        let flat = |selector, attributes: u16| Segment::flat(selector, attributes | 0xc090);
        let mut state = CpuState::reset(0);
        state.control.cr0 |= 1;
        state.segments.cs = flat(8, 0xb);
        (state.segments.ds, state.segments.ss) = (flat(16, 3), flat(16, 3));
        state.segments.es = state.segments.ds;
        state.rip = 0x9000;
        state.gpr[gpr::RSP] = 0x8000;
        let image = MemoryImage::new()
            .ram(0x9000, Source::bytes("code", code.to_vec()))
            .rom_below_4_gib(Source::bytes("rom", rom.clone()))
            .vcpu(state);
        let machine = machine(accelerator, image).start().unwrap();
        assert_eq!(machine.wait(), GuestEnd::DebugExit(5 + 7 - 1), "{id}");
    });
}

/// vCPU 0 starts vCPU 1 by INIT and SIPI; its code is RAM contents below 1 MiB.
#[test]
fn other_vcpus_start_by_sipi() {
    // 32-bit code: the local APIC's registers are at FEE0_0000h. INIT, then SIPI with vector 8 to APIC id 1; halt.
    let boot = [
        0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x01, // mov dword [ICR high], 1 << 24
        0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x45, 0x00, 0x00, // mov dword [ICR low], INIT
        0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x08, 0x46, 0x00, 0x00, // mov dword [ICR low], SIPI 8
        0xfa, 0xf4, // cli; hlt
    ];
    let started = [0xb0, 0x21, 0xe6, 0xf4, 0xf4]; // mov al, 0x21; out 0xf4, al; hlt
    each(|id, accelerator| {
        let mut state = machine::boot::firmware_state(0);
        state.control.cr0 |= 1;
        state.segments.cs = Segment::flat(8, 0xc09b);
        (state.segments.ds, state.segments.ss) = (Segment::flat(16, 0xc093), Segment::flat(16, 0xc093));
        state.rip = 0x10_0000;
        let image = MemoryImage::new()
            .ram(0x10_0000, Source::bytes("boot", boot.to_vec()))
            .ram(0x8000, Source::bytes("started", started.to_vec()))
            .vcpu(state);
        let machine = machine(accelerator, image).cpus(2).build().unwrap();
        let mtrrs: Vec<_> = machine.save_vcpus().unwrap().into_iter().map(|vcpu| vcpu.msrs.mtrr).collect();
        assert!(mtrrs[0] == mtrrs[1] && mtrrs[0].def_type != 0, "{id}: {mtrrs:x?}");
        machine.resume().unwrap();
        assert_eq!(machine.wait(), GuestEnd::DebugExit(0x21), "{id}");
    });
}

/// A 32-bit ELF file of one segment at 2 MiB, entered 4 bytes behind its start.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, words: &[u16]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    let word = |file: &mut Vec<u8>, words: &[u32]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    half(&mut file, &[2, 3]);
    word(&mut file, &[1, 0x20_0004, 52, 0, 0]);
    half(&mut file, &[52, 32, 1, 0, 0, 0]);
    let len = code.len() as u32;
    word(&mut file, &[1, 84, 0x8020_0000, 0x20_0000, len, len, 7, 1]);
    file.extend_from_slice(code);
    file
}

/// What the example `xen` leaves in memory. The kernel prints EAX, the first word of the structure, its command line, that of
/// the second module, and the module itself; it exits with the memory below 1 MiB that the BIOS data area tells, in units
/// of 16 KiB.
#[test]
fn a_multiboot_kernel_finds_what_the_specification_promises() {
    let code = [
        0x90, 0x90, 0x90, 0x90, // not the entry
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb9, 0x04, 0x00, 0x00, 0x00, // mov ecx, 4
        0xee, // next: out dx, al
        0xc1, 0xe8, 0x08, // shr eax, 8
        0xe2, 0xfa, // loop next
        0x89, 0xde, // mov esi, ebx
        0xb1, 0x04, // mov cl, 4
        0xf3, 0x6e, // rep outsb
        0x8b, 0x73, 0x10, // mov esi, [ebx + 16]: the command line
        0xb1, 0x05, // mov cl, 5
        0xf3, 0x6e, // rep outsb
        0x8b, 0x7b, 0x18, // mov edi, [ebx + 24]: the modules
        0x8b, 0x77, 0x18, // mov esi, [edi + 16 + 8]
        0xb1, 0x04, // mov cl, 4
        0xf3, 0x6e, // rep outsb
        0x8b, 0x77, 0x10, // mov esi, [edi + 16]
        0x8b, 0x4f, 0x14, // mov ecx, [edi + 16 + 4]
        0x29, 0xf1, // sub ecx, esi
        0xf3, 0x6e, // rep outsb
        0x0f, 0xb7, 0x05, 0x13, 0x04, 0x00, 0x00, // movzx eax, word [0x413]
        0xc1, 0xe8, 0x04, // shr eax, 4
        0xe6, 0xf4, // out 0xf4, al
        0xf4, // hlt
    ];
    let modules = [Module { bytes: b"first", cmdline: "1" }, Module { bytes: b"second", cmdline: "two" }];
    let map = MemoryMap::new(8 * MIB).unwrap();
    let image = multiboot::image(&elf(&code), "line", &modules, &map).unwrap();
    let expected = [&MAGIC.to_le_bytes()[..], &FLAGS.to_le_bytes(), b"line\0two\0second"].concat();
    each(|id, accelerator| {
        let console = Console::default();
        let machine = machine(accelerator, image.clone()).memory(8 * MIB).console(console.clone());
        assert_eq!(machine.start().unwrap().wait(), GuestEnd::DebugExit(39), "{id}");
        assert_eq!(*console.0.lock().unwrap(), expected, "{id}");
    });
}

#[test]
fn a_multiboot_kernel_is_an_elf_file() {
    let map = MemoryMap::new(8 * MIB).unwrap();
    assert!(multiboot::image(b"xen.gz", "", &[], &map).is_err());
}
