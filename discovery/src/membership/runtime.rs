//! What foca wants of its embedder: an identity, and a place to put what it wants done.

use std::time::Duration;

use foca::{Identity, Notification, Timer};

use crate::wire::Membered;

/// What foca calls an identity: a host's life. A later epoch replaces an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id {
    pub node: u64,
    pub epoch: u32,
}

impl Id {
    pub fn of(member: &Membered) -> Id {
        Id { node: member.node, epoch: member.epoch }
    }
}

impl Identity for Id {
    type Addr = u64;

    fn renew(&self) -> Option<Self> {
        Some(Id { node: self.node, epoch: self.epoch.checked_add(1)? })
    }

    fn addr(&self) -> u64 {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.epoch > adversary.epoch
    }
}

/// What foca wants done; collected during a call, sorted out after it.
#[derive(Default)]
pub(super) struct Outbox {
    pub sends: Vec<(Id, Vec<u8>)>,
    pub timers: Vec<(Timer<Id>, Duration)>,
    pub notifications: Vec<Said>,
}

#[derive(Clone, Copy)]
pub(super) enum Said {
    Up(Id),
    Down(Id),
    Renamed(Id),
    /// This host was called down and has a new epoch.
    Rejoined,
    /// This host's id was seen with a later epoch, so it took one above that.
    Overtaken,
}

impl foca::Runtime<Id> for Outbox {
    fn notify(&mut self, notification: Notification<'_, Id>) {
        self.notifications.push(match notification {
            Notification::MemberUp(id) => Said::Up(*id),
            Notification::MemberDown(id) => Said::Down(*id),
            Notification::Rename(_, id) => Said::Renamed(*id),
            Notification::Rejoin(_) => Said::Rejoined,
            Notification::Active | Notification::Idle | Notification::Defunct => return,
        });
    }

    fn send_to(&mut self, to: Id, data: &[u8]) {
        self.sends.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Id>, after: Duration) {
        self.timers.push((event, after));
    }
}
