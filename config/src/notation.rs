//! How quantities are written in the file, in both directions.
//!
//! Invariant: what `Display` here writes, the parser beside it reads back as the same value. So each notation
//! has a finest step (1 µs, 1 B, 0.001 %) and refuses what is finer instead of rounding it.
//! A unit is always written: `timeout: 10` is refused, because every reader would guess another unit.

use std::fmt;
use std::time::Duration;

use crate::policy::{After, Factor, KeySource, RetryOn, Share};

/// `250ms`, `2s`, `1.5s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 250ms, 2s, 5m or 1h");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let micros_each = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "" => return Err(format!("`{text}` has no unit: write {text}s or {text}ms")),
        _ => return Err(wrong()),
    };
    let micros = scaled(number, micros_each).map_err(|why| match why {
        Unscaled::NoNumber => wrong(),
        Unscaled::TooFine => format!("`{text}` is finer than 1us"),
        Unscaled::TooLarge => format!("`{text}` is longer than {}", AsText(DURATION_MAX)),
    })?;
    let value = Duration::from_micros(micros);
    if value > DURATION_MAX {
        return Err(format!("`{text}` is longer than {}", AsText(DURATION_MAX)));
    }
    Ok(value)
}

/// `64KiB`, `256MiB`, `1KB`, `512B`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let wrong = || format!("`{text}` is not a size such as 64KiB, 256MiB or 1KB");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let bytes_each = match unit {
        "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "" => return Err(format!("`{text}` has no unit: write {text}B or {text}KiB")),
        _ => return Err(wrong()),
    };
    let bytes = scaled(number, bytes_each).map_err(|why| match why {
        Unscaled::NoNumber => wrong(),
        Unscaled::TooFine => format!("`{text}` is not a whole number of bytes"),
        Unscaled::TooLarge => format!("`{text}` is more than {}", Bytes(SIZE_MAX)),
    })?;
    match usize::try_from(bytes) {
        Ok(bytes) if bytes <= SIZE_MAX => Ok(bytes),
        _ => Err(format!("`{text}` is more than {}", Bytes(SIZE_MAX))),
    }
}

/// `5%`, `0.5%`.
pub(crate) fn share(text: &str) -> Result<Share, String> {
    let wrong = || format!("`{text}` is not a share such as 5%");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    match unit {
        "%" => {}
        "" => return Err(format!("`{text}` has no unit: write {text}%")),
        _ => return Err(wrong()),
    }
    let steps = scaled(number, 1_000).map_err(|why| match why {
        Unscaled::NoNumber => wrong(),
        Unscaled::TooFine => format!("`{text}` is finer than 0.001%"),
        Unscaled::TooLarge => format!("`{text}` is more than 100%"),
    })?;
    let steps = u32::try_from(steps).ok().filter(|steps| *steps <= SHARE_STEPS);
    let fraction = steps.map(|steps| f64::from(steps) / f64::from(SHARE_STEPS));
    fraction.and_then(Share::fraction).ok_or_else(|| format!("`{text}` is more than 100%"))
}

/// `p95`, `p99.9`, or a duration above zero.
pub(crate) fn after(text: &str) -> Result<After, String> {
    let wrong =
        || format!("`{text}` is neither a percentile such as p95 nor a duration such as 20ms");
    if let Some(number) = text.strip_prefix('p') {
        let steps = scaled(number, 1_000).map_err(|_| wrong())?;
        return match u32::try_from(steps) {
            Ok(steps) if (1..SHARE_STEPS).contains(&steps) => {
                Ok(After::Percentile(f64::from(steps) / 1e3))
            }
            _ => Err(format!("`{text}`: a percentile is above 0 and below 100")),
        };
    }
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(wrong());
    }
    match duration(text)? {
        Duration::ZERO => Err(format!("`{text}`: must be above zero")),
        fixed => Ok(After::Fixed(fixed)),
    }
}

/// `3x`, `1.5x`; `None` for `off`.
pub(crate) fn factor(text: &str) -> Result<Option<Factor>, String> {
    let wrong = || format!("`{text}` is neither a factor such as 3x nor off");
    if text == "off" {
        return Ok(None);
    }
    let (number, unit) = split(text).ok_or_else(wrong)?;
    match unit {
        "x" => {}
        "" => return Err(format!("`{text}` has no unit: write {text}x")),
        _ => return Err(wrong()),
    }
    let factor = decimal(number).ok_or_else(wrong)?;
    let (least, most) = (Factor::thousandths(FACTOR_MIN), Factor::thousandths(FACTOR_MAX));
    if !(least..=most).contains(&factor) {
        return Err(format!("`{text}` is not from {least}x to {most}x"));
    }
    Ok(Some(factor))
}

/// A number with at most three decimal places and no sign, at least 1.
pub(crate) fn decimal(number: &str) -> Option<Factor> {
    let thousandths = scaled(number, 1_000).ok()?;
    let thousandths =
        u32::try_from(thousandths).ok().filter(|thousandths| *thousandths >= 1_000)?;
    Some(Factor::thousandths(thousandths))
}

/// A number with at most three decimal places and no sign, at most [`AMOUNT_MAX`]. As YAML 1.1 has it, `_` may group digits.
pub(crate) fn amount(text: &str) -> Option<f64> {
    let digits: String = text.chars().filter(|c| *c != '_').collect();
    // A leading zero would be octal there.
    let whole = digits.split('.').next().unwrap_or_default();
    if !text.starts_with(|c: char| c.is_ascii_digit())
        || (whole.len() > 1 && whole.starts_with('0'))
    {
        return None;
    }
    let thousandths = scaled(&digits, 1_000).ok()?;
    // Below 2^53, so exact.
    (thousandths <= AMOUNT_MAX * 1_000).then(|| thousandths as f64 / 1e3)
}

/// A tenth of what [`amount`] reads, in its steps.
pub(crate) fn tenth(amount: f64) -> f64 {
    ((amount * 1e3).round() / 10.0).floor() / 1e3
}

/// `connect`, `refused`, `reset`, or a status.
pub(crate) fn retry_on(text: &str) -> Result<RetryOn, String> {
    let status = || {
        let three = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|status| three && (100..=599).contains(status))
    };
    match text {
        "connect" => Ok(RetryOn::Connect),
        "refused" => Ok(RetryOn::Refused),
        "reset" => Ok(RetryOn::Reset),
        _ => status().map(RetryOn::Status).ok_or_else(|| {
            format!("`{text}` is none of connect, refused, reset and a status such as \"503\" (100 to 599)")
        }),
    }
}

/// Digits, perhaps a point and digits, then the unit.
fn split(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

enum Unscaled {
    NoNumber,
    TooFine,
    TooLarge,
}

/// The decimal `number` times `each`, when that is a whole number.
fn scaled(number: &str, each: u64) -> Result<u64, Unscaled> {
    let (whole, part) = match number.split_once('.') {
        Some((_, "")) => return Err(Unscaled::NoNumber),
        Some((whole, part)) => (whole, part),
        None => (number, ""),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) {
        return Err(Unscaled::NoNumber);
    }
    let whole: u64 = whole.parse().map_err(|_| Unscaled::TooLarge)?;
    let part = part.trim_end_matches('0');
    let (Ok(places), true) = (u32::try_from(part.len()), part.len() <= PLACES_MAX) else {
        return Err(Unscaled::TooFine);
    };
    let power = 10_u64.pow(places);
    // Below 10^9 × 3.6 × 10^9: fits.
    let scaled_part =
        if part.is_empty() { 0 } else { part.parse::<u64>().map_or(0, |part| part * each) };
    if scaled_part % power != 0 {
        return Err(Unscaled::TooFine);
    }
    let total = whole.checked_mul(each).and_then(|total| total.checked_add(scaled_part / power));
    total.ok_or(Unscaled::TooLarge)
}

/// A duration as the file writes it: in the largest unit that makes a whole number.
pub(crate) struct AsText(pub Duration);

impl fmt::Display for AsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        let (each, unit) = match micros {
            0 => (1_000_000, "s"),
            n if n % 3_600_000_000 == 0 => (3_600_000_000, "h"),
            n if n % 60_000_000 == 0 => (60_000_000, "m"),
            n if n % 1_000_000 == 0 => (1_000_000, "s"),
            n if n % 1_000 == 0 => (1_000, "ms"),
            _ => (1, "us"),
        };
        write!(f, "{}{unit}", micros / each)
    }
}

/// A size as the file writes it.
pub(crate) struct Bytes(pub usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            0 => (0, "B"),
            n if n % (1 << 30) == 0 => (30, "GiB"),
            n if n % (1 << 20) == 0 => (20, "MiB"),
            n if n % (1 << 10) == 0 => (10, "KiB"),
            _ => (0, "B"),
        };
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = (self.as_fraction() * f64::from(SHARE_STEPS)).round();
        write!(f, "{}%", steps / 1e3)
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            After::Percentile(percentile) => write!(f, "p{percentile}"),
            After::Fixed(duration) => write!(f, "{}", AsText(*duration)),
        }
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", (self.times() * 1e3).round() / 1e3)
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::Header(name) => write!(f, "header:{name}"),
            KeySource::Cookie(name) => write!(f, "cookie:{name}"),
            KeySource::Path(segment) => write!(f, "path:{segment}"),
            KeySource::Address => f.write_str("address"),
            KeySource::Identity => f.write_str("identity"),
        }
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RetryOn::Connect => f.write_str("connect"),
            RetryOn::Refused => f.write_str("refused"),
            RetryOn::Reset => f.write_str("reset"),
            RetryOn::Status(status) => write!(f, "{status}"),
        }
    }
}

/// Thirty days: nothing here waits longer, and sums of a few such durations overflow nothing.
const DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// One TiB.
const SIZE_MAX: usize = 1 << 40;

/// The largest amount: 10¹².
pub(crate) const AMOUNT_MAX: u64 = 1_000_000_000_000;

/// Steps of 0.001 % in a whole.
const SHARE_STEPS: u32 = 100_000;

/// In thousandths; less than that much slower is noise.
const FACTOR_MIN: u32 = 1_500;
const FACTOR_MAX: u32 = 1_000_000;

/// Decimal places that are read.
const PLACES_MAX: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_durations() {
        let table = [
            ("250ms", 250_000),
            ("2s", 2_000_000),
            ("1.5s", 1_500_000),
            ("5m", 300_000_000),
            ("1h", 3_600_000_000),
            ("0s", 0),
            ("0.25h", 900_000_000),
            ("10us", 10),
            ("1.50s", 1_500_000),
        ];
        for (text, micros) in table {
            assert_eq!(duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        let refused = [
            ("10", "`10` has no unit: write 10s or 10ms"),
            ("", "`` is not a duration such as 250ms, 2s, 5m or 1h"),
            ("s", "`s` is not a duration such as 250ms, 2s, 5m or 1h"),
            ("-1s", "`-1s` is not a duration such as 250ms, 2s, 5m or 1h"),
            ("1 s", "`1 s` is not a duration such as 250ms, 2s, 5m or 1h"),
            ("1.s", "`1.s` is not a duration such as 250ms, 2s, 5m or 1h"),
            ("1.5.2s", "`1.5.2s` is not a duration such as 250ms, 2s, 5m or 1h"),
            ("2d", "`2d` is not a duration such as 250ms, 2s, 5m or 1h"),
            ("0.5us", "`0.5us` is finer than 1us"),
            ("1.0000000001s", "`1.0000000001s` is finer than 1us"),
            ("721h", "`721h` is longer than 720h"),
            ("99999999999999999999h", "`99999999999999999999h` is longer than 720h"),
        ];
        for (text, why) in refused {
            assert_eq!(duration(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn reads_sizes() {
        let table = [
            ("64KiB", 65_536),
            ("256MiB", 268_435_456),
            ("1KB", 1000),
            ("0B", 0),
            ("1.5KiB", 1536),
            ("2GiB", 2 << 30),
        ];
        for (text, bytes) in table {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        let refused = [
            ("64", "`64` has no unit: write 64B or 64KiB"),
            ("64kb", "`64kb` is not a size such as 64KiB, 256MiB or 1KB"),
            ("0.5B", "`0.5B` is not a whole number of bytes"),
            ("2000GiB", "`2000GiB` is more than 1024GiB"),
        ];
        for (text, why) in refused {
            assert_eq!(size(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn reads_shares_and_percentiles() {
        assert_eq!(share("5%"), Ok(Share::percent(5)));
        assert_eq!(share("0.5%").map(Share::as_fraction), Ok(0.005));
        assert_eq!(share("100%"), Ok(Share::percent(100)));
        for text in ["5", "101%", "-1%", "%", "5 %", "0.0001%", "0.05"] {
            assert!(share(text).is_err(), "{text}");
        }
        assert_eq!(after("p95"), Ok(After::Percentile(95.0)));
        assert_eq!(after("p99.9"), Ok(After::Percentile(99.9)));
        assert_eq!(after("20ms"), Ok(After::Fixed(Duration::from_millis(20))));
        for text in ["p0", "p100", "p", "pxx", "0s", "95", "95%", "p-1"] {
            assert!(after(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_factors_and_decimals() {
        assert_eq!(factor("3x"), Ok(Some(Factor::thousandths(3_000))));
        assert_eq!(factor("1.5x").map(|factor| factor.map(Factor::times)), Ok(Some(1.5)));
        assert_eq!(factor("off"), Ok(None));
        for (text, why) in [
            ("3", "`3` has no unit: write 3x"),
            ("1.4x", "`1.4x` is not from 1.5x to 1000x"),
            ("0x", "`0x` is neither a factor such as 3x nor off"),
            ("1001x", "`1001x` is not from 1.5x to 1000x"),
            ("x", "`x` is neither a factor such as 3x nor off"),
            ("3%", "`3%` is neither a factor such as 3x nor off"),
            ("2.0001x", "`2.0001x` is neither a factor such as 3x nor off"),
        ] {
            assert_eq!(factor(text), Err(why.to_owned()), "{text}");
        }
        assert_eq!(decimal("1.25").map(Factor::times), Some(1.25));
        for text in ["0.9", "1.2505", "1e3", "", "-1", "1.", "99999999999"] {
            assert_eq!(decimal(text), None, "{text}");
        }
    }

    #[test]
    fn reads_amounts() {
        for (text, expected) in [
            ("0", 0.0),
            ("500", 500.0),
            ("20_000", 20_000.0),
            ("0.5", 0.5),
            ("1.2500", 1.25),
            ("0.001", 0.001),
            ("1000000000000", 1e12),
            ("1000000000000.0", 1e12),
        ] {
            assert_eq!(amount(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "-1",
            "+1",
            ".5",
            "1.",
            "1e3",
            "0755",
            "00.5",
            "0.0001",
            "1000000000000.001",
            "nan",
            "inf",
            "_1",
        ] {
            assert_eq!(amount(text), None, "{text}");
        }
        for (whole, expected) in
            [(500.0, 50.0), (1.1, 0.11), (0.005, 0.0), (1e12, 1e11), (0.0, 0.0)]
        {
            assert_eq!(tenth(whole), expected, "{whole}");
        }
    }

    #[test]
    fn reads_what_to_retry_on() {
        assert_eq!(retry_on("503"), Ok(RetryOn::Status(503)));
        for text in ["5xx", "99", "600", "0503", "+50", "timeout", ""] {
            assert!(retry_on(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(micros in 0..=DURATION_MAX.as_micros() as u64, bytes in 0..=SIZE_MAX, steps in 0..=SHARE_STEPS, thousandths in 0..=AMOUNT_MAX * 1_000) {
            let time = Duration::from_micros(micros);
            prop_assert_eq!(duration(&AsText(time).to_string()), Ok(time));
            prop_assert_eq!(size(&Bytes(bytes).to_string()), Ok(bytes));
            let whole = Share::fraction(f64::from(steps) / 1e5).expect("within 0 to 1");
            prop_assert_eq!(share(&whole.to_string()), Ok(whole));
            let times = Factor::thousandths(steps.max(1_000));
            prop_assert_eq!(decimal(&times.to_string()), Some(times));
            let number = thousandths as f64 / 1e3;
            prop_assert_eq!(amount(&number.to_string()), Some(number));
            prop_assert_eq!(amount(&tenth(number).to_string()), Some(tenth(number)));
            if steps > 0 && steps < SHARE_STEPS {
                let percentile = After::Percentile(f64::from(steps) / 1e3);
                prop_assert_eq!(after(&percentile.to_string()), Ok(percentile));
            }
        }

        #[test]
        fn no_text_panics(text in r"[0-9.]{0,25}[a-zA-Z%]{0,4}|\PC{0,20}") {
            let _ = (duration(&text).is_ok(), size(&text).is_ok(), share(&text).is_ok(), after(&text).is_ok());
        }
    }
}
