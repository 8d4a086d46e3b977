//! Seconds since 1970 to and from the clock registers, in the format that register B asks for.

/// Register B, DM: binary, not BCD.
pub(super) const B_BINARY: u8 = 0x04;
/// Register B, 24/12: 24-hour clock.
pub(super) const B_24H: u8 = 0x02;
const PM: u8 = 0x80;
/// Alarm bytes from here up match anything ("don't care").
const DONT_CARE: u8 = 0xc0;

pub(super) const DAY: i64 = 86_400;

/// A moment in calendar fields. `year` has the century in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    /// 1..=7, Sunday is 1.
    pub(super) weekday: u8,
    pub(super) day: u8,
    pub(super) month: u8,
    pub(super) year: u16,
}

/// Proleptic Gregorian calendar, computed from eras of 400 years that begin on 1 March.
pub(super) fn from_unix(seconds: i64) -> Moment {
    let (days, sod) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let z = days + 719_468;
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + z.div_euclid(146_097) * 400 + i64::from(month <= 2);
    Moment {
        second: (sod % 60) as u8,
        minute: (sod / 60 % 60) as u8,
        hour: (sod / 3600) as u8,
        weekday: ((days + 4).rem_euclid(7) + 1) as u8,
        day: (doy - (153 * mp + 2) / 5 + 1) as u8,
        month: month as u8,
        year: year.rem_euclid(10_000) as u16,
    }
}

/// Inverse of [`from_unix`]. Fields out of range carry over into the next; the weekday is ignored.
pub(super) fn to_unix(m: &Moment) -> i64 {
    let month = i64::from(m.month.clamp(1, 12));
    let year = i64::from(m.year) - i64::from(month <= 2);
    let yoe = year.rem_euclid(400);
    let mp = (month + 9) % 12;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + (153 * mp + 2) / 5 + i64::from(m.day) - 1;
    let days = year.div_euclid(400) * 146_097 + doe - 719_468;
    days * DAY + i64::from(m.hour) * 3600 + i64::from(m.minute) * 60 + i64::from(m.second)
}

pub(super) fn encode(value: u8, b: u8) -> u8 {
    if b & B_BINARY != 0 { value } else { (value % 10) | ((value / 10 % 10) << 4) }
}

pub(super) fn decode(raw: u8, b: u8) -> u8 {
    if b & B_BINARY != 0 { raw } else { (raw >> 4).saturating_mul(10).saturating_add(raw & 15) }
}

pub(super) fn encode_hour(hour: u8, b: u8) -> u8 {
    if b & B_24H != 0 {
        return encode(hour, b);
    }
    let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
    encode(twelve, b) | if hour >= 12 { PM } else { 0 }
}

pub(super) fn decode_hour(raw: u8, b: u8) -> u8 {
    if b & B_24H != 0 {
        return decode(raw, b);
    }
    decode(raw & !PM, b) % 12 + if raw & PM != 0 { 12 } else { 0 }
}

/// What an alarm byte asks for: `None` matches anything.
fn wanted(raw: u8, decode: impl Fn(u8) -> u8) -> Option<u8> {
    (raw < DONT_CARE).then(|| decode(raw))
}

/// Seconds from `unix` to the next match of the alarm bytes (hour, minute, second), 1..=86400. `None`: the bytes
/// name no time of day.
pub(super) fn next_alarm(unix: i64, [h, m, s]: [u8; 3], b: u8) -> Option<i64> {
    let hour = wanted(h, |r| decode_hour(r, b));
    let minute = wanted(m, |r| decode(r, b));
    let second = wanted(s, |r| decode(r, b));
    if hour.is_some_and(|h| h > 23) || minute.is_some_and(|m| m > 59) || second.is_some_and(|s| s > 59) {
        return None;
    }
    let now = unix.rem_euclid(DAY);
    let first = now + 1;
    // Hours, then minutes, then seconds that match: at most a day, an hour and a minute of steps.
    for hours in first / 3600..=first / 3600 + 24 {
        if hour.is_some_and(|h| i64::from(h) != hours % 24) {
            continue;
        }
        for minutes in (hours * 60).max(first / 60)..(hours + 1) * 60 {
            if minute.is_some_and(|m| i64::from(m) != minutes % 60) {
                continue;
            }
            let found = ((minutes * 60).max(first)..(minutes + 1) * 60)
                .find(|at| second.is_none_or(|s| i64::from(s) == at % 60));
            if let Some(at) = found {
                return Some(at - now);
            }
        }
    }
    None
}
