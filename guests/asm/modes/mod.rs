//! Guests that use the processor's modes as Linux does not, and check what they find. See `rig` for their frame.

mod code;
mod debug;
mod gates;
mod limits;
mod paging;
mod real;
mod rig;
mod segments;
mod tasks;
mod v86;

use crate::bare::BuildError;
use rig::Rig;

/// One such guest.
pub struct Program {
    pub name: &'static str,
    pub about: &'static str,
    build: fn(&mut Rig),
}

/// All of them.
pub const ALL: &[Program] = &[
    Program {
        name: "real",
        about: "real mode: the vector table, addresses that wrap, unreal mode",
        build: real::build,
    },
    Program {
        name: "limits",
        about: "limits and types of segments in real and protected mode, expand-down segments",
        build: limits::build,
    },
    Program {
        name: "segments",
        about: "protected mode: loads of segment registers, the local table, 16-bit stacks, LAR, LSL, ARPL",
        build: segments::build,
    },
    Program {
        name: "gates",
        about: "privilege changes: interrupts, call gates with parameters, far returns, IOPL, I/O bitmap",
        build: gates::build,
    },
    Program {
        name: "v86",
        about: "virtual-8086 mode under a monitor: frames, IOPL, the I/O bitmap, reflection of interrupts",
        build: v86::build,
    },
    Program {
        name: "paging",
        about: "32-bit and PAE paging: error codes, CR2, A and D, WP, large pages, NX, PDPTE registers",
        build: paging::build,
    },
    Program {
        name: "debug",
        about: "breakpoints by debug registers, single steps, RF, alignment checks",
        build: debug::build,
    },
    Program {
        name: "tasks",
        about: "hardware task switches: calls, jumps, gates, busy bits, NT and back links",
        build: tasks::build,
    },
];

impl Program {
    /// The guest's ELF file, and what its checks are, by number from 1.
    pub fn assemble(&self) -> Result<(Vec<u8>, Vec<&'static str>), BuildError> {
        let mut rig = Rig::new();
        (self.build)(&mut rig);
        rig.finish()
    }
}
