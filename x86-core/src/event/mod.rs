//! Delivery of faults, traps and interrupts to the guest (Intel SDM vol. 3, chapter 6).
//!
//! 1. [`Cpu::raise`] and [`Cpu::deliver`] are for executors: an event goes in, and either RIP stands at the guest's
//!    handler or the CPU has shut down. Faults met on the way are delivered instead, or make a double fault.
//! 2. `deliver_once` tries one event. It changes no register before all checks and stack writes have succeeded, so the
//!    event that is delivered in its place sees the state as it was.
//! 3. `long.rs` is 64-bit mode and compatibility mode, `legacy.rs` protected mode, virtual-8086 mode and real mode.
//! 4. `reset.rs` is what INIT and start-up messages do.
//!
//! A task gate leads to `task.rs`. A fault that comes up there once the new task has been entered is delivered in it.

mod legacy;
mod long;
mod reset;
#[cfg(test)]
mod tests;

pub(crate) use legacy::NewStack;

use accel_api::x86::{EventKind, InjectedEvent, MpState};

use crate::alu::flag;
use crate::mode::Mode;
use crate::{Cpu, Exec, Fault, vector};

/// A fault while a double fault was being delivered (Intel SDM vol. 3, 6.15): the vCPU has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shutdown;

/// One event with everything that delivery needs to know of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) vector: u8,
    pub(crate) error_code: Option<u32>,
    /// RIP to push.
    pub(crate) return_rip: u64,
    /// INT n, INT3, INTO: the gate's DPL counts, and faults on the way do not have EXT set.
    pub(crate) software: bool,
    /// RFLAGS to push.
    pub(crate) rflags: u64,
}

/// Classes of exceptions (Intel SDM vol. 3, table 6-4).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

const fn class(exception: u8) -> Class {
    match exception {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// Exceptions that report an instruction which will be tried again: RF is set in the flags they push (18.3.1.1).
const fn is_fault(exception: u8) -> bool {
    !matches!(exception, vector::DB | vector::NMI | vector::BP | vector::OF | vector::DF | vector::MC)
}

impl Cpu {
    /// Delivers a fault that the instruction at [`Cpu::rip`] raised. For #PF, CR2 takes [`Cpu::fault_address`].
    ///
    /// # Errors
    /// Triple fault.
    pub fn raise(&mut self, fault: Fault) -> Result<(), Shutdown> {
        if fault.vector() == vector::PF {
            self.cr2 = self.fault_address;
        }
        self.resolve_debug_causes(fault.vector());
        let rf = if is_fault(fault.vector()) || fault == Fault::GENERAL_DETECT { flag::RF } else { 0 };
        let delivery = Delivery {
            vector: fault.vector(),
            error_code: fault.error_code(),
            return_rip: self.rip,
            software: false,
            rflags: self.rflags() | rf,
        };
        self.deliver_once(&delivery).or_else(|second| self.deliver_nested(class(fault.vector()), second))
    }

    /// Delivers an event between instructions: the return address is [`Cpu::rip`], for software interrupts behind the
    /// instruction there. RIP and `next_rip` are then at the handler.
    ///
    /// # Errors
    /// Triple fault.
    pub fn deliver(&mut self, event: InjectedEvent) -> Result<(), Shutdown> {
        let mut return_rip = self.rip;
        let mut rflags = self.rflags();
        let mut software = false;
        let mut first = Class::Benign;
        match event.kind {
            EventKind::ExternalInterrupt => {}
            EventKind::Nmi => self.nmi_masked = true,
            EventKind::Exception => {
                first = class(event.vector);
                if is_fault(event.vector) {
                    rflags |= flag::RF;
                }
            }
            EventKind::Software { length } => {
                return_rip = self.rip.wrapping_add(length.into());
                software = true;
            }
        }
        let InjectedEvent { vector, error_code, kind: _ } = event;
        match self.deliver_once(&Delivery { vector, error_code, return_rip, software, rflags }) {
            Ok(()) => Ok(()),
            Err(second) => self.deliver_nested(first, second),
        }
    }

    /// Delivers `fault`, which came up while an exception of class `first` was being delivered (Intel SDM vol. 3, table
    /// 6-5).
    #[cold]
    fn deliver_nested(&mut self, mut first: Class, mut fault: Fault) -> Result<(), Shutdown> {
        loop {
            if fault.vector() == vector::PF {
                self.cr2 = self.fault_address;
            }
            let second = class(fault.vector());
            let (event, of_class) = match (first, second) {
                (Class::DoubleFault, Class::Contributory | Class::PageFault) => {
                    self.mp = MpState::Shutdown;
                    self.leave = true;
                    return Err(Shutdown);
                }
                (Class::Contributory, Class::Contributory)
                | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                    (Fault::with_code(vector::DF, 0), Class::DoubleFault)
                }
                _ => (fault, second),
            };
            let rf = if is_fault(event.vector()) { flag::RF } else { 0 };
            let delivery = Delivery {
                vector: event.vector(),
                error_code: event.error_code(),
                return_rip: self.rip,
                software: false,
                rflags: self.rflags() | rf,
            };
            match self.deliver_once(&delivery) {
                Ok(()) => return Ok(()),
                Err(next) => (first, fault) = (of_class, next),
            }
        }
    }

    /// Delivers one event, or changes nothing. Faults carry EXT if the event is not the program's own doing.
    pub(crate) fn deliver_once(&mut self, event: &Delivery) -> Exec {
        let result = match self.mode {
            Mode::Real => self.deliver_real(event, self.idtr.base, u64::from(self.idtr.limit)),
            _ if self.long_mode() => self.deliver_long(event),
            _ => self.deliver_protected(event),
        };
        if let Err(fault) = result {
            return Err(if event.software { fault } else { with_ext(fault) });
        }
        if event.vector == vector::DB {
            // GD would make the handler trap on its own look at DR6 (18.2.4); BTF and LBR go as well (18.4.4).
            const GD: u64 = 1 << 13;
            const LBR_BTF: u64 = 3;
            self.dr7 &= !GD;
            self.msrs.debugctl &= !LBR_BTF;
        }
        (self.shadow, self.debug_shadow) = (false, false);
        if self.mp == MpState::Halted {
            self.mp = MpState::Running;
        }
        self.rip = self.next_rip;
        self.update_mode();
        Ok(())
    }

    /// INT n, INT3 and INTO, with the return address behind the instruction.
    pub(crate) fn software_interrupt(&mut self, vector: u8) -> Exec {
        self.deliver_once(&Delivery {
            vector,
            error_code: None,
            return_rip: self.next_rip,
            software: true,
            rflags: self.rflags(),
        })
    }

    /// INT1: a #DB that no privilege check holds back (Intel SDM vol. 3, 6.4.4). It tells of a trap that MOV SS held back,
    /// which is thereby over (vol. 3, 27.7.3: none is pending behind a privileged software exception).
    pub(crate) fn debug_interrupt(&mut self) -> Exec {
        let causes = std::mem::take(&mut self.pending_debug);
        self.deliver_once(&Delivery {
            vector: vector::DB,
            error_code: None,
            return_rip: self.next_rip,
            software: false,
            rflags: self.rflags(),
        })?;
        self.tell_debug_causes(causes);
        Ok(())
    }

    /// RFLAGS at the handler's first instruction. AC, IOPL and the arithmetic flags stay.
    fn enter_handler(&mut self, clear_if: bool) {
        self.system_flags &= !(flag::TF | flag::NT | flag::RF | flag::VM);
        if clear_if {
            self.system_flags &= !flag::IF;
        }
    }
}

/// Sets EXT in an error code made of a selector (Intel SDM vol. 3, 6.13).
fn with_ext(fault: Fault) -> Fault {
    match (fault.vector(), fault.error_code()) {
        (vector::TS..=vector::GP, Some(code)) => Fault::with_code(fault.vector(), code | 1),
        _ => fault,
    }
}
