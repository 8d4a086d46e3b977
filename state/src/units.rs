//! The units of a machine, in the order in which they are restored and reset.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{RestoreError, Section, StateUnit};

/// Why a set of sections is not a state of the machine at hand.
#[non_exhaustive]
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// A unit refuses its section.
    #[error("{unit}: {error}")]
    Refused {
        /// Name of the unit.
        unit: String,
        /// What it says.
        #[source]
        error: RestoreError,
    },
    /// The machine has a unit that the sections lack.
    #[error("there is no state of {0}, which this machine has")]
    Missing(String),
    /// The sections have a unit that the machine lacks.
    #[error("there is a state of {0}, which this machine does not have")]
    Unknown(String),
}

/// All units of a machine.
#[derive(Clone, Debug, Default)]
pub struct Units(Vec<Arc<dyn StateUnit>>);

impl FromIterator<Arc<dyn StateUnit>> for Units {
    /// In this order; of two units with one name, the first.
    fn from_iter<I: IntoIterator<Item = Arc<dyn StateUnit>>>(units: I) -> Self {
        let mut all = Self::default();
        for unit in units {
            all.add(unit);
        }
        all
    }
}

impl Units {
    /// Adds `unit` behind the others. Names must differ: of two units with one name, the second is not added, and false is
    /// returned.
    pub fn add(&mut self, unit: Arc<dyn StateUnit>) -> bool {
        let new = self.get(unit.name()).is_none();
        if new {
            self.0.push(unit);
        }
        new
    }

    /// The unit called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn StateUnit>> {
        self.0.iter().find(|unit| unit.name() == name)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<dyn StateUnit>> {
        self.0.iter()
    }

    /// The state of each, by name.
    pub fn save(&self) -> BTreeMap<String, Section> {
        self.0.iter().map(|unit| (unit.name().to_owned(), unit.save())).collect()
    }

    /// Restores all of them, or none: if one refuses its section, those before it get back what they had.
    ///
    /// # Errors
    /// Sections are missing, unknown or refused.
    pub fn restore(&self, sections: &BTreeMap<String, Section>) -> Result<(), UnitError> {
        if let Some(unknown) = sections.keys().find(|name| self.get(name).is_none()) {
            return Err(UnitError::Unknown(unknown.clone()));
        }
        let section = |unit: &Arc<dyn StateUnit>| {
            sections.get(unit.name()).ok_or_else(|| UnitError::Missing(unit.name().to_owned()))
        };
        let pairs = self.0.iter().map(|unit| Ok((unit, section(unit)?))).collect::<Result<Vec<_>, _>>()?;
        let before: Vec<_> = self.0.iter().map(|unit| unit.save()).collect();
        for (unit, section) in pairs {
            if let Err(error) = unit.restore(section) {
                for (unit, section) in self.0.iter().zip(&before) {
                    // What a unit has just saved, it takes.
                    let _ = unit.restore(section);
                }
                return Err(UnitError::Refused { unit: unit.name().to_owned(), error });
            }
        }
        Ok(())
    }

    /// Resets all of them.
    pub fn reset(&self) {
        self.0.iter().for_each(|unit| unit.reset());
    }

    /// Quiesces all of them, those that drive others first.
    pub fn quiesce(&self) {
        self.0.iter().rev().for_each(|unit| unit.quiesce());
    }

    /// Ends [`quiesce`](Self::quiesce).
    pub fn release(&self) {
        self.0.iter().for_each(|unit| unit.release());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{Saved, check};

    type Log = Arc<Mutex<Vec<String>>>;

    #[derive(Debug)]
    struct Level(&'static str, Mutex<u8>, Log);

    #[derive(Serialize, Deserialize)]
    struct SavedLevel(u8);
    impl Saved for SavedLevel {
        const VERSION: u32 = 1;
    }

    impl StateUnit for Level {
        fn name(&self) -> &str {
            self.0
        }
        fn save(&self) -> Section {
            Section::of(&SavedLevel(*self.1.lock().unwrap()))
        }
        fn restore(&self, section: &Section) -> Result<(), RestoreError> {
            let SavedLevel(level) = section.open()?;
            check(level < 8, "level", level, "0 to 7")?;
            *self.1.lock().unwrap() = level;
            Ok(())
        }
        fn reset(&self) {
            self.2.lock().unwrap().push(format!("reset {}", self.0));
        }
        fn quiesce(&self) {
            self.2.lock().unwrap().push(format!("quiesce {}", self.0));
        }
    }

    fn units() -> (Units, [Arc<Level>; 2], Log) {
        let log = Log::default();
        let [a, b] = ["a", "b"].map(|name| Arc::new(Level(name, Mutex::new(1), log.clone())));
        let mut units = Units::default();
        assert!(units.add(a.clone()) && units.add(b.clone()) && !units.add(a.clone()));
        (units, [a, b], log)
    }

    #[test]
    fn all_units_are_restored_or_none() {
        let (units, [a, b], _) = units();
        let mut sections = units.save();
        sections.insert("a".into(), Section::of(&SavedLevel(5)));
        sections.insert("b".into(), Section::of(&SavedLevel(9)));
        let error = units.restore(&sections).unwrap_err();
        assert_eq!(error.to_string(), "b: level is 9, which must be 0 to 7");
        assert_eq!((*a.1.lock().unwrap(), *b.1.lock().unwrap()), (1, 1), "the first has its own back");
        sections.insert("b".into(), Section::of(&SavedLevel(6)));
        assert_eq!(units.restore(&sections), Ok(()));
        assert_eq!((*a.1.lock().unwrap(), *b.1.lock().unwrap()), (5, 6));
        sections.insert("c".into(), Section::of(&SavedLevel(0)));
        assert_eq!(units.restore(&sections), Err(UnitError::Unknown("c".into())));
        sections.remove("c");
        sections.remove("b");
        assert_eq!(units.restore(&sections), Err(UnitError::Missing("b".into())));
    }

    #[test]
    fn reset_goes_forwards_and_quiesce_backwards() {
        let (units, _, log) = units();
        units.quiesce();
        units.reset();
        assert_eq!(*log.lock().unwrap(), ["quiesce b", "quiesce a", "reset a", "reset b"]);
    }
}
