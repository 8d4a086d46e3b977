//! Any bytes as the guest's side of virtio-vsock: packets of its driver, chains of its queues, while programs of the host connect,
//! write, read and go. The guest is never sent more than it has room for, and what it can have is bounded.
//!
//! `cargo +nightly fuzz run vsock`
#![no_main]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;

use backends::vsock::{BUFFER, Header, MAX_CONNECTIONS, MAX_DATA, Op, VsockHost, VsockOptions};
use libfuzzer_sys::fuzz_target;

const CID: u64 = 3;

/// A folder of this process's, which is left to the system's cleaner.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder").keep())
}

fn listen(path: PathBuf) -> UnixListener {
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path).expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

/// What the guest has told of its buffer, and what it has been sent.
#[derive(Default)]
struct Told {
    alloc: u32,
    forwarded: u32,
    sent: u32,
}

fuzz_target!(|input: &[u8]| {
    let path = folder().join("v");
    let mut host = VsockHost::new(VsockOptions { path: path.clone(), cid: CID as u32 }).expect("a device");
    let listeners: Vec<_> = (0..2).map(|port| listen(folder().join(format!("v_{port}")))).collect();
    let mut programs: Vec<UnixStream> = Vec::new();
    let mut told: HashMap<(u32, u32), Told> = HashMap::new();
    let mut data = Vec::new();
    let mut rest = input;
    while let [what, a, b, c, more @ ..] = rest {
        rest = more;
        match what % 8 {
            // A packet: mostly of ports that are used.
            0..=2 => {
                let mut bytes = [0; Header::LEN];
                bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                let mut header = Header::from_bytes(&bytes);
                if what & 0x80 == 0 {
                    (header.src_cid, header.dst_cid, header.kind) = (CID, 2, 1);
                    header.src_port = u32::from(a % 4);
                    header.dst_port = u32::from(b % 4) | if b & 0x80 != 0 { 1 << 30 } else { 0 };
                    header.op = [Op::Request, Op::Response, Op::Data, Op::Shutdown, Op::CreditUpdate]
                        [usize::from(c % 5)];
                }
                let len = (usize::from(*c) << 8).min(BUFFER as usize);
                rest = rest.get(8..).unwrap_or_default();
                if host.can_take() {
                    if (header.src_cid, header.dst_cid, header.kind) == (CID, 2, 1) {
                        let told = told.entry((header.dst_port, header.src_port)).or_default();
                        if header.op == Op::Request {
                            *told = Told::default();
                        }
                        (told.alloc, told.forwarded) = (header.buf_alloc, header.fwd_cnt);
                    }
                    host.take(&header, &vec![*a; len]);
                }
            }
            3 => {
                if programs.len() < 2 * MAX_CONNECTIONS
                    && let Ok(mut program) = UnixStream::connect(&path)
                {
                    let _ = program.set_nonblocking(true);
                    let _ = program.write_all(&rest[..usize::from(*a % 16).min(rest.len())]);
                    if b & 1 != 0 {
                        let _ = program.write_all(format!("CONNECT {}\n", c % 4).as_bytes());
                    }
                    programs.push(program);
                }
            }
            4 => {
                let accepted = listeners.iter().filter_map(|listener| listener.accept().ok());
                programs.extend(accepted.map(|(program, _)| {
                    let _ = program.set_nonblocking(true);
                    program
                }));
            }
            5 if !programs.is_empty() => {
                let n = usize::from(*a) % programs.len();
                let program = &mut programs[n];
                match b % 4 {
                    0 => drop(programs.swap_remove(n)),
                    1 => drop(program.write(&vec![*c; usize::from(*c) << 8])),
                    2 => drop(program.read(&mut vec![0; usize::from(*c) << 8])),
                    _ => drop(program.shutdown(std::net::Shutdown::Write)),
                }
            }
            6 if *a == 0 => {
                host.reset();
                told.clear();
            }
            _ => {
                host.poll();
                let room = (usize::from(*a) << 8 | usize::from(*b)) + 1;
                if let Some(header) = host.give(room, &mut data) {
                    assert!(data.len() <= room.min(MAX_DATA) && header.len as usize == data.len());
                    let told = told.entry((header.src_port, header.dst_port)).or_default();
                    // A refusal may be of an older connection than the one that has these ports now.
                    if header.op == Op::Request {
                        *told = Told::default();
                    }
                    told.sent = told.sent.wrapping_add(header.len);
                    let under_way = told.sent.wrapping_sub(told.forwarded);
                    assert!(data.is_empty() || under_way <= told.alloc, "more than there is room for");
                }
            }
        }
        assert!(host.connections() <= 2 * MAX_CONNECTIONS);
    }
});
