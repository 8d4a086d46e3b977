//! Control flow, flags, segments, privileged instructions, I/O.

mod control;
mod control_regs;
mod far;
mod far_return;
mod flags;
mod interrupt;
mod invalidate;
mod io;
mod misc;
mod msr;
mod segments;
mod syscall;
mod tables;
#[cfg(test)]
mod tests;

pub(super) fn register(table: &mut super::Table) {
    control::register(table);
    control_regs::register(table);
    far::register(table);
    far_return::register(table);
    flags::register(table);
    interrupt::register(table);
    invalidate::register(table);
    io::register(table);
    misc::register(table);
    msr::register(table);
    segments::register(table);
    syscall::register(table);
    tables::register(table);
}
