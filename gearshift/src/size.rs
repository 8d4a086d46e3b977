//! Sizes as users write them.

/// Parses `512M`, `2G`, `1.5G`, `65536K`; a plain number is MiB, as with QEMU. Suffixes are powers of 1024, in either
/// case, and may end in `B` or `iB`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let bad = || "give a number with K, M, G or T, such as 512M or 2G".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "" if text.len() == digits => 20,
        _ => return Err(bad()),
    };
    let too_large = || "that is more than any machine has".to_owned();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 6 || fraction.contains('.') {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let bytes = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    if !number.contains('.') {
        return Ok(bytes);
    }
    let numerator: u64 = fraction.parse().map_err(|_| bad())?;
    let part = (numerator << shift) / 10u64.pow(fraction.len() as u32);
    bytes.checked_add(part).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_all_spellings() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512 << 20),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("2G", 2 << 30),
            ("2GiB", 2 << 30),
            ("2gb", 2 << 30),
            ("1.5G", 3 << 29),
            ("65536K", 64 << 20),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "M",
            "x",
            "-1",
            "1X",
            "1.G",
            ".5G",
            "1.2.3G",
            "512 M",
            "512B",
            "1e3M",
            "99999999999T",
            "0x10M",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
