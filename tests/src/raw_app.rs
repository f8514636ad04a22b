//! An application that says exactly what it is told, and remembers every byte that it heard.
//!
//! HTTP/1.1 alone, and of that only where a request ends: what a library would mend, refuse or leave out is what is tested.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// An application that has each connection served by `serve`, on a thread of its own. It ends with the test's process.
///
/// # Panics
/// When the address is not this machine's.
#[must_use]
pub fn application(
    ip: Ipv4Addr,
    serve: impl Fn(TcpStream) + Clone + Send + 'static,
) -> SocketAddrV4 {
    let listener = TcpListener::bind((ip, 0)).expect("an address of this machine's");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    SocketAddrV4::new(ip, port)
}

/// The application. It ends with the test's process.
#[derive(Debug, Clone)]
pub struct RawApp {
    /// Where it listens.
    pub address: SocketAddrV4,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    answer: Vec<u8>,
    heard: Vec<String>,
}

impl RawApp {
    /// Listens on a free port of this address.
    ///
    /// # Panics
    /// When the address is not this machine's.
    #[must_use]
    pub fn listen(ip: Ipv4Addr) -> RawApp {
        let script = Script { answer: PLAIN.into(), heard: Vec::new() };
        let script = Arc::new(Mutex::new(script));
        let serving = Arc::clone(&script);
        let address = application(ip, move |stream| serve(&serving, stream));
        RawApp { address, script }
    }

    /// Answers every request with these bytes from now on, and forgets what it heard.
    pub fn answer(&self, bytes: impl AsRef<[u8]>) {
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        script.answer = bytes.as_ref().to_vec();
        script.heard.clear();
    }

    /// The requests it has heard whole since it was last told what to answer, each with its body as it came.
    #[must_use]
    pub fn heard(&self) -> Vec<String> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).heard.clone()
    }
}

fn serve(script: &Mutex<Script>, mut stream: TcpStream) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        while let Some(end) = end_of_request(&bytes) {
            let request: Vec<u8> = bytes.drain(..end).collect();
            // Asked whether it speaks HTTP/2, it hangs up.
            if request.starts_with(b"PRI ") {
                return;
            }
            let answer = {
                let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
                script.heard.push(String::from_utf8_lossy(&request).into_owned());
                script.answer.clone()
            };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
}

/// Where the first request in these bytes ends, if it is whole.
fn end_of_request(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let fields = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let value = |name: &str| {
        fields.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    if value("transfer-encoding").is_some() {
        let rest = &bytes[head..];
        let last = if rest.starts_with(b"0\r\n") { 0 } else { find(rest, b"\r\n0\r\n")? + 2 };
        // The trailers end with an empty line, which may be all there is of them.
        return find(&rest[last + 1..], b"\r\n\r\n").map(|at| head + last + 1 + at + 4);
    }
    let length = value("content-length").map_or(Some(0), |length| length.parse().ok())?;
    (bytes.len() >= head + length).then_some(head + length)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The answer until it is told another.
pub const PLAIN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
