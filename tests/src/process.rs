//! One child process of a test: its log, its signals, and its certain end.
//!
//! A process is killed (and waited for) when its owner is dropped, stopped or not; when that happens because
//! the test failed, the end of its log is printed. Only processes started here are ever signalled, by pid.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// A running child with its output in a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, appending what it prints to `log`.
    ///
    /// # Panics
    /// When the program cannot be started: a test without its processes means nothing.
    #[must_use]
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Process {
        let file =
            File::options().create(true).append(true).open(log).expect("the log's folder is there");
        let copy = file.try_clone().expect("a descriptor");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(copy).spawn();
        let child =
            child.unwrap_or_else(|error| panic!("{name}: cannot start {command:?}: {error}"));
        RUNNING.lock().expect("nobody panics with it").push((child.id(), log.to_owned()));
        Process { name: name.to_owned(), child, log: log.to_owned(), ended: None }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, unless it is known to have ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let pid =
                i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a child has a pid");
            kill_process(pid, signal).expect("our own child can be signalled");
        }
    }

    /// `kill -9`, and waits until the kernel has taken its sockets.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let status = self.child.wait().expect("our own child can be waited for");
        self.end(status);
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none()
            && let Some(status) = self.child.try_wait().expect("our own child can be waited for")
        {
            self.end(status);
        }
        self.ended
    }

    fn end(&mut self, status: ExitStatus) {
        // From here on the pid may belong to someone else.
        RUNNING.lock().expect("nobody panics with it").retain(|(pid, _)| *pid != self.pid());
        self.ended = Some(status);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it runs on for longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait::until(&format!("{name} ends"), limit, || self.ended())
    }

    /// All it has printed.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn output(&self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    /// Prints the end of its log.
    pub fn print_log(&self) {
        eprintln!("--- {}", self.name);
        print_tail(&self.log);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_log();
        }
        if self.ended().is_none() {
            // SIGKILL also ends a stopped process.
            self.kill();
        }
    }
}

/// Ends the whole test, its children first, when it runs for longer than a limit.
///
/// A condition that is awaited has a limit of its own; this is for what hangs where nobody looked.
/// Dropping it calls it off.
#[derive(Debug)]
pub struct Watchdog {
    _called_off: mpsc::Sender<()>,
}

impl Watchdog {
    /// Starts counting.
    #[must_use]
    pub fn start(limit: Duration) -> Watchdog {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            if receiver.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the test did not end within {limit:?}");
                end_all();
            }
        });
        Watchdog { _called_off: sender }
    }
}

fn end_all() -> ! {
    for (pid, log) in RUNNING.lock().expect("nobody panics with it").drain(..) {
        print_tail(&log);
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    std::process::exit(101)
}

fn print_tail(log: &Path) {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    eprintln!("the last {} lines of {}\n{}", tail.len(), log.display(), tail.join("\n"));
}

/// A program built with the tests: beside the test's own executable, or where the environment variable
/// (`EVENKEEL_BIN` for `evenkeel`, `TESTAPP_BIN` for `testapp`) says.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(format!("{}_BIN", name.to_uppercase())) {
        return path.into();
    }
    let test = std::env::current_exe().expect("the test's own path");
    // target/PROFILE/deps/e2e-0123 → target/PROFILE/NAME
    let folder = test.parent().and_then(Path::parent).expect("tests run from target/PROFILE/deps");
    let path = folder.join(name);
    assert!(path.exists(), "{} is not there: `make test` builds it", path.display());
    path
}

/// The children of this test process and their logs, for [`Watchdog`].
static RUNNING: Mutex<Vec<(u32, PathBuf)>> = Mutex::new(Vec::new());

/// Lines of a log printed when a test fails.
const LOG_LINES_SHOWN: usize = 60;
