//! Mistakes of the translator that show: translated code that raises what no instruction of the guest's raises, jumps to
//! nowhere, or asks for what there is not; a function it calls that panics. They end the VM with a report, and nothing else in
//! the process.
//!
//! A mistake that does not show, such as a store to a wrong place, is for [`Config::verify`](crate::Config::verify) to find.
#![allow(unsafe_code)] // makes references of what generated code passes

use std::any::Any;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use accel_api::AccelError;
use iced_x86::Instruction;
use x86_core::shared::request;
use x86_core::{Cpu, Exec};

use crate::dispatch::Dispatcher;

/// Leaves translated code.
pub(crate) const LEAVE: *const u8 = std::ptr::null();

/// Does what translated code asks for. A panic must not unwind into it: it ends the VM here. (Where panics abort, one ends the
/// process.)
///
/// # Safety
/// `cpu` and `engine` must be those a stub passes: the exclusive references of the [`Dispatcher::execute`] that entered translated
/// code, which does not use them until that has been left.
///
/// [`Dispatcher::execute`]: x86_core::soft::Executor::execute
pub(crate) unsafe fn called(
    cpu: *mut Cpu,
    engine: *mut Dispatcher,
    work: impl FnOnce(&mut Cpu, &mut Dispatcher) -> *const u8,
) -> *const u8 {
    // SAFETY: the caller's promise. What a panic leaves half done is not used any more.
    let done = catch_unwind(AssertUnwindSafe(|| unsafe { work(&mut *cpu, &mut *engine) }));
    // SAFETY: likewise; the references above are gone.
    done.unwrap_or_else(|payload| unsafe { (*engine).panicked(&*cpu, &*payload) })
}

impl Dispatcher {
    /// Makes the vCPU stop for good, because of `what`, by the host instruction at `pc` if that is known. Where to go on.
    #[cold]
    pub(crate) fn slip(&mut self, cpu: &Cpu, what: &str, pc: Option<u64>) -> *const u8 {
        let mut report = String::new();
        let mut place = String::new();
        // A String takes all that is written.
        if let Some(block) = pc.and_then(|pc| self.block_at(pc)) {
            let start = block.page + block.key.offset();
            let _ = write!(place, " in the translation of {start:#x} (block {:#018x})", block.key.hash());
            let code = block.code as usize;
            report += &self.describe(block, self.cache.bytes(code..code + block.code_len as usize));
        }
        if let Some(pc) = pc {
            let _ = writeln!(report, "at host address {pc:#x}");
        }
        let summary = format!("translated code went wrong: {what}{place}; --accel interp does without it");
        self.failure = Some(AccelError::Internal { summary, report });
        cpu.shared.post(request::KICK);
        LEAVE
    }

    #[cold]
    fn panicked(&mut self, cpu: &Cpu, payload: &(dyn Any + Send)) -> *const u8 {
        let text = payload.downcast_ref::<&str>().copied();
        let text =
            text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason");
        self.slip(cpu, &format!("what it called panicked ({text})"), None)
    }
}

/// What a signal is called.
pub(crate) fn signal_name(signal: u64) -> String {
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

/// A mistake to be made on purpose, at the start of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InjectedBug {
    /// UD2.
    Illegal,
    /// INT3.
    Trap,
    /// A load from where nothing is mapped.
    Load,
    /// A jump to where nothing is mapped.
    Jump,
    /// The number of a site that there is not.
    Site,
    /// Functions that are called panic.
    Panic,
}

impl InjectedBug {
    /// Makes it in `code` at `entry`; `stub` is where instructions are executed by functions, counted from the code's start.
    pub(crate) fn inject(self, code: &mut [u8], entry: usize, stub: i64) {
        // mov r11d, 0x7ffffff0; jmp stub
        let mut site = [0x41, 0xbb, 0xf0, 0xff, 0xff, 0x7f, 0xe9, 0, 0, 0, 0];
        let distance = (stub - (entry + site.len()) as i64) as i32;
        site[7..].copy_from_slice(&distance.to_le_bytes());
        let bytes: &[u8] = match self {
            Self::Illegal => &[0x0f, 0x0b],
            Self::Trap => &[0xcc],
            // mov rax, [0x10]
            Self::Load => &[0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0],
            // mov eax, 0x20; jmp rax
            Self::Jump => &[0xb8, 0x20, 0, 0, 0, 0xff, 0xe0],
            Self::Site => &site,
            Self::Panic => &[],
        };
        code[entry..entry + bytes.len()].copy_from_slice(bytes);
    }
}

/// Whether `code` has `constant` in it.
pub(crate) fn contains(code: &[u8], constant: u32) -> bool {
    code.windows(4).any(|bytes| bytes == constant.to_le_bytes())
}

/// In the place of any instruction's function.
pub(crate) fn panics(_: &mut Cpu, _: &Instruction) -> Exec {
    panic!("on purpose")
}
