//! The open-loop load of `make bench`: GETs at a fixed rate, one line of JSON at the end.
//!
//! `openload RATE SECONDS CONNECTIONS ADDRESS…`: request number n is due n / RATE after the start, whatever became
//! of those before it, and its latency counts from that moment; so a stall shows in full (a closed loop would stop
//! asking, and hide it). Requests are spread over the connections in turn, the connections over the addresses.
//! Only when all connections wait for an answer is a request sent late, and then too it counts from when it was due.
//! `late_p99_us` says how late requests that had a connection were sent: the load's own error. `histogram` has the
//! latencies whole: how many lie in each 48th of a decade, the first from 1 µs on, by the number of their class.
//!
//! One blocking thread a connection, timer slack switched off, no runtime: it shares its core with the backends,
//! so it must be cheap, and tokio's timers of 1 ms are too coarse. It never repeats a request. An answer is good
//! when it is a 2xx with its whole body (`Content-Length` only); what else happened is counted under `errors`.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is asked of all connections together.
struct Plan {
    start: Instant,
    interval: Duration,
    requests: u64,
    next: AtomicU64,
}

/// What one connection saw.
#[derive(Default)]
struct Seen {
    latencies_ns: Vec<u64>,
    late_ns: Vec<u64>,
    errors: BTreeMap<String, u64>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((plan, connections, addresses)) = parse(&args) else {
        eprintln!("usage: openload RATE SECONDS CONNECTIONS ADDRESS…");
        return ExitCode::from(64);
    };
    // Threads started later inherit it. Where this is not possible the load is up to 50 µs late, and says so.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    let plan = Arc::new(plan);
    let threads: Vec<_> = (0..connections)
        .map(|n| {
            let (plan, address) = (plan.clone(), addresses[n % addresses.len()]);
            std::thread::spawn(move || ask(&plan, address))
        })
        .collect();
    let mut all = Seen::default();
    for thread in threads {
        let seen = thread.join().expect("a connection's thread does not panic");
        all.latencies_ns.extend(seen.latencies_ns);
        all.late_ns.extend(seen.late_ns);
        for (error, count) in seen.errors {
            *all.errors.entry(error).or_default() += count;
        }
    }
    println!("{}", summary(&plan, all));
    ExitCode::SUCCESS
}

fn parse(args: &[String]) -> Option<(Plan, usize, Vec<SocketAddr>)> {
    let [rate, seconds, connections, addresses @ ..] = args else { return None };
    let rate: f64 = rate.parse().ok().filter(|rate| (0.1..=1e6).contains(rate))?;
    let seconds: f64 = seconds.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds))?;
    let connections: usize =
        connections.parse().ok().filter(|n| (1..=CONNECTIONS_MAX).contains(n))?;
    let addresses: Vec<SocketAddr> =
        addresses.iter().map(|address| address.parse().ok()).collect::<Option<_>>()?;
    if addresses.is_empty() {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within the limits above
    let requests = (rate * seconds) as u64;
    let plan = Plan {
        // Time for the threads to start and connect.
        start: Instant::now() + Duration::from_millis(100),
        interval: Duration::from_secs_f64(1.0 / rate),
        requests,
        next: AtomicU64::new(0),
    };
    Some((plan, connections, addresses))
}

/// Asks for whatever is due next until nothing is left.
fn ask(plan: &Plan, address: SocketAddr) -> Seen {
    let mut seen = Seen::default();
    let request =
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nUser-Agent: openload\r\nAccept: */*\r\n\r\n");
    let mut connection = connect(address).ok();
    let mut buffer = vec![0; ANSWER_MAX];
    loop {
        let number = plan.next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.requests {
            return seen;
        }
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let due = plan.start + plan.interval.mul_f64(number as f64);
        let free = due.checked_duration_since(Instant::now());
        if let Some(wait) = free {
            std::thread::sleep(wait);
            seen.late_ns.push(nanoseconds(due.elapsed()));
        }
        let outcome = match connection.take() {
            Some(open) => Ok(open),
            None => connect(address),
        }
        .and_then(|mut open| {
            exchange(&mut open, request.as_bytes(), &mut buffer).map(|answer| (open, answer))
        });
        match outcome {
            Ok((open, answer)) => {
                if (200..300).contains(&answer.status) {
                    seen.latencies_ns.push(nanoseconds(due.elapsed()));
                } else {
                    *seen.errors.entry(format!("status {}", answer.status)).or_default() += 1;
                }
                connection = answer.kept.then_some(open);
            }
            Err(error) => *seen.errors.entry(format!("{:?}", error.kind())).or_default() += 1,
        }
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The head of an answer whose body was read to its end.
struct Answer {
    status: u16,
    kept: bool,
}

fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> Result<Answer, Error> {
    stream.write_all(request)?;
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        if let Some((answer, length)) = head(&buffer[..filled])? {
            return match filled.cmp(&length) {
                std::cmp::Ordering::Less if length <= buffer.len() => continue,
                std::cmp::Ordering::Equal => Ok(answer),
                _ => Err(ErrorKind::InvalidData.into()),
            };
        }
        if filled == buffer.len() {
            return Err(ErrorKind::InvalidData.into());
        }
    }
}

/// The head, when it is complete, and the length of the answer with its body.
fn head(bytes: &[u8]) -> Result<Option<(Answer, usize)>, Error> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| ErrorKind::InvalidData)?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let (mut length, mut kept) = (None, true);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            kept = !value.trim().eq_ignore_ascii_case("close");
        }
    }
    let (Some(status), Some(length)) = (status, length) else {
        return Err(ErrorKind::InvalidData.into());
    };
    Ok(Some((Answer { status, kept }, (end + 4).saturating_add(length))))
}

fn summary(plan: &Plan, mut all: Seen) -> serde_json::Value {
    let elapsed = plan.start.elapsed().as_secs_f64();
    all.latencies_ns.sort_unstable();
    all.late_ns.sort_unstable();
    let good = all.latencies_ns.len() as u64;
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let per_sec = good as f64 / elapsed;
    serde_json::json!({
        "sent": plan.requests,
        "ok": good,
        "failed": plan.requests - good,
        "errors": all.errors,
        "per_sec": per_sec,
        "p50_us": quantile(&all.latencies_ns, 0.5),
        "p90_us": quantile(&all.latencies_ns, 0.9),
        "p99_us": quantile(&all.latencies_ns, 0.99),
        "p999_us": quantile(&all.latencies_ns, 0.999),
        "max_us": quantile(&all.latencies_ns, 1.0),
        "late_p99_us": quantile(&all.late_ns, 0.99),
        "histogram": histogram(&all.latencies_ns),
    })
}

/// How many samples lie in each class. Class n ends at 10^(n / 48) µs, itself included, so that whole decades
/// (1 ms, 1 s) are edges; classes are 5 % wide. Class 0 has all up to 1 µs.
fn histogram(latencies_ns: &[u64]) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    for ns in latencies_ns {
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let decades = (*ns as f64 / 1e3).log10();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 17 decades
        let class = (decades * CLASSES_PER_DECADE).ceil().max(0.0) as u32;
        *counts.entry(class).or_default() += 1;
    }
    counts
}

/// In microseconds: the smallest sample that at least this share of them does not exceed.
fn quantile(sorted_ns: &[u64], q: f64) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rank = (q * sorted_ns.len() as f64).ceil() as usize;
    #[allow(clippy::cast_precision_loss)]
    sorted_ns.get(rank.max(1) - 1).map(|ns| *ns as f64 / 1e3)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How long a request may take before it has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of the histogram.
const CLASSES_PER_DECADE: f64 = 48.0;

/// The largest answer, head and body.
const ANSWER_MAX: usize = 16 << 10;

/// A thread each.
const CONNECTIONS_MAX: usize = 1024;
