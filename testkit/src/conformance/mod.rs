//! Checks every backend must pass: one file an area, each check a function of the backend.
//!
//! [`crate::conformance!`] makes a `#[test]` of each, twice: on the backend as it is, and on the backend travelling
//! ([`crate::travel`]), where the state goes through `save` and `load` between instructions.

pub mod arithmetic;

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
                add_sub_flags multiply_divide shifts control_flow strings sse x87 other_modes
                ;
        }
    };
}
