//! A vCPU on a bench, for tests here and in other crates: some RAM at address 0, no devices, no page tables.

use std::sync::{Arc, LazyLock};

use accel_api::x86::{CpuFeatures, CpuModel, Feature, Segment};
use accel_api::{Access, GpFault, GuestRam, IoSize, SlotId, VcpuBus};

pub mod blocks;
pub mod code;

use crate::cpu::seg;
use crate::lapic::{ApicBus, ApicHost, Lapic, LapicConfig};
use crate::mode::{Mode, bits};
use crate::shared::VmShared;
use crate::{Cpu, Exec};

/// RAM of [`cpu`], in bytes.
pub const RAM_SIZE: u64 = 1 << 20;

/// A bus with nothing on it.
#[derive(Debug)]
pub struct NullBus;

impl VcpuBus for NullBus {
    fn mmio_read(&self, _: u64, size: IoSize) -> u64 {
        size.ones()
    }
    fn mmio_write(&self, _: u64, _: IoSize, _: u64) {}
    fn pio_read(&self, _: u16, size: IoSize) -> u32 {
        size.ones() as u32
    }
    fn pio_write(&self, _: u16, _: IoSize, _: u32) {}
    fn msr_read(&self, _: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }
    fn msr_write(&self, _: u32, _: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }
    fn ack_extint(&self) -> Option<u8> {
        None
    }
    fn eoi(&self, _: u8) {}
}

struct NoHost;

impl ApicHost for NoHost {
    fn eoi(&self, _: u8) {}
}

/// A vCPU at privilege level 0 in `mode`, flat segments, SSE and x87 enabled, RIP 0, paging off (so that linear
/// addresses are guest-physical, also in 64-bit mode, where no real processor could be without page tables).
///
/// # Panics
/// If the host has no memory for [`RAM_SIZE`].
pub fn cpu(mode: Mode) -> Box<Cpu> {
    let ram = GuestRam::new(&[(0, RAM_SIZE)]).expect("1 MiB of RAM");
    let vm = VmShared::new(ram.flags().clone(), 1);
    let mapped = vm.remap(|map| map.with(SlotId(0), &ram.regions()[0], Access::ReadWrite));
    mapped.expect("an empty map takes any slot");
    let model = Arc::new(CpuModel::named("x86-64-v2", 1, 1_000_000).expect("a known model"));
    let bus = Arc::new(ApicBus::new([0], Arc::new(|_| {})));
    let config = LapicConfig { bsp: true, x2apic: true, eoi_suppression: false, phys_addr_bits: 40 };
    let lapic = Lapic::new(bus, 0, config, Arc::new(NoHost)).expect("vCPU 0 is on the bus");
    let mut cpu = Cpu::new(0, vm, model, Arc::new(NullBus), lapic);
    enter(&mut cpu, mode);
    cpu.rip = 0;
    cpu.next_rip = 0;
    cpu
}

/// Gives `cpu` every feature that software CPUs offer on this host, and switches AVX on if it is one of them.
///
/// # Panics
/// Never: the model is a known one.
pub fn give_host_features(cpu: &mut Cpu) {
    static MODEL: LazyLock<Arc<CpuModel>> = LazyLock::new(|| {
        let mut model = CpuModel::named("x86-64-v2", 1, 1_000_000).expect("a known model");
        // All there are, of either vendor; the vendor is Intel wherever the tests run.
        model.features = CpuFeatures::of(Feature::ALL).intersection(&crate::soft::features());
        Arc::new(model)
    });
    cpu.model = MODEL.clone();
    if cpu.model.features.has(Feature::Avx) {
        cpu.cr4 |= bits::CR4_OSXSAVE;
        cpu.xcr0 = cpu.model.xcr0_mask();
        cpu.update_mode();
    }
}

/// Puts `cpu` into `mode` with flat segments (real-mode segments in real mode).
pub fn enter(cpu: &mut Cpu, mode: Mode) {
    cpu.cr4 = bits::CR4_OSFXSR | bits::CR4_OSXMMEXCPT | bits::CR4_PAE;
    cpu.cr0 = bits::CR0_NE | bits::CR0_MP | bits::CR0_ET;
    cpu.efer = 0;
    let (code, data) = match mode {
        Mode::Long => (0xa09b, 0xc093),
        Mode::Protected32 => (0xc09b, 0xc093),
        _ => (0x009b, 0x0093),
    };
    match mode {
        Mode::Real | Mode::Virtual8086 => {
            cpu.segs = [Segment::real(0); 6];
        }
        _ => {
            cpu.cr0 |= bits::CR0_PE;
            cpu.segs = [Segment::flat(0x10, data); 6];
            cpu.segs[seg::CS] = Segment::flat(8, code);
        }
    }
    if mode == Mode::Long {
        cpu.efer = bits::EFER_LME | bits::EFER_LMA | bits::EFER_NXE | bits::EFER_SCE;
    }
    cpu.update_mode();
    if mode == Mode::Virtual8086 {
        cpu.cr0 |= bits::CR0_PE;
        cpu.set_rflags(crate::alu::flag::VM);
    }
}

/// Writes bytes into RAM.
///
/// # Panics
/// Outside RAM.
pub fn poke(cpu: &mut Cpu, address: u64, bytes: &[u8]) {
    for (i, &byte) in bytes.iter().enumerate() {
        cpu.system_store(address + i as u64, byte).expect("RAM");
    }
}

/// Reads bytes from RAM.
///
/// # Panics
/// Outside RAM.
pub fn peek(cpu: &mut Cpu, address: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| cpu.system_load::<u8>(address + i).expect("RAM")).collect()
}

/// Decodes and executes one instruction at RIP; on success RIP moves on.
///
/// # Errors
/// The fault it raises; RIP stays.
pub fn step(cpu: &mut Cpu) -> Exec {
    cpu.execute_one()?;
    cpu.rip = cpu.next_rip;
    Ok(())
}

/// Executes `code` as one instruction placed at 0x1000.
///
/// # Errors
/// The fault it raises.
pub fn run(cpu: &mut Cpu, code: &[u8]) -> Exec {
    poke(cpu, 0x1000, code);
    cpu.rip = 0x1000;
    step(cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ea, Fault};

    #[test]
    fn memory_works_in_every_mode() {
        for mode in [Mode::Real, Mode::Protected16, Mode::Protected32, Mode::Long] {
            let mut cpu = cpu(mode);
            assert_eq!(cpu.mode, mode);
            cpu.store(Ea::data(0x1ffc), 0x1122_3344_5566_7788u64).unwrap();
            assert_eq!(cpu.load::<u32>(Ea::data(0x2000)).unwrap(), 0x1122_3344);
            assert_eq!(peek(&mut cpu, 0x1ffc, 2), [0x88, 0x77]);
            let old = cpu.rmw::<u32, u32>(Ea::data(0x1ffe), true, |v| Ok((v + 1, v))).unwrap();
            assert_eq!((old, cpu.load::<u32>(Ea::data(0x1ffe)).unwrap()), (0x3344_5566, 0x3344_5567));
        }
    }

    #[test]
    fn fetch_beyond_ram_reads_ones() {
        let mut cpu = cpu(Mode::Long);
        let mut bytes = [0; 15];
        assert_eq!(cpu.fetch(RAM_SIZE, &mut bytes), Ok(15));
        assert_eq!(bytes, [0xff; 15]);
    }

    #[test]
    fn non_canonical_addresses_fault_by_segment() {
        let mut cpu = cpu(Mode::Long);
        assert_eq!(cpu.load::<u8>(Ea::data(1 << 47)), Err(Fault::GP0));
        assert_eq!(cpu.load::<u8>(Ea { la: 1 << 63, stack: true }), Err(Fault::SS0));
    }

    #[test]
    fn accesses_are_canonical_as_a_whole() {
        let mut cpu = cpu(Mode::Long);
        assert_eq!(cpu.load::<u32>(Ea::data((1 << 47) - 2)), Err(Fault::GP0));
        assert_eq!(cpu.store(Ea { la: (1 << 47) - 1, stack: true }, 0u16), Err(Fault::SS0));
        assert_eq!(cpu.load::<u8>(Ea::data((1 << 47) - 1)).map(|_| ()), Ok(()));
    }

    #[test]
    fn overrides_of_flat_segments_mean_nothing_in_64_bit_mode() {
        let mut cpu = cpu(Mode::Long);
        cpu.gpr = [1 << 47; 16];
        // mov eax, [rbx] and mov eax, [rbp], with overrides of SS and DS.
        assert_eq!(run(&mut cpu, &[0x36, 0x8b, 0x03]), Err(Fault::GP0));
        assert_eq!(run(&mut cpu, &[0x3e, 0x8b, 0x45, 0x00]), Err(Fault::SS0));
        assert_eq!(run(&mut cpu, &[0x64, 0x8b, 0x45, 0x00]), Err(Fault::GP0));
    }
}
