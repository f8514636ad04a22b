//! The logarithm of a latency, as a small integer that can be summed in an atomic.
//!
//! Means of logarithms say what is typical: a few answers that take a thousand times as long count ten octaves, not a thousand
//! times. Exact to 0.09 of an octave, which is 6 %: between powers of two it is taken to be straight. That costs an instruction or two, and
//! what is compared is always measured the same way.

/// The base-2 logarithm of `ns` in [`OCTAVE`]ths; of 0 it is 0.
pub(crate) fn log2(ns: u64) -> u32 {
    let ns = ns.clamp(1, LONGEST);
    let octave = ns.ilog2();
    let fraction = ((ns << (63 - octave)) >> (63 - OCTAVE.ilog2())) as u32 & (OCTAVE - 1);
    octave * OCTAVE + fraction
}

/// Steps of an octave.
pub(crate) const OCTAVE: u32 = 64;
/// About 18 minutes: the result stays below 2¹², so that 2²⁴ of them add up to less than 2⁴⁰.
const LONGEST: u64 = (1 << 40) - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_near_the_logarithm_and_never_falls(ns in 1u64..LONGEST, more in 1u64..1_000_000) {
            let exact = (ns as f64).log2();
            let ours = f64::from(log2(ns)) / f64::from(OCTAVE);
            prop_assert!(ours <= exact + 1e-9 && exact - ours < 0.09 + 1.0 / f64::from(OCTAVE), "{} for {}", ours, exact);
            prop_assert!(log2(ns.saturating_add(more)) >= log2(ns));
        }
    }

    #[test]
    fn powers_of_two_are_exact_and_the_ends_hold() {
        (0..40).for_each(|power| assert_eq!(log2(1 << power), power * OCTAVE));
        assert_eq!(log2(0), 0);
        assert!(log2(u64::MAX) < 1 << 12);
    }
}
