//! Into the instruction and out of it: registers, the jump, and the signal that ends it.

use std::arch::naked_asm;
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::watchdog;
use super::xsave::XSAVE_SIZE;
use crate::oracle::segments::{CODE64, DATA};

/// What [`enter`] loads, and what the signal handler leaves.
#[repr(C, align(64))]
pub(super) struct Context {
    pub(super) xsave: [u8; XSAVE_SIZE],
    pub(super) gpr: [u64; 16],
    /// RIP, CS, RFLAGS, RSP, SS, as IRETQ pops them.
    pub(super) frame: [u64; 5],
    /// ES, DS, GS.
    pub(super) selectors: [u16; 3],
    host_rsp: u64,
    /// What the signal handler found.
    pub(super) found: [i64; 23],
    pub(super) found_xsave: [u8; XSAVE_SIZE],
    pub(super) found_selectors: [u16; 4],
    /// Signals of the watchdog that came meanwhile.
    pub(super) ticks: u32,
}

/// Ticks after which a case is taken to hang. Each tick but the first follows a whole period.
pub(super) const HANGS: u32 = 3;

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

static CURRENT: AtomicPtr<Context> = AtomicPtr::new(null_mut());

/// Runs from `context` on until a signal comes.
///
/// # Safety
/// The handler must be installed, the context complete and its selectors loadable, and the code must end in a signal
/// and reach nothing that belongs to the program.
pub(super) unsafe fn go(context: &mut Context) {
    context.ticks = 0;
    let context: *mut Context = context;
    CURRENT.store(context, Ordering::Release);
    // SAFETY: the caller's promise.
    unsafe { enter(context) };
    CURRENT.store(null_mut(), Ordering::Release);
}

/// Loads the whole state of `context` and goes on in the code page. Returns when [`leave`] is reached.
///
/// # Safety
/// `context` must be in [`CURRENT`], and the code must end in a signal.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(context: *mut Context) {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rdi + {host}], rsp",
        "mov eax, 7", "xor edx, edx", "xrstor64 [rdi]",
        "mov es, [rdi + {selectors}]", "mov ds, [rdi + {selectors} + 2]",
        // Some processors leave the base as it was when a null selector is loaded: flat data first makes it 0.
        "mov eax, {flat}", "mov gs, eax", "mov gs, [rdi + {selectors} + 4]",
        "lea rsp, [rdi + {frame}]",
        "mov rax, [rdi + {gpr}]", "mov rcx, [rdi + {gpr} + 8]", "mov rdx, [rdi + {gpr} + 16]",
        "mov rbx, [rdi + {gpr} + 24]", "mov rbp, [rdi + {gpr} + 40]", "mov rsi, [rdi + {gpr} + 48]",
        "mov r8, [rdi + {gpr} + 64]", "mov r9, [rdi + {gpr} + 72]", "mov r10, [rdi + {gpr} + 80]",
        "mov r11, [rdi + {gpr} + 88]", "mov r12, [rdi + {gpr} + 96]", "mov r13, [rdi + {gpr} + 104]",
        "mov r14, [rdi + {gpr} + 112]", "mov r15, [rdi + {gpr} + 120]", "mov rdi, [rdi + {gpr} + 56]",
        "iretq",
        host = const offset_of!(Context, host_rsp),
        frame = const offset_of!(Context, frame),
        gpr = const offset_of!(Context, gpr),
        selectors = const offset_of!(Context, selectors),
        flat = const DATA,
    )
}

/// Where the signal handler sends the thread, with RSP as [`enter`] left it.
///
/// # Safety
/// Only for the signal handler.
#[unsafe(naked)]
unsafe extern "sysv64" fn leave() {
    naked_asm!(
        // NT, which would make the next IRETQ fault, and ID are not among the flags that a signal frame restores.
        "push 0x202",
        "popfq",
        "fninit",
        "push 0x1f80",
        "ldmxcsr [rsp]",
        "pop rax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// Takes the state out of the signal frame, and makes the frame return to [`leave`].
pub(super) extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, frame: *mut c_void) {
    // The kernel leaves AC as the instruction set it; the compiled code below may access unaligned data.
    // SAFETY: clears one flag.
    unsafe { std::arch::asm!("pushfq", "and dword ptr [rsp], {ac}", "popfq", ac = const !(1i32 << 18)) };
    let context = CURRENT.load(Ordering::Acquire);
    if signal == watchdog::SIGNAL {
        // SAFETY: a context that is set is alive, and nobody else uses it while its thread is here.
        let Some(context) = (unsafe { context.as_mut() }) else { return };
        context.ticks += 1;
        if context.ticks < HANGS {
            return;
        }
    }
    CURRENT.store(null_mut(), Ordering::Release);
    if context.is_null() {
        // Not ours: what faulted will fault again, and then do what it does without us.
        // SAFETY: sets a default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel's frame is valid and nobody else uses it; the context is alive as `run` has not returned.
    unsafe {
        let frame = &mut *frame.cast::<libc::ucontext_t>();
        let context = &mut *context;
        let [es, ds, fs, gs] = &mut context.found_selectors;
        std::arch::asm!(
            "mov {0:x}, es",
            "mov {1:x}, ds",
            "mov {2:x}, fs",
            "mov {3:x}, gs",
            out(reg) * es,
            out(reg) * ds,
            out(reg) * fs,
            out(reg) * gs,
            options(nomem, nostack, preserves_flags)
        );
        let registers = &mut frame.uc_mcontext.gregs;
        context.found.copy_from_slice(registers);
        let fp = frame.uc_mcontext.fpregs.cast::<u8>();
        save_fp(fp, &mut context.found_xsave);
        registers[libc::REG_RIP as usize] = leave as *const () as i64;
        registers[libc::REG_RSP as usize] = context.host_rsp as i64;
        registers[libc::REG_EFL as usize] = 0x202;
        registers[libc::REG_CSGSFS as usize] = (DATA as i64) << 48 | CODE64 as i64;
    }
}

/// Copies the frame's XSAVE area and empties it, so that the thread goes on with initial state.
///
/// # Safety
/// `fp` must be null or the frame's floating-point state.
unsafe fn save_fp(fp: *mut u8, out: &mut [u8; XSAVE_SIZE]) {
    /// Says in the area's software-reserved bytes that more than FXSAVE's 512 bytes are there.
    const MAGIC: u32 = 0x4650_5853;
    const MAGIC_AT: usize = 464;
    if fp.is_null() {
        return;
    }
    // SAFETY: 512 bytes are always there, the rest when the magic number says so.
    unsafe {
        let extended = fp.add(MAGIC_AT).cast::<u32>().read_unaligned() == MAGIC;
        let len = if extended { XSAVE_SIZE } else { 512 };
        std::ptr::copy_nonoverlapping(fp, out.as_mut_ptr(), len);
        if extended {
            fp.add(512).cast::<u64>().write_unaligned(0);
        } else {
            out[512..].fill(0);
            out[512] = 3;
        }
    }
}
