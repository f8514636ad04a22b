//! The application in front of the proxy: sends what the row says and notes everything that comes back.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::conformance::http1::{Framing, Http1Reader, Stop, response_framing};
use crate::conformance::http2::{Event, Http2Reader};
use crate::conformance::message::{End, Message};
use crate::conformance::run::Run;
use crate::conformance::script::Step;

/// What a caller was told.
#[derive(Debug, Default)]
pub struct Heard {
    /// Interim responses, of all requests.
    pub interim: Vec<Message>,
    /// Final responses, in the order of the requests.
    pub answers: Vec<Message>,
    /// Whether the proxy closed the connection (waited for where a row asks for it).
    pub closed: bool,
    /// What came behind the last response.
    pub surplus: Vec<u8>,
}

/// Opens a connection, from this address if there is one.
pub fn connect(to: SocketAddrV4, from: Option<Ipv4Addr>) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor is free");
    if let Some(from) = from {
        socket.bind(&SocketAddr::from((from, 0)).into()).expect("a loopback address is ours");
    }
    socket.connect_timeout(&to.into(), PATIENCE).expect("the host listens");
    socket.set_tcp_nodelay(true).expect("TCP has this option");
    socket.into()
}

/// Does a script of HTTP/1.1, reads one response for each of the methods, and, if asked, waits for the end of
/// the connection.
pub fn call_http1(
    stream: TcpStream,
    run: &Run,
    script: &[Step],
    methods: &[&str],
    until_closed: bool,
) -> Heard {
    let mut writing = stream.try_clone().expect("a descriptor is free");
    let mut reader = Http1Reader::new(stream, PATIENCE);
    let mut heard = Heard::default();
    for step in script {
        match step {
            // A proxy that refuses early may close before all is written.
            Step::Bytes(bytes) => drop(writing.write_all(bytes)),
            Step::HalfClose => drop(writing.shutdown(Shutdown::Write)),
            Step::Close => {
                let _ = writing.shutdown(Shutdown::Both);
                return heard;
            }
            Step::AwaitInterim => {
                let Ok(head) = reader.response_head() else { return heard };
                if !is_interim(&head) {
                    finish_http1(&mut reader, run, methods[0], head, &mut heard);
                    return heard;
                }
                heard.interim.push(head);
            }
            step => {
                run.wait(step, None);
            }
        }
    }
    run.caller_is_done();
    while let Some(method) = methods.get(heard.answers.len()) {
        match reader.response_head() {
            Ok(head) if is_interim(&head) => heard.interim.push(head),
            Ok(head) => {
                if !finish_http1(&mut reader, run, method, head, &mut heard) {
                    break;
                }
            }
            Err(Stop::Silent) => return heard,
            Err(Stop::Closed | Stop::Reset) => {
                heard.closed = true;
                return heard;
            }
            Err(Stop::Malformed(what)) => {
                let end = Some(End::Malformed(what));
                heard.answers.push(Message { end, ..Message::default() });
                break;
            }
        }
    }
    if until_closed {
        reader.deadline = Instant::now() + CLOSE_MAX;
        (heard.closed, heard.surplus) = reader.rest();
    }
    heard
}

/// Reads what follows a final response's head; whether another response may follow on this connection.
fn finish_http1(
    reader: &mut Http1Reader,
    run: &Run,
    method: &str,
    mut answer: Message,
    heard: &mut Heard,
) -> bool {
    let framing = response_framing(method, &answer);
    let body = &mut answer.body;
    let read = framing.clone().and_then(|framing| {
        reader.body(framing, &mut |piece| {
            body.extend(piece);
            run.heard(piece.len());
        })
    });
    match read {
        Ok(trailers) => (answer.trailers, answer.end) = (trailers, Some(End::Complete)),
        Err(stop) => answer.end = stop.into(),
    }
    let more = answer.is_complete() && framing != Ok(Framing::Close);
    heard.answers.push(answer);
    more
}

fn is_interim(head: &Message) -> bool {
    (100..200).contains(&head.status)
}

/// Does a script of HTTP/2 and reads until every stream has ended, and, if asked, the connection too.
pub fn call_http2(stream: TcpStream, run: &Run, script: &[Step], until_closed: bool) -> Heard {
    let mut reader = Http2Reader::new(stream, PATIENCE);
    let writer = reader.writer();
    writer.client_preface();
    let mut streams = Streams::default();
    streams.answers.insert(1, Message::default());
    let mut current = 1;
    for step in script {
        match step {
            Step::NextStream => {
                current += 2;
                streams.answers.insert(current, Message::default());
            }
            Step::AwaitInterim => {
                while streams.interim.is_empty() && !streams.begun(current) {
                    if !streams.note(reader.event(), run) {
                        break;
                    }
                }
                if streams.begun(current) {
                    break;
                }
            }
            Step::Close => {
                writer.perform(step, current);
                return streams.heard(false);
            }
            step if writer.perform(step, current) => {
                // Nothing is answered on a stream that its caller has taken back.
                if matches!(step, Step::ResetStream(_)) {
                    streams.answers.remove(&current);
                }
            }
            step => {
                run.wait(step, None);
            }
        }
    }
    run.caller_is_done();
    let mut open = true;
    while open && !streams.ended() {
        open = streams.note(reader.event(), run);
    }
    if until_closed && open {
        reader.deadline = Instant::now() + CLOSE_MAX;
        while !matches!(reader.event(), Event::Closed | Event::Silent) {}
        open = reader.deadline < Instant::now();
    }
    streams.heard(!open)
}

/// The responses of one HTTP/2 connection.
#[derive(Default)]
struct Streams {
    interim: Vec<Message>,
    answers: BTreeMap<u32, Message>,
}

impl Streams {
    fn begun(&self, stream: u32) -> bool {
        self.answers.get(&stream).is_some_and(|answer| answer.status != 0 || answer.end.is_some())
    }

    fn ended(&self) -> bool {
        self.answers.values().all(|answer| answer.end.is_some())
    }

    /// Notes what came; false when nothing more will.
    fn note(&mut self, event: Event, run: &Run) -> bool {
        match event {
            Event::Headers(stream, fields, end) => {
                let Some(answer) = self.answers.get_mut(&stream) else { return true };
                if answer.status != 0 {
                    answer.trailers = fields;
                } else {
                    let head = Message::from_http2(fields);
                    if is_interim(&head) && !end {
                        self.interim.push(head);
                        return true;
                    }
                    *answer = head;
                }
                answer.end = end.then_some(End::Complete);
            }
            Event::Data(stream, piece, end) => {
                let Some(answer) = self.answers.get_mut(&stream) else { return true };
                run.heard(piece.len());
                answer.body.extend(piece);
                answer.end = end.then_some(End::Complete);
            }
            Event::Reset(stream, code) => {
                if let Some(answer) = self.answers.get_mut(&stream) {
                    answer.end.get_or_insert(End::StreamReset(code));
                }
            }
            // NO_ERROR lets the streams that are open finish.
            Event::GoAway(0) => {}
            Event::GoAway(code) => self.end_all(&End::GoAway(code)),
            Event::Closed => {
                self.end_all(&End::Closed);
                return false;
            }
            Event::Silent => return false,
        }
        true
    }

    fn end_all(&mut self, how: &End) {
        for answer in self.answers.values_mut() {
            answer.end.get_or_insert_with(|| how.clone());
        }
    }

    fn heard(self, closed: bool) -> Heard {
        let answers = self.answers.into_values().collect();
        Heard { interim: self.interim, answers, closed, surplus: Vec::new() }
    }
}

/// How long a caller waits for its responses: longer than the policy's timeout, so that a hang shows as a 504.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long it waits for a connection to be closed that should be.
const CLOSE_MAX: Duration = Duration::from_secs(2);
