//! What only an exact backend ([`accel_api::AccelCaps::exact`]) has to do; [`exact!`](crate::exact!) instantiates it, as
//! [`conformance!`](crate::conformance!) does the suite that all have to pass.

pub mod checked_access;
pub mod debug_traps;
pub mod tasks;
pub mod virtual8086;

/// `exact!(name, choose)`, as [`conformance!`](crate::conformance!).
#[macro_export]
macro_rules! exact {
    ($name:ident, $choose:expr) => {
        mod $name {
            fn choose(name: &str) -> $crate::conformance::Choice {
                $choose(name)
            }
            $crate::__conformance_tests! { exact;
                checked_access: breakpoints_come_and_go code_breakpoints_in_a_loop alignment_is_checked_while_asked_for;
                debug_traps: mov_ss_with_a_breakpoint;
                tasks: coroutines;
                virtual8086: program_and_monitor;
            }
        }
    };
}
