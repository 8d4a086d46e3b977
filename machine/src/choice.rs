//! The choice among backends.
//!
//! 1. [`AccelChoice::Auto`] takes the best by what the probes *measured*: a backend that promises much and does little
//!    here is passed over. A list takes the first that works. Either passes over what cannot give the machine its
//!    CPU model or number of vCPUs. A single name is taken or refused, never replaced.
//! 2. A list is also the set of backends that the machine may run on: its processor is what all of them that work here can
//!    give ([`Chosen::caps`]), whichever is taken.
//! 3. Whatever sounded better than what was taken is told of in one line, with the reason ([`Chosen::explanation`]).
//! 4. Probing costs milliseconds, so a [`Survey`] probes each backend at most once, and none that could not win.

use std::cell::OnceCell;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use accel_api::{AccelCaps, AccelError, AccelId, Accelerator, Available, Probe, Quality};

use crate::builder::{DEFAULT_MODEL, cpu_model};
use crate::registry::{Descriptor, RESERVED};
use crate::vm::MachineError;

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

/// What the machine to come asks of a backend. The default is that of [`MachineBuilder`](crate::MachineBuilder).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Needs {
    /// Name of the CPU model.
    pub cpu_model: String,
    /// Number of vCPUs.
    pub vcpus: u32,
}

impl Default for Needs {
    fn default() -> Self {
        Self { cpu_model: DEFAULT_MODEL.to_owned(), vcpus: 1 }
    }
}

impl Needs {
    /// Whether `accelerator` can give that.
    ///
    /// # Errors
    /// What it cannot give.
    pub fn met_by(&self, accelerator: &dyn Accelerator) -> Result<(), MachineError> {
        // Whether features are there does not depend on the frequency.
        cpu_model(&self.cpu_model, self.vcpus, 1, accelerator.id(), accelerator.caps()).map(drop)
    }
}

/// A backend that was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PassedOver {
    /// The backend.
    pub id: AccelId,
    /// Why.
    pub reason: String,
    /// What the user can do about it, if anything.
    pub remedy: Option<String>,
}

impl PassedOver {
    fn new(descriptor: &Descriptor, reason: impl ToString, remedy: Option<&str>) -> Self {
        Self { id: descriptor.id, reason: reason.to_string(), remedy: remedy.map(str::to_owned) }
    }

    fn with_remedy(&self) -> String {
        self.remedy.iter().fold(self.reason.clone(), |text, remedy| format!("{text}; {remedy}"))
    }
}

/// The outcome of a choice.
#[derive(Debug)]
pub struct Chosen {
    /// The backend.
    pub accelerator: Arc<dyn Accelerator>,
    /// What it offers, and all others of the list that work here and meet the needs: for
    /// [`MachineBuilder::offered`](crate::MachineBuilder::offered).
    pub caps: AccelCaps,
    /// Those that sounded better or were named before, and why they were not taken.
    pub skipped: Vec<PassedOver>,
    /// What the user should know of the one that was taken: it does far less than it promises.
    pub caution: Option<String>,
}

impl Chosen {
    /// Why it was this one, in one line, if that is not what one would expect.
    ///
    /// For example `accel: interp (kvm: ring 0 is emulated on this host, 1.1 us an instruction; provider kvm_pvm)`.
    pub fn explanation(&self) -> Option<String> {
        let skipped = self.skipped.iter().map(|other| format!("{}: {}", other.id, other.reason));
        let parts: Vec<_> = self.caution.iter().cloned().chain(skipped).collect();
        (!parts.is_empty()).then(|| format!("accel: {} ({})", self.accelerator.id(), parts.join("; ")))
    }
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
    #[error("the {} accelerator does not work here: {}", .0.id, .0.with_remedy())]
    Unavailable(PassedOver),
    /// None works.
    #[error("no accelerator works here{}", list(skipped))]
    NoneWorks {
        /// Each, and why not.
        skipped: Vec<PassedOver>,
    },
    /// Two backends of one name.
    #[error("there is an accelerator called `{name}` already")]
    Duplicate {
        /// The name.
        name: &'static str,
    },
}

fn list(skipped: &[PassedOver]) -> String {
    skipped.iter().map(|other| format!("; {}: {}", other.id, other.with_remedy())).collect()
}

/// The backends of a [`Registry`](crate::Registry) on this host, each probed at most once.
#[derive(Debug)]
pub struct Survey<'a> {
    entries: Vec<(&'a Descriptor, OnceCell<Probe>)>,
}

/// A backend that works, by its probe.
#[derive(Clone, Copy)]
struct Works<'a, 's> {
    descriptor: &'a Descriptor,
    found: &'s Available,
}

/// One that has been made.
struct Made<'a, 's> {
    works: Works<'a, 's>,
    accelerator: Arc<dyn Accelerator>,
}

impl<'a> Survey<'a> {
    pub(crate) fn of(descriptors: &'a [Descriptor]) -> Self {
        Self { entries: descriptors.iter().map(|descriptor| (descriptor, OnceCell::new())).collect() }
    }

    /// The backends, in the registry's order.
    pub fn descriptors(&self) -> impl Iterator<Item = &'a Descriptor> + '_ {
        self.entries.iter().map(|(descriptor, _)| *descriptor)
    }

    /// All backends and what their probes say.
    pub fn probes(&self) -> impl Iterator<Item = (&'a Descriptor, &Probe)> {
        self.entries.iter().map(|entry| (entry.0, probed(entry)))
    }

    fn try_out(&self, descriptor: &'a Descriptor) -> Result<Works<'a, '_>, PassedOver> {
        let entry = self.entries.iter().find(|(other, _)| other.id == descriptor.id);
        match entry.map(probed) {
            Some(Probe::Available(found)) => Ok(Works { descriptor, found }),
            Some(probe) => Err(PassedOver::new(descriptor, probe, probe.remedy())),
            None => Err(PassedOver::new(descriptor, "not in the registry", None)),
        }
    }

    /// Chooses and makes a backend for a machine with these needs.
    ///
    /// # Errors
    /// A name nobody has, even in a list of which another would work; or none works.
    pub fn choose(&self, choice: &AccelChoice, needs: &Needs) -> Result<Chosen, ChooseError> {
        match choice {
            AccelChoice::Auto => self.choose_best(needs),
            AccelChoice::List(names) => self.choose_first(names, needs),
        }
    }

    fn choose_best(&self, needs: &Needs) -> Result<Chosen, ChooseError> {
        let mut waiting: Vec<_> = self.descriptors().collect();
        // Stable: of two equals the one registered first.
        waiting.sort_by_key(|descriptor| std::cmp::Reverse(descriptor.promise));
        let (mut works, mut skipped, mut unfit) = (Vec::<Works<'_, '_>>::new(), Vec::new(), None);
        loop {
            works.sort_by_key(|other| std::cmp::Reverse(other.found.quality));
            let best = works.first().map(|other| other.found.quality);
            if waiting.first().is_some_and(|next| best < Some(next.promise)) {
                match self.try_out(waiting.remove(0)) {
                    Ok(other) => works.push(other),
                    Err(passed_over) => skipped.push(passed_over),
                }
                continue;
            }
            if works.is_empty() {
                break;
            }
            match works.remove(0).make(needs, &mut unfit) {
                Err(passed_over) => skipped.push(passed_over),
                Ok(made) => {
                    // What sounded better and is not: its measure is the reason.
                    let slower =
                        works.iter().filter(|other| other.descriptor.promise > made.works.found.quality);
                    skipped.extend(slower.map(|other| PassedOver::new(other.descriptor, other.found, None)));
                    return Ok(made.chosen(skipped));
                }
            }
        }
        finish(unfit, skipped, |skipped| ChooseError::NoneWorks { skipped })
    }

    fn choose_first(&self, names: &[String], needs: &Needs) -> Result<Chosen, ChooseError> {
        let find = |name: &String| {
            let known = || self.descriptors().map(|descriptor| descriptor.id.0).collect();
            let missing = || match RESERVED.contains(&name.as_str()) {
                true => ChooseError::NotBuilt { name: name.clone(), known: known() },
                false => ChooseError::Unknown { name: name.clone(), known: known() },
            };
            self.descriptors().find(|descriptor| descriptor.is_called(name)).ok_or_else(missing)
        };
        let descriptors = names.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let (mut skipped, mut unfit) = (Vec::new(), None);
        let mut descriptors = descriptors.into_iter();
        while let Some(descriptor) = descriptors.next() {
            match self.try_out(descriptor).and_then(|works| works.make(needs, &mut unfit)) {
                Ok(made) => {
                    let mut chosen = made.chosen(skipped);
                    for other in descriptors {
                        let other = self.try_out(other).and_then(|works| works.make(needs, &mut None));
                        chosen.caps = match other {
                            Ok(other) => chosen.caps.common(other.accelerator.caps()),
                            Err(_) => chosen.caps,
                        };
                    }
                    return Ok(chosen);
                }
                Err(passed_over) => skipped.push(passed_over),
            }
        }
        finish(unfit, skipped, |mut skipped| match skipped.len() {
            1 => ChooseError::Unavailable(skipped.remove(0)),
            _ => ChooseError::NoneWorks { skipped },
        })
    }
}

fn probed<'s>((descriptor, probe): &'s (&Descriptor, OnceCell<Probe>)) -> &'s Probe {
    probe.get_or_init(|| {
        let started = Instant::now();
        let found = (descriptor.probe)();
        tracing::debug!(id = descriptor.id.0, took = ?started.elapsed(), ?found, "probed");
        found
    })
}

impl<'a, 's> Works<'a, 's> {
    /// Makes it. The first that works and does not meet the needs is kept in `unfit`.
    fn make(self, needs: &Needs, unfit: &mut Option<Made<'a, 's>>) -> Result<Made<'a, 's>, PassedOver> {
        let refused = |reason: String| PassedOver::new(self.descriptor, reason, None);
        let accelerator = (self.descriptor.create)().map_err(|error| refused(error.to_string()))?;
        let met = needs.met_by(&*accelerator);
        let made = Made { works: self, accelerator };
        match met {
            Ok(()) => Ok(made),
            Err(error) => {
                unfit.get_or_insert(made);
                Err(refused(what_lacks(&error)))
            }
        }
    }
}

impl Made<'_, '_> {
    fn chosen(self, skipped: Vec<PassedOver>) -> Chosen {
        let Works { descriptor, found } = self.works;
        let degraded = found.quality == Quality::Degraded && found.quality < descriptor.promise;
        let caution = degraded.then(|| found.to_string());
        let caps = self.accelerator.caps().clone();
        Chosen { accelerator: self.accelerator, caps, skipped, caution }
    }
}

/// If nobody meets the needs, the first that works is taken all the same: building the machine then tells what it lacks,
/// which is no matter of accelerators if all lack it.
fn finish(
    unfit: Option<Made<'_, '_>>,
    mut skipped: Vec<PassedOver>,
    none: impl FnOnce(Vec<PassedOver>) -> ChooseError,
) -> Result<Chosen, ChooseError> {
    let Some(made) = unfit else { return Err(none(skipped)) };
    skipped.retain(|other| other.id != made.works.descriptor.id);
    Ok(made.chosen(skipped))
}

/// The error without the backend's name, which stands before it.
fn what_lacks(error: &MachineError) -> String {
    match error {
        MachineError::Accel(AccelError::MissingFeatures { missing, .. }) => {
            format!("cannot give the guest {}", missing.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use accel_api::x86::Feature;
    use accel_api::{Absent, AbsentKind, Broken};

    use super::*;
    use crate::Registry;
    use crate::fake::FakeAccelerator;

    fn descriptor(id: &'static str, promise: Quality, probe: Probe) -> Descriptor {
        Descriptor {
            id: AccelId(id),
            aliases: Vec::new(),
            summary: "test",
            promise,
            probe: Arc::new(move || probe.clone()),
            create: Arc::new(move || Ok(Arc::new(FakeAccelerator::named(id)))),
        }
    }
    fn works(id: &'static str, quality: Quality) -> Descriptor {
        descriptor(id, quality, Probe::Available(Available::of(quality, "fine")))
    }
    fn absent(id: &'static str) -> Descriptor {
        let (kind, reason, remedy) = (AbsentKind::NoDevice, "no device".into(), Some("buy one".into()));
        descriptor(id, Quality::Hardware, Probe::Absent(Absent { kind, reason, remedy }))
    }
    fn emulated(id: &'static str) -> Descriptor {
        let mut available = Available::of(Quality::Degraded, "ring 0 is emulated");
        available.provider = Some("kvm_x".to_owned());
        descriptor(id, Quality::Hardware, Probe::Available(available))
    }
    fn registry(list: Vec<Descriptor>) -> Registry {
        let mut registry = Registry::empty();
        for descriptor in list {
            registry.register(descriptor).unwrap();
        }
        registry
    }
    fn choose(registry: &Registry, text: &str) -> Result<Chosen, ChooseError> {
        let needs = Needs { cpu_model: "x86-64-v2".to_owned(), vcpus: 1 };
        registry.survey().choose(&text.parse()?, &needs)
    }
    fn chosen(list: Vec<Descriptor>, text: &str) -> (&'static str, Option<String>) {
        let chosen = choose(&registry(list), text).unwrap();
        (chosen.accelerator.id().0, chosen.explanation())
    }

    #[test]
    fn auto_takes_the_best_that_works_and_says_what_sounded_better() {
        let list = || {
            vec![
                works("slow", Quality::Degraded),
                works("a", Quality::Interpreted),
                works("b", Quality::Translated),
                absent("hw"),
            ]
        };
        assert_eq!(chosen(list(), "auto"), ("b", Some("accel: b (hw: no device)".to_owned())));
        let mut list = list();
        list.push(works("best", Quality::Hardware));
        // `hw` sounds no better than this.
        assert_eq!(chosen(list, "auto").0, "best");
        assert_eq!(chosen(vec![works("a", Quality::Interpreted)], "auto"), ("a", None));
    }

    #[test]
    fn auto_ranks_by_what_was_measured() {
        let list = || vec![emulated("kvm"), works("interp", Quality::Interpreted)];
        let line = "accel: interp (kvm: ring 0 is emulated; provider kvm_x)";
        assert_eq!(chosen(list(), "auto"), ("interp", Some(line.to_owned())));
        // Whoever asks for it gets it, and is told.
        for choice in ["kvm", "kvm,interp"] {
            let line = "accel: kvm (ring 0 is emulated; provider kvm_x)";
            assert_eq!(chosen(list(), choice), ("kvm", Some(line.to_owned())));
        }
        let fire = Broken { reason: "no vCPU can be made".into(), remedy: Some("look at the log".into()) };
        let broken = descriptor("kvm", Quality::Hardware, Probe::Broken(fire));
        let line = "accel: interp (kvm: no vCPU can be made)";
        let list = vec![broken, works("interp", Quality::Interpreted)];
        assert_eq!(chosen(list, "auto"), ("interp", Some(line.to_owned())));
        // Alone it is the best there is.
        assert_eq!(chosen(vec![emulated("kvm")], "auto").0, "kvm");
    }

    #[test]
    fn auto_goes_on_when_the_best_cannot_be_made() {
        let mut broken = works("b", Quality::Translated);
        broken.create = Arc::new(|| Err(AccelError::BadVcpu(0)));
        let (id, line) = chosen(vec![broken, works("a", Quality::Interpreted)], "auto");
        assert!(id == "a" && line.unwrap().contains("b: vCPU 0"));
    }

    #[test]
    fn a_list_is_taken_in_its_order_and_a_single_name_never_replaced() {
        let fire = Broken { reason: "it is on fire".into(), remedy: None };
        let broken = descriptor("broken", Quality::Hardware, Probe::Broken(fire));
        let r =
            registry(vec![works("a", Quality::Hardware), works("b", Quality::Degraded), absent("c"), broken]);
        let chosen = choose(&r, "c, b,a").unwrap();
        assert_eq!((chosen.accelerator.id().0, chosen.skipped.len()), ("b", 1));
        let error = choose(&r, "c").unwrap_err();
        assert!(matches!(&error, ChooseError::Unavailable(other) if other.id.0 == "c"), "{error}");
        assert_eq!(error.to_string(), "the c accelerator does not work here: no device; buy one");
        let error = choose(&r, "c,broken").unwrap_err().to_string();
        assert!(error.contains("c: no device; buy one; broken: it is on fire"), "{error}");
    }

    /// `slim` is the better one, and gives a guest no SSE4.2.
    fn one_is_slim() -> Vec<Descriptor> {
        let mut slim = works("slim", Quality::Hardware);
        let make = || FakeAccelerator::named("slim").without(&[Feature::Sse42]);
        slim.create = Arc::new(move || Ok(Arc::new(make())));
        vec![slim, works("full", Quality::Interpreted)]
    }

    #[test]
    fn what_cannot_give_the_machine_its_processor_is_passed_over() {
        let line = "accel: full (slim: cannot give the guest sse4_2)";
        for choice in ["auto", "slim,full"] {
            assert_eq!(chosen(one_is_slim(), choice), ("full", Some(line.to_owned())));
        }
        // A single name is not judged: the machine is, when it is built.
        assert_eq!(chosen(one_is_slim(), "slim"), ("slim", None));
    }

    #[test]
    fn a_list_is_the_set_that_the_processor_must_fit() {
        let lacking = |id, list: &'static [Feature]| {
            let mut other = works(id, Quality::Interpreted);
            other.create = Arc::new(move || Ok(Arc::new(FakeAccelerator::named(id).without(list))));
            other
        };
        let registry = registry(vec![
            lacking("full", &[]),
            lacking("plain", &[Feature::Sha, Feature::Aes]),
            lacking("unfit", &[Feature::Sse42, Feature::Gfni]),
            absent("c"),
        ]);
        for (text, sha) in [("auto", true), ("full", true), ("full,plain", false), ("plain,full", false)] {
            let caps = choose(&registry, text).unwrap().caps;
            assert_eq!(
                (caps.features.has(Feature::Sha), caps.features.has(Feature::Gfni)),
                (sha, true),
                "{text}"
            );
        }
        // What works not, or cannot give the model, is none of the set.
        let caps = choose(&registry, "full,c,unfit").unwrap().caps;
        assert!(caps.features.has(Feature::Sha) && caps.features.has(Feature::Gfni));
        // The machine's processor has what the set has.
        let chosen = choose(&registry, "full,plain").unwrap();
        let model = cpu_model("x86-64-v3", 1, 1, chosen.accelerator.id(), &chosen.caps).unwrap();
        assert!(!model.features.has(Feature::Aes) && model.features.has(Feature::Avx2));
    }

    #[test]
    fn needs_that_none_meets_are_no_matter_of_accelerators() {
        let registry = registry(one_is_slim());
        for (cpu_model, vcpus) in [("z80", 1), (DEFAULT_MODEL, 1000), (DEFAULT_MODEL, 0)] {
            let needs = Needs { cpu_model: cpu_model.to_owned(), vcpus };
            let chosen = registry.survey().choose(&AccelChoice::Auto, &needs).unwrap();
            assert_eq!(chosen.accelerator.id().0, "slim");
            assert!(needs.met_by(&*chosen.accelerator).is_err());
        }
    }

    #[test]
    fn probes_are_made_once_and_only_when_they_matter() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = |id, quality| {
            let (count, mut descriptor) = (count.clone(), works(id, quality));
            let probe = descriptor.probe.clone();
            descriptor.probe = Arc::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
                probe()
            });
            descriptor
        };
        let registry = registry(vec![counted("a", Quality::Interpreted), counted("b", Quality::Hardware)]);
        let survey = registry.survey();
        for _ in 0..2 {
            survey.choose(&AccelChoice::Auto, &Needs::default()).unwrap();
            assert_eq!(count.load(Ordering::SeqCst), 1);
        }
        assert_eq!(survey.probes().filter(|(_, probe)| matches!(probe, Probe::Available(_))).count(), 2);
        assert_eq!((survey.probes().count(), count.load(Ordering::SeqCst)), (2, 2));
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
}
