use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const SHARES: [Algorithm; 2] = [Algorithm::ProportionalShare, Algorithm::FairShare];

fn claim(wants: u64) -> Claim {
    Claim { wants: Micros::units(wants), subclients: 1, priority: 0 }
}

fn grants(
    algorithm: Algorithm,
    capacity: Micros,
    claims: &[Claim],
    floors: &Floors,
) -> Vec<Micros> {
    let allocation = Allocation::new(algorithm, capacity, claims, floors);
    claims.iter().map(|claim| allocation.grant(*claim)).collect()
}

fn units(algorithm: Algorithm, capacity: u64, wants: &[u64]) -> Vec<f64> {
    let claims: Vec<_> = wants.iter().map(|wants| claim(*wants)).collect();
    let grants = grants(algorithm, Micros::units(capacity), &claims, &Floors::default());
    grants.into_iter().map(Micros::as_f64).collect()
}

#[test]
fn fair_share_is_max_min() {
    // Doorman settles at 2.5, 5, 25, 32.5, 35.
    assert_eq!(units(Algorithm::FairShare, 100, &[5, 5, 25, 30, 40]), [5.0, 5.0, 25.0, 30.0, 35.0]);
    assert_eq!(units(Algorithm::FairShare, 90, &[50, 60, 70]), [30.0, 30.0, 30.0]);
    assert_eq!(units(Algorithm::FairShare, 100, &[10, 20]), [10.0, 20.0]);
    assert_eq!(units(Algorithm::FairShare, 0, &[10, 20]), [0.0, 0.0]);
    assert_eq!(units(Algorithm::FairShare, 100, &[]), [0.0; 0]);
}

#[test]
fn proportional_share_is_doormans_formula() {
    // Equal shares of 40: 20 are left by the first and fill 20 of 50 that the others lack.
    assert_eq!(units(Algorithm::ProportionalShare, 120, &[20, 60, 70]), [20.0, 48.0, 52.0]);
    assert_eq!(units(Algorithm::ProportionalShare, 120, &[20, 60, 40]), [20.0, 60.0, 40.0]);
}

#[test]
fn the_algorithms_without_a_common_limit() {
    assert_eq!(units(Algorithm::None, 10, &[5, 500]), [5.0, 500.0]);
    assert_eq!(units(Algorithm::Static, 10, &[5, 500]), [5.0, 10.0]);
}

#[test]
fn sub_clients_are_weights() {
    let claims = [
        Claim { wants: Micros::units(100), subclients: 3, priority: 0 },
        Claim { wants: Micros::units(100), subclients: 0, priority: 0 },
        Claim { wants: Micros::units(2), subclients: 8, priority: 0 },
    ];
    let fair = grants(Algorithm::FairShare, Micros::units(42), &claims, &Floors::default());
    assert_eq!(fair, [Micros::units(30), Micros::units(10), Micros::units(2)]);
}

#[test]
fn a_band_has_its_floor_and_the_rest_goes_by_priority() {
    let floors = Floors::new([(0, 100), (10, 300)]).unwrap();
    let at = |priority, wants| Claim { wants: Micros::units(wants), subclients: 1, priority };
    let share = |claims: &[Claim]| -> Vec<u64> {
        grants(Algorithm::FairShare, Micros::units(100), claims, &floors)
            .into_iter()
            .map(Micros::whole)
            .collect()
    };
    assert_eq!(share(&[at(0, 200), at(10, 200)]), [10, 90], "the low band is sure of its tenth");
    assert_eq!(share(&[at(0, 200), at(10, 40)]), [60, 40], "what the high band leaves");
    assert_eq!(
        share(&[at(0, 5), at(10, 200)]),
        [5, 95],
        "a floor that nobody wants is not kept free"
    );
    assert_eq!(
        share(&[at(-7, 200), at(11, 200), at(10, 200)]),
        [10, 45, 45],
        "priorities between go to the band below"
    );
    assert_eq!(
        grants(
            Algorithm::FairShare,
            Micros::units(100),
            &[at(0, 100), at(10, 100)],
            &Floors::default()
        ),
        [Micros::units(50), Micros::units(50)],
        "without floors priorities are ignored"
    );
}

#[test]
fn floors_that_cannot_be_kept_are_refused() {
    assert_eq!(Floors::new([(0, 500), (1, 501)]), Err(BadFloors::MoreThanAll));
    assert_eq!(Floors::new([(3, 1), (3, 2)]), Err(BadFloors::Twice(3)));
    assert_eq!(Floors::new((0..9).map(|band| (band, 1))), Err(BadFloors::TooMany));
}

/// Max-min by raising everyone's level one micro-unit for each sub-client at a time.
fn brute_force(capacity: u64, claims: &[Claim]) -> Vec<u64> {
    let mut level = 0;
    let at = |level: u64| {
        claims
            .iter()
            .map(move |claim| (level * u64::from(claim.subclients)).min(claim.wants.micros()))
    };
    while at(level + 1).sum::<u64>() <= capacity && level <= 1_000 {
        level += 1;
    }
    at(level).collect()
}

fn any_claim() -> impl Strategy<Value = Claim> {
    let wants =
        prop_oneof![Just(0), 0..=Micros::MAX.micros(), 0..100u64, Just(Micros::MAX.micros())];
    (wants, any::<u32>(), -3..3i64).prop_map(|(wants, subclients, priority)| Claim {
        wants: Micros::from_micros(wants).unwrap(),
        subclients,
        priority,
    })
}

fn any_floors() -> impl Strategy<Value = Floors> {
    prop_oneof![
        Just(Floors::default()),
        vec(0..300u16, 1..4).prop_map(|floors| Floors::new((-1..).zip(floors)).unwrap()),
    ]
}

proptest! {
    #[test]
    fn nobody_gets_more_than_wanted_and_together_no_more_than_there_is(
        capacity in 0..=Micros::MAX.micros(), claims in vec(any_claim(), 0..40), floors in any_floors(),
    ) {
        let capacity = Micros::from_micros(capacity).unwrap();
        for algorithm in SHARES {
            let granted = grants(algorithm, capacity, &claims, &floors);
            prop_assert!(Micros::sum(granted.iter().copied()) <= u128::from(capacity.micros()));
            prop_assert!(claims.iter().zip(&granted).all(|(claim, granted)| granted <= &claim.wants));
        }
    }

    #[test]
    fn fair_share_agrees_with_brute_force(
        capacity in 0..3_000u64, claims in vec((0..300u64, 1..5u32), 1..12),
    ) {
        let claims: Vec<_> = claims.into_iter().map(|(wants, subclients)| Claim {
            wants: Micros::from_micros(wants).unwrap(), subclients, priority: 0,
        }).collect();
        let granted = grants(Algorithm::FairShare, Micros::from_micros(capacity).unwrap(), &claims, &Floors::default());
        let oracle = brute_force(capacity, &claims);
        // The oracle's level is the integer below the exact one.
        for ((claim, granted), oracle) in claims.iter().zip(granted).zip(oracle) {
            prop_assert!((oracle..oracle + u64::from(claim.subclients)).contains(&granted.micros()), "{granted} for {oracle}");
        }
    }

    #[test]
    fn what_is_scarce_is_used_up(wants in vec(1..1_000u64, 1..40), tenths in 1..10u64) {
        let total = wants.iter().sum::<u64>();
        let claims: Vec<_> = wants.iter().map(|wants| claim(*wants)).collect();
        let capacity = Micros::units(total).part(tenths, 10);
        for algorithm in SHARES {
            let granted = Micros::sum(grants(algorithm, capacity, &claims, &Floors::default()));
            prop_assert!(granted + 2 * claims.len() as u128 >= u128::from(capacity.micros()), "{algorithm:?}");
        }
    }
}
