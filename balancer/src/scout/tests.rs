use super::*;

const MS: Duration = Duration::from_millis(1);

fn alive() -> Report {
    Report { known: true, alive: true, ..Report::default() }
}

#[test]
fn a_report_comes_back_as_it_was_kept() {
    let reports = [
        alive(),
        Report {
            known: true,
            in_flight: 7,
            latency: Some(Duration::from_micros(1_234)),
            ..Report::default()
        },
        Report { known: true, stalled: Some(250 * MS), draining: true, ..Report::default() },
        Report { in_flight: u32::MAX, latency: Some(Duration::from_secs(4_000)), ..alive() },
    ];
    for report in reports {
        let scouted = Scouted::default();
        scouted.keep(1, &report);
        assert_eq!(scouted.report(), report);
    }
}
