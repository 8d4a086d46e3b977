//! Debian's own drivers find the machine's virtio devices. The guest is fetched if it is not in the cache; where that
//! cannot be, GEARSHIFT_OFFLINE=1 skips these tests and says so.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use common::guest::{have, typed};
use common::{gearshift, stderr, stdout};
use guests::debian::Flavour;
use sha2::{Digest as _, Sha256};

const MIB: usize = 1 << 20;

/// Brings the network up by DHCP, and tells the lease.
const UP: &str = "\
    ip link set lo up; ip link set eth0 up; mkdir -p /etc\n\
    echo '[ $1 = bound ] || exit 0; ip addr add $ip/$mask dev $interface; ip route add default via $router; \
    echo lease=$ip/$mask $router $dns' >/tmp/lease; sed -i '1i#!/bin/sh' /tmp/lease; chmod +x /tmp/lease\n\
    udhcpc -q -n -t 20 -i eth0 -s /tmp/lease 2>/dev/null\n";

/// Software accelerators of this build: the guest and its kernel are the same everywhere.
fn software() -> Vec<&'static str> {
    let probe = stdout(&gearshift(&["probe", "--json"]).output().unwrap());
    let there = |name: &&str| probe.contains(&format!("\"name\": \"{name}\""));
    let names: Vec<_> = ["jit", "interp"].into_iter().filter(there).collect();
    assert!(!names.is_empty(), "{probe}");
    names
}

/// What the guest writes to its console for `script`. A line `name=value` is found by [`value`].
fn console(accelerator: &str, arguments: &[&str], script: &str) -> String {
    let all = [&["run", "--accel", accelerator, "--mem", "256M", "--guest", "cloud"], arguments].concat();
    let output = typed(&all, &format!("stty -echo; PS1=; dmesg -n 1\n{script}\npoweroff -f\n"));
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}\n{text}", stderr(&output));
    text
}

#[track_caller]
fn value<'a>(console: &'a str, name: &str) -> &'a str {
    let start = format!("{name}=");
    let found = console.lines().rev().find_map(|line| line.trim().strip_prefix(&start));
    found.unwrap_or_else(|| panic!("no {name}: {console}"))
}

/// Bytes that differ from place to place.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (x >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn disk(path: &Path, options: &str) -> String {
    format!("--disk={},format=raw{options}", path.display())
}

#[test]
fn only_drivers_of_what_is_there_are_loaded_and_the_entropy_device_gives_bytes() {
    if !have(Flavour::Cloud) {
        return;
    }
    for accelerator in software() {
        let script = "\
            echo current=$(cat /sys/class/misc/hw_random/rng_current)\n\
            for n in 1 2; do dd if=/dev/hwrng bs=64 count=4 2>/dev/null >/tmp/$n; done\n\
            echo length=$(cat /tmp/1 /tmp/2 | wc -c)\n\
            cmp -s /tmp/1 /tmp/2; echo differ=$?\n\
            echo loaded=$(lsmod | sed 1d | cut -d' ' -f1 | sort | tr '\\n' ' ')";
        let text = console(accelerator, &[], script);
        assert!(value(&text, "current").starts_with("virtio_rng"), "{text}");
        assert_eq!((value(&text, "length"), value(&text, "differ")), ("512", "1"), "{text}");
        let loaded = value(&text, "loaded");
        assert!(loaded.contains("virtio_pci ") && loaded.contains("virtio_rng"), "{text}");
        assert!(!loaded.contains("virtio_blk") && !loaded.contains("vsock"), "{text}");
    }
}

#[test]
fn disks_are_read_written_and_named() {
    if !have(Flavour::Cloud) {
        return;
    }
    for accelerator in software() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let before = pattern(1, 4 * MIB);
        let (first, second, third) = (file("a", &before), file("b", &before), file("c", &before));
        // The guest moves the last of the four MiB to the front.
        let script = "\
            echo serial=$(cat /sys/block/vda/serial)\n\
            echo sum=$(sha256sum </dev/vda)\n\
            dd if=/dev/vda of=/dev/vda bs=1M skip=3 count=1 conv=notrunc,fsync 2>/dev/null; echo written=$?\n\
            echo second=$(sha256sum </dev/vda)\n\
            echo readonly=$(cat /sys/block/vdb/ro)\n\
            dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null; echo refused=$?\n\
            echo unchanged=$(sha256sum </dev/vdb)\n\
            dd if=/dev/vdc of=/dev/vdc bs=1M skip=3 count=1 conv=notrunc,fsync 2>/dev/null; echo snapshot=$?\n\
            echo third=$(sha256sum </dev/vdc)\n\
            echo complaints=$(dmesg | grep -c 'I/O error')";
        let arguments =
            [disk(&first, ",serial=disk-13"), disk(&second, ",readonly=on"), disk(&third, ",snapshot=on")];
        let text = console(accelerator, &arguments.each_ref().map(String::as_str), script);
        let after = [&before[3 * MIB..], &before[MIB..]].concat();
        let (old, new) = (format!("{} -", sum(&before)), format!("{} -", sum(&after)));
        for (name, wanted) in [
            ("serial", "disk-13"),
            ("sum", &old),
            ("written", "0"),
            ("second", &new),
            ("readonly", "1"),
            ("refused", "1"),
            ("unchanged", &old),
            ("snapshot", "0"),
            ("third", &new),
            ("complaints", "0"),
        ] {
            assert_eq!(value(&text, name), wanted, "{name} on {accelerator}: {text}");
        }
        for (path, wanted) in [(first, &after), (second, &before), (third, &before)] {
            assert!(fs::read(&path).unwrap() == *wanted, "{} on {accelerator}", path.display());
        }
    }
}

/// Gives the file at `bytes` to whoever connects, `times` times, and then what each of them sends.
fn serve(bytes: &[u8], times: usize) -> (u16, std::thread::JoinHandle<Vec<Vec<u8>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let bytes = bytes.to_vec();
    let server = std::thread::spawn(move || {
        let one = |_| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            back
        };
        (0..times).map(one).collect()
    });
    (port, server)
}

/// The lease, the gateway, both directions of a connection to the host's loopback, and a name.
#[test]
fn the_user_network_leads_out() {
    if !have(Flavour::Cloud) {
        return;
    }
    for accelerator in software() {
        let sent = pattern(2, 3 * MIB);
        let (port, server) = serve(&sent, 1);
        let script = format!(
            "\
            {UP}\
            echo mac=$(cat /sys/class/net/eth0/address)\n\
            echo mtu=$(cat /sys/class/net/eth0/mtu)\n\
            ping -c 2 -W 20 10.0.2.2 >/dev/null; echo ping=$?\n\
            head -c 1000000 /dev/urandom >/tmp/out\n\
            nc 10.0.2.2 {port} </tmp/out >/tmp/in; echo nc=$?\n\
            echo in=$(sha256sum </tmp/in)\n\
            echo out=$(sha256sum </tmp/out)\n\
            nc -w 20 10.0.2.2 1 </dev/null; echo refused=$?"
        );
        let text = console(accelerator, &["--net=user,host=on,mac=02:00:00:00:00:07,mtu=9000"], &script);
        assert!(value(&text, "lease").starts_with("10.0.2.15/24 10.0.2.2 10.0.2.3"), "{text}");
        assert_eq!((value(&text, "mac"), value(&text, "mtu")), ("02:00:00:00:00:07", "9000"), "{text}");
        assert_eq!((value(&text, "ping"), value(&text, "nc")), ("0", "0"), "{text}");
        assert_eq!(value(&text, "in"), format!("{} -", sum(&sent)), "{text}");
        let back = server.join().unwrap();
        assert_eq!(value(&text, "out"), format!("{} -", sum(&back[0])), "{text}");
        assert_eq!(value(&text, "refused"), "1", "{text}");
    }
}

/// A port of the host's leads to the guest; without `host=on` the guest does not reach the host's loopback.
#[test]
fn the_user_network_leads_in() {
    if !have(Flavour::Cloud) {
        return;
    }
    for accelerator in software() {
        let (port, _server) = serve(b"secret", 1);
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sent = pattern(3, 2 * MIB);
        let expected = sum(&sent);
        let client = std::thread::spawn(move || {
            let end = std::time::Instant::now() + std::time::Duration::from_secs(300);
            // Until the guest listens its kernel refuses, or there is no guest yet.
            while std::time::Instant::now() < end {
                let mut line = Vec::new();
                if let Ok(mut stream) = std::net::TcpStream::connect(free)
                    && stream.write_all(&sent).is_ok()
                    && stream.shutdown(std::net::Shutdown::Write).is_ok()
                    && stream.read_to_end(&mut line).is_ok()
                    && line == b"thanks\n"
                {
                    return true;
                }
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            false
        });
        let script = format!(
            "\
            {UP}\
            nc -w 20 10.0.2.2 {port} </dev/null >/tmp/host; echo host=$?$(cat /tmp/host)\n\
            nc -l -p 8000 -e sh -c 'cat >/tmp/in; echo thanks'\n\
            echo in=$(sha256sum </tmp/in)"
        );
        let forward = format!("--net=user,hostfwd=tcp:{}:8000", free.port());
        let text = console(accelerator, &[&forward], &script);
        assert_eq!(value(&text, "host"), "1", "{text}");
        assert_eq!(value(&text, "in"), format!("{expected} -"), "{text}");
        assert!(client.join().unwrap());
    }
}

/// While the guest reads from the network and writes to a disk, it is handed on again and again.
#[test]
fn disks_and_networks_go_along_when_the_accelerator_changes() {
    if !have(Flavour::Cloud) {
        return;
    }
    let list = software().join(",");
    assert!(list.contains(','), "there is nothing to change to");
    let bytes = pattern(7, 8 * MIB);
    let (port, server) = serve(&bytes, 1);
    let folder = tempfile::TempDir::new().unwrap();
    let image = folder.path().join("a");
    fs::write(&image, vec![0; 8 * MIB]).unwrap();
    let script = format!(
        "ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0\n\
         nc 10.0.2.2 {port} </dev/null >/tmp/it\n\
         echo came=$(sha256sum </tmp/it)\n\
         dd if=/tmp/it of=/dev/vda bs=256k conv=fsync 2>/dev/null\n\
         echo 3 >/proc/sys/vm/drop_caches\n\
         echo back=$(sha256sum </dev/vda)\n\
         dmesg | grep -E 'I/O error|BUG:|WARNING:|stall|unstable|timed out' >/tmp/bad; cat /tmp/bad\n\
         echo complaints=$(wc -l </tmp/bad)"
    );
    let disk = disk(&image, "");
    let arguments = [
        disk.as_str(),
        "--net",
        "user,host=on",
        "--cpus",
        "2",
        "--switch-every",
        "25ms",
        "--verify-switches",
    ];
    let text = console(&list, &arguments, &script);
    server.join().unwrap();
    let right = format!("{} -", sum(&bytes));
    for name in ["came", "back"] {
        assert_eq!(
            value(&text, name).split_whitespace().collect::<Vec<_>>().join(" "),
            right,
            "{name}\n{text}"
        );
    }
    assert_eq!(value(&text, "complaints"), "0", "{text}");
    assert_eq!(sum(&fs::read(&image).unwrap()), sum(&bytes));
}
