//! How the owner of the leases is asked: a channel, and answers in the order of the questions.

use std::sync::Arc;

use evenkeel_ratelimit::{AskError, Grant, Request};
use tokio::sync::{mpsc, oneshot};

/// What the rest of the program holds of the owner.
#[derive(Clone)]
pub struct QuotasHandle(pub mpsc::Sender<Command>);

/// The owner is gone: the process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// What the owner is asked to do.
pub enum Command {
    /// A client asks for these resources.
    Ask {
        /// Who.
        client: Arc<[u8]>,
        /// For what.
        requests: Vec<(Arc<[u8]>, Request)>,
        /// Where the answer goes.
        answer: oneshot::Sender<Vec<Result<Grant, AskError>>>,
    },
    /// A client gives these back.
    Release {
        /// Who.
        client: Arc<[u8]>,
        /// What.
        resources: Vec<Arc<[u8]>>,
    },
}

impl QuotasHandle {
    /// What a client gets, in the order of its requests.
    pub async fn ask(
        &self,
        client: Arc<[u8]>,
        requests: Vec<(Arc<[u8]>, Request)>,
    ) -> Result<Vec<Result<Grant, AskError>>, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Command::Ask { client, requests, answer }).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }

    /// A client gives back what it has.
    pub async fn release(
        &self,
        client: Arc<[u8]>,
        resources: Vec<Arc<[u8]>>,
    ) -> Result<(), Stopped> {
        self.0.send(Command::Release { client, resources }).await.map_err(|_| Stopped)
    }
}
