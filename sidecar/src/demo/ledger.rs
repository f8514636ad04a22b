//! What the applications executed: one line for each execution, counted by who sent it.
//!
//! A line is `METHOD ARM ID`. The demo reads the files while they grow, only whole lines, and keeps how
//! often each id was executed. *Extra* requests are executions beyond the first of the same id, so a
//! request that failed does not hide a copy of another; *twice* is a POST whose id stands there more than
//! once, which must never be.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use hyper::Method;

use super::arms::Arm;

/// One executed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    kind: Kind,
    arm: Arm,
    id: u64,
}

/// What may be repeated, and what may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A GET.
    Get,
    /// A POST.
    Post,
}

impl Kind {
    /// The method as it is written.
    pub fn method(self) -> Method {
        match self {
            Kind::Get => Method::GET,
            Kind::Post => Method::POST,
        }
    }
}

/// The path of one request: who sends it and which one it is.
pub fn path(arm: &str, id: u64) -> String {
    format!("/orders/{arm}/{id}")
}

impl Entry {
    /// The entry for a request; `None` for a path or method that is not the load's.
    pub fn from_request(method: &Method, path: &str) -> Option<Entry> {
        let (arm, id) = path.strip_prefix("/orders/")?.split_once('/')?;
        Entry::parse(method.as_str(), arm, id)
    }

    /// The line in the ledger, with its end.
    pub fn to_line(self) -> String {
        format!("{} {} {}\n", self.kind.method(), self.arm.name(), self.id)
    }

    /// The entry of a line without its end.
    fn from_line(line: &str) -> Option<Entry> {
        let mut words = line.split(' ');
        let entry = Entry::parse(words.next()?, words.next()?, words.next()?);
        if words.next().is_some() { None } else { entry }
    }

    fn parse(method: &str, arm: &str, id: &str) -> Option<Entry> {
        let kind = match method {
            "GET" => Kind::Get,
            "POST" => Kind::Post,
            _ => return None,
        };
        Some(Entry { kind, arm: Arm::from_name(arm)?, id: id.parse().ok()? })
    }
}

/// The ledgers of all applications, read as they grow.
pub struct Ledgers {
    files: Vec<Reader>,
    arms: [Counts; Arm::ALL.len()],
}

struct Reader {
    path: PathBuf,
    offset: u64,
}

/// Executions of one arm's requests. Ids count up from 0, so that "the first so many" leaves out what was
/// executed after the moment that a live view shows.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    gets: BTreeMap<u64, u32>,
    posts: BTreeMap<u64, u32>,
}

impl Counts {
    /// GETs executed again after their first time, among the first `sent`.
    pub fn extra_gets(&self, sent: u64) -> u64 {
        self.gets.range(..sent).map(|(_, &times)| u64::from(times) - 1).sum()
    }

    /// POSTs executed exactly once, among the first `sent`.
    pub fn posts_once(&self, sent: u64) -> u64 {
        self.posts.range(..sent).filter(|&(_, &times)| times == 1).count() as u64
    }

    /// POSTs executed more than once, among the first `sent`.
    pub fn posts_twice(&self, sent: u64) -> u64 {
        self.posts.range(..sent).filter(|&(_, &times)| times > 1).count() as u64
    }
}

impl Ledgers {
    /// Ledgers of which nothing was read yet; the files may not exist.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Ledgers {
        let files = paths.into_iter().map(|path| Reader { path, offset: 0 }).collect();
        Ledgers { files, arms: Default::default() }
    }

    /// Reads what was added since the last call.
    pub fn read_on(&mut self) -> std::io::Result<()> {
        for file in &mut self.files {
            let text = match file.read_whole_lines() {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in text.lines().filter_map(Entry::from_line) {
                let counts = &mut self.arms[entry.arm.index()];
                let ids = match entry.kind {
                    Kind::Get => &mut counts.gets,
                    Kind::Post => &mut counts.posts,
                };
                *ids.entry(entry.id).or_default() += 1;
            }
        }
        Ok(())
    }

    /// What was executed of one arm's requests, as far as it was read.
    pub fn counts(&self, arm: Arm) -> &Counts {
        &self.arms[arm.index()]
    }
}

impl Reader {
    /// The whole lines since the last call; half a line is left for the next.
    fn read_whole_lines(&mut self) -> std::io::Result<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(READ_MAX).read_to_end(&mut bytes)?;
        bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
        self.offset += bytes.len() as u64;
        String::from_utf8(bytes).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidData))
    }
}

/// Read from one file in one call; more is left for the next.
const READ_MAX: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_request_becomes_a_line_and_comes_back() {
        let entry = Entry::from_request(&Method::POST, &path("p2c", 17));
        let entry = entry.expect("a path of the load");
        assert_eq!(entry, Entry { kind: Kind::Post, arm: Arm::P2c, id: 17 });
        assert_eq!(entry.to_line(), "POST p2c 17\n");
        assert_eq!(Entry::from_line("POST p2c 17"), Some(entry));
    }

    #[test]
    fn what_is_not_the_loads_is_not_counted() {
        for (method, path) in [
            (Method::GET, "/"),
            (Method::GET, "/orders/p2c"),
            (Method::GET, "/orders/warm-up/1"),
            (Method::GET, "/orders/p2c/x"),
            (Method::GET, "/orders/p2c/1/2"),
            (Method::DELETE, "/orders/p2c/1"),
        ] {
            assert_eq!(Entry::from_request(&method, path), None, "{method} {path}");
        }
        for line in ["", "GET", "GET p2c", "GET p2c 1 2", "GET nobody 1"] {
            assert_eq!(Entry::from_line(line), None, "{line:?}");
        }
    }

    #[test]
    fn copies_are_counted_over_all_files_and_half_lines_wait() {
        let directory =
            std::env::temp_dir().join(format!("evenkeel-ledger-test-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for the test");
        let paths = ["a", "b", "missing"].map(|name| directory.join(name));
        let mut a = File::create(&paths[0]).expect("a ledger");
        let mut b = File::create(&paths[1]).expect("a ledger");
        a.write_all(b"GET evenkeel 1\nGET evenkeel 2\nPOST evenkeel 1\nGET p2c 1\nPOST even")
            .expect("written");
        b.write_all(b"GET evenkeel 2\nGET evenkeel 2\nPOST evenkeel 3\n").expect("written");

        let mut ledgers = Ledgers::new(paths);
        ledgers.read_on().expect("read");
        let counts = ledgers.counts(Arm::Evenkeel);
        assert_eq!((counts.extra_gets(9), counts.posts_once(9), counts.posts_twice(9)), (2, 2, 0));

        a.write_all(b"keel 3\n").expect("written");
        ledgers.read_on().expect("read");
        let counts = ledgers.counts(Arm::Evenkeel);
        assert_eq!((counts.extra_gets(9), counts.posts_once(9), counts.posts_twice(9)), (2, 1, 1));
        assert_eq!((counts.extra_gets(2), counts.posts_once(3), counts.posts_twice(3)), (0, 1, 0));
        assert_eq!(ledgers.counts(Arm::P2c).extra_gets(9), 0);
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
