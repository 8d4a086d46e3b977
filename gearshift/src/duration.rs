//! Times as users write them.

use std::time::Duration;

/// Longest that can be asked for: 49 days.
const LONGEST: f64 = 4_233_600.0;

/// Parses `50ms`, `2s`, `1.5s`, `3m`, `1h`; a plain number is seconds.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let bad = || "give a number with ms, s, m or h, such as 50ms or 2s".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let seconds = number.parse::<f64>().map_err(|_| bad())? * seconds;
    if seconds > LONGEST {
        return Err("that is longer than 49 days".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_all_spellings() {
        for (text, ms) in
            [("50ms", 50), ("2s", 2000), ("2", 2000), ("1.5s", 1500), ("3m", 180_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "2 s", "1.2.3s", "2d", "1e9", "999999h", "NaN", "inf"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
