//! One unit's state as it is kept: a version and a body.

use std::fmt::{self, Debug, Display};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes that a body has at most. The units' own bounds are far below; a file may say anything.
pub const MAX_BODY: usize = 16 << 20;

/// A unit's state.
#[derive(Clone, PartialEq, Eq)]
pub struct Section {
    /// Version of the saved type.
    pub version: u32,
    /// The saved type as JSON.
    pub body: Vec<u8>,
}

/// The type that a unit is saved as. Its fields are the format: `#[serde(deny_unknown_fields)]`, and a change of any of them
/// is a new version.
pub trait Saved: Serialize + DeserializeOwned {
    /// Version of the format, from 1 on.
    const VERSION: u32;

    /// Reads the body of an `older` version, from 1 to [`VERSION`](Self::VERSION) less 1.
    ///
    /// # Errors
    /// Versions that are not read any more.
    fn upgrade(older: u32, body: &[u8]) -> Result<Self, RestoreError> {
        let _ = body;
        Err(RestoreError::Version { found: older, reads: Self::VERSION })
    }
}

/// Why a unit does not take a section.
#[non_exhaustive]
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Of another version.
    #[error("version {found} of the state, where version {reads} is read")]
    Version {
        /// The section's.
        found: u32,
        /// The one that is read.
        reads: u32,
    },
    /// Not the saved type: damaged, or of something else.
    #[error("damaged state: {0}")]
    Damaged(String),
    /// A value that the unit cannot have.
    #[error("{field} is {value}, which must be {expected}")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// What the section says.
        value: String,
        /// What it may be.
        expected: String,
    },
}

impl Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {} {}", self.version, String::from_utf8_lossy(&self.body))
    }
}

impl Section {
    /// The section of a saved type.
    pub fn of<S: Saved>(saved: &S) -> Self {
        // Saved types are plain data with string keys, for which serde_json has no error.
        Self { version: S::VERSION, body: serde_json::to_vec(saved).unwrap_or_default() }
    }

    /// The saved type.
    ///
    /// # Errors
    /// The version is not read, or the body is damaged.
    pub fn open<S: Saved>(&self) -> Result<S, RestoreError> {
        if self.body.len() > MAX_BODY {
            return Err(RestoreError::Damaged(format!("{} bytes, more than any unit has", self.body.len())));
        }
        match self.version {
            version if version == S::VERSION => {
                serde_json::from_slice(&self.body).map_err(|e| RestoreError::Damaged(e.to_string()))
            }
            older if (1..S::VERSION).contains(&older) => S::upgrade(older, &self.body),
            found => Err(RestoreError::Version { found, reads: S::VERSION }),
        }
    }
}

/// Refuses `value` of `field` unless it is `good`.
///
/// # Errors
/// It is not.
pub fn check(
    good: bool,
    field: &'static str,
    value: impl Display,
    expected: impl Display,
) -> Result<(), RestoreError> {
    if good {
        return Ok(());
    }
    Err(RestoreError::Value { field, value: value.to_string(), expected: expected.to_string() })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Second {
        level: u8,
    }

    impl Saved for Second {
        const VERSION: u32 = 2;
        fn upgrade(_: u32, body: &[u8]) -> Result<Self, RestoreError> {
            match body {
                b"true" => Ok(Self { level: 1 }),
                _ => Err(RestoreError::Damaged("neither true nor false".into())),
            }
        }
    }

    #[test]
    fn a_section_is_read_by_its_version() {
        let section = Section::of(&Second { level: 3 });
        assert_eq!((section.version, &*section.body), (2, &b"{\"level\":3}"[..]));
        assert_eq!(section.open::<Second>(), Ok(Second { level: 3 }));
        let older = Section { version: 1, body: b"true".into() };
        assert_eq!(older.open::<Second>(), Ok(Second { level: 1 }));
        for version in [0, 3, u32::MAX] {
            let other = Section { version, ..section.clone() };
            assert_eq!(other.open::<Second>(), Err(RestoreError::Version { found: version, reads: 2 }));
        }
    }

    #[test]
    fn damage_is_named() {
        let open =
            |body: &[u8]| Section { version: 2, body: body.into() }.open::<Second>().unwrap_err().to_string();
        assert!(open(b"{\"level\":300}").contains("300"), "{}", open(b"{\"level\":300}"));
        assert!(open(b"{}").contains("level"));
        assert!(open(b"{\"level\":1,\"colour\":2}").contains("colour"));
        assert!(open(&vec![b' '; MAX_BODY + 1]).contains("more than any unit has"));
        let refused = check(false, "level", 9, "0 to 7").unwrap_err();
        assert_eq!(refused.to_string(), "level is 9, which must be 0 to 7");
    }
}
