//! Any bytes as a qcow2 image: opening, reading and writing it must never panic, hang or touch another file.
//!
//! `cargo +nightly fuzz run disk_image`
#![no_main]

use std::cell::OnceCell;

use backends::disk::{BlockBackend as _, BlockCommand, BlockRequest, DiskImage, DiskOptions, Format};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

fuzz_target!(|image: &[u8]| {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| TempDir::new().expect("a temporary folder"));
        let path = folder.path().join("disk");
        std::fs::write(&path, image).expect("space for an image");
        let options = DiskOptions { format: Some(Format::Qcow2), ..DiskOptions::new(&path) };
        let Ok(disk) = DiskImage::open(&options) else { return };
        let capacity = disk.info().capacity;
        let mut batch: Vec<_> = [0, capacity / 2, capacity.saturating_sub(8)]
            .into_iter()
            .flat_map(|sector| {
                [
                    BlockCommand::Read { sector, data: vec![0; 4096] },
                    BlockCommand::Write { sector, data: vec![1; 4096] },
                    BlockCommand::Discard { sector, count: 8 },
                    BlockCommand::WriteZeroes { sector, count: 8, unmap: false },
                    BlockCommand::Flush,
                ]
            })
            .map(BlockRequest::new)
            .collect();
        backends::runtime().expect("threads").block_on(disk.submit(&mut batch));
    });
});
