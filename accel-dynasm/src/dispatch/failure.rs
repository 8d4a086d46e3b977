//! Bugs of the JIT that show: host code that raises an exception which is none of the guest's, jumps to nowhere, or has
//! the number of a site that does not exist; a helper that panics. They end the VM with a report, and nothing else in
//! the process (ADR 17).
//!
//! A bug that does not show, such as a store to a wrong place, is for [`Config::verify`](crate::Config::verify) to
//! find.

use std::any::Any;
use std::fmt::Write as _;

use accel_api::{AccelError, BackendReport};
use x86_core::Cpu;
use x86_core::shared::request;

use super::Dispatcher;
use crate::debug::listing;
use crate::runtime::helpers::LEAVE;

impl Dispatcher {
    /// Makes the vCPU stop for good, because of `what`, by the host instruction at `pc` if that is known. Where to go
    /// on.
    #[cold]
    pub(super) fn fail(&mut self, cpu: &Cpu, what: &str, pc: Option<u64>) -> *const u8 {
        let mut report = String::new();
        let mut place = String::new();
        // A String takes all that is written.
        if let Some(block) = pc.and_then(|pc| self.store.block_at(pc)) {
            let start = block.page + block.key.offset();
            let _ = write!(place, " in the translation of {start:#x} (block {:#018x})", block.key.hash());
            report += &listing::describe(block, self.store.code(block));
        }
        if let Some(pc) = pc {
            let _ = writeln!(report, "at host address {pc:#x}");
        }
        let summary = format!("translated code went wrong: {what}{place}");
        let report = BackendReport { text: report, ..BackendReport::default() };
        self.failure = Some(AccelError::Internal { summary, report: Box::new(report) });
        cpu.shared.post(request::KICK);
        LEAVE
    }

    /// The same, because a helper has panicked.
    #[cold]
    pub(super) fn fail_by_panic(&mut self, cpu: &Cpu, payload: &(dyn Any + Send)) -> *const u8 {
        let text = payload.downcast_ref::<&str>().copied();
        let text =
            text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason");
        self.fail(cpu, &format!("what it called panicked ({text})"), None)
    }
}

/// The name of a signal.
pub(super) fn signal_name(signal: u64) -> String {
    let names = [
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGTRAP, "SIGTRAP"),
    ];
    let known = names.into_iter().find(|(number, _)| i64::from(*number) as u64 == signal);
    known.map_or_else(|| format!("signal {signal}"), |(_, name)| name.to_owned())
}
