//! What YAML tools make of a value without quotes, and whether it survives them.
//!
//! A configuration passes through other tools: Helm, Ansible, scripts. Many speak YAML 1.1, where `off` is
//! false, `12:30` is 750, `2.10` is 2.1 and `0755` is 493, and they write back what they understood. So a text
//! such as a tag or a version is only taken as it stands when every such tool writes it back as it stands;
//! anything else is to be put in quotes. Why not silently take the text: the same file would then mean
//! one thing before such a tool and another thing after it.
//!
//! Source: yaml.org/type (1.1), the core schema of 1.2, and what PyYAML, go-yaml and Psych do in practice.
//! The union counts: what one of them would rewrite is `Rewritten`. (A lone `y` is true by the letter of 1.1,
//! but none of them takes it so.)

/// A scalar without quotes, as YAML tools see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    /// Text for all of them.
    Text,
    /// A number, a truth value or a date (the word is in the field), written back as it stands.
    Kept(&'static str),
    /// One that some tool writes back differently or cannot read.
    Rewritten(&'static str),
}

pub(crate) fn classify(text: &str) -> Plain {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "true" | "false" => {
            return if text == lower {
                Plain::Kept("a truth value")
            } else {
                Plain::Rewritten("a truth value")
            };
        }
        "yes" | "no" | "on" | "off" => return Plain::Rewritten("a truth value"),
        "" | "~" | "null" => return Plain::Rewritten("nothing"),
        "=" | "<<" => return Plain::Rewritten("a special key"),
        _ => {}
    }
    let unsigned = lower.strip_prefix(['-', '+']).unwrap_or(&lower);
    if is_integer(unsigned) {
        let kept = text
            .parse::<i64>()
            .is_ok_and(|value| value.to_string() == text);
        return if kept {
            Plain::Kept("a number")
        } else {
            Plain::Rewritten("a number")
        };
    }
    if is_float(unsigned) {
        return if keeps_float(text) {
            Plain::Kept("a number")
        } else {
            Plain::Rewritten("a number")
        };
    }
    if is_sexagesimal(unsigned) {
        return Plain::Rewritten("a number to the base of 60");
    }
    if is_date(text) {
        return if keeps_date(text) {
            Plain::Kept("a date")
        } else {
            Plain::Rewritten("a date")
        };
    }
    Plain::Text
}

/// Decimal, octal, hexadecimal and binary, with `_` anywhere.
fn is_integer(unsigned: &str) -> bool {
    let all = |digits: &str, of: fn(char) -> bool| {
        digits.contains(of) && digits.chars().all(|c| c == '_' || of(c))
    };
    if let Some(digits) = unsigned.strip_prefix("0x") {
        return all(digits, |c| c.is_ascii_hexdigit());
    }
    if let Some(digits) = unsigned.strip_prefix("0b") {
        return all(digits, |c| matches!(c, '0' | '1'));
    }
    if let Some(digits) = unsigned.strip_prefix("0o") {
        return all(digits, |c| matches!(c, '0'..='7'));
    }
    all(unsigned, |c| c.is_ascii_digit())
}

/// With a point, an exponent or both; `.inf` and `.nan`.
fn is_float(unsigned: &str) -> bool {
    if matches!(unsigned, ".inf" | ".nan") {
        return true;
    }
    let (mantissa, exponent) = match unsigned.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.chars().all(|c| c == '_' || c.is_ascii_digit());
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let number = digits(whole) && digits(part) && mantissa.contains(|c: char| c.is_ascii_digit());
    match exponent {
        None => number && mantissa.contains('.'),
        Some(exponent) => {
            let power = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            number && !power.is_empty() && power.chars().all(|c| c.is_ascii_digit())
        }
    }
}

/// Tools print the shortest decimal that reads back as the same double; past these bounds with an exponent.
fn keeps_float(text: &str) -> bool {
    let short = |value: f64| (1e-4..1e15).contains(&value.abs()) && format!("{value:?}") == text;
    text.parse().is_ok_and(short)
}

/// `12:30`, `1:02:03.5`.
fn is_sexagesimal(unsigned: &str) -> bool {
    let (whole, part) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let mut places = whole.split(':');
    let first = places.next().unwrap_or_default();
    let digits =
        |text: &str| !text.is_empty() && text.chars().all(|c| c == '_' || c.is_ascii_digit());
    let mut rest = places.peekable();
    rest.peek().is_some()
        && digits(first)
        && rest.all(|place| place.len() <= 2 && digits(place))
        && part.chars().all(|c| c == '_' || c.is_ascii_digit())
}

/// Starts as `2024-01-02` does: a date, or a date and a time.
fn is_date(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let (Some(year), Some(month), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let day: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let after = &rest[day.len()..];
    year.len() == 4
        && digits(year)
        && (1..=2).contains(&month.len())
        && digits(month)
        && (1..=2).contains(&day.len())
        && (after.is_empty() || after.starts_with(['t', 'T', ' ', '\t']))
}

/// A plain day that exists in every month; with a time it is written back in another form.
fn keeps_date(text: &str) -> bool {
    let number = |range: std::ops::Range<usize>| {
        text.get(range)
            .and_then(|part| part.parse::<u32>().ok())
            .unwrap_or(0)
    };
    text.len() == 10
        && number(0..4) >= 1
        && (1..=12).contains(&number(5..7))
        && (1..=28).contains(&number(8..10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_text_stays_text() {
        for text in [
            "v2", "y",
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
            "12:345",
            "-",
            "+",
            ".",
        ] {
            assert_eq!(classify(text), Plain::Text, "{text}");
        }
    }

    #[test]
    fn what_survives_is_kept() {
        for text in [
            "0",
            "1",
            "-7",
            "8443",
            "2.1",
            "1.0",
            "-0.5",
            "100.25",
            "true",
            "false",
            "2024-01-28",
        ] {
            assert!(matches!(classify(text), Plain::Kept(_)), "{text}");
        }
    }

    #[test]
    fn what_tools_rewrite_is_told() {
        for text in [
            "yes",
            "No",
            "ON",
            "off", "True",
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
            "0o17",
            "0x1F",
            "0b11",
            "1_000",
            "99999999999999999999",
            "2.10",
            "2.",
            ".5",
            "1e3",
            "1.5e+3",
            ".inf",
            "-.INF",
            ".nan",
            "12:30",
            "9101:22",
            "1:02:03",
            "190:20:30.15",
            "2024-1-2",
            "2024-13-01",
            "2024-02-30",
            "2024-01-02 03:04:05",
            "2024-01-02T03:04:05Z",
            "0.00001",
            "123456789012345678.5",
            "_1",
            "1_",
        ] {
            assert!(
                matches!(classify(text), Plain::Rewritten(_)),
                "{text}: {:?}",
                classify(text)
            );
        }
    }
}
