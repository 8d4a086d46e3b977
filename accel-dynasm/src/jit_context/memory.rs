//! Maps the memory of a vCPU below 2 GiB.
#![allow(unsafe_code)] // maps memory and hands out pointers into it

use std::io;
use std::mem::size_of;
use std::ptr::NonNull;

use accel_api::AccelError;
use x86_core::Cpu;
use x86_core::soft::CpuHome;

use super::{CLASSES, JitContext, JumpTable, VcpuMemory};

/// Bytes to map: whole pages.
const LEN: usize = size_of::<VcpuMemory>().next_multiple_of(4096);

/// Maps memory below 2 GiB. Pages cost nothing until they are touched.
fn map_low(len: usize) -> io::Result<NonNull<u8>> {
    /// Where MAP_32BIT begins to look (Linux arch/x86/kernel/sys_x86_64.c).
    const SECOND_GIB: usize = 1 << 30;
    /// Below it, the kernel may refuse (vm.mmap_min_addr).
    const LOWEST: usize = 1 << 20;
    let full = match map(std::ptr::null_mut(), len, libc::MAP_32BIT) {
        Ok(at) => return Ok(at),
        Err(error) => error,
    };
    let places = (LOWEST..SECOND_GIB).step_by(len).map(|at| at + len).take_while(|end| *end <= SECOND_GIB);
    let mut low = places.map(|end| std::ptr::without_provenance_mut(end - len));
    low.find_map(|at| map(at, len, libc::MAP_FIXED_NOREPLACE).ok()).ok_or(full)
}

/// Maps memory at `hint`, or where `how` says; not where something is.
fn map(hint: *mut libc::c_void, len: usize, how: libc::c_int) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | how;
    // SAFETY: a new anonymous mapping, which takes the place of no other.
    let at = unsafe { libc::mmap(hint, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let at = NonNull::new(at.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
    if !hint.is_null() && at.as_ptr().cast() != hint {
        // Linux before 4.17 takes a place that is not free for a hint.
        unmap(at, len);
        return Err(io::ErrorKind::AddrInUse.into());
    }
    Ok(at)
}

/// How many more vCPUs there is room for, up to `wanted`.
pub(crate) fn room(wanted: u32) -> u32 {
    let mapped: Vec<_> = (0..wanted).map_while(|_| map_vcpu().ok()).collect();
    mapped.iter().for_each(|at| unmap(*at, LEN));
    mapped.len() as u32
}

fn unmap(at: NonNull<u8>, len: usize) {
    // SAFETY: the caller maps it by `map_low` and does not use it any more.
    unsafe { libc::munmap(at.as_ptr().cast(), len) };
}

/// Whether there is room for a vCPU.
pub(crate) fn check() -> Result<(), AccelError> {
    unmap(map_vcpu()?, LEN);
    Ok(())
}

fn map_vcpu() -> Result<NonNull<u8>, AccelError> {
    map_low(LEN)
        .map_err(|e| AccelError::Host { what: "map memory below 2 GiB for translated code", source: e })
}

/// Moves a vCPU to memory of its own.
pub(crate) fn place(cpu: Box<Cpu>) -> Result<CpuHome, AccelError> {
    let at = map_vcpu()?;
    unsafe fn release(cpu: NonNull<Cpu>) {
        unmap(cpu.cast(), LEN);
    }
    let _ = at.as_ptr().expose_provenance();
    // SAFETY: fresh memory that is large enough and ours until it is released; pages are aligned enough.
    Ok(unsafe { CpuHome::at(at.cast(), cpu, release) })
}

/// The memory of a vCPU that [`place`] moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub memory: *const VcpuMemory,
    pub context: NonNull<JitContext>,
    pub jumps: NonNull<[JumpTable; CLASSES]>,
}

impl Placed {
    /// Finds it by the address of the vCPU, which has been exposed: the pointers reach further than the reference does.
    pub(crate) fn of(cpu: &Cpu) -> Self {
        let memory: *mut VcpuMemory = std::ptr::with_exposed_provenance_mut(std::ptr::from_ref(cpu).addr());
        // SAFETY: `place` has mapped and exposed as much, which is there as long as the vCPU is; neither field is null or
        // overlaps what `cpu` refers to.
        unsafe {
            Self {
                memory,
                context: NonNull::new_unchecked(&raw mut (*memory).context),
                jumps: NonNull::new_unchecked(&raw mut (*memory).jumps),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set in the process that has nothing else to do than the test.
    const ALONE: &str = "GEARSHIFT_TEST_ALONE";

    /// By itself the kernel looks for room below 2 GiB only above 1 GiB. All room is taken, which other tests of the same process
    /// would lack, so this one has a process of its own.
    #[test]
    fn vcpus_fill_both_gibibytes() {
        if std::env::var_os(ALONE).is_none() {
            let name = "jit_context::memory::tests::vcpus_fill_both_gibibytes";
            let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
            let output = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let mapped: Vec<_> = (0..160).map_while(|_| map_vcpu().ok()).collect();
        let (count, more) = (mapped.len(), room(1000));
        let low = mapped.iter().filter(|at| at.as_ptr().addr() < 1 << 30).count();
        let highest = mapped.iter().map(|at| at.as_ptr().addr() + LEN).max();
        mapped.into_iter().for_each(|at| unmap(at, LEN));
        assert!(count == 160 && low > 0, "{count} vCPUs, {low} of them low");
        assert!(highest.is_some_and(|end| end <= 1 << 31));
        assert!(more < 160 && room(1000) > more, "there is an end, which is told");
    }
}
