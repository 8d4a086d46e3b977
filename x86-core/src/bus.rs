//! Accesses where there is no RAM: devices on the machine's bus, and the local APIC's page.

use accel_api::{IoSize, PAGE_SIZE, VcpuBus};

use crate::Cpu;

impl Cpu {
    /// Calls a device. Nobody waits for this vCPU meanwhile ([`settle`](crate::shared::VcpuShared::settle)): the device may be waiting for who
    /// would, or be the one who changes the memory map.
    pub(crate) fn device<R>(&mut self, call: impl FnOnce(&dyn VcpuBus) -> R) -> R {
        let present = self.shared.leave();
        let result = call(&*self.bus);
        if present {
            self.vm.enter(self.id as usize, 0);
        }
        // Nobody waited for us, so that already the rest of this instruction must do without what it knew. Where code lies may
        // have changed, too: the executor looks before the next instruction.
        self.leave |= self.serve_memory_requests();
        self.heed_requests();
        result
    }

    pub(crate) fn bus_read(&mut self, gpa: u64, out: &mut [u8]) {
        if self.on_trial() {
            out.fill(0xff);
            return;
        }
        let mut at = gpa;
        let mut rest = out;
        while let Some(size) = piece_size(rest.len()) {
            let (now, tail) = rest.split_at_mut(size.bytes());
            let value = match self.apic_offset(at) {
                Some(offset) => {
                    let moment = self.now();
                    self.lapic.mmio_read(offset, size.bytes() as u8, moment)
                }
                None => self.device(|bus| bus.mmio_read(at, size)),
            };
            now.copy_from_slice(&value.to_le_bytes()[..size.bytes()]);
            at = at.wrapping_add(size.bytes() as u64);
            rest = tail;
        }
    }

    pub(crate) fn bus_write(&mut self, gpa: u64, data: &[u8]) {
        if self.on_trial() {
            return;
        }
        let mut at = gpa;
        let mut rest = data;
        while let Some(size) = piece_size(rest.len()) {
            let (now, tail) = rest.split_at(size.bytes());
            let mut bytes = [0; 8];
            bytes[..now.len()].copy_from_slice(now);
            let value = u64::from_le_bytes(bytes);
            match self.apic_offset(at) {
                Some(offset) => {
                    let moment = self.now();
                    self.lapic.mmio_write(offset, size.bytes() as u8, value, moment);
                    // An EOI may have gone to the bus, when nobody waited for us.
                    self.serve_memory_requests();
                    self.leave = true;
                }
                None => self.device(|bus| bus.mmio_write(at, size, value)),
            }
            at = at.wrapping_add(size.bytes() as u64);
            rest = tail;
        }
    }

    /// Offset into the local APIC's page, if `gpa` lies there.
    fn apic_offset(&self, gpa: u64) -> Option<u64> {
        self.lapic.mmio_base().map(|base| gpa.wrapping_sub(base)).filter(|&offset| offset < PAGE_SIZE)
    }
}

/// The largest device access within `len` bytes.
fn piece_size(len: usize) -> Option<IoSize> {
    match len {
        0 => None,
        1 => Some(IoSize::Byte),
        2..=3 => Some(IoSize::Word),
        4..=7 => Some(IoSize::Dword),
        _ => Some(IoSize::Qword),
    }
}
