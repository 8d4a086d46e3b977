//! Memory images on every accelerator of this host: ROM at the reset vector, states of an embedder's own, several vCPUs.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use accel_api::{AccelId, Accelerator, CpuState, MpState, Probe, Quality, Segment, gpr};
use machine::{GuestEnd, Machine, MachineBuilder, MemoryImage, Registry, Source};

#[allow(dead_code, unreachable_pub)] // its `main` has no caller here
#[path = "../examples/rom.rs"]
mod rom;

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
