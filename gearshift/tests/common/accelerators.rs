//! Guests on every accelerator of this host.

use std::io::{self, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use accel_api::{AccelId, Accelerator, Probe, Quality};
use machine::{GuestEnd, Machine, Registry};

/// A guest takes seconds; this is for a host that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(420);

/// How the guest ends. One that does not is stopped, which is no end that a test accepts.
pub fn end(machine: &Machine) -> GuestEnd {
    end_and(machine, |_| ()).0
}

/// Likewise, with what `last` asks the machine before it is closed.
pub fn end_and<R>(machine: &Machine, last: impl FnOnce(&Machine) -> R) -> (GuestEnd, R) {
    let (done, waiting) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                machine.stop();
            }
        });
        machine.wait_end();
        drop(done);
        let answer = last(machine);
        // Writes out what the guest has sent.
        (machine.wait(), answer)
    })
}

/// Keeps what a guest says.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    /// All of it so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why an accelerator is not tested, if it is not.
fn passed_over(probe: &Probe) -> Option<String> {
    match probe {
        // A KVM without hardware behind it emulates ring 0, slowly and in parts.
        Probe::Available(it) if it.quality == Quality::Degraded => Some(format!("degraded: {}", it.detail)),
        Probe::Available(_) => None,
        Probe::Absent(it) => Some(it.reason.clone()),
        broken => panic!("{broken:?}"),
    }
}

/// Calls `test` with the name of each accelerator that works here and what makes it; how many those were. Of the others
/// it says why `what` is not tested on them.
pub fn each(what: &str, test: impl Fn(AccelId, &dyn Fn() -> Arc<dyn Accelerator>)) -> usize {
    let registry = Registry::builtin();
    let usable = registry.list().iter().filter(|descriptor| match passed_over(&(descriptor.probe)()) {
        Some(reason) => {
            let line = format!("SKIPPED (optional): {what} on {}: {reason}\n", descriptor.id);
            io::stderr().write_all(line.as_bytes()).unwrap();
            false
        }
        None => true,
    });
    usable.map(|descriptor| test(descriptor.id, &|| (descriptor.create)().unwrap())).count()
}
