//! Times of haproxy.cfg (configuration manual, section 2.5).

use std::time::Duration;

/// A number with `us`, `ms`, `s`, `m`, `h` or `d`; milliseconds if there is none.
pub(super) fn time(text: &str) -> Option<Duration> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse::<u64>().ok()?;
    let micros: u64 = match unit {
        "us" => 1,
        "" | "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    Some(Duration::from_micros(number.checked_mul(micros)?))
}

/// A time of checks: 10 ms to 10 minutes, in whole milliseconds.
pub(super) fn check_time(text: &str) -> Option<Duration> {
    let time = time(text)?;
    let range = Duration::from_millis(10)..=Duration::from_mins(10);
    let millis = u64::try_from(time.as_millis()).ok()?;
    range.contains(&time).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times() {
        assert_eq!(time("5s"), Some(Duration::from_secs(5)));
        assert_eq!(time("2000"), Some(Duration::from_secs(2)));
        assert_eq!(time("1d"), Some(Duration::from_hours(24)));
        for text in [
            "",
            "s",
            "1x",
            "-1",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
        assert_eq!(check_time("1us"), None);
        assert_eq!(check_time("1h"), None);
    }
}
