//! Processes that the demo starts, and that never outlive it.
//!
//! A child is killed when its guard is dropped: at the end, after an error, after a panic, after Ctrl-C
//! (which the demo catches; its children stand in process groups of their own so that the terminal's
//! signal reaches only the demo). Should the demo itself be killed with SIGKILL, the kernel kills the
//! children: each asks for that first thing ([`die_with`]), hosts before they become `evenkeel run`.
//! A pipe that closes would not do: a stopped application reads nothing.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};

/// A running child and where its messages go.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Makes the calling process end when `parent` does, by asking the kernel.
pub fn die_with(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot tie this process to the demo's")?;
    // The parent may have died before we asked.
    if Pid::as_raw(rustix::process::getppid()) != parent {
        bail!("the demo that started this process is gone");
    }
    Ok(())
}

/// Turns the calling process into `evenkeel run -c CONFIG`, tied to `parent`. Returns only to say why not.
pub fn become_host(config: &Path, parent: i32) -> anyhow::Result<()> {
    die_with(parent)?;
    let error = Command::new(own_binary()?).arg("run").arg("-c").arg(config).exec();
    Err(error).context("cannot start `evenkeel run`")
}

fn own_binary() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

impl Process {
    /// Starts `evenkeel run` with this file.
    pub fn host(directory: &Path, name: &str, config: &Path) -> anyhow::Result<Process> {
        let mut command = Command::new(own_binary()?);
        command
            .args(["demo", "--parent", &std::process::id().to_string(), "--as-host"])
            .arg(config);
        Process::start(directory, name, command, false)
    }

    /// Starts an application and returns it with the address it listens on.
    pub fn application(
        directory: &Path,
        name: &str,
        listen: SocketAddr,
        ledger: &Path,
        service_time_us: u64,
    ) -> anyhow::Result<(Process, SocketAddr)> {
        let mut command = Command::new(own_binary()?);
        command
            .args(["demo-application", "--name", name, "--listen", &listen.to_string()])
            .args(["--service-time-us", &service_time_us.to_string()])
            .args(["--parent", &std::process::id().to_string(), "--ledger"])
            .arg(ledger);
        let mut process = Process::start(directory, name, command, true)?;
        let mut line = String::new();
        if let Some(stdout) = process.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.trim_end().parse() {
            Ok(address) => Ok((process, address)),
            Err(_) => bail!("{name} did not start:\n{}", process.log_tail()),
        }
    }

    fn start(
        directory: &Path,
        name: &str,
        mut command: Command,
        read_stdout: bool,
    ) -> anyhow::Result<Process> {
        let log = directory.join(format!("{name}.log"));
        let file =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let stdout = if read_stdout { Stdio::piped() } else { Stdio::from(file.try_clone()?) };
        let child = command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Process { name: name.to_owned(), child, log })
    }

    /// What the demo calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Fails with the end of its log if it has ended by itself.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!("{} ended ({status}). Its last words:\n{}", self.name, self.log_tail())
            }
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only if it has ended and was waited for: then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Processor time used so far, by all its threads that still run.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(self.child.id())
            .with_context(|| format!("cannot read the processor time of {}", self.name))
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sums the threads' `schedstat`: nanoseconds, where `stat` counts in steps of 10 ms. Kernels without it
/// fall back to `stat`.
fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let file = task?.path().join("schedstat");
        match std::fs::read_to_string(file) {
            Ok(text) => total += parse_schedstat(&text).context("schedstat is not as expected")?,
            // No such file in this kernel, or a thread that has just ended.
            Err(_) => continue,
        }
    }
    if total > Duration::ZERO {
        return Ok(total);
    }
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).context("stat is not as expected")
}

fn parse_schedstat(text: &str) -> Option<Duration> {
    Some(Duration::from_nanos(text.split_ascii_whitespace().next()?.parse().ok()?))
}

/// User and system time: the 14th and 15th field; the second, the name in brackets, may contain anything.
fn parse_stat(text: &str) -> Option<Duration> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * (1000 / USER_HZ)))
}

const LOG_TAIL_LINES: usize = 12;

/// Ticks a second in `/proc`: fixed by Linux's interface, whatever the kernel's own timer does.
const USER_HZ: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_from_either_file() {
        assert_eq!(parse_schedstat("522524 0 1\n"), Some(Duration::from_nanos(522_524)));
        assert_eq!(parse_schedstat(""), None);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 25 17 0 0 20 0 1 0 100 0 0";
        assert_eq!(parse_stat(stat), Some(Duration::from_millis(420)));
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn the_own_processor_time_grows() {
        let before = cpu_of(std::process::id()).expect("our own process can be read");
        let mut sum = 0u64;
        for value in 0..20_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_add(value));
        }
        assert!(cpu_of(std::process::id()).expect("readable") > before, "{sum}");
    }
}
