//! The owner of all resources on one host: what is wanted of each, its root here or elsewhere, and its Doorman clients.
//!
//! One thread of the shell drives it:
//!
//! 1. rosters, live members and templates go in when they change; measured demand ([`Quotas::offer`]) a few times a second for each resource in
//!    use; what Doorman clients ask as it comes; datagrams of other hosts to [`Quotas::handle_datagram`]; and when
//!    [`Quotas::poll_timeout`] is due, [`Quotas::handle_timeout`];
//! 2. after each of these drain [`Quotas::poll_transmit`] and [`Quotas::poll_event`].
//!
//! An event says that what the host may spend of a resource has changed: the shell sets the pace of that resource's bucket.
//!
//! Resources come into being when they are first asked for and are forgotten when nothing of them is wanted or lent any more. A host serves as
//! root whoever asks it to; that two roots serve one resource costs utilisation, never safety (see `lease`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::algorithm::Algorithm;
use crate::concurrency::Concurrency;
use crate::election::{BadRoster, Roster, Rosters, root_of};
use crate::lease::Party;
use crate::quantity::Micros;
use crate::spending::Spending;
use crate::store::Request;
use crate::template::{Template, Templates};
use crate::wire::{Malformed, Message, RESOURCE_ID_MAX};

mod resource;

use resource::Resource;
pub use resource::{Grant, HostShare, Report, Serving};

/// All resources of one host.
#[derive(Debug)]
pub struct Quotas {
    me: Party,
    epoch: Instant,
    /// So long an earlier life may have lent rights, and clients may hold its leases.
    locked_until: Option<Instant>,
    rosters: Rosters,
    live: BTreeSet<u64>,
    templates: Templates,
    resources: BTreeMap<Arc<[u8]>, Resource>,
    /// When which resource is due.
    timers: BTreeSet<(Instant, Arc<[u8]>)>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    counters: Counters,
}

/// A datagram for another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// To whom.
    pub to: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// Something that the shell acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// What the host itself may spend of this resource from now on.
    Spend {
        /// Which.
        resource: Arc<[u8]>,
        /// How much, and whether the root answers.
        spending: Spending,
    },
    /// Nothing of this resource is in use any more, and what was told of it no longer holds: drop its bucket, and
    /// [`Quotas::offer`] before it is drawn on again.
    Forgotten {
        /// Which.
        resource: Arc<[u8]>,
    },
}

/// Nothing was granted, and nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskError {
    /// No template matches this id.
    UnknownResource,
    /// The id, of a resource or a client, is longer than [`RESOURCE_ID_MAX`] bytes.
    IdTooLong,
    /// [`RESOURCES_MAX`] resources are in use.
    TooManyResources,
    /// The resource has as many clients as fit.
    TooManyClients,
}

/// What was refused or dropped, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that were not messages.
    pub malformed: u64,
    /// Asks about what is no resource here, or of which there are too many.
    pub refused: u64,
    /// Datagrams that the shell did not fetch in time.
    pub dropped: u64,
}

impl Quotas {
    /// Knows no resource yet. `locked_until` is when the last loan of an earlier life of this host may end: a host that never ran
    /// before has `None`, one that does not know how long ago it stopped waits for the longest `lease` of its templates and [`crate::BASE`].
    #[must_use]
    pub fn new(now: Instant, me: Party, locked_until: Option<Instant>) -> Quotas {
        Quotas {
            me,
            epoch: now,
            locked_until,
            rosters: Rosters::new(me.host),
            live: BTreeSet::new(),
            templates: Templates::default(),
            resources: BTreeMap::new(),
            timers: BTreeSet::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Who owns the capacities from now on; or a known roster turns out to be settled.
    pub fn set_roster(&mut self, now: Instant, roster: Roster) -> Result<(), BadRoster> {
        self.rosters.add(now, roster)?;
        self.run_all(now);
        Ok(())
    }

    /// Who is up, with this host: the roots are chosen from them.
    pub fn set_live(&mut self, now: Instant, live: BTreeSet<u64>) {
        self.live = live;
        self.run_all(now);
    }

    /// The rules from now on. A resource that no template matches any more is asked for no longer, and forgotten when its loans have ended:
    /// forgotten earlier and wanted again, it would lend a second time what is out.
    pub fn set_templates(&mut self, now: Instant, templates: Templates) {
        self.templates = templates;
        for (id, resource) in &mut self.resources {
            match self.templates.find(id) {
                Some(rules) => resource.follow(rules.clone()),
                None => resource.retire(),
            }
        }
        self.run_all(now);
    }

    /// This host itself wants so much of a resource: offered demand, in the unit of its capacity.
    pub fn offer(&mut self, now: Instant, id: &[u8], wants: Micros) -> Result<(), AskError> {
        let (id, mut resource) = self.take(now, id)?;
        resource.own.wants = wants;
        self.put_back(now, id, resource);
        Ok(())
    }

    /// Requests of this host take these places of a resource that is held and not spent. They are closed whenever it is decided how much of it is lent or given
    /// back, which is never what is in use, and opened with what is left; the shell raises their limit when it hears of more.
    pub fn hold(
        &mut self,
        now: Instant,
        id: &[u8],
        places: Arc<Concurrency>,
    ) -> Result<(), AskError> {
        let (id, mut resource) = self.take(now, id)?;
        resource.hold(places);
        self.put_back(now, id, resource);
        Ok(())
    }

    /// The rules of a resource.
    #[must_use]
    pub fn rules(&self, id: &[u8]) -> Option<&Template> {
        self.templates.find(id)
    }

    /// What this host owns of a resource that is not in use here, and may spend without telling anybody: nobody else does.
    #[must_use]
    pub fn unused_right(&self, rules: &Template) -> Micros {
        match rules.algorithm {
            Algorithm::None => Micros::MAX,
            Algorithm::Static => rules.capacity,
            _ => self.rosters.right(rules.capacity, self.rosters.settled(0)),
        }
    }

    /// What this host itself may spend of a resource; `None`: it is not in use.
    #[must_use]
    pub fn spending(&self, now: Instant, id: &[u8]) -> Option<Spending> {
        self.resources.get(id).map(|resource| resource.spending(now))
    }

    /// A Doorman client asks.
    pub fn handle_client(
        &mut self,
        now: Instant,
        id: &[u8],
        client: &[u8],
        request: Request,
    ) -> Result<Grant, AskError> {
        if client.len() > RESOURCE_ID_MAX {
            return Err(AskError::IdTooLong);
        }
        let (id, mut resource) = self.take(now, id)?;
        let answer = resource.handle_client(now, client, request);
        self.put_back(now, id, resource);
        answer
    }

    /// A Doorman client gives back what it has. That it has nothing is no error.
    pub fn handle_release(&mut self, now: Instant, id: &[u8], client: &[u8]) {
        if let Some((id, mut resource)) = self.take_known(id) {
            resource.store.release(client);
            self.put_back(now, id, resource);
        }
    }

    /// A datagram of a member, whose identity the envelope vouches for.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: u64,
        bytes: &[u8],
    ) -> Result<(), Malformed> {
        let messages =
            Message::decode_all(bytes).inspect_err(|Malformed| self.counters.malformed += 1)?;
        for message in messages {
            self.handle(now, from, message);
        }
        Ok(())
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((due, id)) = self.timers.first().cloned()
            && due <= now
        {
            self.timers.pop_first();
            if let Some((id, mut resource)) = self.take_known(&id) {
                resource.due = None;
                self.put_back(now, id, resource);
            }
        }
    }

    /// When [`Quotas::handle_timeout`] is next due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What was refused or dropped.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// All resources in use, by id.
    pub fn reports(&self, now: Instant) -> impl Iterator<Item = Report> {
        self.resources.values().map(move |resource| resource.report(now))
    }

    fn handle(&mut self, now: Instant, from: u64, message: Message) {
        let id = match &message {
            Message::Ask(ask) => &ask.resource,
            Message::Answer(answer) => &answer.resource,
            Message::Summon(resource) => resource,
        };
        let id = Arc::clone(id);
        if let Message::Answer(answer) = message {
            // About what is forgotten here it is late: all that it could say has ended.
            if let Some((id, mut resource)) = self.take_known(&id) {
                resource.client.handle_answer(now, from, &answer);
                self.put_back(now, id, resource);
            }
            return;
        }
        let (me, epoch) = (self.me, self.epoch);
        let Ok((id, mut resource)) = self.take(now, &id) else {
            self.counters.refused += 1;
            return;
        };
        match message {
            Message::Ask(ask) => {
                resource.root(now, me, epoch).handle_ask(now, from, ask, &self.rosters);
            }
            _ => resource.summon(now),
        }
        self.put_back(now, id, resource);
    }

    /// Takes out one resource, which comes into being if it is one.
    fn take(&mut self, now: Instant, id: &[u8]) -> Result<(Arc<[u8]>, Resource), AskError> {
        if self.resources.get(id).is_some_and(Resource::is_retired) {
            return Err(AskError::UnknownResource);
        }
        if let Some(known) = self.take_known(id) {
            return Ok(known);
        }
        if id.len() > RESOURCE_ID_MAX {
            return Err(AskError::IdTooLong);
        }
        if self.resources.len() >= RESOURCES_MAX {
            return Err(AskError::TooManyResources);
        }
        let rules = self.templates.find(id).ok_or(AskError::UnknownResource)?.clone();
        let id: Arc<[u8]> = Arc::from(id);
        let mut resource =
            Resource::new(now, Arc::clone(&id), rules, self.me, self.epoch, self.locked_until);
        // It may be asked for something before anything else happens to it.
        resource.client.set_right(now, &self.rosters, resource.capacity());
        Ok((id, resource))
    }

    /// Takes out one that is there. Nobody enters its places until it is put back.
    fn take_known(&mut self, id: &[u8]) -> Option<(Arc<[u8]>, Resource)> {
        let (id, mut resource) = self.resources.remove_entry(id)?;
        resource.close();
        Some((id, resource))
    }

    /// Does what is due for a resource that something happened to, and puts it back, unless it is no longer of use.
    fn put_back(&mut self, now: Instant, id: Arc<[u8]>, mut resource: Resource) {
        self.run(now, &id, &mut resource);
        let spending = resource.spending(now);
        if resource.told != Some(spending) && self.events.len() < EVENTS_MAX {
            resource.told = Some(spending);
            self.events.push_back(Event::Spend { resource: Arc::clone(&id), spending });
        }
        if let Some(before) = resource.due.take() {
            self.timers.remove(&(before, Arc::clone(&id)));
        }
        if resource.is_idle(now) && self.events.len() < EVENTS_MAX + RESOURCES_MAX {
            // Its places stay closed: what is told of it no longer holds.
            self.events.push_back(Event::Forgotten { resource: id });
            return;
        }
        resource.open(spending);
        resource.due = resource.poll_timeout(now);
        if let Some(due) = resource.due {
            self.timers.insert((due, Arc::clone(&id)));
        }
        self.resources.insert(id, resource);
    }

    /// Lets both sides of a resource do what is due. What they say to each other on this host does not travel.
    fn run(&mut self, now: Instant, id: &[u8], resource: &mut Resource) {
        let root = if resource.is_shared() && !resource.is_retired() {
            root_of(id, self.live.iter().copied())
        } else {
            None
        };
        resource.prepare(now, &self.rosters, root);
        // Each may answer the other within the same moment.
        for _ in 0..TURNS_MAX {
            let mut local = false;
            for (to, message) in resource.run(now, &self.rosters) {
                match message {
                    Message::Ask(ask) if to == self.me.host => {
                        resource.root(now, self.me, self.epoch).handle_ask(
                            now,
                            to,
                            ask,
                            &self.rosters,
                        );
                        local = true;
                    }
                    Message::Answer(answer) if to == self.me.host => {
                        resource.client.handle_answer(now, to, &answer);
                        local = true;
                    }
                    Message::Summon(_) if to == self.me.host => {
                        resource.summon(now);
                        local = true;
                    }
                    message if self.live.contains(&to) => self.transmit(to, &message),
                    _ => {}
                }
            }
            if !local {
                break;
            }
        }
    }

    fn transmit(&mut self, to: u64, message: &Message) {
        if self.transmits.len() >= TRANSMITS_MAX {
            self.counters.dropped += 1;
            return;
        }
        let mut bytes = Vec::with_capacity(160);
        message.encode(&mut bytes);
        self.transmits.push_back(Transmit { to, bytes });
    }

    /// Lets every resource do what follows from a change of what all depend on.
    fn run_all(&mut self, now: Instant) {
        let ids: Vec<_> = self.resources.keys().cloned().collect();
        for id in ids {
            if let Some((id, resource)) = self.take_known(&id) {
                self.put_back(now, id, resource);
            }
        }
    }
}

/// Most resources in use at a time.
pub const RESOURCES_MAX: usize = 10_000;
/// Datagrams that wait for the shell; beyond it they are lost, as the network may lose them.
const TRANSMITS_MAX: usize = 64 * 1024;
/// Events about spending that wait for the shell; beyond it a resource's change is told with its next one. A resource is forgotten only if it
/// can be told, for which there is room beyond this.
const EVENTS_MAX: usize = 64 * 1024;
/// Rounds between client and root of one host within one moment.
const TURNS_MAX: usize = 4;

#[cfg(test)]
mod tests;
