//! What a difference means: an error of ours, or something to look at.
//!
//! 1. A difference that the table ([`super::known`]) has for the processor at hand is neither.
//! 2. An accelerator that departs from single steps is wrong, whatever processor the test runs on.
//! 3. On a processor that the oracle has been compared with ([`super::generation`]), any other difference is an error of
//!    ours, or a gap in the table, which is to be filled by whoever sees it first.
//! 4. On any other processor it is a *finding*: the software CPU may be wrong, or the processor has a way of its own. No
//!    test fails; it is printed, with what the table says of other processors, and `cargo xtask oracle` has an exit code
//!    for it. So tests pass on every host where the software CPU is right, and nothing is hidden.
//! 5. Processors differ in corners. None differs in more than one instruction of twenty: then the software CPU, or the
//!    oracle, is broken.

/// What a run comes to, from good to bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// Nothing differs but what is known to.
    Same,
    /// Something differs on a processor that the oracle has not been compared with.
    Found,
    /// The software CPU is wrong.
    Wrong,
}

/// How a line begins that tells of [`Verdict::Found`].
pub const FINDING: &str = "FINDING: ";

/// How many of `instructions` may differ on a processor that is not known: one of twenty, or of fewer (a filter) as many as
/// a generation may. Zen 3 and Zen 4 differ from Zen 5 in 42 of 5,853.
fn corners(instructions: usize) -> usize {
    (instructions / 20).max(64)
}

impl Verdict {
    /// The verdict on a run in which `differing` of `instructions` did something that is not known, on a processor that has
    /// been `compared` or has not. `ours`: an accelerator departs from single steps.
    pub fn of(compared: bool, differing: usize, instructions: usize, ours: bool) -> Self {
        match differing {
            0 => Verdict::Same,
            _ if ours || compared => Verdict::Wrong,
            many if many > corners(instructions) => Verdict::Wrong,
            _ => Verdict::Found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::generation::{Processor, Vendor};

    #[test]
    fn a_difference_fails_where_the_processor_is_known() {
        let zen_3 = Processor { vendor: Vendor::Amd, family: 0x19, model: 1 };
        let zen_2 = Processor { vendor: Vendor::Amd, family: 0x17, model: 0x31 };
        let haswell = Processor { vendor: Vendor::Intel, family: 6, model: 0x3c };
        let nobody = Processor { vendor: Vendor::Other, family: 6, model: 0x3c };
        let of = |p: Processor, differing, ours| Verdict::of(p.is_compared(), differing, 5826, ours);
        for processor in [zen_3, zen_2, haswell, nobody] {
            assert_eq!(of(processor, 0, false), Verdict::Same, "{processor}");
            assert_eq!(of(processor, 1, true), Verdict::Wrong, "{processor}");
            assert_eq!(of(processor, 291, false), Verdict::Found.max(of(processor, 1, false)), "{processor}");
            assert_eq!(of(processor, 292, false), Verdict::Wrong, "{processor}");
        }
        assert_eq!(of(zen_3, 1, false), Verdict::Wrong);
        for processor in [zen_2, haswell, nobody] {
            assert_eq!(of(processor, 1, false), Verdict::Found, "{processor}");
        }
        // A run with a filter has few instructions.
        assert_eq!(Verdict::of(false, 1, 1, false), Verdict::Found);
    }
}
