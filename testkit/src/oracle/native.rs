//! One instruction on the host's own processor.
//!
//! 1. The window and the code page lie at the fixed addresses of [`super::case`], which the software CPU's page tables
//!    use too. The rest of the low 4 GiB is reserved without access, so that stray addresses fault.
//! 2. [`enter`] loads the x87 and vector state with XRSTOR, then the general registers, and IRETQ loads RIP, RFLAGS and
//!    RSP at once. IRETQ is serialising, which makes code written through another mapping visible.
//! 3. Behind the instruction stands `int3`; whatever happens, a signal comes. Its handler, on a stack of its own, copies
//!    the interrupted state out of the signal frame and sends the thread to [`leave`].
//!
//! Signal handlers belong to the process and the addresses are fixed, so there is one [`Native`] at a time.
#![allow(unsafe_code)] // fixed mappings, signal handlers, and a jump into the instruction under test

use std::arch::naked_asm;
use std::ffi::c_void;
use std::io;
use std::mem::{offset_of, zeroed};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use accel_api::FpuState;

use super::case::{CODE, CODE_SIZE, Case, End, Outcome, Raised, START, State, WINDOW, WINDOW_SIZE, WRITABLE};

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
    /// Signals could not be set up.
    #[error("signal handlers: {0}")]
    Signals(io::Error),
}

const SIGNALS: [i32; 5] = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGBUS];
const ALT_STACK: usize = 128 << 10;
/// Legacy area, header and AVX in the standard format of XSAVE (Intel SDM vol. 1, 13.4).
const XSAVE_SIZE: usize = 512 + 64 + 256;

#[repr(C, align(64))]
struct Context {
    xsave: [u8; XSAVE_SIZE],
    gpr: [u64; 16],
    /// RIP, CS, RFLAGS, RSP, SS, as IRETQ pops them.
    frame: [u64; 5],
    host_rsp: u64,
    /// What the signal handler found.
    found: [i64; 23],
    found_xsave: [u8; XSAVE_SIZE],
}

static LOCK: Mutex<()> = Mutex::new(());
static CURRENT: AtomicPtr<Context> = AtomicPtr::new(null_mut());

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
    selectors: (u64, u64),
    _guard: MutexGuard<'static, ()>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
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
        let (cs, ss): (u64, u64);
        // SAFETY: reads two selectors.
        unsafe {
            std::arch::asm!("mov {0:e}, cs", "mov {1:e}, ss", out(reg) cs, out(reg) ss, options(nomem, nostack));
        }
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
            selectors: (cs, ss),
            _guard: guard,
        };
        native.map()?;
        native.catch_signals().map_err(Unavailable::Signals)?;
        Ok(native)
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
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
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

    /// Runs one case.
    pub fn run(&mut self, case: &Case) -> Outcome {
        let start = (START - CODE) as usize;
        // SAFETY: the alias covers window and code; nothing else refers to it while `self` is borrowed.
        unsafe {
            std::ptr::copy_nonoverlapping(
                case.memory.as_ptr(),
                self.window,
                WINDOW_SIZE.min(case.memory.len()),
            );
            let code = std::slice::from_raw_parts_mut(self.code.add(start), case.bytes.len());
            code.copy_from_slice(&case.bytes);
        }
        let context = &mut *self.context;
        context.gpr = case.state.gpr;
        let (cs, ss) = self.selectors;
        context.frame = [case.state.rip, cs, case.state.rflags, case.state.gpr[4], ss];
        to_xsave(&case.state.fpu, &mut context.xsave);
        let context: *mut Context = context;
        CURRENT.store(context, Ordering::Release);
        // SAFETY: the context is complete. Whatever the instruction does, it can reach nothing but the window: the
        // generator leaves out what has other effects, and addresses outside the window have no access.
        unsafe { enter(context) };
        CURRENT.store(null_mut(), Ordering::Release);
        // SAFETY: as above.
        let memory = unsafe {
            std::ptr::write_bytes(self.code.add(start), 0xcc, case.bytes.len());
            std::slice::from_raw_parts(self.window, WINDOW_SIZE).to_vec()
        };
        let (state, end) = found(&self.context);
        Outcome { end, state, memory }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        for (signal, old) in &self.old_actions {
            // SAFETY: puts back what was there.
            unsafe { libc::sigaction(*signal, old, null_mut()) };
        }
        if !self.old_actions.is_empty() {
            // SAFETY: as above.
            unsafe { libc::sigaltstack(&self.old_stack, null_mut()) };
        }
        for &(place, len) in self.mappings.iter().rev() {
            // SAFETY: mappings of ours that nothing refers to any more.
            unsafe { libc::munmap(place, len) };
        }
    }
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
extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, frame: *mut c_void) {
    // The kernel leaves AC as the instruction set it; the compiled code below may access unaligned data.
    // SAFETY: clears one flag.
    unsafe { std::arch::asm!("pushfq", "and dword ptr [rsp], {ac}", "popfq", ac = const !(1i32 << 18)) };
    let context = CURRENT.swap(null_mut(), Ordering::AcqRel);
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
        let registers = &mut frame.uc_mcontext.gregs;
        context.found.copy_from_slice(registers);
        let fp = frame.uc_mcontext.fpregs.cast::<u8>();
        save_fp(fp, &mut context.found_xsave);
        registers[libc::REG_RIP as usize] = leave as *const () as i64;
        registers[libc::REG_RSP as usize] = context.host_rsp as i64;
        registers[libc::REG_EFL as usize] = 0x202;
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

fn to_xsave(fpu: &FpuState, out: &mut [u8; XSAVE_SIZE]) {
    out.fill(0);
    out[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    out[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    out[4] = fpu.ftw;
    out[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    for (i, value) in fpu.st.iter().enumerate() {
        out[32 + 16 * i..][..10].copy_from_slice(value);
    }
    for (i, [a, b, c, d]) in fpu.ymm.iter().enumerate() {
        for (place, lane) in [(160, a), (168, b), (576, c), (584, d)] {
            out[place + 16 * i..][..8].copy_from_slice(&lane.to_le_bytes());
        }
    }
    out[512] = 7;
}

fn from_xsave(area: &[u8; XSAVE_SIZE]) -> FpuState {
    let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    let lane = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&area[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let mut fpu = FpuState::reset();
    fpu.mxcsr = lane(24) as u32;
    // A component whose bit is clear is in its initial state, whatever the area holds.
    let present = lane(512);
    fpu.xstate_bv = present & 7;
    if present & 1 != 0 {
        (fpu.fcw, fpu.fsw, fpu.ftw) = (word(0), word(2), area[4]);
        for (i, value) in fpu.st.iter_mut().enumerate() {
            value.copy_from_slice(&area[32 + 16 * i..][..10]);
        }
    }
    for (i, register) in fpu.ymm.iter_mut().enumerate() {
        if present & 2 != 0 {
            (register[0], register[1]) = (lane(160 + 16 * i), lane(168 + 16 * i));
        }
        if present & 4 != 0 {
            (register[2], register[3]) = (lane(576 + 16 * i), lane(584 + 16 * i));
        }
    }
    fpu
}

fn found(context: &Context) -> (State, End) {
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
    let mut state = State {
        gpr: ORDER.map(register),
        rip: register(libc::REG_RIP),
        rflags: register(libc::REG_EFL),
        fpu: from_xsave(&context.found_xsave),
    };
    let vector = register(libc::REG_TRAPNO);
    if vector == BREAKPOINT {
        state.rip = state.rip.wrapping_sub(1);
        return (state, End::Done);
    }
    if state.rip != START {
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
