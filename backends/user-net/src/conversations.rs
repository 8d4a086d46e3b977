//! Conversations without an end of their own, by number and by name: those that were silent for long are taken away.

use crate::context::earlier;
use smoltcp::time::{Duration, Instant};
use std::collections::HashMap;
use std::hash::Hash;

#[derive(Debug)]
pub(crate) struct Conversation<N, T> {
    pub(crate) name: N,
    pub(crate) used: Instant,
    pub(crate) with: T,
}

#[derive(Debug)]
pub(crate) struct Conversations<N, T> {
    all: HashMap<u64, Conversation<N, T>>,
    names: HashMap<N, u64>,
    /// When they are looked at for silent ones.
    sweep: Option<Instant>,
    idle: Duration,
}

impl<N: Copy + Eq + Hash, T> Conversations<N, T> {
    /// None yet; each may be silent for `idle`.
    pub(crate) fn new(idle: Duration) -> Self {
        Self { all: HashMap::new(), names: HashMap::new(), sweep: None, idle }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    #[cfg(test)]
    pub(crate) fn names(&self) -> usize {
        self.names.len()
    }

    #[cfg(test)]
    pub(crate) fn first(&self) -> Option<(u64, &Conversation<N, T>)> {
        self.all.iter().next().map(|(&id, one)| (id, one))
    }

    pub(crate) fn named(&self, name: &N) -> Option<u64> {
        self.names.get(name).copied()
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Conversation<N, T>> {
        self.all.get_mut(&id)
    }

    pub(crate) fn insert(&mut self, id: u64, name: N, with: T, now: Instant) {
        self.sweep = earlier(self.sweep, Some(now + self.idle));
        self.names.insert(name, id);
        self.all.insert(id, Conversation { name, used: now, with });
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Conversation<N, T>> {
        let gone = self.all.remove(&id)?;
        self.names.remove(&gone.name);
        Some(gone)
    }

    /// The one that was silent longest.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.all.iter().min_by_key(|(_, one)| one.used).map(|(&id, _)| id)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sweep
    }

    /// Those that were silent for long, to be removed. They are looked for when the first can be, not each time one was not.
    pub(crate) fn silent(&mut self, now: Instant) -> Vec<u64> {
        if self.sweep.is_none_or(|sweep| now < sweep) {
            return Vec::new();
        }
        let idle = self.idle;
        let ends = |one: &Conversation<N, T>| one.used + idle;
        let (old, young): (Vec<_>, Vec<_>) = self.all.iter().partition(|(_, one)| ends(one) <= now);
        self.sweep = young.into_iter().map(|(_, one)| ends(one)).fold(None, |a, b| earlier(a, Some(b)));
        old.into_iter().map(|(&id, _)| id).collect()
    }
}
