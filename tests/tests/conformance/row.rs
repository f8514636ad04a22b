//! A row of the table: a section of an RFC, what is sent, and what must be seen on both sides of the proxy.

use crate::conformance::check::{Arrives, Check};
use crate::conformance::message::Field;
use crate::conformance::script::{Step, bytes, owned};

/// How a request goes from its caller to the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the caller's host to an endpoint of its configuration that speaks HTTP/1.1.
    StaticHttp1,
    /// By the caller's host to an endpoint of its configuration that speaks HTTP/2.
    StaticHttp2,
    /// Over the mesh to an application that speaks HTTP/1.1.
    MeshHttp1,
    /// Over the mesh to an application that speaks HTTP/2.
    MeshHttp2,
    /// Over the mesh to an application that speaks HTTP/1.1, of which nothing was declared.
    MeshUndeclared,
    /// Over the mesh to an application that speaks HTTP/2, of which nothing was declared.
    MeshUndeclaredHttp2,
    /// By the caller's host to a name outside the mesh, in HTTP/1.1.
    Passthrough,
}

/// To services of the mesh and of the configuration.
pub const SERVICES: &[Way] = &[Way::StaticHttp1, Way::StaticHttp2, Way::MeshHttp1, Way::MeshHttp2];
/// Every way there is.
pub const ALL: &[Way] =
    &[Way::StaticHttp1, Way::StaticHttp2, Way::MeshHttp1, Way::MeshHttp2, Way::Passthrough];
/// The ways to backends of HTTP/1.1.
pub const TO_HTTP1: &[Way] = &[Way::StaticHttp1, Way::MeshHttp1, Way::Passthrough];
/// The ways to backends of HTTP/2.
pub const TO_HTTP2: &[Way] = &[Way::StaticHttp2, Way::MeshHttp2];
/// The ways over the mesh hop.
pub const MESH: &[Way] = &[Way::MeshHttp1, Way::MeshHttp2];

impl Way {
    /// Whether the backend at its end speaks HTTP/2.
    pub fn is_http2(self) -> bool {
        TO_HTTP2.contains(&self) || self == Way::MeshUndeclaredHttp2
    }
}

/// Where a caller connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The proxy of its host.
    Proxy,
    /// The listener of its host for the one service at the end of [`Way::StaticHttp1`].
    Listener,
    /// The port of another host for hosts, from the address of its own.
    Mesh,
}

/// One row.
#[derive(Debug, Clone)]
pub struct Row {
    /// Where the rule stands.
    pub section: &'static str,
    /// What the row is about.
    pub about: String,
    /// What the caller does over HTTP/1.1, if it does.
    pub http1: Option<Vec<Step>>,
    /// What the caller does over HTTP/2, if it does.
    pub http2: Option<Vec<Step>>,
    /// The methods of the caller's requests, in order: they say how responses are framed.
    pub methods: Vec<String>,
    /// What the backend does.
    pub reply: Reply,
    /// The ways on which the row holds.
    pub ways: Vec<Way>,
    /// What may be seen: one of these, each whole.
    pub outcomes: Vec<(Arrives, &'static [Check])>,
    /// Why this is asserted although the RFC would have it stricter.
    pub left_lenient: Option<&'static str>,
    /// Whether what it does to a connection would disturb other rows.
    pub alone: bool,
    /// Where the caller connects.
    pub door: Door,
}

impl Row {
    /// A row over all ways with a backend that answers 200 and `ok`.
    pub fn new(section: &'static str, about: impl Into<String>) -> Row {
        Row {
            section,
            about: about.into(),
            http1: None,
            http2: None,
            methods: vec!["GET".into()],
            reply: Reply::default(),
            ways: ALL.to_vec(),
            outcomes: Vec::new(),
            left_lenient: None,
            alone: false,
            door: Door::Proxy,
        }
    }

    /// The caller asks this, once in each version.
    pub fn ask(self, ask: Ask) -> Row {
        let methods = vec![ask.method.to_owned()];
        let http1 = vec![bytes(ask.http1())];
        let http2 = ask.http2();
        Row { http1: Some(http1), http2: Some(http2), methods, ..self }
    }

    /// The caller sends these bytes over HTTP/1.1.
    pub fn http1(self, text: impl AsRef<[u8]>) -> Row {
        self.http1_steps(vec![bytes(text)])
    }

    /// The caller does this over HTTP/1.1.
    pub fn http1_steps(self, steps: Vec<Step>) -> Row {
        let methods = methods(&steps);
        Row { http1: Some(steps), methods, ..self }
    }

    /// The methods of the caller's requests, where they do not stand at the start of lines.
    pub fn methods(self, methods: &[&str]) -> Row {
        Row { methods: methods.iter().map(|method| (*method).to_owned()).collect(), ..self }
    }

    /// The caller does this over HTTP/2.
    pub fn http2(self, steps: Vec<Step>) -> Row {
        let method = steps.iter().find_map(|step| match step {
            Step::Headers(fields, _) => {
                fields.iter().find(|(name, _)| name == b":method").map(|(_, value)| value.clone())
            }
            _ => None,
        });
        let methods = match method {
            Some(method) if self.http1.is_none() => vec![String::from_utf8_lossy(&method).into()],
            _ => self.methods,
        };
        Row { http2: Some(steps), methods, ..self }
    }

    /// The backend answers this.
    pub fn reply(self, answer: Answer) -> Row {
        let reply = Reply { answer: Some(answer), ..Reply::default() };
        Row { reply, ..self }
    }

    /// A backend of HTTP/1.1 sends these bytes once it has the whole request.
    pub fn reply_http1(self, text: impl AsRef<[u8]>) -> Row {
        self.reply_http1_steps(vec![Step::AwaitRequest, bytes(text)])
    }

    /// A backend of HTTP/1.1 does this once it has the request's head.
    pub fn reply_http1_steps(mut self, steps: Vec<Step>) -> Row {
        self.reply.http1 = Some(steps);
        self
    }

    /// A backend of HTTP/2 does this once it has the request's head.
    pub fn reply_http2_steps(mut self, steps: Vec<Step>) -> Row {
        self.reply.http2 = Some(steps);
        self
    }

    /// Only over these ways.
    pub fn over(self, ways: &[Way]) -> Row {
        Row { ways: ways.to_vec(), ..self }
    }

    /// This must be seen, or what [`Row::or`] adds.
    pub fn expect(self, arrives: Arrives, heard: &'static [Check]) -> Row {
        self.or(arrives, heard)
    }

    /// This may be seen instead: the RFC leaves the choice.
    pub fn or(mut self, arrives: Arrives, heard: &'static [Check]) -> Row {
        self.outcomes.push((arrives, heard));
        self
    }

    /// The row asserts what a library does although it is laxer than the RFC, for this reason.
    pub fn left_lenient(self, reason: &'static str) -> Row {
        Row { left_lenient: Some(reason), ..self }
    }

    /// No other row runs at the same time.
    pub fn alone(self) -> Row {
        Row { alone: true, ..self }
    }

    /// The caller plays the other host and speaks to the mesh port.
    pub fn at_mesh_port(self) -> Row {
        Row { door: Door::Mesh, ways: MESH.to_vec(), ..self }
    }

    /// The caller connects to a listener that is for one service alone.
    pub fn at_own_listener(self) -> Row {
        Row { door: Door::Listener, ways: vec![Way::StaticHttp1], ..self }
    }

    /// The ways on which its backend can do what it shall.
    pub fn ways(&self) -> impl Iterator<Item = Way> {
        self.ways.iter().copied().filter(|way| self.reply.fits(*way))
    }
}

/// A request that is well formed in both versions.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The method.
    pub method: &'static str,
    /// The target in origin form.
    pub path: &'static str,
    /// Fields beside the host and the run's number.
    pub fields: Vec<Field>,
    /// The content and how its end is told.
    pub content: Content,
    /// The trailer section; only with [`Content::Streamed`].
    pub trailers: Vec<Field>,
}

/// The content of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// None, and no field says so.
    None,
    /// With `Content-Length`.
    Sized(&'static str),
    /// Chunked, or DATA without a length.
    Streamed(&'static str),
}

/// A request without content.
pub fn get(fields: &[(&str, &str)]) -> Ask {
    ask("GET", fields)
}

/// A request without content of this method.
pub fn ask(method: &'static str, fields: &[(&str, &str)]) -> Ask {
    let (content, trailers) = (Content::None, Vec::new());
    Ask { method, path: "{path}", fields: owned(fields), content, trailers }
}

/// A POST of `hello` without a length.
pub fn upload(fields: &[(&str, &str)]) -> Ask {
    ask("POST", fields).with(Content::Streamed("hello"))
}

impl Ask {
    /// With this content.
    pub fn with(self, content: Content) -> Ask {
        Ask { content, ..self }
    }

    /// With these trailers.
    pub fn trailers(self, trailers: &[(&str, &str)]) -> Ask {
        Ask { trailers: owned(trailers), ..self }
    }

    /// To this target.
    pub fn path(self, path: &'static str) -> Ask {
        Ask { path, ..self }
    }

    fn http1(&self) -> String {
        let head =
            format!("{} {} HTTP/1.1\r\n{{to}}{}", self.method, self.path, lines(&self.fields));
        head + &body_http1(self.content, &self.trailers)
    }

    fn http2(self) -> Vec<Step> {
        let mut fields = vec![
            (":method".to_owned(), self.method.to_owned()),
            (":scheme".to_owned(), "http".to_owned()),
            (":authority".to_owned(), "{host}".to_owned()),
            (":path".to_owned(), self.path.to_owned()),
            ("x-row".to_owned(), "{row}".to_owned()),
        ];
        fields.extend(self.fields);
        body_http2(fields, self.content, &self.trailers)
    }
}

/// A response that is well formed in both versions.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Interim responses before it, each with its fields.
    pub interim: Vec<(u16, Vec<Field>)>,
    /// The final status.
    pub status: u16,
    /// Fields.
    pub fields: Vec<Field>,
    /// The content and how its end is told.
    pub content: Content,
    /// The trailer section; only with [`Content::Streamed`].
    pub trailers: Vec<Field>,
}

/// A response with this content.
pub fn answer(status: u16, fields: &[(&str, &str)], content: Content) -> Answer {
    Answer { interim: Vec::new(), status, fields: owned(fields), content, trailers: Vec::new() }
}

impl Answer {
    /// With these trailers.
    pub fn trailers(self, trailers: &[(&str, &str)]) -> Answer {
        Answer { trailers: owned(trailers), ..self }
    }

    /// With this interim response before it.
    pub fn after(mut self, status: u16, fields: &[(&str, &str)]) -> Answer {
        self.interim.push((status, owned(fields)));
        self
    }

    fn http1(&self, method: &str) -> Vec<Step> {
        let mut text = String::new();
        for (status, fields) in &self.interim {
            text += &format!("HTTP/1.1 {status} Interim\r\n{}\r\n", lines(fields));
        }
        text += &format!("HTTP/1.1 {} Status\r\n{}", self.status, lines(&self.fields));
        let body = body_http1(self.content, &self.trailers);
        // The header section ends at the first empty line.
        let head = body.find("\r\n\r\n").map_or(2, |at| at + 4);
        text += if method == "HEAD" { &body[..head] } else { &body };
        vec![Step::AwaitRequest, bytes(text)]
    }

    fn http2(&self, method: &str) -> Vec<Step> {
        let section = |status: u16, fields: &[Field]| {
            let mut all = vec![(":status".to_owned(), status.to_string())];
            all.extend(fields.iter().cloned());
            all
        };
        let mut steps = vec![Step::AwaitRequest];
        for (status, fields) in &self.interim {
            steps.push(as_headers(&section(*status, fields), false));
        }
        let last = body_http2(section(self.status, &self.fields), self.content, &self.trailers);
        match (method, &last[0]) {
            ("HEAD", Step::Headers(fields, _)) => steps.push(Step::Headers(fields.clone(), true)),
            _ => steps.extend(last),
        }
        steps
    }
}

/// What a backend does with a request.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    answer: Option<Answer>,
    http1: Option<Vec<Step>>,
    http2: Option<Vec<Step>>,
}

impl Reply {
    /// What a backend of HTTP/1.1 (or, when true, of HTTP/2) does with a request of this method.
    pub fn script(&self, http2: bool, method: &str) -> Vec<Step> {
        let written = if http2 { &self.http2 } else { &self.http1 };
        if let Some(steps) = written {
            return steps.clone();
        }
        let usual = || answer(200, &[], Content::Sized("ok"));
        let answer = self.answer.clone().unwrap_or_else(usual);
        if http2 { answer.http2(method) } else { answer.http1(method) }
    }

    fn fits(&self, way: Way) -> bool {
        let written = if way.is_http2() { &self.http2 } else { &self.http1 };
        let none = self.http1.is_none() && self.http2.is_none();
        written.is_some() || none
    }
}

fn lines(fields: &[Field]) -> String {
    fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

fn body_http1(content: Content, trailers: &[Field]) -> String {
    match content {
        Content::None => "\r\n".into(),
        Content::Sized(text) => format!("Content-Length: {}\r\n\r\n{text}", text.len()),
        Content::Streamed(text) => format!(
            "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\n{}\r\n",
            text.len(),
            lines(trailers)
        ),
    }
}

fn body_http2(mut fields: Vec<Field>, content: Content, trailers: &[Field]) -> Vec<Step> {
    let text = match content {
        Content::None => return vec![as_headers(&fields, true)],
        Content::Sized(text) => {
            fields.push(("content-length".into(), text.len().to_string()));
            text
        }
        Content::Streamed(text) => text,
    };
    let mut steps = vec![as_headers(&fields, false)];
    steps.push(Step::Data(text.as_bytes().to_vec(), trailers.is_empty()));
    if !trailers.is_empty() {
        steps.push(as_headers(trailers, true));
    }
    steps
}

fn as_headers(fields: &[Field], end: bool) -> Step {
    let lower = |(name, value): &Field| {
        (name.to_ascii_lowercase().into_bytes(), value.clone().into_bytes())
    };
    Step::Headers(fields.iter().map(lower).collect(), end)
}

/// The methods of the requests that a script of HTTP/1.1 writes, each at the start of a line.
fn methods(steps: &[Step]) -> Vec<String> {
    let mut text = String::new();
    for step in steps {
        if let Step::Bytes(bytes) = step {
            text += &String::from_utf8_lossy(bytes);
        }
    }
    let lines = text.lines().filter(|line| line.contains(" HTTP/1."));
    let found: Vec<String> =
        lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    if found.is_empty() { vec!["GET".into()] } else { found }
}
