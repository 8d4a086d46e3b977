//! Checks every backend must pass: one file an area, each check a function of the backend.
//!
//! [`crate::conformance!`] makes a `#[test]` of each, twice: on the backend as it is, and on the backend travelling
//! ([`crate::travel`]), where the state goes through `save` and `load` between instructions.

pub mod arithmetic;
pub mod io;
pub mod memory;
pub mod smc;

/// `conformance!(name, accelerator)`: a module `name` with a test for each check, where `accelerator` is an expression
/// of type `Arc<dyn Accelerator>`.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $accel:expr) => {
        mod $name {
            mod in_place {
                fn accel() -> std::sync::Arc<dyn $crate::conformance::Accelerator> {
                    $accel
                }
                $crate::__conformance_checks!();
            }
            mod travelling {
                fn accel() -> std::sync::Arc<dyn $crate::conformance::Accelerator> {
                    $crate::travel::travelling($accel)
                }
                $crate::__conformance_checks!();
            }
        }
    };
}

pub use accel_api::Accelerator;

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($($area:ident: $($check:ident)+;)+) => {
        $(mod $area {
            $(#[test]
            fn $check() {
                $crate::conformance::$area::$check(&super::accel());
            })+
        })+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_checks {
    () => {
        $crate::__conformance_tests! {
            arithmetic:
                add_sub_flags multiply_divide shifts control_flow strings sse x87 other_modes;
            io: ports string_ports string_port_fault port_permissions mmio_sizes mmio_instructions mmio_pieces
                read_only_slot;
            memory: straddling straddling_fault aliases invalidation accessed_and_dirty rights write_protect_off
                other_paging_modes addressing;
            smc: next_instruction hot_loop other_page_and_alias across_pages by_dma by_string_store by_remapping
                cross_modifying;
        }
    };
}
