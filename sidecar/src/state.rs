//! What a host keeps between two runs: its identity, the members it knew, what applications registered.
//!
//! Decides where that is (`node.data_dir`), that only one process uses it at a time, and that a crash at any
//! moment leaves either the old file or the new one. Invariants:
//! - One process per directory: a lock on `lock` is held for as long as the process lives. The kernel drops
//!   it when the process dies, however it dies, so a stale lock cannot exist; a pid file could.
//! - A file is replaced by write to a temporary one, fsync, rename, fsync of the directory.
//! - A file that cannot be read back is moved aside as `NAME.corrupt` and the host starts without it: a broken
//!   cache must not keep a host down, and what was in it can still be looked at.
//! - Writes happen on a thread of their own: an fsync on a slow disk takes seconds, and gossip that stalls that
//!   long gets its host declared dead by the others.
//!
//! It does not know what is in the files.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use evenkeel_config::Environment;
use evenkeel_config::settings::DataDir;
use tokio::sync::oneshot;
use tracing::{error, warn};

/// The open data directory, or none: then everything written is forgotten.
pub struct State {
    kept: Option<Kept>,
}

struct Kept {
    dir: PathBuf,
    _lock: File,
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

struct Job {
    name: &'static str,
    bytes: Vec<u8>,
    done: Option<oneshot::Sender<io::Result<()>>>,
}

/// Why the data directory cannot be used. Nothing was changed.
#[derive(Debug)]
pub enum StateError {
    /// The operator named a directory that cannot be made or opened.
    Open(PathBuf, io::Error),
    /// Another process holds it.
    Locked(PathBuf),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateError::Open(path, cause) => write!(
                f,
                "node.data_dir {}: {cause}. Make it writable for this user, name another directory, or set it to \"\" to keep nothing",
                path.display()
            ),
            StateError::Locked(path) => write!(
                f,
                "node.data_dir {} is used by another evenkeel process. Stop that one, or give this one a directory of its own (\"\" keeps nothing)",
                path.display()
            ),
        }
    }
}

impl std::error::Error for StateError {}

impl State {
    /// Opens and locks the directory that the setting means on this host.
    ///
    /// # Errors
    /// When a directory that was named cannot be used, or any is used by another process. A default that cannot
    /// be used is warned about and left out.
    pub fn open(setting: &DataDir, env: &Environment) -> Result<State, StateError> {
        let named = *setting != DataDir::Default;
        let Some(dir) = setting.resolve(env) else {
            if !named {
                warn!(
                    "neither $STATE_DIRECTORY nor $XDG_STATE_HOME nor $HOME is set: identity and registrations are not kept. Set node.data_dir"
                );
            }
            return Ok(State::forgetful());
        };
        match open_locked(&dir).and_then(|lock| Kept::start(dir.clone(), lock)) {
            Ok(kept) => Ok(State { kept: Some(kept) }),
            Err(OpenError::Locked) => Err(StateError::Locked(dir)),
            Err(OpenError::Io(cause)) if named => Err(StateError::Open(dir, cause)),
            Err(OpenError::Io(cause)) => {
                warn!(
                    dir = %dir.display(), %cause,
                    "the default data directory cannot be used: identity and registrations are not kept. Set node.data_dir"
                );
                Ok(State::forgetful())
            }
        }
    }

    /// A state that keeps nothing.
    #[must_use]
    pub fn forgetful() -> State {
        State { kept: None }
    }

    /// Where things are kept.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.kept.as_ref().map(|kept| kept.dir.as_path())
    }

    /// Reads one file. `None` when there is none, or it cannot be understood (then it was moved aside).
    pub fn read<T, E: fmt::Display>(
        &self,
        name: &'static str,
        decode: impl FnOnce(&[u8]) -> Result<T, E>,
    ) -> Option<T> {
        let path = self.dir()?.join(name);
        let problem = match read_bounded(&path) {
            Ok(bytes) => match decode(&bytes) {
                Ok(value) => return Some(value),
                Err(cause) => cause.to_string(),
            },
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return None,
            Err(cause) => cause.to_string(),
        };
        let aside = self.dir()?.join(format!("{name}.corrupt"));
        let moved = fs::rename(&path, &aside);
        error!(
            file = %path.display(), cause = %problem, moved_to = %aside.display(), move_failed = ?moved.err(),
            "a file in the data directory cannot be read: starting without it"
        );
        None
    }

    /// Replaces one file, in the order of the calls, off this thread. The result comes back on the receiver;
    /// dropping that means not caring.
    pub fn write(&self, name: &'static str, bytes: Vec<u8>) -> oneshot::Receiver<io::Result<()>> {
        let (done, answer) = oneshot::channel();
        let Some(jobs) = self.kept.as_ref().and_then(|kept| kept.jobs.as_ref()) else {
            let _ = done.send(Ok(()));
            return answer;
        };
        match jobs.try_send(Job { name, bytes, done: Some(done) }) {
            Ok(()) => {}
            Err(TrySendError::Full(mut job) | TrySendError::Disconnected(mut job)) => {
                if let Some(done) = job.done.take() {
                    let _ = done.send(Err(io::Error::other(
                        "the disk under node.data_dir is too slow: too many writes wait",
                    )));
                }
            }
        }
        answer
    }
}

impl Kept {
    fn start(dir: PathBuf, lock: File) -> Result<Kept, OpenError> {
        let (jobs, queue) = sync_channel::<Job>(WRITES_MAX);
        let target = dir.clone();
        let writer = std::thread::Builder::new()
            .name("ek-state".into())
            .spawn(move || {
                for job in queue {
                    let result = replace(&target, job.name, &job.bytes);
                    if let Err(cause) = &result {
                        error!(
                            file = job.name, dir = %target.display(), %cause,
                            "cannot write to the data directory: a restart will not know this. Check space and permissions"
                        );
                    }
                    if let Some(done) = job.done {
                        let _ = done.send(result);
                    }
                }
            })
            .map_err(OpenError::Io)?;
        Ok(Kept { dir, _lock: lock, jobs: Some(jobs), writer: Some(writer) })
    }
}

impl Drop for Kept {
    /// What was handed in is written before the lock goes.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

enum OpenError {
    Locked,
    Io(io::Error),
}

fn open_locked(dir: &Path) -> Result<File, OpenError> {
    if !dir.is_dir() {
        create_durably(dir).map_err(OpenError::Io)?;
    }
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(OpenError::Io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked),
        Err(TryLockError::Error(cause)) => Err(OpenError::Io(cause)),
    }
}

/// Makes a directory and those above it that are missing, so that a power failure does not take them back.
fn create_durably(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|above| !above.is_dir()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    for made in missing {
        // Each is named in the one above it.
        let above = made.parent().filter(|above| !above.as_os_str().is_empty());
        if let Ok(above) = File::open(above.unwrap_or(Path::new("."))) {
            above.sync_all()?;
        }
    }
    Ok(())
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// Writes that may wait for the disk.
const WRITES_MAX: usize = 64;

/// The largest file read back: the whole state of the largest mesh is about 7 MB.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Result<State, StateError> {
        State::open(&DataDir::Path(dir.to_path_buf()), &Environment::named("a"))
    }

    fn text(bytes: &[u8]) -> Result<String, std::string::FromUtf8Error> {
        String::from_utf8(bytes.to_vec())
    }

    #[test]
    fn what_is_written_is_there_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        let state = open(&dir).unwrap();
        assert_eq!(state.read("x.json", text), None);
        drop(state.write("x.json", b"one".to_vec()));
        state.write("x.json", b"two".to_vec()).blocking_recv().unwrap().unwrap();
        drop(state.write("y.json", b"late".to_vec()));
        drop(state);
        let state = open(&dir).unwrap();
        assert_eq!(state.read("x.json", text).as_deref(), Some("two"));
        assert_eq!(state.read("y.json", text).as_deref(), Some("late"));
    }

    #[test]
    fn the_directory_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("kept");
        let state = open(&dir).unwrap();
        state.write("x.json", b"secret".to_vec()).blocking_recv().unwrap().unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(dir.join("x.json")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn two_processes_cannot_share_it() {
        let temp = tempfile::tempdir().unwrap();
        let first = open(temp.path()).unwrap();
        let refused = open(temp.path()).err().unwrap();
        assert!(refused.to_string().contains("another evenkeel process"), "{refused}");
        drop(first);
        assert!(open(temp.path()).is_ok());
    }

    #[test]
    fn a_corrupt_file_is_moved_aside() {
        let temp = tempfile::tempdir().unwrap();
        let state = open(temp.path()).unwrap();
        fs::write(temp.path().join("x.json"), [0xff, 0xfe]).unwrap();
        assert_eq!(state.read("x.json", text), None);
        assert_eq!(fs::read(temp.path().join("x.json.corrupt")).unwrap(), [0xff, 0xfe]);
        assert!(!temp.path().join("x.json").exists());
    }

    #[test]
    fn a_named_directory_that_cannot_be_made_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = open(&file.join("below")).err().unwrap();
        assert!(refused.to_string().contains("node.data_dir"), "{refused}");
        // The default only warns.
        let env = Environment { state_directory: Some(file), ..Environment::named("a") };
        assert!(State::open(&DataDir::Default, &env).unwrap().dir().is_none());
        assert!(State::open(&DataDir::Default, &Environment::named("a")).unwrap().dir().is_none());
    }

    #[test]
    fn nothing_is_kept_when_asked() {
        let state = State::open(&DataDir::Nothing, &Environment::named("a")).unwrap();
        assert!(state.write("x.json", b"x".to_vec()).blocking_recv().unwrap().is_ok());
        assert_eq!(state.read("x.json", text), None);
    }
}
