//! The host: cores, names, a folder for files.
#![allow(unsafe_code)] // affinity, a parent's death and groups of processes have no safe wrapper in libc

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};

use crate::error::Error;

/// The calling thread's affinity mask.
fn affinity() -> libc::cpu_set_t {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: all zeros is an empty set, and the call writes at most the size it is given. On an error, which needs a
    // host of more than 1024 cores, the set stays empty.
    unsafe {
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr());
        set.assume_init()
    }
}

fn set_affinity(set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: reads a set of the size given, and changes the calling thread only.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The core asked for, or the last one this thread may use: the first ones serve more interrupts on many hosts.
///
/// # Errors
/// This thread may not run on the one asked for.
pub fn choose_core(asked: Option<usize>) -> Result<usize, Error> {
    let set = affinity();
    let allowed = |core: usize| {
        // SAFETY: CPU_ISSET reads a bit of the set; the index is checked against its size.
        core < libc::CPU_SETSIZE as usize && unsafe { libc::CPU_ISSET(core, &set) }
    };
    match asked {
        Some(core) if allowed(core) => Ok(core),
        Some(core) => Err(Error::Core { core }),
        None => Ok((0..libc::CPU_SETSIZE as usize).rev().find(|core| allowed(*core)).unwrap_or(0)),
    }
}

/// Does `work`, for example start a process, with this thread pinned to one core. What it starts stays pinned.
///
/// # Errors
/// The host refuses.
pub fn pinned<T>(core: usize, work: impl FnOnce() -> T) -> Result<T, Error> {
    let before = affinity();
    let mut only = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: all zeros is an empty set; CPU_SET checks the index itself.
    let only = unsafe {
        libc::CPU_SET(core, &mut *only.as_mut_ptr());
        only.assume_init()
    };
    set_affinity(&only).map_err(|source| Error::Pin { core, source })?;
    let result = work();
    set_affinity(&before).map_err(|source| Error::Pin { core, source })?;
    Ok(result)
}

/// Has the kernel kill what `command` will start when this thread ends, however that happens: a comparison that is killed leaves
/// no guest behind. So the thread that starts it has to wait for its end.
pub fn dies_with_us(command: &mut Command) {
    let us = std::process::id();
    let tie = move || {
        // SAFETY: two system calls, which touch no memory.
        let parent = unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::getppid()
        };
        // We may have ended before that.
        if parent as u32 == us { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(tie) };
}

/// Kills a process that leads a group of its own, and all of the group.
pub(crate) fn kill_group(leader: &Child) {
    // SAFETY: a system call, which touches no memory; nobody else has the number before the process is waited for.
    unsafe { libc::kill(-(leader.id() as libc::pid_t), libc::SIGKILL) };
}

/// Name of the processor as the kernel gives it.
pub(crate) fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("unknown", |(_, name)| name.trim()).to_owned()
}

/// First line of a file of /proc.
pub(crate) fn proc_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// The load averages of 1, 5 and 15 minutes.
pub(crate) fn load() -> String {
    proc_line("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// A folder for files of one experiment, removed with everything in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(name: &str) -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("gearshift-{}-{name}", std::process::id()));
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        Ok(Self(path))
    }

    /// Writes a file into it; its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Error> {
        let path = self.0.join(name);
        fs::write(&path, bytes).map_err(Error::file("write", &path))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing is lost if it stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Commit of the source tree this program was built from, as it is now, with `-dirty` behind it if there are changes; empty where there is none.
pub(crate) fn commit() -> String {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .current_dir(guests::suite::source())
        .output();
    output.map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_core_and_gets_the_others_back() {
        let count = |set: &libc::cpu_set_t| {
            // SAFETY: reads the set.
            unsafe { libc::CPU_COUNT(set) }
        };
        let before = count(&affinity());
        let core = choose_core(None).unwrap();
        assert_eq!(pinned(core, || count(&affinity())).unwrap(), 1);
        assert_eq!(count(&affinity()), before);
        assert!(choose_core(Some(1023)).is_err() || before == 1024);
    }
}
