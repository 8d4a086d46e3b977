//! Mistakes of the JIT, made on purpose: each ends its own VM with a report, whatever it does to the code, and no other
//! VM of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use accel_api::x86::gpr;
use accel_api::{AccelError, Accelerator};
use accel_dynasm::{Config, InjectedBug, create_with};
use iced_x86::code_asm::*;
use testkit::rig::Rig;

/// What a block must have in it.
const CONSTANT: u32 = 0x5afe_c0de;

/// Counts to 1000, with an instruction that the JIT leaves to a function.
fn rig(accel: &Arc<dyn Accelerator>) -> Rig {
    let rig = Rig::new(accel);
    rig.code(|a| {
        let mut top = a.create_label();
        a.mov(esi, 1000)?;
        a.jmp(top)?;
        a.set_label(&mut top)?;
        a.mov(edi, CONSTANT)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.inc(r8d)?;
        a.dec(esi)?;
        a.jnz(top)
    });
    rig
}

fn run(slip: InjectedBug) -> (String, String) {
    let accel = create_with(Config { bug: Some((CONSTANT, slip)), ..Config::default() });
    let rig = rig(&accel);
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    let error = runner.vcpu.run().expect_err("the mistake shows");
    let AccelError::Internal { summary, report } = error else { panic!("{error:?}") };
    // What there is of its state can still be had.
    assert!(runner.save().gpr[gpr::RSI] <= 1000);
    assert!(!report.by_check && report.settings.is_empty(), "{report:?}");
    (summary, report.text)
}

#[test]
fn a_mistake_ends_its_own_vm() {
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let bystander = s.spawn(|| {
            let (accel, mut runs) = (create_with(Config::default()), 0);
            while !over.load(Ordering::SeqCst) || runs == 0 {
                assert_eq!(rig(&accel).run_long().gpr[8], 1000);
                runs += 1;
            }
        });
        for (slip, words) in [
            (InjectedBug::Illegal, "raised SIGILL"),
            (InjectedBug::Trap, "raised SIGTRAP"),
            (InjectedBug::Load, "raised SIGSEGV"),
            (InjectedBug::Jump, "raised SIGSEGV"),
            (InjectedBug::Site, "asked for site 0x7ffffff0"),
            (InjectedBug::Panic, "panicked (on purpose)"),
        ] {
            let (summary, report) = run(slip);
            assert!(summary.contains(words) && !summary.contains("--"), "{slip:?}: {summary}");
            assert!(!summary.contains('\n'), "{summary}");
            if matches!(slip, InjectedBug::Illegal | InjectedBug::Trap | InjectedBug::Load) {
                assert!(summary.contains("(block 0x"), "{summary}");
                assert!(
                    report.contains("bytes of host code") && report.contains("at host address"),
                    "{report}"
                );
            }
            // On this thread, too.
            assert_eq!(rig(&create_with(Config::default())).run_long().gpr[8], 1000);
        }
        over.store(true, Ordering::SeqCst);
        bystander.join().expect("another VM is not concerned");
    });
}
