//! Machines on the fake backend: how guests end, pausing, wiring, what the builder refuses.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use accel_api::x86::Feature;
use accel_api::{Exit, IoSize, UnsupportedDetail};
use devices::Clock;
use vm_memory::{Bytes, GuestAddress};

use crate::fake::{FakeAccelerator, Screen, Step, guest, on, out, power_off};
use crate::memory_map::MIB;
use crate::{GuestEnd, Machine, MachineBuilder, MachineError, MemoryImage, Source};

#[test]
fn a_guest_prints_and_powers_off() {
    let screen = Screen::default();
    let machine = guest(|g| {
        assert_eq!(g.state.rip, 0x20_0150, "the state of the boot protocol is loaded");
        for byte in *b"hello" {
            out(g.bus, 0x3f8, byte);
        }
        power_off(g.bus);
        Step::Again
    })
    .console(screen.clone())
    .start()
    .unwrap();
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
    assert!(screen.text().starts_with("hello"), "{}", screen.text());
    assert_eq!((machine.wait(), machine.ended()), (GuestEnd::PowerOff, Some(GuestEnd::PowerOff)));
    assert!(matches!(machine.resume(), Err(MachineError::Ended(GuestEnd::PowerOff))));
    assert!(machine.save_vcpus().is_err(), "the vCPUs are gone");
}

#[test]
fn every_way_out_is_told_apart() {
    let ports: [(u16, u8, GuestEnd); 4] = [
        (0xcf9, 6, GuestEnd::Reset),
        (0x64, 0xfe, GuestEnd::Reset),
        (0x92, 1, GuestEnd::Reset),
        (0xf4, 42, GuestEnd::DebugExit(42)),
    ];
    for (port, value, end) in ports {
        let machine = guest(move |g| {
            out(g.bus, port, 0x02 & value);
            out(g.bus, port, value);
            Step::Halt
        });
        // The first write must not end the guest by itself at the debug-exit port.
        let machine = if port == 0xf4 {
            guest(move |g| {
                out(g.bus, port, value);
                Step::Halt
            })
        } else {
            machine
        };
        assert_eq!(machine.start().unwrap().wait(), end, "port {port:#x}");
    }
}

#[test]
fn failures_come_with_a_dump() {
    let end = guest(|g| {
        g.state.gpr[0] = 0x1234;
        Step::Exit(Exit::TripleFault)
    })
    .start()
    .unwrap()
    .wait();
    let GuestEnd::TripleFault { dump } = end else { panic!("{end:?}") };
    assert_eq!(dump.state.as_ref().map(|s| s.gpr[0]), Some(0x1234));

    let detail = UnsupportedDetail { what: "VPANDN".into(), rip: 0x10, bytes: vec![0xc5, 0x01] };
    let end = guest(move |_| Step::Exit(Exit::Unsupported(detail.clone()))).start().unwrap().wait();
    let GuestEnd::Unsupported { reason, dump: _ } = end else { panic!("{end:?}") };
    assert_eq!(reason, "VPANDN at 0x10 (bytes c5 01)");

    let end = guest(|_| Step::Fail).start().unwrap().wait();
    assert!(matches!(end, GuestEnd::HostError { dump: Some(_), .. }), "{end:?}");

    let end = guest(|_| Step::Slip).start().unwrap().wait();
    let GuestEnd::BackendBug { summary, report, dump } = end else { panic!("{end:?}") };
    assert_eq!((summary.as_str(), report.text.as_str()), ("wrong in block 7", "host code\n"));
    assert!(dump.state.is_some());

    let end = guest(|_| panic!("on purpose")).start().unwrap().wait();
    let GuestEnd::HostError { reason, dump: None } = end else { panic!("{end:?}") };
    assert!(reason.contains("panicked on vCPU 0"), "{reason}");
}

#[test]
fn one_vcpu_ends_all() {
    let machine = guest(|g| match g.id {
        3 => {
            power_off(g.bus);
            Step::Halt
        }
        // One that never halts, and some that always do.
        0 => Step::Again,
        _ => Step::Halt,
    })
    .cpus(4)
    .start()
    .unwrap();
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
}

#[test]
fn stop_ends_a_guest_that_does_nothing() {
    let machine = Arc::new(guest(|_| Step::Halt).cpus(2).start().unwrap());
    let waiter = std::thread::spawn({
        let machine = machine.clone();
        move || machine.wait()
    });
    machine.stop();
    assert_eq!(waiter.join().unwrap(), GuestEnd::Stopped);
    // Never started, dropped at once: must not hang either.
    drop(guest(|_| Step::Halt).cpus(8).build().unwrap());
}

#[test]
fn nothing_moves_while_paused_and_time_goes_on_without_a_step() {
    let count = Arc::new(AtomicU64::new(0));
    let machine = guest({
        let count = count.clone();
        move |_| {
            count.fetch_add(1, SeqCst);
            Step::Again
        }
    })
    .cpus(2)
    .build()
    .unwrap();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!((count.load(SeqCst), machine.clock().now()), (0, 0), "not before it is told to");
    machine.resume().unwrap();
    while count.load(SeqCst) < 1000 {
        std::thread::yield_now();
    }
    let offset = machine.save_vcpus().unwrap()[1].tsc_offset;
    machine.pause().unwrap();
    machine.pause().unwrap();
    let (paused, time) = (count.load(SeqCst), machine.clock().now());
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!((count.load(SeqCst), machine.clock().now()), (paused, time));
    machine.resume().unwrap();
    let states = machine.save_vcpus().unwrap();
    assert_ne!(states[0].tsc_offset, offset, "the TSC must not show the pause");
    assert_eq!(states[0].tsc_offset, states[1].tsc_offset);
    while count.load(SeqCst) < paused + 1000 {
        std::thread::yield_now();
    }
    machine.stop();
    assert_eq!(machine.wait(), GuestEnd::Stopped);
}

/// Each thread of a machine says whose it is; the host shows 15 bytes.
#[test]
fn threads_carry_the_name_of_their_machine() {
    let names = || -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let comm = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
        comm.map(|name| name.trim_end().to_owned()).collect()
    };
    let machine =
        guest(|_| Step::Halt).name("web-server-7").cpus(2).debug_console(io::sink()).start().unwrap();
    let wanted =
        ["vcpu0/web-serve", "vcpu1/web-serve", "timers/web-serv", "console/web-ser", "debugcon/web-se"];
    // A thread takes its name when it first runs.
    let end = Instant::now() + Duration::from_secs(60);
    while !wanted.iter().all(|name| names().iter().any(|other| other == name)) {
        assert!(Instant::now() < end, "{wanted:?} in {:?}", names());
        std::thread::yield_now();
    }
    drop(machine);
}

/// A guest that writes to a console which takes nothing is paused, looked at, saved and stopped like any other.
#[test]
fn a_console_that_takes_nothing_keeps_nobody_waiting() {
    /// Takes nothing until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<bool>, std::sync::Condvar)>, Screen);
    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (open, changed) = &*self.0;
            drop(changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let gate = Gate::default();
    let sent = Arc::new(AtomicU64::new(0));
    let machine = guest({
        let sent = sent.clone();
        move |g| {
            out(g.bus, 0x3f8, sent.fetch_add(1, SeqCst) as u8);
            Step::Again
        }
    })
    .console(gate.clone())
    .start()
    .unwrap();
    while sent.load(SeqCst) < devices::output::CAPACITY as u64 {
        std::thread::yield_now();
    }
    // A command lets one access go, unless room has come with the batch that the writer thread took.
    for _ in 0..10 {
        machine.pause().unwrap();
        let paused = sent.load(SeqCst);
        assert_eq!(machine.stats().unwrap().len(), 1);
        assert_eq!(machine.save_vcpus().unwrap().len(), 1);
        assert_eq!(sent.load(SeqCst), paused);
        machine.resume().unwrap();
        machine.stats().unwrap();
        machine.save_vcpus().unwrap();
    }
    assert!(gate.1.0.lock().unwrap().is_empty());
    *gate.0.0.lock().unwrap() = true;
    gate.0.1.notify_all();
    let target = sent.load(SeqCst) + 100_000;
    while sent.load(SeqCst) < target {
        std::thread::yield_now();
    }
    machine.stop();
    assert_eq!(machine.wait(), GuestEnd::Stopped);
    let (bytes, sent) = (gate.1.0.lock().unwrap().clone(), sent.load(SeqCst) as usize);
    assert!(bytes.iter().zip(0u64..).all(|(byte, n)| *byte == n as u8), "in order");
    // What is sent after the end is not.
    assert!(bytes.len() <= sent && bytes.len() >= target as usize - 100_000, "{} of {sent}", bytes.len());
}

/// Commands and kicks against vCPUs that halt, spin, or leave `run` by themselves all the time.
#[test]
fn no_command_is_ever_lost() {
    let machine = guest(|g| match g.id {
        0 => Step::Halt,
        1 => Step::Again,
        _ => Step::Exit(Exit::Kicked),
    })
    .cpus(3)
    .start()
    .unwrap();
    let machine = Arc::new(machine);
    let other = std::thread::spawn({
        let machine = machine.clone();
        move || {
            for _ in 0..400 {
                assert_eq!(machine.stats().unwrap().len(), 3);
                assert_eq!(machine.save_vcpus().unwrap().len(), 3);
            }
        }
    });
    for _ in 0..400 {
        machine.pause().unwrap();
        machine.resume().unwrap();
    }
    other.join().unwrap();
    assert!(machine.stats().unwrap()[1].instructions > Some(0));
    machine.stop();
    assert_eq!(machine.wait(), GuestEnd::Stopped);
}

/// PIT channel 0 in mode 2, IOAPIC pin 2 to vector 0x30: the message must come, and never while paused.
#[test]
fn the_tick_reaches_the_interrupt_port() {
    let programmed = AtomicBool::new(false);
    let machine = guest(move |g| {
        if !programmed.swap(true, SeqCst) {
            let ioapic = |register: u32, value: u32| {
                g.bus.mmio_write(0xfec0_0000, IoSize::Dword, register.into());
                g.bus.mmio_write(0xfec0_0010, IoSize::Dword, value.into());
            };
            ioapic(0x10 + 2 * 2 + 1, 0);
            ioapic(0x10 + 2 * 2, 0x30);
            out(g.bus, 0x43, 0x34);
            out(g.bus, 0x40, 0xa9);
            out(g.bus, 0x40, 0x04);
        }
        if g.vm.port.messages.lock().unwrap().len() >= 10 {
            assert!(g.vm.port.messages.lock().unwrap().iter().all(|m| m.data & 0xff == 0x30));
            power_off(g.bus);
            return Step::Halt;
        }
        std::thread::sleep(Duration::from_micros(200));
        Step::Again
    })
    .start()
    .unwrap();
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
}

/// A guest that programs the 8259 and reads the vector by the INTA cycle.
#[test]
fn the_8259_drives_extint() {
    let machine = guest(|g| {
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
            out(g.bus, port, value);
        }
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 4)] {
            out(g.bus, port, value);
        }
        while !*g.vm.port.extint.lock().unwrap() {
            std::thread::sleep(Duration::from_micros(200));
        }
        let vector = g.bus.ack_extint();
        out(g.bus, 0xf4, vector.unwrap_or(0));
        Step::Halt
    })
    .start()
    .unwrap();
    assert_eq!(machine.wait(), GuestEnd::DebugExit(0x20));
}

#[test]
fn console_input_reaches_the_guest_with_back_pressure() {
    let screen = Screen::default();
    let machine = guest(|g| {
        // Echo until a dot comes.
        if g.bus.pio_read(0x3fd, IoSize::Byte) & 1 != 0 {
            let byte = g.bus.pio_read(0x3f8, IoSize::Byte) as u8;
            out(g.bus, 0x3f8, byte);
            if byte == b'.' {
                power_off(g.bus);
            }
        }
        Step::Again
    })
    .console(screen.clone())
    .start()
    .unwrap();
    let input = machine.console_input();
    let text = "x".repeat(20_000);
    assert!(input.push(text.as_bytes()), "more than the backlog: waits and goes on");
    assert!(input.push(b"."));
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
    assert_eq!(screen.text().trim_end_matches('.'), text);
    assert!(!input.push(&[0; 1 << 20]), "refused after the end, without waiting");
}

#[test]
fn a_console_that_breaks_ends_the_guest() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let machine = guest(|g| {
        out(g.bus, 0x3f8, b'x');
        Step::Again
    })
    .console(Closed)
    .start()
    .unwrap();
    assert!(matches!(machine.wait(), GuestEnd::ConsoleLost { .. }));
}

#[test]
fn a_console_that_blocks_does_not_keep_the_machine() {
    struct Stuck;
    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let count = Arc::new(AtomicU64::new(0));
    let machine = guest({
        let count = count.clone();
        move |g| {
            count.fetch_add(1, SeqCst);
            out(g.bus, 0x3f8, b'x');
            Step::Again
        }
    })
    .console(Stuck)
    .start()
    .unwrap();
    while count.load(SeqCst) < devices::output::CAPACITY as u64 {
        std::thread::yield_now();
    }
    machine.stop();
    assert_eq!(machine.wait(), GuestEnd::Stopped);
}

#[test]
fn what_nobody_answers_reads_ones_and_unknown_msrs_fault() {
    let machine = guest(|g| {
        assert_eq!(g.bus.pio_read(0xcf8, IoSize::Word), 0xffff);
        assert_eq!(g.bus.pio_read(0x3f00, IoSize::Byte), 0xff);
        assert_eq!(g.bus.pio_read(0xffff, IoSize::Dword), u32::MAX);
        assert_eq!(g.bus.mmio_read(0xd000_0000, IoSize::Word), 0xffff);
        assert_eq!(g.bus.mmio_read(u64::MAX, IoSize::Qword), u64::MAX);
        g.bus.mmio_write(u64::MAX, IoSize::Qword, 1);
        g.bus.pio_write(0xffff, IoSize::Dword, 1);
        assert!(g.bus.msr_read(0xc001_1029).is_err() && g.bus.msr_write(0x1a0, 1).is_err());
        for vector in 0..=255 {
            g.bus.eoi(vector);
        }
        assert_eq!(g.bus.ack_extint(), None, "no request, no vector");
        power_off(g.bus);
        Step::Halt
    })
    .start()
    .unwrap();
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let halt = || guest(|_| Step::Halt);
    let error = |builder: MachineBuilder| builder.build().unwrap_err().to_string();
    assert!(error(halt().memory(0)).contains("memory size is 0"));
    assert!(error(halt().memory(1 << 39)).contains("more than this host has"));
    assert!(error(halt().cpus(0)).contains("1 to 8"));
    assert!(error(halt().cpus(9)).contains("1 to 8"));
    assert!(error(halt().cpu_model("z80")).contains("x86-64-v2"));
    assert!(error(halt().kernel("/no/such/file")).contains("/no/such/file"));
    assert!(error(Machine::builder().kernel("/x")).contains("no accelerator"));
    let none = Machine::builder().accelerator(Arc::new(FakeAccelerator::named("fake")));
    assert!(error(none).contains("no kernel"));
    let old = FakeAccelerator::named("old").without(&[Feature::Sse42, Feature::Popcnt]);
    let message = error(on(old).cpu_model("x86-64-v2"));
    assert!(message.contains("old") && message.contains("sse4_2") && message.contains("popcnt"), "{message}");
    let narrow = || on(FakeAccelerator::named("narrow").without(&[Feature::Avx2, Feature::Xsaves]));
    let message = error(narrow().cpu_model("x86-64-v3"));
    assert!(message.contains("avx2") && !message.contains("xsaves"), "{message}");
}

#[test]
fn memory_images_are_refused_where_they_cannot_lie() {
    let bytes = |len: usize| Source::bytes("piece", vec![1; len]);
    let machine = |image| guest(|_| Step::Halt).memory_image(image);
    let error = |builder: MachineBuilder| builder.build().unwrap_err().to_string();
    let refused = |image, why: &str| {
        let message = error(machine(image));
        assert!(message.contains("piece") && message.contains(why), "{message}");
    };
    let image = MemoryImage::new;
    // What is fine: RAM to its last byte, ROM between RAM and devices, two ROMs side by side.
    let fine =
        image().ram(16 * MIB - 16, bytes(16)).rom(16 * MIB, bytes(4097)).rom(0xffff_d000, bytes(0x1000));
    machine(fine.rom_below_4_gib(bytes(16))).build().unwrap();

    refused(image().ram(16 * MIB - 15, bytes(16)), "no RAM there");
    refused(image().ram(0xa_0000, bytes(1)), "no RAM there");
    refused(image().ram(0x9_ffff, bytes(2)), "no RAM there");
    refused(image().ram(u64::MAX, bytes(1)), "beyond the last address");
    refused(image().ram(u64::MAX - 4096, bytes(2)), "beyond the last address");
    refused(image().ram(0, bytes(0)), "empty");
    refused(image().rom(0xf_0000, bytes(16)), "neither RAM nor devices");
    refused(image().rom(0xfee0_0000, bytes(16)), "neither RAM nor devices");
    refused(image().rom(1 << 60, bytes(16)), "neither RAM nor devices");
    refused(image().rom_below_4_gib(bytes(16 << 20 | 1)), "neither RAM nor devices");
    refused(image().rom(0xffff_f000, bytes(16)).rom_below_4_gib(bytes(16)), "another ROM");
    refused(image().ram(0, "/no/such/piece"), "/no/such/piece");

    assert!(error(machine(image()).initrd(bytes(1))).contains("takes no initrd"));
    assert!(error(machine(image()).cmdline("quiet")).contains("takes no command line"));
}

/// The later piece of RAM wins, and either does over the ACPI tables.
#[test]
fn memory_images_fill_ram_in_order() {
    let bytes = |b: u8| Source::bytes("piece", vec![b; 8]);
    let image = MemoryImage::new().ram(0xe_0000, bytes(1)).ram(0xe_0004, bytes(2)).rom_below_4_gib(bytes(3));
    let machine = guest(|_| Step::Halt).memory(16 * MIB).memory_image(image).build().unwrap();
    let read = |gpa| {
        let mut found = [0; 12];
        machine.ram().memory().read_slice(&mut found, GuestAddress(gpa)).unwrap();
        found
    };
    assert_eq!(read(0xe_0000), [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
    assert_eq!(read(0xffff_fff4), [0xff, 0xff, 0xff, 0xff, 3, 3, 3, 3, 3, 3, 3, 3]);
    assert_eq!(read(0xffff_f000), [0xff; 12]);
}

#[test]
fn nmi_and_power_button_arrive() {
    let machine = guest(|g| {
        // Enable the power button's event, then wait for its status and the NMI.
        g.bus.pio_write(0x602, IoSize::Word, 1 << 8);
        let pressed = g.bus.pio_read(0x600, IoSize::Word) & 1 << 8 != 0;
        if pressed && *g.vm.port.nmis.lock().unwrap() == [0] {
            power_off(g.bus);
        }
        Step::Again
    })
    .start()
    .unwrap();
    machine.press_power_button();
    machine.inject_nmi(0);
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
}
