//! Single hostile states made of a fuzzer's bytes, and a runner for them.
//!
//! 1. A [`Bench`] is one VM with one vCPU. Before each input its RAM is as at the start, so that an input does the same
//!    whenever it comes.
//! 2. A [`Target`] turns bytes into RAM contents and a state. It runs a few dozen instructions one by one, or freely until
//!    kicked, as the first byte says.
//! 3. The rules are those of [`super`]: no panic, no hang beyond a kick, no access where there is no RAM, nothing written
//!    that is read-only, and what was saved can be loaded.
//! 4. [`campaign`] makes inputs at random, and new ones of old ones, on any toolchain; `fuzz/` gives the same targets to
//!    libFuzzer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use accel_api::x86::*;
use accel_api::*;
use vm_memory::{Bytes, GuestAddress};

use super::scene::{self, Random, pick};
use super::{Bus, Counters, LAYOUT, LOW, MOVING, PATIENCE, ROM};

/// Instructions of an input that runs step by step.
const STEPS: u32 = 48;
/// An input that runs freely is kicked after this.
const SLICE: Duration = Duration::from_millis(1);
/// Bytes of the inputs that [`campaign`] makes.
const INPUT: usize = 512;

/// What an input is used for.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Changes the scene and makes the state.
    make: fn(&GuestRam, &mut Random) -> CpuState,
}

/// All targets.
pub const TARGETS: [Target; 4] = [
    Target { name: "code", make: code },
    Target { name: "paging", make: paging },
    Target { name: "descriptors", make: descriptors },
    Target { name: "load", make: load },
];

/// Random bytes where RIP points, in any mode.
fn code(ram: &GuestRam, random: &mut Random) -> CpuState {
    let state = scene::state(0, random);
    let at = state.segments.cs.base.wrapping_add(state.rip) % (LOW.1 - 256);
    for n in 0..8 {
        write(ram, at + 8 * n, random.next());
    }
    state
}

/// Tables that lead to themselves, to each other, to devices and nowhere. The first entry is sane, so that there is code
/// to run.
fn paging(ram: &GuestRam, random: &mut Random) -> CpuState {
    let mut state = scene::state(0, random);
    let table = scene::page_of(random, scene::TABLE);
    let long = state.msrs.efer != 0;
    for _ in 0..24 {
        let entry = random.below(512);
        let own = table | 0x7 | random.next() & 0x1e0;
        let value = pick(random.next(), [own, own, scene::table_entry(random), random.next()]);
        write(ram, table + 8 * entry, value);
    }
    let sane = if long { scene::SANE_PML4 + 0x1007 } else { 0xe7 | 0xe7 << 32 };
    write(ram, table, sane);
    (state.control.cr3, state.control.cr0) = (table, state.control.cr0 | 0x8000_0001);
    for register in &mut state.gpr {
        if random.one_in(2) {
            let bits = if long { 39 } else { 22 };
            *register = random.below(512) << bits | scene::address(random) & ((1 << bits) - 1);
            *register = ((*register << 16) as i64 >> 16) as u64;
        }
    }
    state
}

/// Tables of descriptors and task states at the ends of RAM, in devices, wrapping; code that looks at them.
fn descriptors(ram: &GuestRam, random: &mut Random) -> CpuState {
    const CODE: [&[u8]; 20] = [
        &[0xcd],             // int n: the next random byte
        &[0xcc],             // int3
        &[0xce],             // into
        &[0xcf],             // iret
        &[0x48, 0xcf],       // iretq
        &[0xcb],             // retf
        &[0x8e, 0xd8],       // mov ds, ax
        &[0x8e, 0xd3],       // mov ss, bx
        &[0x0f, 0x00, 0xd8], // ltr ax
        &[0x0f, 0x00, 0xd3], // lldt bx
        &[0x0f, 0x02, 0xc1], // lar eax, cx
        &[0x0f, 0x03, 0xc2], // lsl eax, dx
        &[0x0f, 0x00, 0xe0], // verr ax
        &[0xff, 0x28],       // jmp far [rax]
        &[0xff, 0x1b],       // call far [rbx]
        &[0x0f, 0x01, 0x10], // lgdt [rax]
        &[0x0f, 0x01, 0x1b], // lidt [rbx]
        &[0x0f, 0xa1],       // pop fs
        &[0xea],             // jmp far, to what follows
        &[0x0f, 0x05],       // syscall
    ];
    let mut state = scene::state(0, random);
    let edge = |random: &mut Random| {
        let near = random.below(64);
        pick(
            random.next(),
            [
                LOW.1 - near,
                ROM.0 + ROM.1 - near,
                MOVING.0 + near,
                0xfee0_0000 + 16 * near,
                0xffff_ffff - near,
                u64::MAX - near,
                0x7fff_ffff_ffff - near,
                0xffff_8000_0000_0000 + near,
                scene::address(random),
            ],
        )
    };
    for table in [&mut state.gdtr, &mut state.idtr] {
        if random.one_in(2) {
            let limit = pick(random.next(), [0, 7, 0x27, 0xfff, 0xffff, random.next() as u16]);
            *table = DescriptorTable { base: edge(random), limit };
        }
    }
    for segment in [&mut state.segments.tr, &mut state.segments.ldtr] {
        if random.one_in(2) {
            segment.base = edge(random);
            segment.limit = pick(random.next(), [0, 0x2b, 0x67, 0xffff, u32::MAX, random.next() as u32]);
        }
    }
    for register in &mut state.gpr[..4] {
        *register = pick(random.next(), [random.below(0x100), random.below(0x1_0000), edge(random)]);
    }
    let at = state.segments.cs.base.wrapping_add(state.rip) % (LOW.1 - 256);
    let mut bytes = Vec::new();
    for _ in 0..8 {
        bytes.extend_from_slice(CODE[random.below(CODE.len() as u64) as usize]);
        bytes.extend_from_slice(&random.next().to_le_bytes()[..random.below(7) as usize]);
    }
    ram.memory().write_slice(&bytes, GuestAddress(at)).expect("RAM");
    state
}

/// States that no processor could be in.
fn load(_: &GuestRam, random: &mut Random) -> CpuState {
    let mut state = scene::state(0, random);
    for _ in 0..1 + random.below(6) {
        let value = random.next() >> random.below(64);
        let CpuState { segments: s, control, debug, fpu, msrs, events, lapic, .. } = &mut state;
        match random.below(28) {
            0 => control.cr0 = value,
            1 => control.cr3 = value,
            2 => control.cr4 = value,
            3 => control.xcr0 = value,
            4 => msrs.efer = value,
            5 => state.rip = value,
            6 => state.rflags = value,
            7 => state.gdtr = DescriptorTable { base: random.next(), limit: value as u16 },
            8 => state.idtr = DescriptorTable { base: random.next(), limit: value as u16 },
            kind @ 9..=16 => {
                let all = [
                    &mut s.es,
                    &mut s.cs,
                    &mut s.ss,
                    &mut s.ds,
                    &mut s.fs,
                    &mut s.gs,
                    &mut s.ldtr,
                    &mut s.tr,
                ];
                let [mut fields, more] = [random.next(), random.next()];
                let mut field = || {
                    fields = fields.rotate_left(16);
                    fields
                };
                for (n, segment) in (9..).zip(all) {
                    if n == kind {
                        *segment = Segment {
                            selector: field() as u16,
                            base: value,
                            limit: more as u32,
                            attributes: field() as u16,
                            unusable: field() & 1 != 0,
                        };
                    }
                }
            }
            17 => debug.dr7 = value,
            18 => debug.dr6 = value,
            19 => fpu.xstate_bv = value,
            20 => fpu.mxcsr = value as u32,
            21 => msrs.pat = value,
            22 => (msrs.star, msrs.lstar) = (value, random.next()),
            23 => (msrs.sysenter_cs, msrs.sysenter_eip) = (value, random.next()),
            24 => msrs.mtrr.variable[random.below(8) as usize] = [value, random.next()],
            25 => (lapic.apic_base, lapic.apic_id) = (value, random.next() as u32),
            26 => (lapic.icr, lapic.tpr, lapic.timer_divide) = (value, value as u8, random.next() as u32),
            _ => {
                let error_code = Some(random.next() as u32);
                let kind = EventKind::Software { length: value as u8 };
                events.injected = Some(InjectedEvent { vector: random.next() as u8, kind, error_code });
            }
        }
    }
    state
}

fn write(ram: &GuestRam, at: u64, value: u64) {
    ram.memory().write_obj(value, GuestAddress(at)).expect("RAM");
}

/// A VM to run inputs on.
pub struct Bench {
    ram: Arc<GuestRam>,
    /// RAM at the start, region by region.
    before: Vec<Vec<u8>>,
    vcpu: Box<dyn Vcpu>,
    kicker: Kicker,
    counters: Arc<Counters>,
    /// See [`accel_api::AccelCaps::exact`].
    exact: bool,
    // Last, after what uses it.
    _vm: Arc<dyn AccelVm>,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").finish_non_exhaustive()
    }
}

impl Bench {
    /// One on `accel`.
    ///
    /// # Panics
    /// If the accelerator makes no VM.
    pub fn new(accel: &Arc<dyn Accelerator>) -> Self {
        let ram = Arc::new(GuestRam::new(&LAYOUT).expect("RAM"));
        let spec = VmSpec { model: Arc::new(super::model(accel, 1)), ram: ram.clone(), vcpus: 1 };
        let vm = accel.create_vm(&spec).expect("create_vm");
        vm.map(SlotId(0), &ram.regions()[0], Access::ReadWrite).expect("map");
        vm.map(SlotId(2), &ram.regions()[2], Access::ReadOnly).expect("map");
        scene::fill(&ram, &mut Random::new(1));
        let before = LAYOUT.iter().map(|&region| super::contents(&ram, region)).collect();
        let counters = Arc::new(Counters::default());
        let exact = accel.caps().exact;
        let bus = Arc::new(Bus {
            exact,
            state: AtomicU64::new(1),
            port: vm.interrupts(),
            inside: AtomicBool::new(false),
            kick: OnceLock::new(),
            counters: counters.clone(),
        });
        let vcpu = vm.bind_vcpu(&VcpuConfig { id: 0 }, bus.clone()).expect("bind_vcpu");
        bus.kick.set(vcpu.kicker()).expect("once");
        let kicker = Kicker::new(vcpu.kicker());
        Self { ram, before, vcpu, kicker, counters, exact, _vm: vm }
    }

    /// Runs one input. Whether the state could be loaded.
    ///
    /// # Panics
    /// A rule is broken. A hang aborts the process.
    pub fn run(&mut self, target: &Target, data: &[u8]) -> bool {
        self.restore();
        let (first, data) = data.split_first().unwrap_or((&0, &[]));
        let mut random = Random::from_data(data);
        let state = (target.make)(&self.ram, &mut random);
        if self.vcpu.load(&state).is_err() {
            return false;
        }
        let single_step = first & 1 == 0;
        self.vcpu.set_debug(&DebugPlan { breakpoints: Vec::new(), single_step }).expect("plan");
        self.kicker.start();
        for _ in 0..STEPS {
            match self.vcpu.run().expect("the host does not fail because of a guest") {
                Exit::Debug(_) => {}
                Exit::Kicked | Exit::TripleFault => break,
                Exit::Unsupported(_) if !self.exact => break,
                other => panic!("{other:x?}"),
            }
        }
        self.kicker.stop();
        let after = self.vcpu.save().expect("save");
        self.vcpu.load(&after).expect("a state that was saved");
        true
    }

    /// Makes RAM what it was, and sees to it that nothing was written where it may not be.
    fn restore(&mut self) {
        const PAGE: usize = PAGE_SIZE as usize;
        let mut page = [0; PAGE];
        for (&(at, _), before) in LAYOUT.iter().zip(&self.before) {
            let writable = at == LOW.0;
            for (at, before) in (at..).step_by(PAGE).zip(before.chunks(PAGE)) {
                self.ram.memory().read_slice(&mut page, GuestAddress(at)).expect("RAM");
                if page[..] != *before {
                    assert!(writable, "the guest wrote to {at:#x}, where it may not");
                    self.ram.memory().write_slice(before, GuestAddress(at)).expect("RAM");
                }
            }
        }
    }

    /// Accesses that reached devices so far.
    pub fn device_accesses(&self) -> u64 {
        self.counters.bus.load(Ordering::Relaxed)
    }
}

/// Kicks a vCPU that runs for a slice, again and again, and gives up on one that does not mind.
struct Kicker {
    /// Number of the input under way; even between inputs.
    turn: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kicker {
    fn new(kick: Arc<dyn Kick>) -> Self {
        let (turn, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (watched, end) = (turn.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            let (mut seen, mut since) = (0, Instant::now());
            while !end.load(Ordering::Relaxed) {
                std::thread::sleep(SLICE);
                let now = watched.load(Ordering::Relaxed);
                if now.is_multiple_of(2) || now != seen {
                    (seen, since) = (now, Instant::now());
                    continue;
                }
                kick.kick();
                if since.elapsed() > PATIENCE {
                    #[allow(clippy::print_stderr)] // a thread that hangs cannot be failed otherwise
                    {
                        eprintln!("the vCPU does not return when it is kicked");
                    }
                    std::process::abort();
                }
            }
        });
        Self { turn, ended, thread: Some(thread) }
    }

    fn start(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    fn stop(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a campaign did.
#[derive(Debug, Default)]
pub struct Campaign {
    /// Inputs run.
    pub inputs: u64,
    /// Inputs whose state could not be loaded.
    pub refused: u64,
    /// Accesses that reached devices.
    pub device_accesses: u64,
}

/// Inputs of each target in a [`suite`] that is not told how long to run.
const SUITE_INPUTS: u64 = 20_000;

/// A [`campaign`] of a fixed number of inputs for every target under a fixed seed. FUZZ_SECONDS, FUZZ_SEED and FUZZ_TARGET
/// make it go on for longer (`cargo xtask fuzz` sets them).
///
/// # Panics
/// As [`campaign`]; if no input of a target could be loaded; if there is no such target.
pub fn suite(accel: &Arc<dyn Accelerator>) {
    let only = std::env::var("FUZZ_TARGET").ok();
    let chosen: Vec<_> =
        TARGETS.iter().filter(|target| only.as_ref().is_none_or(|name| name == target.name)).collect();
    assert!(!chosen.is_empty(), "no target is called {only:?}");
    let seed = super::setting("FUZZ_SEED").unwrap_or(1);
    for target in &chosen {
        let (time, most) = match super::setting("FUZZ_SECONDS") {
            Some(seconds) => (Duration::from_secs(seconds) / chosen.len() as u32, u64::MAX),
            None => (Duration::from_secs(120), SUITE_INPUTS),
        };
        let report = campaign(accel, target, seed, time, most);
        #[allow(clippy::print_stderr)] // for whoever runs it for hours
        {
            eprintln!("{} (seed {seed}): {report:?}", target.name);
        }
        assert!(report.inputs > report.refused, "{}: no state is loaded", target.name);
    }
}

/// Runs inputs of `target` made from `seed` until `time` has passed or `most` have run. Input `n` depends on the seed and
/// `n` alone; a panic names it.
///
/// # Panics
/// A rule is broken.
pub fn campaign(
    accel: &Arc<dyn Accelerator>,
    target: &Target,
    seed: u64,
    time: Duration,
    most: u64,
) -> Campaign {
    let mut bench = Bench::new(accel);
    let start = Instant::now();
    let mut report = Campaign::default();
    while report.inputs < most && start.elapsed() < time {
        let input = input(seed, report.inputs);
        let named = Named { target: target.name, seed, number: report.inputs };
        if !bench.run(target, &input) {
            report.refused += 1;
        }
        drop(named);
        report.inputs += 1;
    }
    report.device_accesses = bench.device_accesses();
    report
}

/// Input `number`: random bytes, words of which are often small, or extremes, as numbers in an encoding are.
fn input(seed: u64, number: u64) -> Vec<u8> {
    let mut random = Random::new(seed.rotate_left(32) ^ number.wrapping_mul(0xd134_2543_de82_ef95));
    let mut bytes = Vec::with_capacity(INPUT);
    // One in eight runs freely: a slice takes as long as many inputs that run step by step.
    bytes.push(u8::from(random.one_in(8)));
    while bytes.len() < INPUT {
        let word = match random.below(8) {
            0 => random.below(16),
            1 => u64::MAX - random.below(16),
            2 => 1 << random.below(64),
            _ => random.next(),
        };
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Tells on the way out of a panic which input it was.
struct Named {
    target: &'static str,
    seed: u64,
    number: u64,
}

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(clippy::print_stderr)] // what a failure leaves behind
            {
                eprintln!("target {}, seed {}, input {}", self.target, self.seed, self.number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_comes_first_and_inputs_follow_from_their_number() {
        let mut random = Random::from_data(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
        assert_eq!((random.next(), random.next()), (1, 0x102));
        assert_ne!(random.next(), random.next());
        assert_eq!(input(3, 7), input(3, 7));
        assert_ne!(input(3, 7), input(3, 8));
    }
}
