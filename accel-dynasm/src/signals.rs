//! Exceptions that guest instructions raise in the host.
//!
//! Division errors and misaligned vector operands come as signals, on a stack of their own: RSP is the guest's. The handler
//! only replaces the address at which execution goes on, by that of a stub.
#![allow(unsafe_code)] // signal handlers

use std::cell::OnceCell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use accel_api::AccelError;

use crate::engine::Engine;
use crate::home::Home;

/// Code caches at a time.
const SLOTS: usize = 1024;
/// What guest instructions can raise, from the host's kernel.
const SIGNALS: [libc::c_int; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE];
/// The stack is taken out of use while a handler runs, whatever RSP was (sigaltstack(2)).
const SS_AUTODISARM: libc::c_int = 1 << 31;
const STACK: usize = 64 << 10;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    stubs: [AtomicUsize; 2],
    home: AtomicUsize,
}

static CACHES: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        stubs: [AtomicUsize::new(0), AtomicUsize::new(0)],
        home: AtomicUsize::new(0),
    }
}; SLOTS];
static IN_USE: Mutex<()> = Mutex::new(());
/// Slots that have ever been in use.
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// A code cache that the handler knows.
#[derive(Debug)]
pub(crate) struct Registration(usize);

/// Makes code in `cache` known. `stubs` are where a fault goes on, without and with vector registers.
pub(crate) fn register(
    cache: Range<usize>,
    stubs: [usize; 2],
    home: *mut Home,
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
    for (place, stub) in slot.stubs.iter().zip(stubs) {
        place.store(stub, Ordering::Relaxed);
    }
    slot.home.store(home.expose_provenance(), Ordering::Relaxed);
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

/// What the signals did before.
static PREVIOUS: [Mutex<Option<libc::sigaction>>; SIGNALS.len()] =
    [const { Mutex::new(None) }; SIGNALS.len()];

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (signal, previous) in SIGNALS.into_iter().zip(&PREVIOUS) {
            // SAFETY: a valid handler for a signal; all zero is an empty mask.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as extern "C" fn(_, _, _) as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                let mut old = MaybeUninit::<libc::sigaction>::uninit();
                if libc::sigaction(signal, &action, old.as_mut_ptr()) == 0 {
                    *previous.lock().unwrap_or_else(PoisonError::into_inner) = Some(old.assume_init());
                }
            }
        }
    });
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `ucontext_t`.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let pc = registers[libc::REG_RIP as usize] as usize;
    for slot in &CACHES[..HIGHEST.load(Ordering::Acquire)] {
        let end = slot.end.load(Ordering::Acquire);
        if pc >= end || pc < slot.start.load(Ordering::Relaxed) {
            continue;
        }
        let home: *mut Home = std::ptr::with_exposed_provenance_mut(slot.home.load(Ordering::Relaxed));
        // SAFETY: a registered home is there, and its code runs on this thread, which is here now.
        let context = unsafe { &mut (*home).context };
        // SAFETY: likewise, its engine, which was stored as translated code was entered and does not change while that
        // runs.
        let engine = unsafe { &*std::ptr::with_exposed_provenance::<Engine>(context.engine as usize) };
        let Some((block, _)) = engine.at_fault(pc as u64) else { break };
        let vectors = block.mode.vectors();
        context.fault_pc = pc as u64;
        registers[libc::REG_RIP as usize] = slot.stubs[usize::from(vectors)].load(Ordering::Relaxed) as i64;
        return;
    }
    pass_on(signal, info, context);
}

/// A signal that is none of ours goes where it would have gone.
#[cold]
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let n = SIGNALS.iter().position(|s| *s == signal).unwrap_or(0);
    let previous = PREVIOUS[n].try_lock().ok().and_then(|p| *p);
    // SAFETY: an action that was in force before; a handler of three arguments if it says so.
    unsafe {
        match previous {
            Some(old) if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN => {
                if old.sa_flags & libc::SA_SIGINFO != 0 {
                    let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(old.sa_sigaction);
                    call(signal, info, context);
                } else {
                    let call: extern "C" fn(libc::c_int) = std::mem::transmute(old.sa_sigaction);
                    call(signal);
                }
            }
            // The instruction runs again and meets the default action.
            _ => {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    }
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

/// Makes this thread ready for translated code, in which RSP is the guest's: signals get a stack of their own, and none comes
/// but those that the code raises.
pub(crate) fn prepare_thread() {
    PREPARED.with(|prepared| {
        prepared.get_or_init(|| {
            let mut stack = HandlerStack(Box::new_uninit_slice(STACK));
            let new =
                libc::stack_t { ss_sp: stack.0.as_mut_ptr().cast(), ss_flags: SS_AUTODISARM, ss_size: STACK };
            let mut blocked = !0u64;
            for signal in SIGNALS.into_iter().chain([libc::SIGILL, libc::SIGTRAP]) {
                blocked &= !(1 << (signal - 1));
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
