//! Exceptions that guest instructions raise in the host.
//!
//! 1. Division errors and misaligned vector operands come as signals, on a stack of their own: RSP is the guest's. The
//!    handler only replaces the address at which execution goes on by that of a stub. It looks at nothing but the table
//!    of registered caches and the [`JitContext`] of one: which block the instruction is of, the helper finds out.
//! 2. Any other fault of host code of blocks, or a jump of it to where no code is, is a bug of the JIT. It goes the
//!    same way, and the helper ends the VM with a report.
//! 3. Signals that come from elsewhere go to the handler that had them before; those of guest RAM that the host cannot
//!    give, to [`accel_api::GuestRam`].
#![allow(unsafe_code)] // signal handlers

use std::cell::{Cell, OnceCell};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use accel_api::signal::Front;
use accel_api::{AccelError, take_bus_error};

use crate::jit_context::JitContext;

/// Code caches at a time.
const SLOTS: usize = 1024;
/// Signals that instructions of host code can raise: those of the guest and of bugs.
static FRONTS: [Front; 5] = [
    Front::new(libc::SIGSEGV),
    Front::new(libc::SIGBUS),
    Front::new(libc::SIGFPE),
    Front::new(libc::SIGILL),
    Front::new(libc::SIGTRAP),
];
/// The stack is taken out of use while a handler runs, whatever RSP was (sigaltstack(2)).
const SS_AUTODISARM: libc::c_int = 1 << 31;
const STACK: usize = 64 << 10;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    stub: AtomicUsize,
    /// Exposed address of the [`JitContext`].
    context: AtomicUsize,
}

static CACHES: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        stub: AtomicUsize::new(0),
        context: AtomicUsize::new(0),
    }
}; SLOTS];
static IN_USE: Mutex<()> = Mutex::new(());
/// Slots that have ever been in use.
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// A code cache that the handler knows.
#[derive(Debug)]
pub(super) struct Registration(usize);

/// Makes code in `cache` known to the handler. Execution goes on at `stub` after a fault in it, which is recorded in
/// `context`.
///
/// # Safety
/// `context` is there until the registration is dropped, and no reference to it is used while code of `cache` runs.
///
/// # Errors
/// Too many caches are registered.
pub(super) unsafe fn register(
    cache: Range<usize>,
    stub: usize,
    context: NonNull<JitContext>,
) -> Result<Registration, AccelError> {
    install();
    let _guard = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let free = CACHES.iter().position(|slot| slot.end.load(Ordering::Relaxed) == 0);
    let Some(n) = free else {
        return Err(AccelError::Host {
            what: "keep track of one more vCPU's translated code",
            source: std::io::ErrorKind::OutOfMemory.into(),
        });
    };
    let slot = &CACHES[n];
    slot.stub.store(stub, Ordering::Relaxed);
    slot.context.store(context.as_ptr().expose_provenance(), Ordering::Relaxed);
    slot.start.store(cache.start, Ordering::Relaxed);
    slot.end.store(cache.end, Ordering::Release);
    HIGHEST.fetch_max(n + 1, Ordering::Release);
    Ok(Registration(n))
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _guard = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        CACHES[self.0].end.store(0, Ordering::Release);
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for front in &FRONTS {
            // SAFETY: the handler reads memory, maps some, and changes the context that it is given.
            unsafe { front.install(handler) };
        }
    });
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the arguments that the kernel has passed.
    unsafe {
        if signal != libc::SIGBUS || !take_bus_error(info) {
            take_fault(signal, info, context);
        }
    }
}

/// Leads a fault of host code of blocks to a stub, and gives others to the handler that had them before.
///
/// # Safety
/// Called in the handler, with its arguments.
unsafe fn take_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `ucontext_t`, and a description of the signal.
    let (registers, code) =
        unsafe { (&mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs, (*info).si_code) };
    let pc = registers[libc::REG_RIP as usize] as usize;
    let in_cache = |slot: &&Slot| {
        let end = slot.end.load(Ordering::Acquire);
        pc < end && pc >= slot.start.load(Ordering::Relaxed)
    };
    let known = &CACHES[..HIGHEST.load(Ordering::Acquire)];
    // A signal that a process has sent is not the code's doing.
    let slot = known.iter().find(in_cache).or_else(|| strayed(registers, signal, pc)).filter(|_| code > 0);
    let Some(slot) = slot else {
        let front = FRONTS.iter().find(|front| front.signal() == signal);
        // SAFETY: the caller's promise.
        return front.map_or((), |front| unsafe { front.pass_on(info, context) });
    };
    let context: *mut JitContext =
        std::ptr::with_exposed_provenance_mut(slot.context.load(Ordering::Relaxed));
    // SAFETY: the promise made to `register`: the context is there, and its code runs on this thread, which is here now.
    unsafe {
        (*context).fault_pc = pc as u64;
        (*context).fault_signal = signal as u64;
    }
    registers[libc::REG_RIP as usize] = slot.stub.load(Ordering::Relaxed) as i64;
}

/// The cache whose code runs on this thread and has jumped to where no code is.
fn strayed(registers: &[libc::greg_t; 23], signal: libc::c_int, pc: usize) -> Option<&'static Slot> {
    /// Of a page fault's error code: it was a fetch (Intel SDM vol. 3, 4.7).
    const FETCH: i64 = 1 << 4;
    /// More than a function that translated code calls needs of the stack.
    const DEEP: u64 = 1 << 20;
    let slot = &CACHES[RUNNING.get()?];
    let fetched =
        registers[libc::REG_ERR as usize] & FETCH != 0 && registers[libc::REG_CR2 as usize] as usize == pc;
    let context: *const JitContext = std::ptr::with_exposed_provenance(slot.context.load(Ordering::Relaxed));
    // SAFETY: a registered context is there; this thread has entered its code, and has not left it.
    let host_rsp = unsafe { (*context).host_rsp };
    // A helper holds locks, and must not be cut short.
    let called = host_rsp.wrapping_sub(registers[libc::REG_RSP as usize] as u64) < DEEP;
    (signal == libc::SIGSEGV && fetched && !called).then_some(slot)
}

thread_local! {
    /// The cache whose code this thread executes.
    static RUNNING: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Registration {
    /// The number by which [`running`] knows the cache.
    pub(super) fn number(&self) -> usize {
        self.0
    }
}

/// Executes code of the cache with this number, by `enter`.
pub(super) fn running(number: usize, enter: impl FnOnce()) {
    RUNNING.set(Some(number));
    enter();
    RUNNING.set(None);
}

/// The stack that handlers run on while this thread executes translated code.
struct HandlerStack(Box<[MaybeUninit<u8>]>);

impl Drop for HandlerStack {
    fn drop(&mut self) {
        let off = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: takes our stack out of use before it is freed.
        unsafe { libc::sigaltstack(&off, std::ptr::null_mut()) };
    }
}

thread_local! {
    static PREPARED: OnceCell<HandlerStack> = const { OnceCell::new() };
}

/// Makes this thread ready for translated code, in which RSP is the guest's: signals get a stack of their own, and none
/// comes but those that the code raises.
pub(crate) fn prepare_thread() {
    PREPARED.with(|prepared| {
        prepared.get_or_init(|| {
            let mut stack = HandlerStack(Box::new_uninit_slice(STACK));
            let new =
                libc::stack_t { ss_sp: stack.0.as_mut_ptr().cast(), ss_flags: SS_AUTODISARM, ss_size: STACK };
            let mut blocked = !0u64;
            for front in &FRONTS {
                blocked &= !(1 << (front.signal() - 1));
            }
            // SAFETY: the stack lives until it is taken out of use; the mask is one word. By the system call, because
            // the C library would leave out signals that it uses itself.
            unsafe {
                libc::sigaltstack(&new, std::ptr::null_mut());
                libc::syscall(
                    libc::SYS_rt_sigprocmask,
                    libc::SIG_BLOCK,
                    &raw const blocked,
                    std::ptr::null_mut::<u64>(),
                    size_of::<u64>(),
                );
            }
            stack
        });
    });
}
