//! How much of a resource: an integer number of millionths of a unit.
//!
//! Invariant: a `Micros` is at most [`Micros::MAX`], a million million units, so that two of them add without overflow and
//! products fit in 128 bits. Integers, because sums of leases must never exceed a capacity by rounding, and because one NaN in
//! a sum of floating-point wants makes every later decision NaN. What comes as floating point is checked once, at the door.

use std::fmt;

/// A quantity of a resource in millionths of a unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(u64);

/// A number that is no quantity; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadQuantity {
    /// NaN or an infinity.
    NotFinite,
    /// Below zero.
    Negative,
    /// More than [`Micros::MAX`].
    TooLarge,
}

impl Micros {
    /// None.
    pub const ZERO: Micros = Micros(0);
    /// The largest: 10¹² units.
    pub const MAX: Micros = Micros(UNIT * 1_000_000_000_000);

    /// Whole units, at most [`Micros::MAX`].
    #[must_use]
    pub const fn units(units: u64) -> Micros {
        Micros(units.saturating_mul(UNIT)).clamped()
    }

    /// So few millionths of a unit.
    pub(crate) const fn tiny(micros: u32) -> Micros {
        Micros(micros as u64)
    }

    /// From millionths of a unit.
    pub const fn from_micros(micros: u64) -> Result<Micros, BadQuantity> {
        if micros > Micros::MAX.0 { Err(BadQuantity::TooLarge) } else { Ok(Micros(micros)) }
    }

    /// From units as a peer writes them; what is finer than a millionth is dropped.
    pub fn from_f64(units: f64) -> Result<Micros, BadQuantity> {
        if !units.is_finite() {
            return Err(BadQuantity::NotFinite);
        }
        if units < 0.0 {
            return Err(BadQuantity::Negative);
        }
        let micros = units * UNIT as f64;
        // Exact: the limit is a power of ten below 2⁶³ whose odd part fits in 53 bits.
        if micros > Micros::MAX.0 as f64 {
            Err(BadQuantity::TooLarge)
        } else {
            Ok(Micros(micros as u64))
        }
    }

    /// In units, for those who count in floating point.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / UNIT as f64
    }

    /// In millionths of a unit.
    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// In whole units, rounded down.
    #[must_use]
    pub const fn whole(self) -> u64 {
        self.0 / UNIT
    }

    /// Whether it is nothing.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, at most [`Micros::MAX`].
    #[must_use]
    pub const fn plus(self, other: Micros) -> Micros {
        Micros(self.0 + other.0).clamped()
    }

    /// The difference, at least nothing.
    #[must_use]
    pub const fn minus(self, other: Micros) -> Micros {
        Micros(self.0.saturating_sub(other.0))
    }

    /// `self · part / whole`, rounded down; `part` may not exceed `whole` by so much that the result passes [`Micros::MAX`]
    /// (it is clamped), and of a `whole` of 0 the part is nothing.
    #[must_use]
    pub fn part(self, part: u64, whole: u64) -> Micros {
        if whole == 0 {
            return Micros::ZERO;
        }
        Micros::from_u128(u128::from(self.0) * u128::from(part) / u128::from(whole))
    }

    /// From a sum of many, at most [`Micros::MAX`].
    #[must_use]
    pub fn from_u128(micros: u128) -> Micros {
        Micros(u64::try_from(micros).unwrap_or(u64::MAX)).clamped()
    }

    /// The sum of many: wider than any quantity, so it never overflows.
    pub fn sum(quantities: impl IntoIterator<Item = Micros>) -> u128 {
        quantities.into_iter().map(|quantity| u128::from(quantity.0)).sum()
    }

    const fn clamped(self) -> Micros {
        if self.0 > Micros::MAX.0 { Micros::MAX } else { self }
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / UNIT, self.0 % UNIT);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{rest:06}").trim_end_matches('0'))
    }
}

impl fmt::Display for BadQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadQuantity::NotFinite => "not a finite number: send how much is wanted, 0 for nothing",
            BadQuantity::Negative => "below zero: send 0 for nothing",
            BadQuantity::TooLarge => "more than a million million units: count in larger units",
        })
    }
}

impl std::error::Error for BadQuantity {}

const UNIT: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_quantity_is_refused_at_the_door() {
        for (given, expected) in [
            (f64::NAN, Err(BadQuantity::NotFinite)),
            (f64::INFINITY, Err(BadQuantity::NotFinite)),
            (f64::NEG_INFINITY, Err(BadQuantity::NotFinite)),
            (-1.0, Err(BadQuantity::Negative)),
            (-f64::MIN_POSITIVE, Err(BadQuantity::Negative)),
            (-0.0, Ok(Micros::ZERO)),
            (0.0, Ok(Micros::ZERO)),
            (f64::MIN_POSITIVE, Ok(Micros::ZERO)),
            (2.5, Ok(Micros(2_500_000))),
            (1e12, Ok(Micros::MAX)),
            (1.000_001e12, Err(BadQuantity::TooLarge)),
            (f64::MAX, Err(BadQuantity::TooLarge)),
        ] {
            assert_eq!(Micros::from_f64(given), expected, "{given}");
        }
        assert_eq!(Micros::from_micros(u64::MAX), Err(BadQuantity::TooLarge));
    }

    #[test]
    fn sums_stay_within_the_limit() {
        assert_eq!(Micros::MAX.plus(Micros::MAX), Micros::MAX);
        assert_eq!(Micros::units(1).minus(Micros::units(2)), Micros::ZERO);
        assert_eq!(Micros::units(10).part(1, 3), Micros(3_333_333));
        assert_eq!(Micros::MAX.part(u64::MAX, 1), Micros::MAX);
        assert_eq!(Micros::units(1).part(1, 0), Micros::ZERO);
        assert_eq!(Micros::units(u64::MAX), Micros::MAX);
        assert_eq!(Micros::sum([Micros::MAX; 3]), 3 * u128::from(Micros::MAX.0));
    }

    #[test]
    fn quantities_read_as_decimal_numbers() {
        assert_eq!(Micros::units(500).to_string(), "500");
        assert_eq!(Micros(1_250_000).to_string(), "1.25");
        assert_eq!(Micros(1).to_string(), "0.000001");
    }
}
