//! The backends there are.
//!
//! A [`Registry`] is a value. [`Registry::builtin`] lists what was compiled in (cargo features); a program that embeds the
//! machine adds its own with [`Registry::register`].

use std::fmt;
use std::ops::RangeInclusive;
#[cfg(feature = "kvm")]
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use accel_api::{AccelError, AccelId, Accelerator, Probe, Quality};

use crate::choice::{AccelChoice, ChooseError, Chosen, Needs, Survey};

/// Runs the guest on the processor.
pub const KVM: AccelId = AccelId("kvm");
/// Translates.
pub const JIT: AccelId = AccelId("jit");
/// Interprets.
pub const INTERP: AccelId = AccelId("interp");
/// Another name of [`JIT`], after what it is made with.
const DYNASM: &str = "dynasm";
/// Names that belong to backends of this project, whether or not this build has them.
pub(crate) const RESERVED: &[&str] = &[KVM.0, JIT.0, DYNASM, INTERP.0];

/// Finds out whether a backend works on this host.
pub type ProbeFn = Arc<dyn Fn() -> Probe + Send + Sync>;
/// Makes the backend.
pub type CreateFn = Arc<dyn Fn() -> Result<Arc<dyn Accelerator>, AccelError> + Send + Sync>;

/// One backend that can be chosen.
#[derive(Clone)]
pub struct Descriptor {
    /// Its name.
    pub id: AccelId,
    /// Other names it goes by, for example QEMU's.
    pub aliases: Vec<&'static str>,
    /// One line for the user.
    pub summary: &'static str,
    /// The best that a probe may find. Backends that promise no more than what was found are not probed.
    pub promise: Quality,
    /// See [`ProbeFn`].
    pub probe: ProbeFn,
    /// See [`CreateFn`].
    pub create: CreateFn,
}

impl Descriptor {
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.id.0 == name || self.aliases.contains(&name)
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptor")
            .field("id", &self.id)
            .field("aliases", &self.aliases)
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

/// What the user wants of particular backends.
#[derive(Clone, Debug, Default)]
pub struct BackendOptions {
    /// KVM's device, elsewhere than where Linux has it.
    pub kvm_device: Option<PathBuf>,
    /// Of the JIT.
    pub jit: JitOptions,
}

/// What the user wants of the JIT, to look for its mistakes or to see what it does.
#[derive(Clone, Default)]
pub struct JitOptions {
    /// Check one in so many blocks (1: all) against the interpreter's functions; only with one vCPU. A difference is
    /// [`GuestEnd::BackendBug`](crate::GuestEnd::BackendBug).
    pub verify: Option<u64>,
    /// Translate only blocks whose hash, which reports name, lies here.
    pub only: Option<RangeInclusive<u64>>,
    /// A guest linear address, and who is told of each translation of a block that holds it.
    pub show: Option<(u64, Listener)>,
    /// Count all instructions, which costs some speed.
    pub counting: bool,
    /// Bytes of translated code that each vCPU keeps, from 32 KiB to 1 GiB; 64 MiB unless told.
    pub cache_bytes: Option<usize>,
    /// Write /tmp/perf-PID.map, so that perf names guest blocks.
    pub perf_map: bool,
    /// Write jit-PID.dump into this folder, so that `perf inject --jit` has the code of guest blocks.
    pub jitdump: Option<PathBuf>,
    /// Is told, in a line, that a file for perf is full and gets no more. Else it is logged as a warning.
    pub notice: Option<Listener>,
    /// Mistranslates this constant, for tests of `verify`.
    #[doc(hidden)]
    pub sabotage: Option<u32>,
}

/// Is told a text.
pub type Listener = Arc<dyn Fn(String) + Send + Sync>;

impl fmt::Debug for JitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verify, only, show, counting, cache_bytes, perf_map, jitdump, notice: _, sabotage } = self;
        let show = show.as_ref().map(|(address, _)| address);
        f.debug_struct("JitOptions")
            .field("verify", verify)
            .field("only", only)
            .field("show", &show)
            .field("counting", counting)
            .field("cache_bytes", cache_bytes)
            .field("perf_map", perf_map)
            .field("jitdump", jitdump)
            .field("sabotage", sabotage)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "jit")]
fn create_jit(options: &JitOptions) -> Result<Arc<dyn Accelerator>, AccelError> {
    use accel_dynasm::{BlockDump, Config, JitDump, Notice, PerfMap};
    let JitOptions { verify, only, show, counting, cache_bytes, perf_map, jitdump, notice, sabotage } =
        options.clone();
    let notice = Notice(notice.unwrap_or_else(|| Arc::new(|line| tracing::warn!("{line}"))));
    let perf_map = perf_map.then(|| PerfMap::for_this_process(notice.clone())).transpose();
    let perf_map = perf_map.map_err(|source| AccelError::Host { what: "make a map for perf", source })?;
    let jitdump = jitdump.as_deref().map(|folder| JitDump::in_folder(folder, notice)).transpose();
    let jitdump = jitdump.map_err(|source| AccelError::Host { what: "dump code for perf", source })?;
    let default = Config::default();
    Ok(accel_dynasm::create_with(Config {
        verify,
        only,
        counting,
        sabotage,
        show: show.map(|(address, tell)| Arc::new(BlockDump::new(address, tell))),
        cache_bytes: cache_bytes.unwrap_or(default.cache_bytes),
        perf_map: perf_map.map(Arc::new),
        jitdump: jitdump.map(Arc::new),
        ..default
    }))
}

/// The backends a machine can be given.
#[derive(Clone, Debug, Default)]
pub struct Registry(Vec<Descriptor>);

impl Registry {
    /// None.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Those compiled in.
    pub fn builtin() -> Self {
        Self::builtin_with(&BackendOptions::default())
    }

    /// Those compiled in, with choices of one's own for those they are for.
    pub fn builtin_with(options: &BackendOptions) -> Self {
        #[cfg(feature = "kvm")]
        let device: Arc<Path> =
            options.kvm_device.as_deref().unwrap_or(Path::new(accel_kvm::DEFAULT_PATH)).into();
        #[cfg(feature = "jit")]
        let jit = options.jit.clone();
        #[cfg(not(any(feature = "kvm", feature = "jit")))]
        let _ = options;
        let list = vec![
            #[cfg(feature = "kvm")]
            Descriptor {
                id: KVM,
                aliases: Vec::new(),
                summary: "runs the guest on the processor itself, through the kernel's KVM",
                promise: Quality::Hardware,
                probe: Arc::new({
                    let device = device.clone();
                    move || accel_kvm::probe(&device)
                }),
                create: Arc::new(move || accel_kvm::create_on(&device)),
            },
            #[cfg(feature = "jit")]
            Descriptor {
                id: JIT,
                aliases: vec![DYNASM, "tcg"],
                summary: "translates guest code to host code",
                promise: Quality::Translated,
                probe: Arc::new(accel_dynasm::probe),
                create: Arc::new(move || create_jit(&jit)),
            },
            #[cfg(feature = "interp")]
            Descriptor {
                id: INTERP,
                aliases: vec!["interpreter"],
                summary: "interprets guest instructions one by one",
                promise: Quality::Interpreted,
                probe: Arc::new(accel_interp::probe),
                create: Arc::new(accel_interp::create),
            },
        ];
        Self(list)
    }

    /// Adds a backend.
    ///
    /// # Errors
    /// One of its names is taken, or is `auto`.
    pub fn register(&mut self, descriptor: Descriptor) -> Result<(), ChooseError> {
        let names = descriptor.aliases.iter().chain([&descriptor.id.0]);
        for &name in names {
            if name == "auto" || self.find(name).is_some() {
                return Err(ChooseError::Duplicate { name });
            }
        }
        self.0.push(descriptor);
        Ok(())
    }

    /// All backends, in the order they were added.
    pub fn list(&self) -> &[Descriptor] {
        &self.0
    }

    /// The backend of that name or alias.
    pub fn find(&self, name: &str) -> Option<&Descriptor> {
        self.0.iter().find(|d| d.is_called(name))
    }

    /// The backend that promises least and so asks least of the host: what a user can go back to.
    pub fn simplest(&self) -> Option<AccelId> {
        self.0.iter().min_by_key(|descriptor| descriptor.promise).map(|descriptor| descriptor.id)
    }

    /// A look at this host that probes each backend at most once, and only when it must.
    pub fn survey(&self) -> Survey<'_> {
        Survey::of(&self.0)
    }

    /// Chooses and makes a backend for a machine like the [default](Needs::default).
    ///
    /// # Errors
    /// A name nobody has, even in a list of which another would work; or none works.
    pub fn choose(&self, choice: &AccelChoice) -> Result<Chosen, ChooseError> {
        self.survey().choose(choice, &Needs::default())
    }
}

#[cfg(test)]
mod tests {
    use accel_api::Available;

    use super::*;
    use crate::fake::FakeAccelerator;

    /// A backend knows its own name, and the registry names it.
    #[test]
    fn backends_have_the_names_that_are_given_here() {
        #[cfg(feature = "kvm")]
        assert_eq!(accel_kvm::ID, KVM);
        #[cfg(feature = "jit")]
        assert_eq!(accel_dynasm::ID, JIT);
        #[cfg(feature = "interp")]
        assert_eq!((accel_interp::ID, Registry::builtin().simplest()), (INTERP, Some(INTERP)));
    }

    #[test]
    fn names_and_aliases_are_unique() {
        let of = |name| Descriptor {
            id: AccelId(name),
            aliases: Vec::new(),
            summary: "test",
            promise: Quality::Interpreted,
            probe: Arc::new(|| Probe::Available(Available::of(Quality::Interpreted, "fine"))),
            create: Arc::new(move || Ok(Arc::new(FakeAccelerator::named(name)))),
        };
        let mut r = Registry::builtin();
        if cfg!(feature = "jit") {
            assert_eq!(r.find("tcg").map(|d| d.id.0), Some("jit"));
            assert!(matches!(r.register(of("tcg")), Err(ChooseError::Duplicate { name: "tcg" })));
        }
        assert!(r.register(of("auto")).is_err() && r.register(of("new")).is_ok());
    }
}
