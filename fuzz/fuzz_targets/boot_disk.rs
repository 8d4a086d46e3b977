//! What a disk boots: the input is the disk, and the text of each configuration.
#![no_main]

use std::collections::BTreeMap;

use boot_disk::{CMDLINE_MAX, INITRD_MAX, KERNEL_MAX};
use libfuzzer_sys::fuzz_target;

fn printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

fuzz_target!(|data: &[u8]| {
    match boot_disk::find(data.to_vec(), "/dev/vda") {
        Ok(found) => {
            assert!(found.kernel.len() as u64 <= KERNEL_MAX);
            assert!(found.initrd.unwrap_or_default().len() as u64 <= INITRD_MAX);
            assert!(
                found.cmdline.len() <= CMDLINE_MAX && printable(&found.cmdline) && printable(&found.title)
            );
        }
        Err(error) => assert!(printable(&error.to_string()), "{error}"),
    }
    let text = String::from_utf8_lossy(data).into_owned();
    let variables = BTreeMap::from([("saved_entry".to_owned(), "1>2".to_owned())]);
    let _ = boot_disk::grub::default_entry(&text, variables.clone());
    let _ = boot_disk::bls::choose(&[("a.conf".to_owned(), text.clone())], &text, &variables);
});
