//! The process without rights that looks at a disk: it reads and writes its two pipes, takes a bounded amount of memory and
//! processor time, and can do nothing else.

use std::collections::VecDeque;
use std::io::{self, BufReader, StdinLock, StdoutLock};

use boot_disk::Disk;
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::protocol::{self, Message};
use crate::exit_code::ExitCode;

/// Memory of the process: kernel and initial RAM disk at their largest, and the copies that a growing buffer makes.
const MEMORY: u64 = 3 << 30;
/// Seconds of processor time.
const SECONDS: u64 = 60;
/// What is asked for at once, and how much of it is kept: file systems come back to their tables.
const PIECE: u64 = 1 << 18;
const PIECES: usize = 64;

/// What the helper is told.
#[derive(Debug, clap::Args)]
pub(crate) struct HelperArgs {
    /// Bytes of the disk
    #[arg(long)]
    size: u64,
    /// What the guest calls the disk
    #[arg(long)]
    device: String,
}

/// Looks, and tells the parent on standard output.
pub(crate) fn help(args: &HelperArgs) -> ExitCode {
    let message = match confine() {
        Ok(()) => match boot_disk::find(Asked::new(args.size), &args.device) {
            Ok(found) => Message::Found(found),
            Err(error) => Message::Nothing(error.to_string()),
        },
        Err(reason) => Message::Nothing(format!("its file systems cannot be looked at safely: {reason}")),
    };
    match message.write(&mut io::stdout().lock()) {
        Ok(()) => ExitCode::Success,
        Err(_) => ExitCode::Host,
    }
}

/// Gives all rights up, or says what this host does not let.
fn confine() -> Result<(), String> {
    let limits = [
        (Resource::As, MEMORY),
        (Resource::Cpu, SECONDS),
        (Resource::Fsize, 0),
        (Resource::Nofile, 0),
        (Resource::Nproc, 0),
        (Resource::Core, 0),
    ];
    for (resource, value) in limits {
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
            .map_err(|error| format!("limit {resource:?}: {error}"))?;
    }
    let program = filter().map_err(|error| format!("seccomp: {error}"))?;
    // It takes the right to gain rights by a program with them, too (PR_SET_NO_NEW_PRIVS).
    seccompiler::apply_filter(&program).map_err(|error| format!("seccomp: {error}"))
}

/// Memory, the two pipes, and the end; anything else kills the process.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let only = |fd: u64| {
        let first = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, fd)?;
        Ok::<_, seccompiler::BackendError>(vec![SeccompRule::new(vec![first])?])
    };
    let free = [
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigreturn,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let mut rules: std::collections::BTreeMap<_, _> = free.map(|call| (call, Vec::new())).into();
    rules.insert(libc::SYS_read, only(0)?);
    rules.insert(libc::SYS_write, only(1)?);
    let target = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, target)?.try_into()
}

/// The disk behind the pipes.
struct Asked {
    size: u64,
    from: BufReader<StdinLock<'static>>,
    to: StdoutLock<'static>,
    /// Number and bytes of pieces, the last used last.
    kept: VecDeque<(u64, Vec<u8>)>,
}

impl Asked {
    fn new(size: u64) -> Self {
        let from = BufReader::with_capacity(1 << 16, io::stdin().lock());
        Self { size, from, to: io::stdout().lock(), kept: VecDeque::new() }
    }

    /// The bytes of the piece with this number.
    fn piece(&mut self, number: u64) -> io::Result<&[u8]> {
        let kept = self.kept.iter().position(|(kept, _)| *kept == number);
        let entry = match kept.and_then(|place| self.kept.remove(place)) {
            Some(entry) => entry,
            None => {
                let at = number.saturating_mul(PIECE);
                let length = self.size.saturating_sub(at).min(PIECE);
                if length == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let request = Message::Read { at, length: u32::try_from(length).unwrap_or(u32::MAX) };
                request.write(&mut self.to)?;
                let mut bytes = vec![0; length as usize];
                protocol::answer(&mut self.from, &mut bytes)?;
                (number, bytes)
            }
        };
        if self.kept.len() >= PIECES {
            self.kept.pop_front();
        }
        self.kept.push_back(entry);
        Ok(self.kept.back().map(|(_, bytes)| &bytes[..]).unwrap_or_default())
    }
}

impl Disk for Asked {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let (mut at, mut into) = (at, into);
        while !into.is_empty() {
            let bytes = self.piece(at / PIECE)?;
            let rest =
                usize::try_from(at % PIECE).ok().and_then(|skip| bytes.get(skip..)).unwrap_or_default();
            let count = rest.len().min(into.len());
            let (now, later) = into.split_at_mut(count);
            match rest.get(..count) {
                Some(rest) if count > 0 => now.copy_from_slice(rest),
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            at += count as u64;
            into = later;
        }
        Ok(())
    }
}
