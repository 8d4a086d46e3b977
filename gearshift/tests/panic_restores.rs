//! A panic with the terminal in raw mode restores it. The process that panics is this program again, with the
//! program's own terminal module; hence no test harness, which would catch the panic.

mod common;
#[path = "../src/terminal.rs"]
#[allow(dead_code)] // of the module only raw mode is used
mod terminal;

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use common::pty::{Pty, modes};

const CHILD: &str = "panic-in-raw-mode";

fn main() {
    if std::env::args().any(|argument| argument == CHILD) {
        let _raw = terminal::RawMode::enter().unwrap().expect("a terminal");
        let mut line = String::new();
        std::io::stderr().write_all(b"raw\n").unwrap();
        // Ends when the other side has seen that the terminal is raw.
        while !line.contains('.') {
            let mut byte = [0];
            std::io::Read::read_exact(&mut std::io::stdin(), &mut byte).unwrap();
            line.push(byte[0] as char);
        }
        // On another thread, and with the guard forgotten, so that only the hook can restore.
        std::mem::forget(_raw);
        let _ = std::thread::spawn(|| panic!("on purpose")).join();
        return;
    }
    let pty = Pty::new();
    let before = modes(&pty.attributes());
    let mut child = pty.spawn(Command::new(std::env::current_exe().unwrap()).arg(CHILD));
    pty.expect("raw", Duration::from_secs(30));
    assert!(pty.is_raw());
    pty.send(".");
    child.wait(Duration::from_secs(30));
    assert_eq!(modes(&pty.attributes()), before);
    pty.expect("on purpose", Duration::from_secs(30));
    std::io::stdout().write_all(b"test a_panic_restores_the_terminal ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n").unwrap();
}
