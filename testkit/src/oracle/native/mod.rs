//! One instruction on the host's own processor.
//!
//! 1. The window and the code page lie at the fixed addresses of [`super::case`], which the software CPU's page tables
//!    use too. The rest of the low 4 GiB is reserved without access, so that stray addresses fault.
//! 2. `enter` loads the x87 and vector state with XRSTOR, then the general registers, and IRETQ loads RIP, RFLAGS and
//!    RSP at once. IRETQ is serialising, which makes code written through another mapping visible.
//! 3. Code of 32 bits runs in the kernel's segment for it, code of 16 bits in one of an LDT (`ldt`). IRETQ leads to a
//!    stub there, which loads SS:ESP as a whole (IRETQ leaves half of ESP alone when SS is a 16-bit segment), and
//!    jumps on.
//! 4. Behind the instruction stands `int3`; whatever happens, a signal comes. Its handler, on a stack of its own, copies
//!    the interrupted state out of the signal frame and sends the thread back.
//!
//! Signal handlers belong to the process and the addresses are fixed, so there is one [`Native`] at a time.
#![allow(unsafe_code)] // fixed mappings, signal handlers, and a jump into the instruction under test

mod enter;
mod ldt;
mod watchdog;
mod xsave;

use std::ffi::c_void;
use std::io;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::case::{
    CODE, CODE_SIZE, Case, CodeSize, End, Outcome, Raised, START, STUB, STUB_SIZE, State, WINDOW,
    WINDOW_SIZE, WRITABLE, seg,
};
use super::segments::{CODE32, CODE64, DATA};
use enter::{Context, HANGS, go, on_signal};
use watchdog::Watchdog;
use xsave::{from_xsave, to_xsave};

/// Why instructions cannot be run natively here.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The processor or its kernel has no XSAVE.
    #[error("the host has no XSAVE")]
    Xsave,
    /// The low 4 GiB of the address space cannot be had.
    #[error("the low 4 GiB of the address space cannot be reserved: {0}")]
    Low(io::Error),
    /// A mapping was refused; for the code page this is a host that forbids executable mappings of new code.
    #[error("the {what} cannot be mapped: {source}")]
    Map {
        /// Which.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// Code of 32 bits cannot be run.
    #[error("the kernel has no code segment of 32 bits for programs")]
    Compatibility,
    /// No LDT, and so no code of 16 bits and no segments with limits.
    #[error("modify_ldt: {0}")]
    Ldt(io::Error),
    /// Signals could not be set up.
    #[error("signal handlers: {0}")]
    Signals(io::Error),
}

const SIGNALS: [i32; 6] =
    [libc::SIGTRAP, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGBUS, watchdog::SIGNAL];
const ALT_STACK: usize = 128 << 10;

static LOCK: Mutex<()> = Mutex::new(());

/// The host's processor, ready to run cases on this thread.
#[derive(Debug)]
pub struct Native {
    context: Box<Context>,
    window: *mut u8,
    code: *mut u8,
    mappings: Vec<(*mut c_void, usize)>,
    old_actions: Vec<(i32, libc::sigaction)>,
    old_stack: libc::stack_t,
    _stack: Box<[u8]>,
    ldt: bool,
    watchdog: Option<Watchdog>,
    _guard: MutexGuard<'static, ()>,
}

impl Native {
    /// Sets up mappings, and signal handling for this thread. Waits while another thread has one.
    ///
    /// # Errors
    /// Why the host does not allow it.
    pub fn new() -> Result<Self, Unavailable> {
        if !std::arch::is_x86_feature_detected!("xsave") {
            return Err(Unavailable::Xsave);
        }
        let guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: all fields are plain data for which zeros are valid.
        let (context, old_stack) = unsafe { (Box::new(zeroed::<Context>()), zeroed()) };
        let mut native = Self {
            context,
            window: null_mut(),
            code: null_mut(),
            mappings: Vec::new(),
            old_actions: Vec::new(),
            old_stack,
            _stack: vec![0; ALT_STACK].into_boxed_slice(),
            ldt: false,
            watchdog: None,
            _guard: guard,
        };
        native.map()?;
        native.catch_signals().map_err(Unavailable::Signals)?;
        native.watchdog = Some(Watchdog::new().map_err(Unavailable::Signals)?);
        Ok(native)
    }

    /// Makes code of `size` possible.
    ///
    /// # Errors
    /// Why the host does not allow it.
    pub fn enable(&mut self, size: CodeSize) -> Result<(), Unavailable> {
        if size == CodeSize::Bits64 {
            return Ok(());
        }
        if !ldt::has_code32() {
            return Err(Unavailable::Compatibility);
        }
        if !self.ldt {
            ldt::install().map_err(Unavailable::Ldt)?;
            self.ldt = true;
        }
        Ok(())
    }

    fn map(&mut self) -> Result<(), Unavailable> {
        // SAFETY: the name is NUL-terminated.
        let fd = unsafe { libc::memfd_create(c"oracle".as_ptr(), libc::MFD_CLOEXEC) };
        let error = |what| move |source| Unavailable::Map { what, source };
        if fd < 0 {
            return Err(error("memory")(io::Error::last_os_error()));
        }
        let result = self.map_file(fd);
        // SAFETY: the descriptor is ours; mappings keep the memory.
        unsafe { libc::close(fd) };
        result
    }

    fn map_file(&mut self, fd: i32) -> Result<(), Unavailable> {
        const LOW: u64 = 1 << 16;
        let error = |what| move |source| Unavailable::Map { what, source };
        let total = WINDOW_SIZE + CODE_SIZE;
        // SAFETY: a new file of ours.
        if unsafe { libc::ftruncate(fd, total as i64) } < 0 {
            return Err(error("memory")(io::Error::last_os_error()));
        }
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let fixed_new = libc::MAP_FIXED_NOREPLACE;
        let low_size = (1 << 32) - LOW as usize;
        self.mmap(LOW, low_size, libc::PROT_NONE, reserve | fixed_new, -1, 0).map_err(Unavailable::Low)?;
        let (shared, fixed) = (libc::MAP_SHARED, libc::MAP_SHARED | libc::MAP_FIXED);
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let alias = self.mmap(0, total, rw, shared, fd, 0).map_err(error("memory"))?;
        self.window = alias;
        self.code = alias.wrapping_add(WINDOW_SIZE);
        self.mmap(WINDOW, WRITABLE, rw, fixed, fd, 0).map_err(error("window"))?;
        let rest = WINDOW_SIZE - WRITABLE;
        self.mmap(WINDOW + WRITABLE as u64, rest, libc::PROT_READ, fixed, fd, WRITABLE)
            .map_err(error("read-only page"))?;
        let rx = libc::PROT_READ | libc::PROT_EXEC;
        self.mmap(CODE, CODE_SIZE, rx, fixed, fd, WINDOW_SIZE).map_err(error("code page"))?;
        // Present in the host's page tables from now on, so that error codes are those of our protections.
        // SAFETY: all of it was just mapped readable, and the alias writable.
        unsafe {
            std::ptr::write_bytes(self.code, 0xcc, CODE_SIZE);
            for page in 0..WINDOW_SIZE / 4096 {
                let at = (WINDOW as usize + page * 4096) as *mut u8;
                let value = at.read_volatile();
                if page * 4096 < WRITABLE {
                    at.write_volatile(value);
                }
            }
            (CODE as *const u8).read_volatile();
        }
        Ok(())
    }

    /// Gives up some of what is kept free of memory around the window, and far from it, for an executor that needs memory
    /// below 2 GiB.
    pub fn leave_room(&mut self) {
        // SAFETY: reserved by us and not used.
        unsafe { libc::munmap(0x7000_0000 as *mut c_void, 64 << 20) };
    }

    fn mmap(
        &mut self,
        at: u64,
        len: usize,
        prot: i32,
        flags: i32,
        fd: i32,
        offset: usize,
    ) -> io::Result<*mut u8> {
        // SAFETY: fixed addresses are only within the range reserved first, which was free.
        let place = unsafe { libc::mmap(at as *mut c_void, len, prot, flags, fd, offset as i64) };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.mappings.push((place, len));
        // Kernels that do not know MAP_FIXED_NOREPLACE take the address as a hint.
        if at != 0 && place as u64 != at {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(place.cast())
    }

    fn catch_signals(&mut self) -> io::Result<()> {
        let stack =
            libc::stack_t { ss_sp: self._stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: self._stack.len() };
        // SAFETY: the stack lives as long as `self`, whose drop takes it away.
        if unsafe { libc::sigaltstack(&stack, &mut self.old_stack) } < 0 {
            return Err(io::Error::last_os_error());
        }
        for signal in SIGNALS {
            // SAFETY: zeros are a valid sigaction; the handler has the signature that SA_SIGINFO asks for.
            unsafe {
                let mut action: libc::sigaction = zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
                libc::sigemptyset(&mut action.sa_mask);
                let mut old = zeroed();
                if libc::sigaction(signal, &action, &mut old) < 0 {
                    return Err(io::Error::last_os_error());
                }
                self.old_actions.push((signal, old));
            }
        }
        Ok(())
    }

    fn put_signals_back(&mut self) {
        for (signal, old) in &self.old_actions {
            // SAFETY: puts back what was there.
            unsafe { libc::sigaction(*signal, old, null_mut()) };
        }
        if !self.old_actions.is_empty() {
            // SAFETY: as above.
            unsafe { libc::sigaltstack(&self.old_stack, null_mut()) };
        }
        self.old_actions.clear();
    }

    /// Does something with the signals, their stack and the thread's mask as they were before: an executor has its own.
    pub fn stand_aside<T>(&mut self, work: impl FnOnce() -> T) -> T {
        // SAFETY: both sets are ours.
        let before = unsafe {
            let (mut watchdog, mut before) = (zeroed(), zeroed());
            libc::sigemptyset(&mut watchdog);
            libc::sigaddset(&mut watchdog, libc::SIGVTALRM);
            libc::pthread_sigmask(libc::SIG_BLOCK, &watchdog, &mut before);
            before
        };
        self.put_signals_back();
        let done = work();
        self.catch_signals().expect("signals that could be caught before");
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, null_mut()) };
        done
    }

    /// Runs one case.
    pub fn run(&mut self, case: &Case) -> Outcome {
        loop {
            let outcome = self.attempt(case);
            // The way back from a handler does not restore all flags: a case in which the watchdog came counts only
            // when it came to stay.
            if self.context.ticks == 0 || outcome.end == End::Hang {
                return outcome;
            }
        }
    }

    fn attempt(&mut self, case: &Case) -> Outcome {
        let start = (START - CODE) as usize;
        let stub = case.stub();
        // SAFETY: the alias covers window and code; nothing else refers to it while `self` is borrowed.
        unsafe {
            std::ptr::copy_nonoverlapping(
                case.memory.as_ptr(),
                self.window,
                WINDOW_SIZE.min(case.memory.len()),
            );
            let code = std::slice::from_raw_parts_mut(self.code.add(start), case.bytes.len());
            code.copy_from_slice(&case.bytes);
            std::slice::from_raw_parts_mut(self.code.add((STUB - CODE) as usize), STUB_SIZE)
                .copy_from_slice(&stub);
        }
        let context = &mut *self.context;
        context.gpr = case.state.gpr;
        let selectors = &case.state.selectors;
        context.selectors = [selectors[seg::ES], selectors[seg::DS], selectors[seg::GS]];
        let (rip, cs, ss) = match case.state.size() {
            CodeSize::Bits64 => (case.state.rip, CODE64, selectors[seg::SS]),
            _ => (STUB, CODE32, DATA),
        };
        context.frame = [rip, cs.into(), case.state.rflags, case.state.gpr[4], ss.into()];
        to_xsave(&case.state.fpu, &mut context.xsave);
        // SAFETY: the context is complete. Whatever the instruction does, it can reach nothing but the window: the
        // generator leaves out what has other effects, and addresses outside the window have no access.
        unsafe { go(context) };
        // SAFETY: as above.
        let memory = unsafe {
            std::ptr::write_bytes(self.code.add(start), 0xcc, case.bytes.len());
            std::slice::from_raw_parts(self.window, WINDOW_SIZE).to_vec()
        };
        let (state, end) = found(&self.context, case);
        Outcome { end, state, memory }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if self.ldt {
            // A process that may have an LDT may empty it.
            let _ = ldt::remove();
        }
        self.watchdog = None;
        self.put_signals_back();
        for &(place, len) in self.mappings.iter().rev() {
            // SAFETY: mappings of ours that nothing refers to any more.
            unsafe { libc::munmap(place, len) };
        }
    }
}

fn found(context: &Context, case: &Case) -> (State, End) {
    use libc::{
        REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RAX, REG_RBP, REG_RBX,
        REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP,
    };
    const ORDER: [i32; 16] = [
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10,
        REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
    ];
    const BREAKPOINT: u64 = 3;
    const PAGE_FAULT: u64 = 14;
    let register = |index: i32| context.found[index as usize] as u64;
    let [es, ds, fs, gs] = context.found_selectors;
    let csgsfs = register(libc::REG_CSGSFS);
    let mut state = State {
        gpr: ORDER.map(register),
        rip: register(libc::REG_RIP),
        rflags: register(libc::REG_EFL),
        selectors: [es, csgsfs as u16, (csgsfs >> 48) as u16, ds, fs, gs],
        fpu: from_xsave(&context.found_xsave),
    };
    if context.ticks >= HANGS {
        return (state, End::Hang);
    }
    let vector = register(libc::REG_TRAPNO);
    if vector == BREAKPOINT {
        state.rip = state.rip.wrapping_sub(1);
        return (state, End::Done);
    }
    if (state.rip, state.selectors[seg::CS]) != (case.state.rip, case.state.selectors[seg::CS]) {
        // A branch has finished, and its target cannot be fetched.
        return (state, End::Done);
    }
    let fault = vector == PAGE_FAULT;
    let raised = Raised {
        vector: vector as u8,
        error: register(libc::REG_ERR) as u32,
        address: if fault { register(libc::REG_CR2) } else { 0 },
    };
    (state, End::Fault(raised))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::segments::{CODE16, DATA16};

    fn case(bytes: &[u8]) -> Case {
        Case { bytes: bytes.to_vec(), state: State::new(), memory: vec![0; WINDOW_SIZE] }
    }

    #[test]
    fn state_goes_in_and_comes_out() {
        let Ok(mut native) = Native::new() else { return };
        let mut nop = case(&[0x90]);
        nop.state.gpr = std::array::from_fn(|i| 0x0111_2222_3333_4444 * i as u64);
        nop.state.rflags = 0x202 | 0x8d5 | 1 << 10;
        nop.state.fpu.st = std::array::from_fn(|i| [i as u8 + 1; 10]);
        nop.state.fpu.ymm = std::array::from_fn(|i| [i as u64, 2, 3, 4]);
        (nop.state.fpu.fsw, nop.state.fpu.ftw, nop.state.fpu.fcw) = (5 << 11, 0xa5, 0xc7f);
        nop.state.fpu.mxcsr = 0x9fa1;
        nop.state.fpu.xstate_bv = 7;
        for _ in 0..3 {
            let out = native.run(&nop);
            assert_eq!(out.end, End::Done);
            assert_eq!(out.state, State { rip: START + 1, ..nop.state.clone() });
        }
    }

    #[test]
    fn faults_have_vector_and_address() {
        let Ok(mut native) = Native::new() else { return };
        let mut load = case(&[0x8b, 0x03]); // mov eax, [rbx]
        for (address, vector, cr2, error) in [
            (WINDOW - 4, 14, WINDOW - 4, 4),
            (WINDOW + WINDOW_SIZE as u64 - 2, 14, WINDOW + WINDOW_SIZE as u64, 4),
            (1 << 63, 13, 0, 0),
        ] {
            load.state.gpr[3] = address;
            let out = native.run(&load);
            assert_eq!(out.end, End::Fault(Raised { vector, error, address: cr2 }), "{address:#x}");
        }
        let mut store = case(&[0x89, 0x03]); // mov [rbx], eax
        store.state.gpr[3] = WINDOW + WRITABLE as u64 - 1;
        let raised = Raised { vector: 14, error: 7, address: WINDOW + WRITABLE as u64 };
        assert_eq!(native.run(&store).end, End::Fault(raised));
        let divide = native.run(&case(&[0xf7, 0xf1])); // div ecx
        assert_eq!(divide.end, End::Fault(Raised { vector: 0, error: 0, address: 0 }));
        let undefined = native.run(&case(&[0x0f, 0x0b]));
        assert_eq!(undefined.end, End::Fault(Raised { vector: 6, error: 0, address: 0 }));
        assert_eq!(native.run(&case(&[0x90])).end, End::Done);
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let Ok(mut native) = Native::new() else { return };
        assert_eq!(native.run(&case(&[0xeb, 0xfe])).end, End::Hang);
        assert_eq!(native.run(&case(&[0x90])).end, End::Done);
    }

    #[test]
    fn code_of_other_sizes_runs() {
        let Ok(mut native) = Native::new() else { return };
        for (cs, data, size) in [(CODE32, DATA, CodeSize::Bits32), (CODE16, DATA16, CodeSize::Bits16)] {
            if native.enable(size).is_err() {
                continue;
            }
            // inc eax, which in 64-bit mode is a prefix.
            let state = State { rflags: 0x203, ..State::with_selectors([data, cs, data, data, 0, 0]) };
            let mut inc = Case { state, ..case(&[0x40]) };
            inc.state.gpr[..8].copy_from_slice(&[0x8765_ffff, 1, 2, 3, 0x1234_5678, 5, 6, 7]);
            let out = native.run(&inc);
            assert_eq!(out.end, End::Done);
            let eax = if size == CodeSize::Bits32 { 0x8766_0000 } else { 0x8765_0000 };
            assert_eq!(out.state.gpr[..8], [eax, 1, 2, 3, 0x1234_5678, 5, 6, 7]);
            assert_eq!((out.state.rip, out.state.selectors), (inc.state.rip + 1, inc.state.selectors));
            assert_eq!(native.run(&case(&[0x90])).end, End::Done);
        }
    }

    #[test]
    fn branches_end_where_they_lead() {
        let Ok(mut native) = Native::new() else { return };
        let mut jump = case(&[0xff, 0xe0]); // jmp rax
        for target in [CODE + 0x100, WINDOW + 4, 0x1234] {
            jump.state.gpr[0] = target;
            let out = native.run(&jump);
            assert_eq!((out.end, out.state.rip), (End::Done, target));
        }
    }
}
