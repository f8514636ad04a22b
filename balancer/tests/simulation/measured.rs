//! What came out of a run, and of several.

use std::collections::BTreeMap;

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    pub latencies: Vec<u64>,
    pub requests: u64,
    pub failed: u64,
    pub attempts: u64,
    pub copies: u64,
    pub copies_due: u64,
    /// First attempts by backend.
    pub firsts: BTreeMap<usize, u64>,
}

impl Measured {
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let index = ((self.latencies.len() as f64 * share).ceil() as usize)
            .clamp(1, self.latencies.len())
            - 1;
        self.latencies[index] as f64 / 1e6
    }

    pub fn mean_ms(&self) -> f64 {
        self.latencies.iter().sum::<u64>() as f64 / self.latencies.len() as f64 / 1e6
    }

    /// Attempts beyond one for each request.
    pub fn extra(&self) -> f64 {
        self.attempts as f64 / self.requests as f64 - 1.0
    }
}

/// Median and worst of several runs: p50, p99, p99.9 in ms, extra attempts in percent of the requests.
#[derive(Debug)]
pub struct Summary {
    pub p50: (f64, f64),
    pub p99: (f64, f64),
    pub p999: (f64, f64),
    pub extra: (f64, f64),
    pub failed: u64,
}

impl Summary {
    /// Of the runs, and a line that shows it.
    pub fn of(name: &str, runs: &[Measured]) -> Summary {
        let figure = |of: &dyn Fn(&Measured) -> f64| {
            let mut figures: Vec<f64> = runs.iter().map(of).collect();
            figures.sort_by(f64::total_cmp);
            (figures[figures.len() / 2], figures[figures.len() - 1])
        };
        let summary = Summary {
            p50: figure(&|run| run.quantile_ms(0.5)),
            p99: figure(&|run| run.quantile_ms(0.99)),
            p999: figure(&|run| run.quantile_ms(0.999)),
            extra: figure(&|run| 100.0 * run.extra()),
            failed: runs.iter().map(|run| run.failed).sum(),
        };
        let Summary { p50, p99, p999, extra, failed } = &summary;
        println!(
            "{name:<42} p50 {:6.2} ms  p99 {:6.2} ({:6.2})  p99.9 {:6.2} ({:6.2})  extra {:5.2} % ({:5.2})  failed {failed}",
            p50.0, p99.0, p99.1, p999.0, p999.1, extra.0, extra.1
        );
        summary
    }
}
