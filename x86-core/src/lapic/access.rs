//! Register accesses: the xAPIC page and the x2APIC MSRs (Intel SDM vol. 3, 11.4.1 and 11.12.1).

use super::local::{GpFault, Lapic, Mode};
use super::registers::{self as reg, Lvt};
use super::timer::Now;

impl Lapic {
    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` into the xAPIC page.
    ///
    /// Registers are 32 bits wide at multiples of 16, and the manual defines only aligned accesses of 32 bits. Here
    /// a narrow read gives its part of the register, and every byte that is not a register's reads zero, also in a
    /// wide read. A read of a reserved address gives zero and logs "illegal register address" (11.5.3). Outside
    /// xAPIC mode there is no page: reads give all ones.
    pub fn mmio_read(&mut self, offset: u64, size: u8, now: Now) -> u64 {
        let width = 8 * u32::from(size.clamp(1, 8));
        let mask = u64::MAX >> (64 - width);
        if self.mode() != Mode::XApic {
            return mask;
        }
        let value = match Self::register_at(offset).and_then(|register| self.read_xapic(register, now)) {
            Some(value) => u64::from(value),
            None => {
                self.report_error(reg::ESR_ILLEGAL_REGISTER);
                0
            }
        };
        match offset & 0xf {
            byte @ 0..=3 => value >> (8 * byte) & mask,
            _ => 0,
        }
    }

    /// Writes to the xAPIC page. Only aligned writes of 4 bytes do anything; others are undefined by the manual and
    /// ignored here, as are writes to read-only registers. A write to a reserved address logs "illegal register
    /// address". Outside xAPIC mode there is no page: writes are lost.
    pub fn mmio_write(&mut self, offset: u64, size: u8, value: u64, now: Now) {
        if self.mode() != Mode::XApic || size != 4 || offset & 0xf != 0 {
            return;
        }
        let written =
            Self::register_at(offset).and_then(|register| self.write_xapic(register, value as u32, now));
        if written.is_none() {
            self.report_error(reg::ESR_ILLEGAL_REGISTER);
        }
    }

    fn register_at(offset: u64) -> Option<u8> {
        u8::try_from(offset >> 4).ok()
    }

    /// True for the MSRs that [`Self::read_msr`] and [`Self::write_msr`] answer for.
    pub const fn owns_msr(index: u32) -> bool {
        matches!(
            index,
            reg::MSR_APIC_BASE | reg::MSR_TSC_DEADLINE | reg::MSR_X2APIC_FIRST..=reg::MSR_X2APIC_LAST
        )
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    ///
    /// #GP if the index is none of these, outside x2APIC mode for its registers, and for reserved and write-only
    /// registers (Intel SDM vol. 3, table 11-6).
    pub fn read_msr(&mut self, index: u32, now: Now) -> Result<u64, GpFault> {
        match index {
            reg::MSR_APIC_BASE => Ok(self.base),
            reg::MSR_TSC_DEADLINE => {
                self.expire(now);
                Ok(self.timer.tsc_deadline())
            }
            _ => match self.x2apic_register(index)? {
                reg::ICR_LOW => Ok(self.icr),
                reg::ID => Ok(u64::from(self.apic_id())),
                reg::LDR => Ok(u64::from(reg::x2apic_logical_id(self.apic_id()))),
                register => self.read_common(register, now).map(u64::from).ok_or(GpFault),
            },
        }
    }

    /// WRMSR to IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    ///
    /// As for [`Self::read_msr`], with read-only instead of write-only registers, and for reserved bits.
    pub fn write_msr(&mut self, index: u32, value: u64, now: Now) -> Result<(), GpFault> {
        match index {
            reg::MSR_APIC_BASE => self.set_apic_base(value),
            reg::MSR_TSC_DEADLINE => {
                self.expire(now);
                self.timer.write_tsc_deadline(value);
                self.expire(now); // a deadline in the past fires at once
                Ok(())
            }
            _ => {
                let register = self.x2apic_register(index)?;
                let allowed = self.x2apic_writable(register).ok_or(GpFault)?;
                if value & !allowed != 0 {
                    return Err(GpFault);
                }
                match register {
                    reg::ICR_LOW => {
                        self.icr = value & !u64::from(reg::ICR_BUSY);
                        self.send_icr();
                    }
                    reg::SELF_IPI => self.send_to_self(value as u8),
                    _ => self.write_common(register, value as u32, now).ok_or(GpFault)?,
                }
                Ok(())
            }
        }
    }

    fn x2apic_register(&self, index: u32) -> Result<u8, GpFault> {
        if !self.is_x2apic() || !(reg::MSR_X2APIC_FIRST..=reg::MSR_X2APIC_LAST).contains(&index) {
            return Err(GpFault);
        }
        Ok((index - reg::MSR_X2APIC_FIRST) as u8)
    }

    /// The bits that may be ones in a WRMSR to this register; `None` if it cannot be written at all.
    fn x2apic_writable(&self, register: u8) -> Option<u64> {
        if let Some(entry) = Lvt::from_register(register) {
            return Some(u64::from(entry.defined()));
        }
        Some(match register {
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::EOI | reg::ESR => 0,
            reg::SVR => u64::from(self.svr_mask()),
            reg::ICR_LOW => !u64::from(reg::ICR_RESERVED),
            reg::TIMER_INITIAL => 0xffff_ffff,
            reg::TIMER_DIVIDE => u64::from(reg::TIMER_DIVIDE_MASK),
            _ => return None,
        })
    }

    pub(super) fn svr_mask(&self) -> u32 {
        reg::SVR_MASK | if self.config.eoi_suppression { reg::SVR_SUPPRESS_EOI } else { 0 }
    }

    /// `None` if the register is reserved.
    fn read_xapic(&mut self, register: u8, now: Now) -> Option<u32> {
        Some(match register {
            reg::ID => u32::from(self.xapic_id) << 24,
            reg::LDR => self.ldr,
            reg::DFR => self.dfr,
            reg::ICR_LOW => self.icr as u32,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            // EOI is write-only. The other two are gone from this generation of APIC but keep their addresses.
            reg::EOI | reg::APR | reg::REMOTE_READ => 0,
            _ => return self.read_common(register, now),
        })
    }

    /// `None` if the register is reserved.
    fn write_xapic(&mut self, register: u8, value: u32, now: Now) -> Option<()> {
        match register {
            reg::LDR => {
                self.ldr = value & reg::LDR_MASK;
                self.publish();
            }
            reg::DFR => {
                self.dfr = value | reg::DFR_FIXED;
                self.publish();
            }
            reg::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            reg::ICR_LOW => {
                let low = value & !(reg::ICR_RESERVED | reg::ICR_BUSY);
                self.icr = self.icr >> 32 << 32 | u64::from(low);
                self.send_icr();
            }
            // Whether software may change it is up to the processor's model (11.4.6). Here it may, as on KVM and on AMD's.
            reg::ID => {
                self.xapic_id = (value >> 24) as u8;
                self.publish();
                self.bus.renumber();
            }
            reg::VERSION | reg::APR | reg::PPR | reg::REMOTE_READ | reg::TIMER_CURRENT => {}
            reg::ISR..=reg::IRR_LAST => {}
            _ => return self.write_common(register, value, now),
        }
        Some(())
    }

    /// Registers that both modes read alike; `None` for the rest.
    fn read_common(&mut self, register: u8, now: Now) -> Option<u32> {
        Some(match register {
            reg::VERSION => {
                reg::VERSION_VALUE
                    | if self.config.eoi_suppression { reg::VERSION_EOI_SUPPRESSION } else { 0 }
            }
            reg::TPR => u32::from(self.tpr),
            reg::PPR => u32::from(self.ppr),
            reg::SVR => self.svr,
            reg::ISR..=reg::ISR_LAST => self.isr.register(register),
            reg::TMR..=reg::TMR_LAST => {
                self.pull();
                self.tmr.register(register)
            }
            reg::IRR..=reg::IRR_LAST => {
                self.expire(now);
                self.pull();
                self.irr.register(register)
            }
            reg::ESR => self.esr,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[usize::from(register - reg::LVT_TIMER)],
            reg::TIMER_INITIAL => self.timer.initial(),
            reg::TIMER_CURRENT => self.timer.current(now),
            reg::TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Registers that both modes write alike; bits that do not exist are dropped. `None` for the rest.
    fn write_common(&mut self, register: u8, value: u32, now: Now) -> Option<()> {
        if let Some(entry) = Lvt::from_register(register) {
            self.write_lvt(entry, value, now);
            return Some(());
        }
        match register {
            reg::TPR => self.set_tpr(value as u8),
            reg::EOI => self.end_of_interrupt(),
            reg::SVR => self.write_svr(value, now),
            reg::ESR => {
                self.pull();
                self.esr = std::mem::take(&mut self.esr_new);
            }
            reg::TIMER_INITIAL => {
                self.expire(now);
                self.timer.write_initial(value, now);
            }
            reg::TIMER_DIVIDE => {
                self.expire(now);
                self.timer.write_divide(value & reg::TIMER_DIVIDE_MASK, now);
            }
            _ => return None,
        }
        Some(())
    }

    fn write_lvt(&mut self, entry: Lvt, value: u32, now: Now) {
        // What happened before the write counts under the old entry: an expiry behind a mask must stay unheard.
        self.expire(now);
        self.pull();
        let lvt = &mut self.lvt[entry as usize];
        *lvt = value & entry.writable() | *lvt & Lvt::REMOTE_IRR;
        if self.svr & reg::SVR_ENABLED == 0 {
            *lvt |= Lvt::MASKED;
        }
        match entry {
            Lvt::Timer => self.timer.set_lvt(value),
            Lvt::Lint0 => {
                if value & Lvt::LEVEL == 0 {
                    self.lvt[Lvt::Lint0 as usize] &= !Lvt::REMOTE_IRR;
                }
                self.refresh_lint0();
            }
            _ => {}
        }
    }

    /// Software disable masks the whole local vector table and holds what is pending (11.4.7.2).
    fn write_svr(&mut self, value: u32, now: Now) {
        self.expire(now);
        self.pull();
        self.svr = value & self.svr_mask();
        if !self.software_enabled() {
            for lvt in &mut self.lvt {
                *lvt |= Lvt::MASKED;
            }
        }
        self.publish();
    }
}
