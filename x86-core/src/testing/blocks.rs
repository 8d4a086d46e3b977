//! Random code as an executor runs it, against the same code one instruction at a time.

use accel_api::x86::{Segment, gpr};
use iced_x86::Decoder;

use super::code::{Compiler, Random, is_small};
use super::{cpu, give_host_features};
use crate::cpu::seg;
use crate::exec::sse::mxcsr;
use crate::mode::{Mode, bits};
use crate::soft::{CpuHome, Executor};
use crate::{Cpu, DataTable, Exec, vector};

/// Guest-physical pages.
const CODE: u64 = 0x1000;
const CODE_LEN: usize = 0x2000;
const DATA: u64 = 0x8000;
const DATA_LEN: usize = 0x4000;
const TABLES: u64 = 0x2_0000;
/// Where code starts in its page so that some of it crosses into the next.
const CROSSING: u64 = 0xe80;

/// Where code and data lie, and who runs it.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// For messages.
    pub name: &'static str,
    /// 0 or 3.
    pub cpl: u8,
    /// Linear address of two pages of code.
    pub code: u64,
    /// Linear address of the same code again.
    pub again: u64,
    /// Linear address of four pages of data, of which the third cannot be written.
    pub data: u64,
}

/// Code at low addresses, between 2 and 4 GiB, and in the upper half; data within reach of RIP.
pub const SCENES: [Scene; 6] = [
    Scene { name: "low supervisor", cpl: 0, code: 0x40_1000, again: 0x41_1000, data: 0x50_0000 },
    Scene { name: "low user", cpl: 3, code: 0x40_1000, again: 0x7fff_1234_5000, data: 0x50_0000 },
    Scene { name: "user at 2 GiB", cpl: 3, code: 0x9000_1000, again: 0x1000, data: 0x8800_0000 },
    Scene { name: "supervisor at 2 GiB", cpl: 0, code: 0x9000_1000, again: 0x8fff_f000, data: 0x8800_0000 },
    Scene {
        name: "high supervisor",
        cpl: 0,
        code: 0xffff_ffff_8100_0000,
        again: 0xffff_8880_0100_0000,
        data: 0xffff_ffff_8200_0000,
    },
    Scene {
        name: "top of the user half",
        cpl: 3,
        code: 0x7fff_ffff_c000,
        again: 0x7fff_7000_1000,
        data: 0x7fff_f000_0000,
    },
];

/// Maps one page.
fn map(cpu: &mut Cpu, free: &mut u64, la: u64, pa: u64, flags: u64) {
    let mut table = TABLES;
    for level in (1..4).rev() {
        let at = table + (la >> (12 + 9 * level) & 511) * 8;
        let entry: u64 = cpu.system_load(at).expect("RAM");
        table = if entry & 1 == 0 {
            *free += 0x1000;
            cpu.system_store(at, *free | 7).expect("RAM");
            *free
        } else {
            entry & !0xfff
        };
    }
    cpu.system_store(table + (la >> 12 & 511) * 8, pa | flags).expect("RAM");
}

fn prepare(scene: &Scene) -> Box<Cpu> {
    const NO_EXECUTE: u64 = 1 << 63;
    let mut cpu = cpu(Mode::Long);
    give_host_features(&mut cpu);
    let mut free = TABLES;
    let user = if scene.cpl == 3 { 4 } else { 0 };
    for page in (0..CODE_LEN as u64).step_by(0x1000) {
        for at in [scene.code, scene.again] {
            map(&mut cpu, &mut free, at + page, CODE + page, 3 | user);
        }
    }
    for page in (0..DATA_LEN as u64).step_by(0x1000) {
        let rights = if page == 0x2000 { 1 } else { 3 };
        map(&mut cpu, &mut free, scene.data + page, DATA + page, rights | user | NO_EXECUTE);
    }
    cpu.tlb.flush_all();
    cpu.cr3 = TABLES;
    cpu.cr0 |= bits::CR0_PG | bits::CR0_WP;
    if scene.cpl == 3 {
        cpu.segs = [Segment::flat(0x23, 0xc0f3); 6];
        cpu.segs[seg::CS] = Segment::flat(0x1b, 0xa0fb);
    }
    cpu.segs[seg::FS].base = scene.data + 0x400;
    cpu.segs[seg::GS].base = scene.data + 0xfc0;
    cpu.update_mode();
    // The memory map is new; an executor that sees a request would come back from every block.
    cpu.serve_memory_requests();
    assert_eq!(cpu.shared.requested(), 0);
    cpu
}

/// Writes guest-physical memory, as another processor would.
fn write(cpu: &mut Cpu, gpa: u64, bytes: &[u8]) {
    for (at, word) in (gpa..).step_by(8).zip(bytes.chunks_exact(8)) {
        let (old, new) = (cpu.read_table(at, 8), u64::from_le_bytes(word.try_into().expect("8 bytes")));
        if old != new {
            assert!(cpu.update_table(at, 8, old, new), "nobody else writes");
        }
    }
}

fn read(cpu: &Cpu, gpa: u64, len: usize) -> Vec<u8> {
    (gpa..).step_by(8).take(len / 8).flat_map(|at| cpu.read_table(at, 8).to_le_bytes()).collect()
}

/// Registers and memory from `seed`, with `code` to run at `rip`.
fn set(cpu: &mut Cpu, scene: &Scene, seed: u64, code: &[u8], rip: u64) {
    let mut random = Random(seed | 1);
    write(cpu, CODE, code);
    let data: Vec<u8> = (0..DATA_LEN).map(|_| random.next() as u8).collect();
    write(cpu, DATA, &data);
    for (n, register) in cpu.gpr.iter_mut().enumerate() {
        *register = match random.below(16) {
            0 => random.next(),
            1 => random.below(5).wrapping_sub(2),
            _ if is_small(n as u8) => random.below(200),
            _ => scene.data + random.below(0x3f00),
        };
    }
    cpu.gpr[gpr::RSP] = scene.data + 0xe00 + 8 * random.below(128);
    cpu.set_rflags(2 | random.next() & crate::alu::flag::ARITH);
    for register in cpu.vector.0.iter_mut() {
        *register = [random.next(), random.next(), random.next(), random.next()];
    }
    cpu.fpu = crate::FpuRegs::reset();
    // Rounding control, and now and then an exception that is not masked.
    let unmasked = if random.below(8) == 0 { 1 << (7 + random.below(6)) } else { 0 };
    cpu.fpu.mxcsr = (0x1f80 & !unmasked | random.next() as u32 & 0x6000) & !0x3f;
    (cpu.rip, cpu.shadow, cpu.debug_shadow, cpu.pending_debug) = (rip, false, false, 0);
    (cpu.fault_address, cpu.leave) = (0, false);
}

/// Runs one instruction at a time up to `end`, and how many; `None` if that is too far, as for a repeated instruction of 2^60
/// turns.
fn by_steps(cpu: &mut Cpu, end: u64) -> Option<(Exec, u64)> {
    for n in 0..400 {
        if cpu.rip == end {
            return Some((Ok(()), n));
        }
        if let Err(fault) = super::step(cpu) {
            return Some((Err(fault), n));
        }
    }
    None
}

/// Runs by the executor up to `end`, where a UD2 lies.
fn by_blocks<E: Executor>(cpu: &mut Cpu, executor: &mut E, end: u64) -> Exec {
    for _ in 0..1000 {
        for stale in std::mem::take(&mut cpu.stale_code) {
            executor.code_stale(stale);
        }
        assert_eq!(cpu.shared.requested(), 0, "nobody asks");
        (cpu.leave, cpu.shadow, cpu.budget) = (false, false, 1);
        match executor.execute(cpu) {
            // The UD2; or, at the end of what is mapped, that there is nothing.
            Err(_) if cpu.rip == end => return Ok(()),
            Err(fault) => return Err(fault),
            Ok(()) => {}
        }
    }
    panic!("still at {:#x}", cpu.rip);
}

/// Some instructions, and jumps ahead among them.
fn program(random: &mut Random, compiler: &Compiler) -> Program {
    let n = if random.below(16) == 0 { 30 + random.below(40) } else { 1 + random.below(10) };
    let (mut code, mut jumps) = (Vec::new(), Vec::new());
    for _ in 0..n {
        if random.below(6) == 0 {
            jumps.push(code.len() + 1);
            code.extend([0x70 | random.below(16) as u8, 0]);
        }
        code.extend(compiler.instruction(random));
    }
    for at in jumps {
        // Where a byte cannot say how far away the end is, right behind the jump.
        code[at] = u8::try_from(code.len() - at - 1).ok().filter(|d| *d < 0x80).unwrap_or(0);
    }
    // Often it ends just before the page does, or runs into the next.
    let start = match random.below(4) {
        0 => CROSSING + random.below(0x180),
        _ => random.below(0x800),
    };
    Program::new(start as usize, &code)
}

/// How much is tried, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// Programs.
    pub cases: u64,
    /// The same seed gives the same programs.
    pub seed: u64,
}

impl Campaign {
    /// `cases` from seed 1, unless BLOCKS_CASES and BLOCKS_SEED say otherwise.
    ///
    /// # Panics
    /// One of them is no number.
    pub fn of(cases: u64) -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|n| n.parse().expect("a number"));
        Self { cases: number("BLOCKS_CASES").unwrap_or(cases), seed: number("BLOCKS_SEED").unwrap_or(1) }
    }

    /// Runs random programs in `scene` by single steps and by an executor with `config`: cold, again when it knows the
    /// code, and where the code is mapped a second time. What is left behind must be the same, whether it ends or faults.
    ///
    /// # Panics
    /// It is not; or so many programs fault that little is tested.
    pub fn run<E: Executor>(&self, scene: &Scene, config: &E::Config) {
        let mut random = Random(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let compiler = Compiler {
            distance: scene.data.wrapping_sub(scene.code + 0x400) as i32,
            absolute: i32::try_from(scene.data as i64).ok(),
        };
        let mut faults = 0;
        let mut pair = None;
        for case in 0..self.cases {
            if case % 64 == 0 {
                pair = None;
            }
            let pair = pair.get_or_insert_with(|| Pair::<E>::new(scene, config));
            let program = program(&mut random, &compiler);
            let name = format!("case {case}, BLOCKS_SEED={}", self.seed);
            let end = pair.check(&name, &program, random.next(), &|_| ());
            faults += u64::from(end.is_some_and(|end| end.is_err()));
        }
        assert!(
            faults < self.cases * 3 / 4,
            "{faults} of {} programs fault: the test has lost its teeth",
            self.cases
        );
    }
}

/// Two pages of code, of which a part runs.
#[derive(Clone, Debug)]
pub struct Program {
    pages: Vec<u8>,
    start: u64,
    end: u64,
}

impl Program {
    /// `code` at an offset in its two pages, with UD2 behind it if there is room.
    ///
    /// # Panics
    /// It is longer than the pages.
    pub fn new(start: usize, code: &[u8]) -> Self {
        let mut pages = vec![0xcc; CODE_LEN];
        let end = start + code.len();
        pages[start..end].copy_from_slice(code);
        pages[end..].iter_mut().zip([0x0f, 0x0b]).for_each(|(place, byte)| *place = byte);
        Self { pages, start: start as u64, end: end as u64 }
    }

    fn text(&self, at: u64) -> String {
        let range = &self.pages[self.start as usize..self.end as usize];
        let mut text = String::new();
        for ins in Decoder::with_ip(64, range, at + self.start, crate::DECODER_OPTIONS).iter() {
            let from = ins.ip().wrapping_sub(at) as usize;
            text += &format!("  {:#x}: {:02x?} {ins}\n", ins.ip(), &self.pages[from..][..ins.len()]);
        }
        text
    }
}

/// A vCPU that is stepped, and one that an executor runs.
#[derive(Debug)]
pub struct Pair<E: Executor> {
    scene: Scene,
    reference: Box<Cpu>,
    executor: E,
    home: CpuHome,
}

impl<E: Executor> Pair<E> {
    /// Both in `scene`.
    ///
    /// # Panics
    /// The host does not give what the executor needs.
    pub fn new(scene: &Scene, config: &E::Config) -> Self {
        let mut home = E::place(prepare(scene)).expect("a place for the vCPU");
        let executor = E::new(&mut home, config).expect("an executor");
        Self { scene: *scene, reference: prepare(scene), home, executor }
    }

    /// What runs it.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    /// The vCPU that the executor runs.
    pub fn home(&mut self) -> &mut Cpu {
        &mut self.home
    }

    /// Runs `program`, which never ends, by the executor alone until something is requested.
    ///
    /// # Panics
    /// It ends by a fault.
    pub fn run_until_asked(&mut self, program: &Program, adjust: &dyn Fn(&mut Cpu)) {
        let Self { scene, executor, home, .. } = self;
        set(home, scene, 1, &program.pages, scene.code + program.start);
        adjust(home);
        mxcsr::enter(home);
        while home.shared.requested() == 0 {
            for stale in std::mem::take(&mut home.stale_code) {
                executor.code_stale(stale);
            }
            (home.leave, home.shadow, home.budget) = (false, false, 1);
            let end = executor.execute(home);
            assert_eq!(end, Ok(()), "at {:#x}", home.rip);
        }
        mxcsr::leave(home);
    }

    /// Runs `program` on registers and data from `seed`, changed by `adjust`: twice where the code is first, and twice
    /// where it is again. How it ended; `None` if it went on for too long to be compared.
    ///
    /// # Panics
    /// The two differ.
    pub fn check(
        &mut self,
        name: &str,
        program: &Program,
        seed: u64,
        adjust: &dyn Fn(&mut Cpu),
    ) -> Option<Exec> {
        let Self { scene, reference, executor, home } = self;
        let mut end = None;
        for (turn, at) in [scene.code, scene.code, scene.again, scene.again].into_iter().enumerate() {
            let last = at.wrapping_add(program.end);
            set(reference, scene, seed, &program.pages, at + program.start);
            adjust(reference);
            reference.stale_code.clear();
            reference.tlb.flush_all();
            mxcsr::enter(reference);
            let want = by_steps(reference, last);
            mxcsr::leave(reference);
            let (want, _) = want?;
            set(home, scene, seed, &program.pages, at + program.start);
            adjust(home);
            mxcsr::enter(home);
            let got = by_blocks(home, executor, last);
            mxcsr::leave(home);
            compare(reference, home, want, got, &|| {
                format!("{}, {name}, turn {turn}:\n{}", scene.name, program.text(at))
            });
            end = Some(want);
        }
        end
    }
}

fn compare(want: &mut Cpu, got: &mut Cpu, want_end: Exec, got_end: Exec, text: &dyn Fn() -> String) {
    assert_eq!(got_end, want_end, "at {:#x}, expected {:#x}: {}", got.rip, want.rip, text());
    if want_end.is_err_and(|fault| fault.vector() == vector::PF) {
        assert_eq!(got.fault_address, want.fault_address, "CR2: {}", text());
    }
    for n in 0..16 {
        assert!(
            got.gpr[n] == want.gpr[n],
            "r{n}: {:#x}, expected {:#x}: {}",
            got.gpr[n],
            want.gpr[n],
            text()
        );
        let (g, w) = (got.vector.0[n], want.vector.0[n]);
        assert!(g == w, "ymm{n}: {g:x?}, expected {w:x?}: {}", text());
    }
    assert_eq!((got.rip, got.rflags()), (want.rip, want.rflags()), "RIP, RFLAGS: {}", text());
    assert_eq!(got.fpu.mxcsr, want.fpu.mxcsr, "MXCSR: {}", text());
    assert_eq!((got.segs, got.cpl), (want.segs, want.cpl), "segments, CPL: {}", text());
    assert_eq!(got.nmi_masked, want.nmi_masked, "NMIs: {}", text());
    let table = DataTable::of(got.tlb_mode());
    assert!(got.strict || got.data_table == table, "the wrong TLB: {}", text());
    for (at, len) in [(DATA, DATA_LEN), (CODE, CODE_LEN)] {
        let (g, w) = (read(got, at, len), read(want, at, len));
        let differs = g.iter().zip(&w).position(|(g, w)| g != w);
        assert!(differs.is_none(), "memory at {:#x}: {}", at + differs.unwrap_or(0) as u64, text());
    }
}
