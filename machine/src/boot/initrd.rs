//! Where the initial RAM disk goes.

use accel_api::{GuestRam, PAGE_SIZE};

use super::image::Image;
use super::{BootError, Placed};
use crate::memory_map::{DEVICE_HOLE, EXTENDED, HIGH_RAM, MAX_MEMORY, MIB, MemoryMap};

/// Where a kernel can take it.
#[derive(Clone, Copy, Debug)]
pub(super) struct InitrdReach {
    /// First address it must not reach.
    pub(super) limit: u64,
    /// The limit is a preference: the kernel takes it in any RAM, also above 4 GiB.
    pub(super) anywhere: bool,
}

/// A kernel, as far as the initial RAM disk is concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beside {
    /// First address after the kernel and what it is handed.
    pub(super) end: u64,
    /// The same in a machine that has as much memory as the kernel likes.
    pub(super) preferred_end: u64,
    pub(super) reach: InitrdReach,
}

/// Loads it as high as the kernel takes it: below the kernel's limit if it fits there, else below 4 GiB, else above.
pub(super) fn place(
    ram: &GuestRam,
    map: &MemoryMap,
    initrd: Option<&Image<'_>>,
    kernel: Beside,
) -> Result<Option<Placed>, BootError> {
    let Some(initrd) = initrd else { return Ok(None) };
    let (len, floor) = (initrd.len(), floor(kernel.end));
    let InitrdReach { limit, anywhere } = kernel.reach;
    let rooms = [
        Some((floor, limit.min(map.low_end()))),
        anywhere.then(|| (floor, map.low_end())),
        anywhere.then(|| (HIGH_RAM, HIGH_RAM + (map.size() - map.low_end()))),
    ];
    let rooms = rooms.iter().flatten();
    let fitting = rooms.clone().find_map(|&(start, end)| {
        end.checked_sub(len).map(|at| at & !(PAGE_SIZE - 1)).filter(|&at| at >= start)
    });
    let Some(gpa) = fitting else {
        let room = rooms.map(|(start, end)| end.saturating_sub(*start)).max().unwrap_or(0);
        return Err(refusal(initrd, kernel, room));
    };
    initrd.copy_to(ram, gpa, 0, len)?;
    Ok(Some(Placed { gpa, len }))
}

/// Below 1 MiB there is no RAM to speak of.
fn floor(end: u64) -> u64 {
    end.max(EXTENDED).next_multiple_of(PAGE_SIZE)
}

/// What would help.
fn refusal(initrd: &Image<'_>, kernel: Beside, room: u64) -> BootError {
    let (name, len) = (initrd.name().to_owned(), initrd.len());
    let InitrdReach { limit, anywhere } = kernel.reach;
    let floor = floor(kernel.end.max(kernel.preferred_end));
    let low_limit = if anywhere { DEVICE_HOLE } else { limit.min(DEVICE_HOLE) };
    let low = floor.checked_add(len).filter(|&end| end <= low_limit);
    let high = DEVICE_HOLE.checked_add(len).filter(|&size| anywhere && size <= MAX_MEMORY);
    match low.or(high) {
        Some(size) => BootError::InitrdTooLarge { name, len, room, least_mib: size.div_ceil(MIB) },
        None => {
            let limit = if anywhere { MAX_MEMORY } else { low_limit };
            BootError::InitrdBeyondKernel { name, len, room: limit.saturating_sub(floor), limit }
        }
    }
}
