//! The chipset wired as a machine wires it, and used by several threads at once: nobody may wait for ever.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use accel_api::MsiMessage;
use devices::bus::PioBus;
use devices::ioapic::{Ioapic, IoapicVersion};
use devices::output::OutputQueue;
use devices::pic::Pic;
use devices::pit::{PIT_IRQ, PIT_PORT, PORT_61, Pit};
use devices::rtc::{CmosConfig, RTC_IRQ, RTC_PORT, Rtc};
use devices::uart::{COM1_IRQ, COM1_PORT, Uart};
use devices::{Clock, IoapicHost, IrqFanout, IrqLine, MmioDevice, MsiSender, TimedDevice, TimerHost};

#[derive(Debug)]
struct HostClock(Instant);

impl Clock for HostClock {
    fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// A timer thread that holds its lock while it asks for deadlines, the least kind one.
#[derive(Debug, Default)]
struct Timers {
    devices: Mutex<Vec<Arc<dyn TimedDevice>>>,
    wake: Condvar,
}

impl TimerHost for Timers {
    fn rearm(&self) {
        let _devices = self.devices.lock().unwrap();
        self.wake.notify_all();
    }
}

impl Timers {
    fn run(&self, clock: &HostClock, stop: &AtomicBool) {
        let mut devices = self.devices.lock().unwrap();
        while !stop.load(SeqCst) {
            let now = clock.now();
            for device in devices.iter().filter(|d| d.deadline().is_some_and(|at| at <= now)) {
                device.expire(now);
            }
            let next = devices.iter().filter_map(|d| d.deadline()).min().unwrap_or(u64::MAX);
            let wait = Duration::from_nanos(next.saturating_sub(now)).min(Duration::from_millis(5));
            devices = self.wake.wait_timeout(devices, wait).unwrap().0;
        }
    }
}

/// Local APIC and INTR wire in one: counts what arrives under a lock of its own.
#[derive(Debug, Default)]
struct Cpu {
    messages: Mutex<Vec<u32>>,
    /// Messages of PIT and RTC.
    ticks: AtomicU64,
    intr: AtomicBool,
}

impl IoapicHost for Cpu {}

impl MsiSender for Cpu {
    fn send(&self, MsiMessage { data, .. }: MsiMessage) {
        if matches!(data & 0xff, 0x42 | 0x48) {
            self.ticks.fetch_add(1, SeqCst);
        }
        self.messages.lock().unwrap().push(data);
    }
}

impl IrqLine for Cpu {
    fn set(&self, level: bool) {
        self.intr.store(level, SeqCst);
    }
}

struct Chipset {
    cpu: Arc<Cpu>,
    pic: Arc<Pic>,
    ioapic: Arc<Ioapic>,
    uart: Arc<Uart>,
    timers: Arc<Timers>,
    clock: Arc<HostClock>,
    bus: PioBus,
}

fn chipset() -> Chipset {
    let cpu = Arc::new(Cpu::default());
    let (pic, ioapic) = (Pic::new(cpu.clone()), Ioapic::new(IoapicVersion::V20, cpu.clone()));
    let clock = Arc::new(HostClock(Instant::now()));
    let timers = Arc::new(Timers::default());
    // ISA lines reach both controllers; IRQ 0 is pin 2 of the IOAPIC.
    let line = |irq: u8| -> Arc<dyn IrqLine> {
        Arc::new(IrqFanout::new(vec![pic.line(irq), ioapic.line(if irq == 0 { 2 } else { irq })]))
    };
    let pit = Pit::new(clock.clone(), line(PIT_IRQ), timers.clone());
    let config = CmosConfig { ram_below_4g: 1 << 28, ram_above_4g: 0, cpus: 2 };
    let rtc = Rtc::new(&config, Duration::ZERO, clock.clone(), line(RTC_IRQ), timers.clone());
    let uart = Uart::new("uart0", COM1_PORT, line(COM1_IRQ), OutputQueue::new("out", io::sink()).unwrap());
    timers.devices.lock().unwrap().extend([pit.clone() as Arc<dyn TimedDevice>, rtc.clone()]);
    let bus = PioBus::new();
    for port in Pic::PORTS {
        bus.add(port, 2, pic.clone()).unwrap();
    }
    bus.add(PIT_PORT, 4, pit.clone()).unwrap().add(PORT_61, 1, pit).unwrap();
    bus.add(RTC_PORT, 2, rtc).unwrap().add(COM1_PORT, 8, uart.clone()).unwrap();
    Chipset { cpu, pic, ioapic, uart, timers, clock, bus }
}

impl Chipset {
    fn entry(&self, pin: u64, low: u64) {
        self.ioapic.mmio_write(0, 4, 0x10 + 2 * pin);
        self.ioapic.mmio_write(0x10, 4, low);
    }

    fn init(&self) {
        for (port, vector, wiring) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
            for (port, value) in
                [(port, 0x11), (port + 1, vector), (port + 1, wiring), (port + 1, 1), (port + 1, 0)]
            {
                self.bus.write(port, 1, value, &Arc::default());
            }
        }
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
            self.bus.write(port, 1, value, &Arc::default()); // 1000 Hz
        }
        for (port, value) in [(0x70, 0x0b), (0x71, 0x42), (0x3fa, 1), (0x3fc, 0x0b), (0x3f9, 7)] {
            self.bus.write(port, 1, value, &Arc::default()); // RTC periodic at 1024 Hz, UART interrupts
        }
        self.entry(2, 0x42);
        self.entry(4, 0x8044); // level, so that EOI raises it again
        self.entry(8, 0x48);
    }

    /// What an interrupt handler does, for either controller.
    fn serve(&self) {
        if self.cpu.intr.load(SeqCst) {
            self.pic.ack();
            self.bus.write(0xa0, 1, 0x20, &Arc::default());
            self.bus.write(0x20, 1, 0x20, &Arc::default());
        }
        let messages = std::mem::take(&mut *self.cpu.messages.lock().unwrap());
        for data in messages {
            if data & 0xff == 0x48 {
                self.bus.write(0x70, 1, 0x0c, &Arc::default());
                self.bus.read(0x71, 1);
            }
            self.ioapic.eoi(data as u8);
        }
    }
}

#[test]
fn threads_never_wait_for_each_other_for_ever() {
    let chipset = Arc::new(chipset());
    chipset.init();
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU32::new(0));
    let (done, finished) = mpsc::channel();
    let mut jobs: Vec<Box<dyn FnMut() + Send>> = Vec::new();
    for _ in 0..2 {
        let (c, rounds) = (chipset.clone(), rounds.clone());
        jobs.push(Box::new(move || {
            c.serve();
            c.bus.write(COM1_PORT, 1, 0x2e, &Arc::default());
            c.bus.read(COM1_PORT + 2, 1);
            c.bus.read(COM1_PORT, 1);
            c.bus.read(PORT_61, 1);
            c.bus.write(0x43, 1, 0x00, &Arc::default());
            c.bus.read(0x40, 2);
            rounds.fetch_add(1, SeqCst);
        }));
    }
    let c = chipset.clone();
    jobs.push(Box::new(move || {
        c.uart.offer(b"input");
        thread::yield_now();
    }));
    let (c, s) = (chipset.clone(), stop.clone());
    jobs.push(Box::new(move || c.timers.run(&c.clock, &s)));
    let count = jobs.len();
    for mut job in jobs {
        let (stop, done) = (stop.clone(), done.clone());
        thread::spawn(move || {
            while !stop.load(SeqCst) {
                job();
            }
            done.send(()).ok();
        });
    }
    // As long as it takes: the host may be busy.
    let end = Instant::now() + Duration::from_secs(20);
    let progress = || (rounds.load(SeqCst), chipset.cpu.ticks.load(SeqCst));
    while progress().0 < 10_000 || progress().1 < 300 {
        assert!(Instant::now() < end, "stuck at {:?} rounds and ticks", progress());
        thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, SeqCst);
    for _ in 0..count {
        finished.recv_timeout(Duration::from_secs(20)).expect("a thread hangs");
    }
}
