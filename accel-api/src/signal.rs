//! Handlers of signals that instructions raise, each put in front of the one that was there before.
#![allow(unsafe_code)] // signal handlers

use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// What a handler is: the signal, `siginfo_t` and `ucontext_t` (sigaction(2)).
pub type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// A handler of ours in front of what the process did on a signal before.
#[derive(Debug)]
pub struct Front {
    signal: libc::c_int,
    previous: OnceLock<Previous>,
}

/// An action that was in force.
struct Previous(libc::sigaction);

impl std::fmt::Debug for Previous {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Previous").field(&self.0.sa_sigaction).finish()
    }
}

impl Front {
    /// Nothing in front yet.
    pub const fn new(signal: libc::c_int) -> Self {
        Self { signal, previous: OnceLock::new() }
    }

    /// The signal.
    pub const fn signal(&self) -> libc::c_int {
        self.signal
    }

    /// Puts `handler` in front, on the thread's signal stack if it has one; once.
    ///
    /// # Safety
    /// The handler does only what may be done at any place of a program (signal-safety(7)).
    pub unsafe fn install(&self, handler: Handler) {
        self.previous.get_or_init(|| {
            let mut old = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: a handler of three arguments, as the caller promises; all zero is an empty mask, and an action.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(self.signal, &action, old.as_mut_ptr());
                Previous(old.assume_init())
            }
        });
    }

    /// Does what would have been done without us; if that is the default action, it is met when the instruction runs again.
    ///
    /// # Safety
    /// Called in the handler, with what it was called with.
    #[cold]
    pub unsafe fn pass_on(&self, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: an action that was in force before: a handler of three arguments if it says so.
        unsafe {
            match self.previous.get() {
                Some(Previous(old)) if ![libc::SIG_DFL, libc::SIG_IGN].contains(&old.sa_sigaction) => {
                    if old.sa_flags & libc::SA_SIGINFO != 0 {
                        std::mem::transmute::<usize, Handler>(old.sa_sigaction)(self.signal, info, context);
                    } else {
                        let call: extern "C" fn(libc::c_int) = std::mem::transmute(old.sa_sigaction);
                        call(self.signal);
                    }
                }
                _ => {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = libc::SIG_DFL;
                    libc::sigaction(self.signal, &action, std::ptr::null_mut());
                }
            }
        }
    }
}
