//! The leases of this host: the thread that owns [`Quotas`](evenkeel_ratelimit::Quotas), and what the rest of the program holds of it.
//!
//! The thread (`ek-quotas`) is the one owner of what this host wants, has, lends and owes. To it come messages of other hosts (by the gossip
//! thread, which opens the envelope), what Doorman clients ask ([`QuotasHandle`]), keys that requests want leases for, and the catalogue; from it go
//! messages, the notes in this host's record, and paces to the meters of [`crate::limit`].
//!
//! Who takes part: hosts with a `ratelimit.resources` of their own. Each says so in a note with the newest roster that it knows; the registrar
//! ([`evenkeel_ratelimit::Registrar`]) has the rosters in notes beside that.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use evenkeel_config::settings::{RateLimit, Safe as SafeSetting};
use evenkeel_ratelimit::{AskError, Floors, Grant, Micros, Request, Safe, Template, Templates};
use tokio::sync::{mpsc, oneshot};

use crate::gossip::GossipHandle;
use crate::limit::{Limits, Wanted};
use crate::state::State;

#[cfg(test)]
pub mod alone;
mod metrics;
mod notes;
mod owner;
pub mod report;
mod saved;
mod view;

/// The running thread. Dropping it stops it and waits for that.
pub struct QuotasThread {
    handle: QuotasHandle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the rest of the program holds of it.
#[derive(Clone)]
pub struct QuotasHandle {
    commands: mpsc::Sender<Command>,
    view: Arc<ArcSwap<report::View>>,
}

/// The thread has stopped: the process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// What others ask the thread to do.
#[derive(Debug)]
enum Command {
    /// A Doorman client asks for these resources.
    Ask {
        client: Arc<[u8]>,
        requests: Vec<(Arc<[u8]>, Request)>,
        answer: oneshot::Sender<Vec<Result<Grant, AskError>>>,
    },
    /// A Doorman client gives these back.
    Release { client: Arc<[u8]>, resources: Vec<Arc<[u8]>> },
    /// The configuration changed.
    Follow(Arc<RateLimit>),
    /// This host goes: it wants nothing any more.
    Leave(oneshot::Sender<()>),
}

/// A message for, or of, the host of this id.
pub type Message = (u64, Vec<u8>);

/// Everything the thread needs.
pub struct QuotasArgs<'a> {
    /// As configured.
    pub settings: Arc<RateLimit>,
    /// Who is there, and where notes go.
    pub gossip: GossipHandle,
    /// Messages of other hosts.
    pub received: mpsc::Receiver<Message>,
    /// Messages to other hosts.
    pub send: mpsc::Sender<Message>,
    /// The resources that requests draw on.
    pub limits: Arc<Limits>,
    /// Keys that leases are wanted for.
    pub wanted: mpsc::Receiver<Wanted>,
    /// Where is kept whether clients hold leases.
    pub state: Arc<State>,
    /// Where numbers are registered.
    pub metrics: &'a prometheus::Registry,
}

/// Starts the thread.
///
/// # Errors
/// No thread, or a metric of such a name is there already.
pub fn spawn(args: QuotasArgs<'_>) -> io::Result<QuotasThread> {
    let configured = Some(args.settings.resources.len());
    let view = report::View { configured, ..report::View::default() };
    let view = Arc::new(ArcSwap::from_pointee(view));
    metrics::QuotaMetrics::new(Arc::clone(&view))
        .and_then(|collector| args.metrics.register(Box::new(collector)))
        .map_err(io::Error::other)?;
    let (commands, queue) = mpsc::channel(COMMANDS_MAX);
    let (stop, stopped) = oneshot::channel();
    let life = u64::from_le_bytes(crate::gossip::entropy()?).max(1);
    let owner = owner::Owner::new(
        life,
        args.settings,
        args.gossip,
        args.limits,
        args.state,
        args.send,
        Arc::clone(&view),
    );
    let (received, wanted) = (args.received, args.wanted);
    let thread = std::thread::Builder::new().name("ek-quotas".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(cause) => return tracing::error!(%cause, "quotas cannot start"),
        };
        runtime.block_on(owner.run(queue, received, wanted, stopped));
    })?;
    let handle = QuotasHandle { commands, view };
    Ok(QuotasThread { handle, stop: Some(stop), thread: Some(thread) })
}

impl QuotasThread {
    /// What the rest of the program holds.
    pub fn handle(&self) -> &QuotasHandle {
        &self.handle
    }
}

impl Drop for QuotasThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl QuotasHandle {
    /// What a Doorman client gets, in the order of its requests.
    ///
    /// # Errors
    /// The process is ending.
    pub async fn ask(
        &self,
        client: Arc<[u8]>,
        requests: Vec<(Arc<[u8]>, Request)>,
    ) -> Result<Vec<Result<Grant, AskError>>, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Ask { client, requests, answer }).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// A Doorman client gives back what it has.
    ///
    /// # Errors
    /// The process is ending.
    pub async fn release(
        &self,
        client: Arc<[u8]>,
        resources: Vec<Arc<[u8]>>,
    ) -> Result<(), Stopped> {
        self.tell(Command::Release { client, resources }).await
    }

    /// Another configuration holds from now on.
    pub async fn follow(&self, settings: RateLimit) {
        let _ = self.tell(Command::Follow(Arc::new(settings))).await;
    }

    /// Wants nothing any more; what is lent, either way, ends by itself.
    pub async fn leave(&self) {
        let (done, answer) = oneshot::channel();
        if self.tell(Command::Leave(done)).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// All resources in use, as they were at most [`VIEW_EVERY`] ago.
    pub fn view(&self) -> Arc<report::View> {
        self.view.load_full()
    }

    async fn tell(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }
}

/// The rules of the resources as the core has them.
pub fn templates(settings: &RateLimit) -> Templates {
    let quantity = |units: f64| Micros::from_f64(units).unwrap_or(Micros::MAX);
    let template = |resource: &evenkeel_config::settings::Resource| Template {
        pattern: resource.pattern.clone(),
        capacity: quantity(resource.capacity),
        per: resource.per,
        burst: quantity(resource.burst),
        algorithm: resource.algorithm,
        floors: Floors::new(resource.floors.iter().copied()).unwrap_or_default(),
        lease: resource.lease,
        refresh: resource.refresh,
        learning: resource.learning,
        safe: match resource.safe {
            SafeSetting::Share => Safe::Share,
            SafeSetting::Unlimited => Safe::Unlimited,
            SafeSetting::Each(0.0) => Safe::Stop,
            SafeSetting::Each(units) => Safe::Each(quantity(units)),
        },
    };
    let templates = Templates::new(settings.resources.iter().map(template).collect());
    templates.unwrap_or_else(|problem| {
        tracing::error!(%problem, "the resources of ratelimit cannot be followed: none is limited");
        Templates::default()
    })
}

/// A resource's name, and the key behind it; empty: none.
fn split(id: &[u8]) -> (&[u8], &[u8]) {
    let name = evenkeel_config::ratelimit::name(id);
    (name, id.get(name.len() + 1..).unwrap_or_default())
}

/// Commands that may wait for the thread.
const COMMANDS_MAX: usize = 1024;
/// Messages that may wait for the thread, or for the gossip thread.
pub const MESSAGES_MAX: usize = 16 * 1024;
/// Keys that may wait for leases.
pub const WANTED_MAX: usize = 1024;
/// How old what is shown may be.
const VIEW_EVERY: Duration = Duration::from_secs(1);
