//! For tests of those who ask for leases: the leases of a host that is alone, without its thread.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwap;
use evenkeel_config::settings::RateLimit;
use evenkeel_ratelimit::{Party, Quotas, Roster};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Command, QuotasHandle, templates};

/// Its handle, and the task that answers. `asked` counts the resources that were asked for.
pub fn alone(rules: &RateLimit, asked: Rc<AtomicUsize>) -> (QuotasHandle, JoinHandle<()>) {
    let now = Instant::now();
    let mut core = Quotas::new(now, Party { host: 1, life: 1 }, None);
    core.set_templates(now, templates(rules));
    let roster = Roster { epoch: 1, members: [(1, 1)].into(), settled: true, ..Roster::default() };
    core.set_roster(now, roster).unwrap();
    core.set_live(now, [1].into());
    let (commands, mut queue) = mpsc::channel(16);
    let answering = async move {
        while let Some(command) = queue.recv().await {
            let now = Instant::now();
            core.handle_timeout(now);
            match command {
                Command::Ask { client, requests, answer } => {
                    asked.fetch_add(requests.len(), Relaxed);
                    let grants =
                        requests.iter().map(|(id, ask)| core.handle_client(now, id, &client, *ask));
                    let _ = answer.send(grants.collect());
                }
                Command::Release { client, resources } => {
                    resources.iter().for_each(|id| core.handle_release(now, id, &client));
                }
                Command::Follow(_) | Command::Leave(_) => {}
            }
        }
    };
    let view = Arc::new(ArcSwap::default());
    (QuotasHandle { commands, view }, tokio::task::spawn_local(answering))
}
