//! Which accelerator executes the guest, while it runs: by key, by schedule, and what is told of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use accel_api::{AccelId, Accelerator};
use clap::Args;
use machine::{AccelChoice, ChooseError, Chosen, Machine, Needs, Registry, Survey, SwitchError};

use crate::duration;
use crate::stdio::say;

/// See the module.
#[derive(Clone, Debug, Args)]
pub(crate) struct GearArgs {
    /// Prepare the guest for any accelerator of --accel (of `auto`: for all that work well here)
    ///
    /// Its processor has what all of them can give, so that none is refused later. Without it, Ctrl-a g works where the other
    /// accelerator happens to have all that the guest was promised.
    #[arg(long)]
    pub(crate) switchable: bool,

    /// Have another accelerator take the running guest over after some time: `2s=interp`; may be given several times
    #[arg(long, value_name = "TIME=NAME")]
    pub(crate) switch_at: Vec<SwitchAt>,

    /// Change the accelerator again and again, in random order
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) switch_every: Option<Duration>,

    /// Read each vCPU's state back after each change, and compare; a difference keeps the guest where it is
    #[arg(long)]
    pub(crate) verify_switches: bool,
}

/// A change of accelerator to come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SwitchAt {
    after: Duration,
    to: String,
}

impl FromStr for SwitchAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (after, to) = text.split_once('=').ok_or("give a time and a name, such as 2s=interp")?;
        Ok(Self { after: duration::parse(after)?, to: to.to_owned() })
    }
}

impl std::fmt::Display for SwitchAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}ms={}", self.after.as_millis(), self.to)
    }
}

impl GearArgs {
    /// The guest will, or may, change accelerators.
    fn wanted(&self) -> bool {
        self.switchable || self.switch_every.is_some() || !self.switch_at.is_empty()
    }

    /// Accelerators that the machine may change to, the first of which is `chosen`, whose features are then what all of them have;
    /// `None` where no change is asked for.
    ///
    /// # Errors
    /// One of a schedule is not to be had.
    pub(crate) fn set(
        &self,
        survey: &Survey<'_>,
        choice: &AccelChoice,
        needs: &Needs,
        chosen: &mut Chosen,
    ) -> Result<Option<Vec<Arc<dyn Accelerator>>>, ChooseError> {
        if !self.wanted() {
            return Ok(None);
        }
        let mut set = usable(survey, choice, needs, chosen.accelerator.clone());
        for SwitchAt { to, .. } in &self.switch_at {
            let named = survey.choose(&AccelChoice::List(vec![to.clone()]), needs)?;
            add(&mut set, named.accelerator);
        }
        for other in &set {
            chosen.caps = chosen.caps.common(other.caps());
        }
        Ok(Some(set))
    }
}

fn add(set: &mut Vec<Arc<dyn Accelerator>>, other: Arc<dyn Accelerator>) {
    if set.iter().all(|there| there.id() != other.id()) {
        set.push(other);
    }
}

/// `first`, and all others of `choice` that work here; of `auto`, those that do what they promise.
fn usable(
    survey: &Survey<'_>,
    choice: &AccelChoice,
    needs: &Needs,
    first: Arc<dyn Accelerator>,
) -> Vec<Arc<dyn Accelerator>> {
    let names = match choice {
        AccelChoice::Auto => survey.descriptors().map(|descriptor| descriptor.id.0.to_owned()).collect(),
        AccelChoice::List(names) => names.clone(),
    };
    let mut set = vec![first];
    for name in names {
        match survey.choose(&AccelChoice::List(vec![name]), needs) {
            Ok(other) if *choice != AccelChoice::Auto || other.caution.is_none() => {
                add(&mut set, other.accelerator)
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("not one to change to: {error}"),
        }
    }
    set
}

/// What the machine's accelerator was chosen from.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) registry: Registry,
    pub(crate) wanted: AccelChoice,
    pub(crate) needs: Needs,
    pub(crate) first: Arc<dyn Accelerator>,
}

/// What has happened so far.
#[derive(Debug)]
struct Record {
    now: AccelId,
    since: Instant,
    /// How long each has executed the guest, before the present one.
    spent: BTreeMap<&'static str, Duration>,
    /// How long the guest stood still, for each change.
    pauses: Vec<Duration>,
    failed: u64,
}

/// The accelerators of a running machine.
#[derive(Debug)]
pub(crate) struct Gears {
    machine: Arc<Machine>,
    set: OnceLock<Vec<Arc<dyn Accelerator>>>,
    /// What the set is made of when it is first needed.
    choice: Choice,
    record: Mutex<Record>,
}

impl Gears {
    /// Those of `machine`, which `first` executes: `set`, or what of the rest will be there when it is asked for.
    pub(crate) fn new(machine: Arc<Machine>, set: Option<Vec<Arc<dyn Accelerator>>>, choice: Choice) -> Self {
        let record = Record {
            now: machine.accelerator(),
            since: Instant::now(),
            spent: BTreeMap::new(),
            pauses: Vec::new(),
            failed: 0,
        };
        let set = set.map(OnceLock::from).unwrap_or_default();
        Self { machine, set, choice, record: Mutex::new(record) }
    }

    fn set(&self) -> &[Arc<dyn Accelerator>] {
        self.set.get_or_init(|| {
            let Choice { registry, wanted, needs, first } = &self.choice;
            usable(&registry.survey(), wanted, needs, first.clone())
        })
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next one takes the guest over, as a user asks for by a key.
    pub(crate) fn next(&self) {
        let set = self.set();
        let at = set.iter().position(|other| other.id() == self.machine.accelerator()).unwrap_or(0);
        match set.get((at + 1) % set.len().max(1)) {
            Some(next) if set.len() > 1 => self.switch(next, true),
            _ => say("there is no other accelerator that works here; `gearshift probe` shows them"),
        }
    }

    /// `to` takes the guest over, which is `told`; that it could not always is.
    fn switch(&self, to: &Arc<dyn Accelerator>, told: bool) {
        let before = Instant::now();
        match self.machine.switch(&**to) {
            Ok(report) if report.from == report.to => {}
            Ok(report) => {
                let mut record = self.lock();
                let spent = before.saturating_duration_since(record.since);
                *record.spent.entry(report.from.0).or_default() += spent;
                (record.now, record.since) = (report.to, Instant::now());
                record.pauses.push(report.pause());
                if told {
                    say(format_args!(
                        "{} takes over from {}; the guest stood still for {}",
                        report.to,
                        report.from,
                        ms(report.pause())
                    ));
                }
            }
            Err(SwitchError::Machine(error)) => tracing::debug!("no change of accelerator: {error}"),
            Err(error) => {
                let mut record = self.lock();
                record.failed += 1;
                // A schedule may fail for the same reason again and again.
                if told || record.failed == 1 {
                    let remedy = match error {
                        SwitchError::Lacks { .. } => {
                            "; --switchable gives the guest a processor that all can be"
                        }
                        _ => "",
                    };
                    say(format_args!("the accelerator stays {}: {error}{remedy}", record.now));
                }
            }
        }
    }

    /// Follows the schedule until `ended` is closed.
    pub(crate) fn follow(&self, arguments: &GearArgs, ended: &Receiver<()>) {
        let start = Instant::now();
        let mut planned: Vec<_> = arguments.switch_at.iter().map(|at| (at.after, at.to.as_str())).collect();
        planned.sort_by_key(|(after, _)| *after);
        let mut planned = planned.into_iter().peekable();
        let mut again = arguments.switch_every;
        let mut random = Random(start.elapsed().as_nanos() as u64 ^ u64::from(std::process::id()));
        loop {
            let next = planned.peek().map(|(after, _)| *after).into_iter().chain(again).min();
            let Some(next) = next else { return };
            match ended.recv_timeout(next.saturating_sub(start.elapsed())) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return,
            }
            if let Some((_, name)) = planned.next_if(|(after, _)| *after == next) {
                let id = self.choice.registry.find(name).map(|descriptor| descriptor.id);
                if let Some(to) = self.set().iter().find(|other| Some(other.id()) == id) {
                    self.switch(to, true);
                }
            } else {
                let now = self.machine.accelerator();
                let others: Vec<_> = self.set().iter().filter(|other| other.id() != now).collect();
                if let Some(to) = others.get(random.below(others.len())) {
                    self.switch(to, false);
                }
                // Counted from here: a change that takes long does not have the next one follow at once.
                again = arguments.switch_every.map(|every| start.elapsed() + every);
            }
        }
    }

    /// How long the guest ran on what, and what the changes cost; `None` if there was none.
    pub(crate) fn summary(&self) -> Option<String> {
        let mut record = self.lock();
        if record.pauses.is_empty() && record.failed == 0 {
            return None;
        }
        let last = record.since.elapsed();
        let now = record.now.0;
        *record.spent.entry(now).or_default() += last;
        let mut pauses = record.pauses.clone();
        pauses.sort();
        let mut text = format!("{} changes of accelerator", pauses.len());
        if let (Some(median), Some(longest)) = (pauses.get(pauses.len() / 2), pauses.last()) {
            let _ = write!(text, ", pause {} (median), {} (longest)", ms(*median), ms(*longest));
        }
        if record.failed > 0 {
            let _ = write!(text, ", {} refused", record.failed);
        }
        for (name, spent) in &record.spent {
            let _ = write!(text, "; {name} {:.1} s", spent.as_secs_f64());
        }
        Some(text)
    }
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// A small generator (xorshift64): the order only has to differ from run to run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 |= 1;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit.max(1)
    }
}
