//! Checks every backend must pass: one file an area, each check a function of the backend.
//!
//! [`crate::conformance!`] makes a `#[test]` of each, twice: on the backend as it is, and on the backend travelling
//! ([`crate::travel`]), where the state goes through `save` and `load` between instructions.

pub mod arithmetic;
pub mod debug;
pub mod events;
pub mod exceptions;
pub mod halt;
pub mod interrupts;
pub mod io;
pub mod locks;
pub mod lost;
pub mod memory;
pub mod model;
pub mod moving;
pub mod nmi;
pub mod order;
pub mod pcid;
pub mod slots;
pub mod smc;
pub mod smp;
pub mod stall;
pub mod state;
pub mod time;

pub(crate) use smp::run_all;

/// `conformance!(name, choose)`: a module `name` with a test for each check, where `choose` is a function from a check's name,
/// such as `io::ports`, to the `Arc<dyn Accelerator>` it runs on, or to the reason why it is skipped.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $choose:expr) => {
        mod $name {
            mod in_place {
                fn choose(check: &str) -> $crate::conformance::Choice {
                    $choose(check)
                }
                $crate::__conformance_checks!();
            }
            mod travelling {
                fn choose(check: &str) -> $crate::conformance::Choice {
                    $choose(check).map($crate::travel::travelling)
                }
                $crate::__conformance_checks!();
            }
        }
    };
}

use std::sync::Arc;

pub use accel_api::Accelerator;

/// What a check runs on, or why it does not.
pub type Choice = Result<Arc<dyn Accelerator>, String>;

/// Runs a check, or says that it does not.
pub fn run(name: &str, choice: Choice, check: fn(&Arc<dyn Accelerator>)) {
    match choice {
        Ok(accel) => check(&accel),
        Err(reason) => crate::skip(name, &reason),
    }
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($suite:ident; $($area:ident: $($check:ident)+;)+) => {
        $(mod $area {
            $(#[test]
            fn $check() {
                let name = concat!(stringify!($area), "::", stringify!($check));
                $crate::conformance::run(name, super::choose(name), $crate::$suite::$area::$check);
            })+
        })+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_checks {
    () => {
        $crate::__conformance_tests! { conformance;
            arithmetic:
                add_sub_flags multiply_divide shifts control_flow strings sse x87 other_modes;
            exceptions: divide undefined general_protection selector_errors ring3 null_segments traps floating_point
                device_not_available double_fault triple_fault fault_on_the_handlers_stack injected_events;
            halt: wakes_by_interrupt wakes_by_nmi sti_hlt kick_while_halted early_kick kicks_in_a_loop kick_in_rep;
            interrupts: messages priority_order in_service task_priority level_eoi extint sti_shadow mov_ss_shadow
                software_disabled storm behind_returns;
            nmi: while_masked two_at_once from_itself;
            io: ports string_ports string_port_fault port_permissions mmio_sizes mmio_instructions mmio_pieces
                read_only_slot;
            lost: accesses by_a_device;
            memory: straddling straddling_fault aliases invalidation accessed_and_dirty rights write_protect_off
                other_paging_modes addressing;
            debug: breakpoints single_step step_into_interrupts;
            model: cpuid features named_msrs other_msrs system_calls;
            pcid: spaces_apart global_pages many_spaces stores_between bit_63;
            state: reset registers floating_point local_apic pending halted_goes_on held_back debug_that_waits
                page_directory_pointers save_and_rewind;
            events: ioeventfd irqfd;
            moving: window_moves_while_running pieces_change_access code_takes_turns dirty_windows;
            slots: refusals by_a_device while_running dirty_log dirty_between_stores dirty_again_while_running
                last_store_before_a_copy code_unmapped;
            time: one_shot periodic tsc_deadline time_stamp reading_leaves_the_rest_alone;
            smc: next_instruction hot_loop other_page_and_alias across_pages by_dma by_string_store by_remapping
                half_remapped half_aliased cross_modifying;
            order: time_stamps serialising;
            locks: atomic_counters split_locks restless_tables busy_tasks;
            stall: device_accesses interrupt_cycles locked_accesses;
            smp: xapic_ipis x2apic_ipis start_up init_of_a_running_vcpu init_from_itself xapic_id store_order shoot_down;
        }
    };
}
