//! The backends there are, and the choice among them.
//!
//! 1. A [`Registry`] is a value. [`Registry::builtin`] lists what was compiled in (cargo features); a program that
//!    embeds the machine adds its own with [`Registry::register`].
//! 2. [`AccelChoice::Auto`] probes all and takes the best by [`Quality`](accel_api::Quality). A list takes the first
//!    that works, and says of each it passed over why. A single name is taken or refused, never replaced.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use accel_api::{AccelError, AccelId, Accelerator, Probe};

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
    /// See [`ProbeFn`].
    pub probe: ProbeFn,
    /// See [`CreateFn`].
    pub create: CreateFn,
}

/// Names that belong to backends of this project, whether or not this build has them.
const RESERVED: &[&str] = &["kvm", "jit", "dynasm", "interp"];

impl Descriptor {
    fn is_called(&self, name: &str) -> bool {
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

/// What the user asks for: `auto`, a name, or names in order of preference separated by commas.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum AccelChoice {
    /// The best there is.
    #[default]
    Auto,
    /// These, the first that works. Never empty.
    List(Vec<String>),
}

impl FromStr for AccelChoice {
    type Err = ChooseError;

    fn from_str(text: &str) -> Result<Self, ChooseError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
        if names.iter().any(|name| name.is_empty() || name == "auto") {
            return Err(ChooseError::BadList { text: text.to_owned() });
        }
        Ok(Self::List(names))
    }
}

/// The outcome of a choice.
#[derive(Debug)]
pub struct Chosen {
    /// The backend.
    pub accelerator: Arc<dyn Accelerator>,
    /// Those that would have been preferred, and why they were not taken.
    pub skipped: Vec<(AccelId, String)>,
}

/// Why nothing could be chosen.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// No backend of that name.
    #[error("no accelerator `{name}`: choose auto or one of {}", known.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// A backend of this project that was not compiled in.
    #[error("the {name} accelerator is not in this build: choose auto or one of {}", known.join(", "))]
    NotBuilt {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// Neither `auto` nor a list of names.
    #[error("`{text}` is no choice of accelerators: give auto, or names separated by commas")]
    BadList {
        /// What was given.
        text: String,
    },
    /// The one asked for does not work here.
    #[error("the {id} accelerator does not work here: {reason}")]
    Unavailable {
        /// The backend.
        id: AccelId,
        /// Why not, and what would help.
        reason: String,
    },
    /// None works.
    #[error("no accelerator works here{}", list(skipped))]
    NoneWorks {
        /// Each, and why not.
        skipped: Vec<(AccelId, String)>,
    },
    /// Two backends of one name.
    #[error("there is an accelerator called `{name}` already")]
    Duplicate {
        /// The name.
        name: &'static str,
    },
}

fn list(skipped: &[(AccelId, String)]) -> String {
    skipped.iter().map(|(id, why)| format!("; {id}: {why}")).collect()
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
        let list = vec![
            #[cfg(feature = "interp")]
            Descriptor {
                id: AccelId("interp"),
                aliases: vec!["tcg", "interpreter"],
                summary: "interprets guest instructions; works everywhere",
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

    /// Chooses and makes a backend.
    ///
    /// # Errors
    /// A name nobody has, even in a list of which another would work; or none works.
    pub fn choose(&self, choice: &AccelChoice) -> Result<Chosen, ChooseError> {
        let mut skipped = Vec::new();
        match choice {
            AccelChoice::Auto => {
                let mut works = Vec::new();
                for descriptor in &self.0 {
                    match (descriptor.probe)() {
                        Probe::Available { quality, .. } => works.push((quality, descriptor)),
                        probe => skipped.push((descriptor.id, why_not(probe))),
                    }
                }
                // Stable: of two equals the one registered first.
                works.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
                for (_, descriptor) in works {
                    match (descriptor.create)() {
                        Ok(accelerator) => return Ok(Chosen { accelerator, skipped }),
                        Err(error) => skipped.push((descriptor.id, error.to_string())),
                    }
                }
            }
            AccelChoice::List(names) => {
                let descriptors = names.iter().map(|name| {
                    let known = || self.0.iter().map(|d| d.id.0).collect();
                    let missing = || match RESERVED.contains(&name.as_str()) {
                        true => ChooseError::NotBuilt { name: name.clone(), known: known() },
                        false => ChooseError::Unknown { name: name.clone(), known: known() },
                    };
                    self.find(name).ok_or_else(missing)
                });
                for descriptor in descriptors.collect::<Result<Vec<_>, _>>()? {
                    match make(descriptor) {
                        Ok(accelerator) => return Ok(Chosen { accelerator, skipped }),
                        Err(reason) => skipped.push((descriptor.id, reason)),
                    }
                }
            }
        }
        match (choice, skipped.as_mut_slice()) {
            (AccelChoice::List(_), [(id, reason)]) => {
                Err(ChooseError::Unavailable { id: *id, reason: std::mem::take(reason) })
            }
            _ => Err(ChooseError::NoneWorks { skipped }),
        }
    }
}

fn make(descriptor: &Descriptor) -> Result<Arc<dyn Accelerator>, String> {
    match (descriptor.probe)() {
        Probe::Available { .. } => (descriptor.create)().map_err(|error| error.to_string()),
        probe => Err(why_not(probe)),
    }
}

fn why_not(probe: Probe) -> String {
    match probe {
        Probe::Absent { reason, remedy: Some(remedy) } => format!("{reason} ({remedy})"),
        Probe::Absent { reason, remedy: None } | Probe::Broken(reason) => reason,
        // Only a backend that works and is then not made gets here.
        Probe::Available { detail, .. } => detail,
    }
}

#[cfg(test)]
mod tests {
    use accel_api::Quality;

    use super::*;
    use crate::fake::FakeAccelerator;

    fn descriptor(id: &'static str, probe: Probe) -> Descriptor {
        Descriptor {
            id: AccelId(id),
            aliases: Vec::new(),
            summary: "test",
            probe: Arc::new(move || probe.clone()),
            create: Arc::new(move || Ok(Arc::new(FakeAccelerator::named(id)))),
        }
    }
    fn works(id: &'static str, quality: Quality) -> Descriptor {
        descriptor(id, Probe::Available { quality, detail: "fine".into() })
    }
    fn absent(id: &'static str) -> Descriptor {
        descriptor(id, Probe::Absent { reason: "no device".into(), remedy: Some("buy one".into()) })
    }
    fn registry(list: Vec<Descriptor>) -> Registry {
        let mut registry = Registry::empty();
        for descriptor in list {
            registry.register(descriptor).unwrap();
        }
        registry
    }
    fn choose(registry: &Registry, text: &str) -> Result<Chosen, ChooseError> {
        registry.choose(&text.parse()?)
    }

    #[test]
    fn auto_takes_the_best_that_works() {
        let r = registry(vec![
            works("slow-hw", Quality::Degraded),
            works("a", Quality::Interpreted),
            works("b", Quality::Translated),
            absent("hw"),
        ]);
        let chosen = choose(&r, "auto").unwrap();
        assert_eq!(chosen.accelerator.id().0, "b");
        assert_eq!(chosen.skipped, [(AccelId("hw"), "no device (buy one)".into())]);
    }

    #[test]
    fn auto_goes_on_when_the_best_cannot_be_made() {
        let mut broken = works("b", Quality::Translated);
        broken.create = Arc::new(|| Err(AccelError::BadVcpu(0)));
        let r = registry(vec![broken, works("a", Quality::Interpreted)]);
        let chosen = choose(&r, "auto").unwrap();
        assert_eq!((chosen.accelerator.id().0, chosen.skipped.len()), ("a", 1));
    }

    #[test]
    fn a_list_is_taken_in_its_order_and_a_single_name_never_replaced() {
        let broken = descriptor("broken", Probe::Broken("it is on fire".into()));
        let r =
            registry(vec![works("a", Quality::Hardware), works("b", Quality::Degraded), absent("c"), broken]);
        let chosen = choose(&r, "c, b,a").unwrap();
        assert_eq!((chosen.accelerator.id().0, chosen.skipped.len()), ("b", 1));
        let error = choose(&r, "c").unwrap_err();
        assert!(matches!(error, ChooseError::Unavailable { id: AccelId("c"), .. }), "{error}");
        let error = choose(&r, "c,broken").unwrap_err().to_string();
        assert!(error.contains("c: no device") && error.contains("broken: it is on fire"), "{error}");
    }

    #[test]
    fn names_nobody_has_are_refused_with_those_there_are() {
        let r = registry(vec![works("a", Quality::Hardware), absent("c")]);
        let error = choose(&r, "a,zz").unwrap_err().to_string();
        assert!(error.contains("`zz`") && error.contains("a, c"), "{error}");
        for bad in ["", "a,,c", "auto,a", ","] {
            assert!(matches!(choose(&r, bad), Err(ChooseError::BadList { .. })), "{bad}");
        }
        assert!(matches!(Registry::empty().choose(&AccelChoice::Auto), Err(ChooseError::NoneWorks { .. })));
    }

    #[test]
    fn backends_that_were_left_out_are_no_unknown_names() {
        let r = registry(vec![works("a", Quality::Hardware)]);
        for name in RESERVED {
            let error = choose(&r, name).unwrap_err();
            assert!(matches!(error, ChooseError::NotBuilt { .. }), "{error}");
        }
        assert_eq!(choose(&registry(vec![works("kvm", Quality::Hardware)]), "kvm").unwrap().skipped, []);
    }

    #[test]
    fn names_and_aliases_are_unique() {
        let mut r = Registry::builtin();
        let tcg = works("tcg", Quality::Interpreted);
        if cfg!(feature = "interp") {
            assert_eq!(r.find("tcg").map(|d| d.id.0), Some("interp"));
            assert!(matches!(r.register(tcg), Err(ChooseError::Duplicate { name: "tcg" })));
        }
        assert!(r.register(works("auto", Quality::Interpreted)).is_err());
    }
}
