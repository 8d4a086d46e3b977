//! The suite every backend passes, on KVM.
//!
//! 1. It needs KVM with hardware behind it, and says so test by test where there is none; with
//!    `GEARSHIFT_KVM=required` that is a failure. `cargo xtask kvm-lab` runs it on a real kvm_amd anywhere.
//! 2. There the processor itself is emulated by QEMU, which differs from silicon in [`EMULATED`] ways. None of those checks
//!    depends on this backend: the instructions run in the guest without it. `GEARSHIFT_KVM=all` runs them too, to see
//!    whether a newer QEMU has changed.
//! 3. A software provider gets [`SOFTWARE`]: what a small guest needs.

use testkit::conformance::Choice;
use testkit::processor;

/// Checks that QEMU's emulated processor (QEMU 7.2, TCG) does not pass, and what it does instead.
const EMULATED: &[(&str, &str)] = &[
    ("debug::breakpoints", "gives debug registers no effect in its nested guests"),
    ("exceptions::floating_point", "raises no #MF and no #XM"),
    ("exceptions::general_protection", "raises other faults for addresses that are not canonical"),
    ("exceptions::null_segments", "leaves the RPL of null selectors in FS and GS at an IRET"),
    ("exceptions::ring3", "puts the vector times 8, not 16, into the error code of a missing 64-bit gate"),
    (
        "exceptions::selector_errors",
        "puts the vector times 8, not 16, into the error code of a missing 64-bit gate",
    ),
    ("exceptions::undefined", "executes LOCK MOV"),
    ("halt::sti_hlt", "delivers virtual interrupts in the shadow of STI, if the guest was left there"),
    (
        "interrupts::sti_shadow",
        "delivers virtual interrupts in the shadow of STI, if the guest was left there",
    ),
    ("io::port_permissions", "takes no busy TSS for one, so that a nested guest's I/O bitmap is not found"),
    ("memory::rights", "leaves out the P bit in the error code of a reserved bit"),
    ("memory::straddling_fault", "stores the first part of an access whose second part faults"),
    ("model::other_msrs", "takes addresses that are not canonical in LSTAR"),
    ("smc::next_instruction", "executes the old form of an instruction right behind the store to it"),
    ("state::held_back", "delivers virtual interrupts in the shadow of STI"),
];

/// Checks that run on providers of KVM without hardware.
const SOFTWARE: &[&str] = &[
    "arithmetic::add_sub_flags",
    "arithmetic::control_flow",
    "arithmetic::multiply_divide",
    "halt::early_kick",
    "halt::kick_while_halted",
    "halt::wakes_by_interrupt",
    "io::mmio_sizes",
    "io::ports",
    "interrupts::priority_order",
    "slots::refusals",
    "state::reset",
];

fn choose(check: &str) -> Choice {
    let wanted = std::env::var("GEARSHIFT_KVM").unwrap_or_default();
    let (all, required) = (wanted == "all", wanted == "required" || wanted == "all");
    let accel = match accel_kvm::create() {
        Ok(accel) => accel,
        Err(error) if required => panic!("{error}"),
        Err(error) => return Err(error.to_string()),
    };
    let hardware = processor::has_virtualisation();
    assert!(hardware || !required, "KVM has no hardware behind it");
    let deviation = EMULATED.iter().find(|(name, _)| *name == check);
    match deviation {
        _ if !hardware && !SOFTWARE.contains(&check) => Err("KVM has no hardware behind it here".into()),
        Some((_, what)) if processor::is_emulated() && !all => {
            Err(format!("this host's processor is QEMU's, which {what}"))
        }
        _ => Ok(accel),
    }
}

testkit::conformance!(kvm, crate::choose);
