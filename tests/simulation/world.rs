//! Virtual time, the network, and what goes wrong.

use crate::client::{Act, Client};
use crate::server::{Connection, Data, Mutation, Server, fence_of};
use crate::support::random::Random;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;
use tagsweep::lock::WaitMode;
use tagsweep::lock::attempt::Event;
use tagsweep::lock::protocol::{Answer, Request};

/// What goes wrong, in ten thousandths of messages or wake-ups, and seconds between.
#[derive(Clone, Copy)]
pub struct Faults {
    lost: u64,
    late: u64,
    doubled: u64,
    paused: u64,
    crashed: u64,
    jump_every: u64,
    failover_every: u64,
}

impl Faults {
    pub const ALL: Self = Self {
        lost: 100,
        late: 200,
        doubled: 50,
        paused: 10,
        crashed: 3,
        jump_every: 40,
        failover_every: 30,
    };
    const NONE: Self = Self {
        lost: 0,
        late: 0,
        doubled: 0,
        paused: 0,
        crashed: 0,
        jump_every: 0,
        failover_every: 0,
    };
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub grants: u64,
    pub effects: u64,
    pub refused: u64,
    pub handovers: u64,
    /// Grants to a newcomer while others stood in line: after a loss only.
    pub overtaken: u64,
    pub takeovers: u64,
    pub repeated: u64,
    pub renewed: u64,
    pub doubts: u64,
    /// Changes of which trackers were told.
    pub told: u64,
    pub duplicates: u64,
    pub pauses: u64,
    pub crashes: u64,
    pub jumps: u64,
    pub failovers: u64,
    pub events: u64,
    pub virtual_s: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.grants += other.grants;
        self.effects += other.effects;
        self.refused += other.refused;
        self.handovers += other.handovers;
        self.overtaken += other.overtaken;
        self.takeovers += other.takeovers;
        self.repeated += other.repeated;
        self.renewed += other.renewed;
        self.doubts += other.doubts;
        self.told += other.told;
        self.duplicates += other.duplicates;
        self.pauses += other.pauses;
        self.crashes += other.crashes;
        self.jumps += other.jumps;
        self.failovers += other.failovers;
        self.events += other.events;
        self.virtual_s += other.virtual_s;
    }
}

/// A message on its way to the server.
#[derive(Clone, Debug)]
enum Message {
    Request(Request),
    Track(Request),
    /// Of a watchdog, which sent it then.
    Renewal(Request, u64),
    Join(Request, Connection),
    Unblock(Connection),
    Effect(Vec<u8>),
}

/// A reply on its way to a client.
#[derive(Clone, Debug)]
enum Reply {
    Answer(Answer),
    /// What has changed.
    Told(Event),
    Renewal(Answer, u64),
    HungUp(Option<Vec<u8>>),
    Affected(bool),
    Line(Connection, Event),
}

#[derive(Clone, Debug)]
enum Happening {
    AtServer { client: usize, life: u64, exchange: u64, message: Message },
    AtClient { client: usize, life: u64, exchange: u64, reply: Reply },
    Wake { client: usize, life: u64 },
    Watch { client: usize, life: u64, grant: u64 },
    Closed(Connection),
    Replicate,
    Jump,
    Failover,
}

const CLIENTS: usize = 6;
const SECOND: u64 = 1_000_000;

/// How long things go wrong, and how long after that everybody must have had the lock.
const FAULTY: u64 = 60 * SECOND;
const AFTERWARDS: u64 = 40 * SECOND;

/// Half of the handovers must not take longer.
const PROMPT: u64 = 60_000;

pub struct World {
    random: Random,
    faults: Faults,
    now: u64,
    /// Server time is that much ahead; it jumps.
    offset: u64,
    server: Server,
    replica: Data,
    clients: Vec<Client>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    serial: u64,
    /// Batons that were served on a connection.
    served: BTreeMap<Connection, Vec<u8>>,
    owner_of: BTreeMap<Connection, (usize, u64)>,
    closed: BTreeSet<Connection>,
    /// Who is told of the next change of the lock, and of the line.
    of_lock: BTreeSet<(usize, u64)>,
    of_line: BTreeSet<(usize, u64)>,
    /// Which grant has a fence.
    granted: BTreeMap<u64, Vec<u8>>,
    /// When the server last lost data or time.
    disturbed: u64,
    freed: Option<u64>,
    gaps: Vec<u64>,
    pub tally: Tally,
    pub violations: Vec<String>,
}

impl World {
    pub fn new(seed: u64, faults: Faults, mutation: Mutation) -> Self {
        Self {
            random: Random::new(seed),
            faults,
            now: 0,
            offset: 1_000_000 * SECOND,
            server: Server::new(mutation),
            replica: Data::default(),
            clients: (0..CLIENTS).map(Client::new).collect(),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            serial: 0,
            served: BTreeMap::new(),
            owner_of: BTreeMap::new(),
            closed: BTreeSet::new(),
            of_lock: BTreeSet::new(),
            of_line: BTreeSet::new(),
            granted: BTreeMap::new(),
            disturbed: 0,
            freed: None,
            gaps: Vec::new(),
            tally: Tally::default(),
            violations: Vec::new(),
        }
    }

    pub fn run(&mut self) {
        for client in 0..CLIENTS {
            self.at(self.now + client as u64 * 1_000, Happening::Wake { client, life: 0 });
        }
        self.at(1, Happening::Replicate);
        self.later(self.faults.jump_every, Happening::Jump);
        self.later(self.faults.failover_every, Happening::Failover);
        self.until(FAULTY);
        self.faults = Faults::NONE;
        let before: Vec<u64> = self.clients.iter().map(|client| client.grants).collect();
        self.until(FAULTY + AFTERWARDS);
        for (client, before) in self.clients.iter().zip(before) {
            if client.grants == before {
                let (name, doing) = (client.name, &client.doing);
                self.violations
                    .push(format!("stuck: client {name} got nothing any more: {doing:?}"));
            }
        }
        self.sum_up();
    }

    fn sum_up(&mut self) {
        self.gaps.sort_unstable();
        if let Some(median) = self.gaps.get(self.gaps.len() / 2)
            && *median > PROMPT
        {
            self.violations.push(format!("slow handover: median {median} us"));
        }
        if self.tally.overtaken * 10 > self.tally.grants {
            let (of, all) = (self.tally.overtaken, self.tally.grants);
            self.violations.push(format!("overtaken: waiters by {of} of {all} grants"));
        }
        self.tally.handovers = self.server.handovers;
        self.tally.takeovers = self.server.takeovers;
        self.tally.repeated = self.clients.iter().map(|client| client.repeated).sum();
        self.tally.renewed = self.clients.iter().map(|client| client.renewed).sum();
        self.tally.told = self.clients.iter().map(|client| client.told).sum();
        self.tally.doubts = self.clients.iter().map(|client| client.doubts).sum();
        self.tally.virtual_s = self.now / SECOND;
    }

    fn until(&mut self, end: u64) {
        while let Some(Reverse((at, serial))) = self.queue.pop() {
            if at > end {
                self.queue.push(Reverse((at, serial)));
                break;
            }
            self.now = at;
            self.tally.events += 1;
            if let Some(happening) = self.happenings.remove(&serial) {
                self.happen(happening);
            }
        }
        self.now = end;
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.serial += 1;
        self.happenings.insert(self.serial, happening);
        self.queue.push(Reverse((at, self.serial)));
    }

    /// At a random time around so many seconds from now; never, for none.
    fn later(&mut self, seconds: u64, happening: Happening) {
        if seconds > 0 {
            let span = self.random.below(2 * seconds * SECOND);
            self.at(self.now + span, happening);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::AtServer { client, life, exchange, message } => {
                self.at_server(client, life, exchange, message);
            }
            Happening::AtClient { client, life, exchange, reply } => {
                if let Some(at) = self.trouble(client, life) {
                    return self.at(at, Happening::AtClient { client, life, exchange, reply });
                }
                self.at_client(client, life, exchange, reply);
            }
            Happening::Wake { client, life } => {
                if let Some(at) = self.trouble(client, life) {
                    return self.at(at, Happening::Wake { client, life });
                }
                self.wake(client, life);
            }
            Happening::Watch { client, life, grant } => {
                if let Some(at) = self.trouble(client, life) {
                    return self.at(at, Happening::Watch { client, life, grant });
                }
                if self.clients[client].life == life {
                    let acts = self.clients[client].watch(grant, self.now);
                    self.act(client, acts);
                }
            }
            Happening::Closed(connection) => {
                self.closed.insert(connection);
                self.server.unblock(connection);
            }
            Happening::Replicate => {
                self.replica = self.server.data.clone();
                let lag = 1_000 + self.random.below(50_000);
                self.at(self.now + lag, Happening::Replicate);
            }
            Happening::Jump => self.jump(),
            Happening::Failover => self.fail_over(),
        }
    }

    fn jump(&mut self) {
        if self.faults.jump_every == 0 {
            return;
        }
        self.tally.jumps += 1;
        self.disturbed = self.now;
        self.offset = self.offset + self.random.below(20 * SECOND) - 10 * SECOND;
        self.later(self.faults.jump_every, Happening::Jump);
    }

    /// The replica takes over: with what it has, and without the connections.
    fn fail_over(&mut self) {
        if self.faults.failover_every == 0 {
            return;
        }
        self.later(self.faults.failover_every, Happening::Failover);
        // What is not promised: a replica that missed the last fence takes over while its clock is
        // behind that fence. Nothing on the server then knows that it was given.
        let last = self.server.data.fence.map_or(0, |(fence, _)| fence);
        if self.now + self.offset <= last {
            return;
        }
        self.tally.failovers += 1;
        self.disturbed = self.now;
        self.of_line.clear();
        self.tell(Event::Untold);
        self.server.data = self.replica.clone();
        for connection in std::mem::take(&mut self.server.blocked) {
            if let Some((client, life)) = self.owner_of.get(&connection).copied() {
                let reply = Reply::Line(connection, Event::Broken);
                let at = self.now + 1_000 + self.random.below(50_000);
                self.at(at, Happening::AtClient { client, life, exchange: 0, reply });
            }
        }
    }

    /// A client may be stopped, or die, at any of its steps; when it goes on.
    fn trouble(&mut self, client: usize, life: u64) -> Option<u64> {
        let now = self.now;
        let (pause, crash) =
            (self.random.chance(self.faults.paused), self.random.chance(self.faults.crashed));
        let span = self.random.below(3 * SECOND);
        let it = &mut self.clients[client];
        if it.life != life {
            return None;
        }
        if it.paused_until > now {
            return Some(it.paused_until);
        }
        if pause {
            self.tally.pauses += 1;
            it.paused_until = now + span;
            return Some(it.paused_until);
        }
        if crash {
            self.tally.crashes += 1;
            let line = it.line.take();
            it.crash();
            let life = it.life;
            if let Some(line) = line {
                self.at(now + 500, Happening::Closed(line));
            }
            self.at(now + 500_000, Happening::Wake { client, life });
        }
        None
    }

    fn wake(&mut self, client: usize, life: u64) {
        if self.clients[client].life != life {
            return;
        }
        let draw = self.random.below(1 << 32);
        let now = self.now;
        let acts = if self.clients[client].doing == crate::client::Doing::Resting {
            if now < self.clients[client].rested {
                return; // woken by a timer that means nothing any more
            }
            let budgets = [0, 50, 1_000, 20_000, 20_000];
            let budget = Duration::from_millis(budgets[draw as usize % budgets.len()]);
            let mode = if draw.is_multiple_of(7) { WaitMode::Backoff } else { WaitMode::Line };
            self.serial += 1;
            let serial = self.serial;
            self.clients[client].begin(now, serial, budget, mode)
        } else {
            self.clients[client].wake(now, draw)
        };
        self.act(client, acts);
    }

    fn act(&mut self, client: usize, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Send(request) => self.send(client, Message::Request(request)),
                Act::Track(request) => self.send(client, Message::Track(request)),
                Act::Renew(request, sent) => self.send(client, Message::Renewal(request, sent)),
                Act::Join(request, connection) => {
                    let life = self.clients[client].life;
                    // Connections of different clients are different ones.
                    let connection = self.name(client, connection);
                    self.owner_of.insert(connection, (client, life));
                    self.clients[client].line = Some(connection);
                    self.send(client, Message::Join(request, connection));
                }
                Act::Unblock(connection) => self.send(client, Message::Unblock(connection)),
                Act::Effect(value) => self.send(client, Message::Effect(value)),
                Act::Wake(at) => {
                    let life = self.clients[client].life;
                    self.at(at.max(self.now), Happening::Wake { client, life });
                }
                Act::Watch(at, grant) => {
                    let life = self.clients[client].life;
                    self.at(at.max(self.now), Happening::Watch { client, life, grant });
                }
                Act::Close(connection) => self.at(self.now + 500, Happening::Closed(connection)),
            }
        }
        self.note_grant(client);
    }

    fn name(&self, client: usize, exchange: u64) -> Connection {
        exchange * CLIENTS as u64 + client as u64
    }

    /// How long a message takes; nothing when it is lost.
    fn travel(&mut self) -> Option<u64> {
        if self.random.chance(self.faults.lost) {
            return None;
        }
        Some(match self.random.chance(self.faults.late) {
            true => 50_000 + self.random.below(2 * SECOND),
            false => 1_000 + self.random.below(3_000),
        })
    }

    fn send(&mut self, client: usize, message: Message) {
        let (life, exchange) = (self.clients[client].life, self.clients[client].exchange);
        let mut copies = 1;
        if self.random.chance(self.faults.doubled) {
            self.tally.duplicates += 1;
            copies = 2;
        }
        for _ in 0..copies {
            if let Some(span) = self.travel() {
                let message = message.clone();
                let arrival = Happening::AtServer { client, life, exchange, message };
                self.at(self.now + span, arrival);
            }
        }
    }

    fn at_server(&mut self, client: usize, life: u64, exchange: u64, message: Message) {
        let time = self.now + self.offset;
        let mut before = self.server.data.clone();
        self.server.expire(time);
        let reply = match message {
            Message::Request(request) => {
                if let Request::Wait { .. } = request {
                    // It has left that to others.
                    self.of_lock.remove(&(client, life));
                    self.of_line.remove(&(client, life));
                }
                Reply::Answer(self.perform(&request, time))
            }
            Message::Track(request) => {
                let answer = self.perform(&request, time);
                self.tell_trackers(&before);
                // Nobody is told of what its own look changes.
                before = self.server.data.clone();
                self.of_lock.insert((client, life));
                self.of_line.insert((client, life));
                Reply::Answer(answer)
            }
            Message::Renewal(request, sent) => Reply::Renewal(self.perform(&request, time), sent),
            Message::Join(request, connection) => {
                let answer = self.perform(&request, time);
                self.server.block(connection);
                Reply::Answer(answer)
            }
            Message::Unblock(connection) => {
                self.server.unblock(connection);
                Reply::HungUp(self.served.remove(&connection))
            }
            Message::Effect(value) => Reply::Affected(self.affect(&value, time)),
        };
        // What answers comes before what was waited for.
        if let Some(span) = self.travel() {
            self.at(self.now + span, Happening::AtClient { client, life, exchange, reply });
        }
        self.tell_trackers(&before);
        while let Some((connection, baton)) = self.server.serve() {
            self.hand(connection, baton);
        }
        let closed: Vec<_> =
            self.server.blocked.iter().filter(|c| self.closed.contains(c)).copied().collect();
        for connection in closed {
            self.server.unblock(connection);
        }
    }

    fn tell_trackers(&mut self, before: &Data) {
        if self.server.data.waiters != before.waiters {
            self.tell(Event::LineChanged);
        }
        if self.server.data.lock != before.lock {
            self.tell(Event::Changed);
        }
    }

    /// Once, whoever is to be told of that; a word of it may be lost.
    fn tell(&mut self, news: Event) {
        let who = if news == Event::LineChanged { &mut self.of_line } else { &mut self.of_lock };
        for (client, life) in std::mem::take(who) {
            if let Some(span) = self.travel() {
                let reply = Reply::Told(news.clone());
                let told = Happening::AtClient { client, life, exchange: 0, reply };
                self.at(self.now + span, told);
            }
        }
    }

    fn perform(&mut self, request: &Request, time: u64) -> Answer {
        let answer = self.server.answer(request, time);
        match &answer {
            Answer::Released => self.freed = Some(self.now),
            Answer::Granted { .. } => {
                let claimed = matches!(request, Request::Acquire { claim: Some(_), .. });
                if !claimed && !self.server.blocked.is_empty() {
                    self.tally.overtaken += 1;
                }
                if let (Some(freed), true) = (self.freed.take(), claimed) {
                    self.gaps.push(self.now - freed);
                }
            }
            _ => {}
        }
        answer
    }

    fn affect(&mut self, value: &[u8], time: u64) -> bool {
        match self.server.effect(value, time) {
            Some(stale) => {
                self.tally.effects += 1;
                if stale {
                    let (fence, last) = (fence_of(value), self.server.data.effect);
                    self.violations.push(format!("stale effect: of {fence} after {last}"));
                }
                true
            }
            None => {
                self.tally.refused += 1;
                false
            }
        }
    }

    /// A baton on its way. A connection that loses it breaks, or neither side knows.
    fn hand(&mut self, connection: Connection, baton: Vec<u8>) {
        let Some((client, life)) = self.owner_of.get(&connection).copied() else { return };
        self.served.insert(connection, baton.clone());
        let (span, event) = match self.travel() {
            Some(span) => (span, Event::Baton(baton)),
            None if self.random.chance(5000) => return,
            None => (self.random.below(2 * SECOND), Event::Broken),
        };
        let reply = Reply::Line(connection, event);
        self.at(self.now + span, Happening::AtClient { client, life, exchange: 0, reply });
    }

    fn at_client(&mut self, client: usize, life: u64, exchange: u64, reply: Reply) {
        let now = self.now;
        let it = &mut self.clients[client];
        if it.life != life {
            return;
        }
        let acts = match reply {
            Reply::Line(connection, event) => it.line_ended(connection, event, now),
            Reply::Renewal(answer, sent) => it.renewal_answered(sent, &answer),
            Reply::Told(news) => it.told_of(news, now),
            _ if it.exchange != exchange => return,
            Reply::Answer(answer) => it.answered(answer, now),
            Reply::HungUp(baton) => it.hung_up(baton, now),
            Reply::Affected(accepted) => it.affected(accepted, now),
        };
        self.act(client, acts);
    }

    /// What must hold of every grant that a client takes in.
    fn note_grant(&mut self, client: usize) {
        let Some(lease) = self.clients[client].contender.lease() else { return };
        let (fence, value) = (fence_of(lease.value()), lease.value().to_vec());
        match self.granted.get(&fence) {
            Some(before) if *before == value => return,
            Some(before) => {
                let before = String::from_utf8_lossy(before);
                self.violations.push(format!("fence granted twice: {fence}, first to {before}"));
            }
            None => {}
        }
        self.tally.grants += 1;
        self.granted.insert(fence, value);
        let begun = crate::client::micros(lease.begun());
        let others = self.clients.iter().filter(|other| other.name != client);
        // Without a loss of data or time on the server, leases never overlap.
        let overlap = others.clone().find(|other| {
            let since = other.contender.lease().map(|lease| crate::client::micros(lease.begun()));
            since.is_some_and(|since| since > self.disturbed) && other.believes(self.now)
        });
        if let Some(other) =
            overlap.filter(|_| begun > self.disturbed && self.clients[client].believes(self.now))
        {
            self.violations.push(format!("two grants: {client} and {}", other.name));
        }
    }
}
