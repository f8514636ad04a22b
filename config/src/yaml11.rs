//! What YAML tools make of a value without quotes, and whether it survives them.
//!
//! A configuration passes through other tools: Helm, Ansible, scripts. Many speak YAML 1.1, where `off` is
//! false, `12:30` is 750, `2.10` is 2.1 and `0755` is 493, and they write back what they understood. So a text
//! such as a tag or a version is only taken as it stands when such a tool writes it back as it stands;
//! anything else is to be put in quotes. Why not silently take the text: the same file would then mean
//! one thing before such a tool and another thing after it.
//!
//! The other direction matters as much: a tool drops the quotes of what is text *to it*. YAML 1.1 as PyYAML
//! reads it decides, therefore; what only others take for a number (`1e3`, `0o17`) has to be taken as text,
//! with a warning.
//!
//! Source: yaml.org/type (1.1) as in PyYAML's resolver, and the core schema of 1.2.

/// A scalar without quotes, as YAML tools see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    /// Text for all of them.
    Text,
    /// Text in YAML 1.1; a number or truth value to tools that speak another YAML.
    Doubtful(&'static str),
    /// A number, a truth value or a date (the word is in the field), written back as it stands.
    Kept(&'static str),
    /// One that is written back differently, or cannot be read.
    Rewritten(&'static str),
}

pub(crate) fn classify(text: &str) -> Plain {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let kept_if = |kept: bool, what| {
        if kept { Plain::Kept(what) } else { Plain::Rewritten(what) }
    };
    match text {
        "true" | "false" => Plain::Kept("a truth value"),
        "" | "~" | "null" | "Null" | "NULL" => Plain::Rewritten("nothing"),
        "=" | "<<" => Plain::Rewritten("a special key"),
        _ if is_truth(text) => Plain::Rewritten("a truth value"),
        _ if is_integer(unsigned) => {
            kept_if(text.parse::<i64>().is_ok_and(|value| value.to_string() == text), "a number")
        }
        _ if is_float(text, unsigned) => kept_if(keeps_float(text), "a number"),
        _ if is_sexagesimal(unsigned) => Plain::Rewritten("a number to the base of 60"),
        _ if is_date(text) => kept_if(keeps_date(text), "a date"),
        _ if is_date_and_time(text) => Plain::Rewritten("a date"),
        _ if is_number_elsewhere(unsigned) => Plain::Doubtful("a number"),
        _ => Plain::Text,
    }
}

/// All lower case, all upper case, or the first letter upper case.
fn is_truth(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let rest = text.get(1..).unwrap_or_default();
    let cased = text == lower
        || text.bytes().all(|byte| byte.is_ascii_uppercase())
        || (text.starts_with(|c: char| c.is_ascii_uppercase())
            && rest.bytes().all(|byte| byte.is_ascii_lowercase()));
    cased && matches!(lower.as_str(), "yes" | "no" | "true" | "false" | "on" | "off")
}

/// Not empty and only of these or `_`.
fn all(text: &str, of: fn(&u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte == b'_' || of(&byte))
}

/// `[0-9][0-9_]*`
fn grouped(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && all(text, u8::is_ascii_digit)
}

/// Decimal, octal, hexadecimal and binary.
fn is_integer(unsigned: &str) -> bool {
    if let Some(digits) = unsigned.strip_prefix("0x") {
        return all(digits, u8::is_ascii_hexdigit);
    }
    if let Some(digits) = unsigned.strip_prefix("0b") {
        return all(digits, |byte| matches!(byte, b'0' | b'1'));
    }
    match unsigned.strip_prefix('0') {
        Some(digits) => digits.is_empty() || all(digits, |byte| matches!(byte, b'0'..=b'7')),
        None => grouped(unsigned),
    }
}

/// With a point; an exponent counts with its sign only. `.5` has no sign.
fn is_float(text: &str, unsigned: &str) -> bool {
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let power = |power: &str| {
        power.strip_prefix(['-', '+']).is_some_and(|digits| {
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let number = match mantissa.split_once('.') {
        Some(("", part)) => text == unsigned && grouped(part),
        Some((whole, part)) => grouped(whole) && (part.is_empty() || all(part, u8::is_ascii_digit)),
        None => false,
    };
    number && exponent.is_none_or(power)
}

/// Tools print the shortest decimal that reads back as the same double; past these bounds with an exponent.
fn keeps_float(text: &str) -> bool {
    let short = |value: f64| (1e-4..1e15).contains(&value.abs()) && format!("{value:?}") == text;
    text.parse().is_ok_and(short)
}

/// `12:30`, `1:02:03`; a leading zero only with a point, `0:30.5`.
fn is_sexagesimal(unsigned: &str) -> bool {
    let (whole, part) = match unsigned.split_once('.') {
        Some((whole, part)) => (whole, Some(part)),
        None => (unsigned, None),
    };
    let Some((first, rest)) = whole.split_once(':') else {
        return false;
    };
    let place = |place: &str| match place.as_bytes() {
        [ones] => ones.is_ascii_digit(),
        [tens, ones] => matches!(tens, b'0'..=b'5') && ones.is_ascii_digit(),
        _ => false,
    };
    let starts = match part {
        Some(part) => part.is_empty() || all(part, u8::is_ascii_digit),
        None => !first.starts_with('0'),
    };
    starts && grouped(first) && rest.split(':').all(place)
}

/// Whether the digits of `form` (where it has `0`) and its other characters stand in `text`.
fn looks_like(text: &str, form: &str) -> bool {
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(
            |(c, f)| {
                if f == b'0' { c.is_ascii_digit() } else { c == f }
            },
        )
}

fn is_date(text: &str) -> bool {
    looks_like(text, "0000-00-00")
}

/// A day that exists in every month.
fn keeps_date(text: &str) -> bool {
    let number = |range: std::ops::Range<usize>| {
        text.get(range).and_then(|part| part.parse::<u32>().ok()).unwrap_or(0)
    };
    number(0..4) >= 1 && (1..=12).contains(&number(5..7)) && (1..=28).contains(&number(8..10))
}

/// `2024-1-2 03:04:05`, with anything behind it: no text that is meant begins so.
fn is_date_and_time(text: &str) -> bool {
    let dates = ["0000-00-00", "0000-0-00", "0000-00-0", "0000-0-0"];
    dates.iter().any(|form| {
        let time = text
            .get(..form.len())
            .filter(|date| looks_like(date, form))
            .and(text.get(form.len()..));
        let time = time
            .and_then(|time| time.strip_prefix(['T', 't', ' ', '\t']))
            .unwrap_or_default()
            .trim_start();
        ["00:00:00", "0:00:00"]
            .iter()
            .any(|form| time.get(..form.len()).is_some_and(|time| looks_like(time, form)))
    })
}

/// Numbers of YAML 1.2 and of tools in between: `1e3`, `0o17`, `08`, `0X1F`.
fn is_number_elsewhere(unsigned: &str) -> bool {
    let lower = unsigned.to_ascii_lowercase();
    if let Some(digits) =
        lower.strip_prefix("0o").or(lower.strip_prefix("0x")).or(lower.strip_prefix("0b"))
    {
        return all(digits, u8::is_ascii_hexdigit);
    }
    let (mantissa, power) = lower.split_once('e').unwrap_or((&lower, "0"));
    let power = power.strip_prefix(['-', '+']).unwrap_or(power);
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| all(text, u8::is_ascii_digit);
    let either = digits(whole) || digits(part);
    let number = either && (whole.is_empty() || digits(whole)) && (part.is_empty() || digits(part));
    number && lower.contains(|c: char| c.is_ascii_digit()) && digits(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_text_stays_text() {
        for text in [
            "v2",
            "y",
            "p95",
            "1s",
            "5%",
            "64KiB",
            "10.0.0.5",
            "10.0.0.5:80",
            "::1",
            "1.2.3",
            "none",
            "e",
            "1e",
            "a:1",
            "2024-01",
            "2024-01-02x",
            "2024-1-2",
            "12:345",
            "12:75",
            "0:30",
            "-",
            "+",
            ".",
            "_",
            "nULL",
            "oN",
            "e5",
            ".e5",
        ] {
            assert_eq!(classify(text), Plain::Text, "{text}");
        }
    }

    #[test]
    fn what_survives_is_kept() {
        for text in
            ["0", "1", "-7", "8443", "2.1", "1.0", "-0.5", "100.25", "true", "false", "2024-01-28"]
        {
            assert!(matches!(classify(text), Plain::Kept(_)), "{text}: {:?}", classify(text));
        }
    }

    #[test]
    fn what_tools_rewrite_is_told() {
        for text in [
            "yes",
            "No",
            "ON",
            "off",
            "True",
            "",
            "~",
            "null",
            "NULL",
            "=",
            "<<",
            "+1",
            "-0",
            "007",
            "0755",
            "0x1F",
            "0b11",
            "1_000",
            "99999999999999999999",
            "2.10",
            "2.",
            ".5",
            "1.5e+3",
            ".inf",
            "-.INF",
            ".nan",
            "12:30",
            "9101:22",
            "1:02:03",
            "190:20:30.15",
            "0:30.5",
            "2024-13-01",
            "2024-02-30",
            "2024-01-02 03:04:05",
            "2024-1-2T3:04:05Z",
            "0.00001",
            "123456789012345678.5",
            "1_",
        ] {
            assert!(matches!(classify(text), Plain::Rewritten(_)), "{text}: {:?}", classify(text));
        }
    }

    #[test]
    fn what_tools_disagree_about_is_doubtful() {
        for text in ["1e3", "1.5e3", "-1E5", "0o17", "0X1F", "08", "+.5"] {
            assert_eq!(classify(text), Plain::Doubtful("a number"), "{text}");
        }
    }
}
