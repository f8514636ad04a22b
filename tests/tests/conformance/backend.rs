//! The applications behind the proxy: they note what they are sent and do what the row says, byte by byte.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::conformance::http1::{Http1Reader, Stop, request_framing};
use crate::conformance::http2::{Event, Http2Reader, Http2Writer};
use crate::conformance::message::{End, Message};
use crate::conformance::run::{Arrival, Run, Runs};
use crate::conformance::script::{PROTOCOL_ERROR, Step};

/// An application that listens; dropping it frees its address for the next stage.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddrV4,
    ends: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Backend {
    /// Serves on an address: HTTP/1.1, or HTTP/2 with prior knowledge.
    pub fn start(address: SocketAddrV4, http2: bool, runs: &Arc<Runs>) -> Backend {
        let listener = TcpListener::bind(address).expect("the test's network is its own");
        let (runs, ends) = (Arc::clone(runs), Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&ends);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let runs = Arc::clone(&runs);
                let _ = stream.set_nodelay(true);
                std::thread::spawn(move || {
                    if http2 {
                        serve_http2(stream, &runs);
                    } else {
                        serve_http1(&stream, &runs);
                    }
                });
            }
        });
        Backend { address, ends, accepting: Some(accepting) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes it, so that it looks.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn serve_http1(stream: &TcpStream, runs: &Runs) {
    let reading = stream.try_clone().expect("a descriptor is free");
    let mut reader = Http1Reader::new(reading, CONNECTION_MAX);
    loop {
        let head = match reader.request_head() {
            Ok(head) => head,
            Err(Stop::Malformed(what)) => {
                // As servers of HTTP/1.1 do with whatever they cannot read, HTTP/2's preface too.
                let _ =
                    (&*stream).write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
                return runs.stray(format!("over HTTP/1.1: {what}"));
            }
            Err(_) => return,
        };
        let Some(run) = runs.find(&head) else {
            return runs.stray(format!("over HTTP/1.1: {head:?}"));
        };
        let script = run.reply(false, &head.method);
        let framing = request_framing(&head.fields);
        let arrival = run.arrived(head);
        let (writing, noting) =
            (stream.try_clone().expect("a descriptor is free"), Arc::clone(&arrival));
        let replying = std::thread::spawn(move || reply_http1(writing, &run, &noting, &script));
        let read = framing.and_then(|framing| {
            reader.body(framing, &mut |piece| {
                arrival.lock().expect("nobody panics").body.extend(piece);
            })
        });
        end(&arrival, read);
        let whole = arrival.lock().expect("nobody panics").is_complete();
        if !replying.join().unwrap_or(false) || !whole {
            return;
        }
    }
}

/// Notes how a request ended.
fn end(arrival: &Arrival, read: Result<Vec<(String, String)>, Stop>) {
    let mut message = arrival.lock().expect("nobody panics");
    match read {
        Ok(trailers) => (message.trailers, message.end) = (trailers, Some(End::Complete)),
        Err(stop) => message.end = stop.into(),
    }
}

/// Whether the connection may serve another request.
fn reply_http1(mut stream: TcpStream, run: &Run, arrival: &Arrival, script: &[Step]) -> bool {
    for step in script {
        match step {
            Step::Bytes(bytes) => {
                let _ = stream.write_all(bytes);
            }
            Step::HalfClose => {
                let _ = stream.shutdown(Shutdown::Write);
            }
            Step::Close => {
                let _ = stream.shutdown(Shutdown::Both);
                return false;
            }
            step if run.wait(step, Some(arrival)) => {}
            _ => return false,
        }
    }
    true
}

fn serve_http2(stream: TcpStream, runs: &Runs) {
    let mut reader = Http2Reader::new(stream, CONNECTION_MAX);
    let writer = reader.writer();
    if !reader.preface() {
        // As servers of HTTP/2 do with a request of HTTP/1.1.
        writer.server_preface();
        writer.perform(&Step::GoAway(false, PROTOCOL_ERROR), 0);
        return runs.stray("no HTTP/2 preface to a backend of HTTP/2".into());
    }
    writer.server_preface();
    let mut arrivals: HashMap<u32, Arrival> = HashMap::new();
    let ended = |arrival: &Arrival, how: End| {
        arrival.lock().expect("nobody panics").end.get_or_insert(how);
    };
    loop {
        match reader.event() {
            Event::Headers(stream, fields, end) => {
                if let Some(arrival) = arrivals.get(&stream) {
                    arrival.lock().expect("nobody panics").trailers = fields;
                } else {
                    let head = Message::from_http2(fields);
                    let Some(run) = runs.find(&head) else {
                        runs.stray(format!("over HTTP/2: {head:?}"));
                        continue;
                    };
                    let script = run.reply(true, &head.method);
                    let arrival = run.arrived(head);
                    arrivals.insert(stream, Arc::clone(&arrival));
                    let writer = writer.clone();
                    std::thread::spawn(move || {
                        reply_http2(&writer, stream, &run, &arrival, &script);
                    });
                }
                if let Some(arrival) = arrivals.get(&stream).filter(|_| end) {
                    ended(arrival, End::Complete);
                }
            }
            Event::Data(stream, piece, end) => {
                if let Some(arrival) = arrivals.get(&stream) {
                    arrival.lock().expect("nobody panics").body.extend(piece);
                    if end {
                        ended(arrival, End::Complete);
                    }
                }
            }
            Event::Reset(stream, code) => {
                if let Some(arrival) = arrivals.get(&stream) {
                    ended(arrival, End::StreamReset(code));
                }
            }
            Event::GoAway(_) => {}
            Event::Closed | Event::Silent => {
                arrivals.values().for_each(|arrival| ended(arrival, End::Closed));
                return;
            }
        }
    }
}

fn reply_http2(writer: &Http2Writer, stream: u32, run: &Run, arrival: &Arrival, script: &[Step]) {
    for step in script {
        if !writer.perform(step, stream) && !run.wait(step, Some(arrival)) {
            return;
        }
    }
}

/// Longer than any test.
const CONNECTION_MAX: Duration = Duration::from_secs(300);
