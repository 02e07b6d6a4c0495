//! The loop: one thread that accepts, reads, asks guests and answers, and hands over what the Python path must look at.
//!
//! A guest runs on a fiber until it ends, waits or is yielded by the epoch; nothing here blocks but the wait for events. A panic
//! ends the process: the daemon starts another worker. Not here: the guests' side (`calls.rs`).

use crate::calls::{Calls, Outcomes};
use crate::connection::{Answered, Conn, Exchange, Io, Phase, Then};
use crate::guest::{Request, RequestBody};
use crate::ids::Identifiers;
use crate::outcome::{Outcome, CANCELLED, EXPIRED, REFUSED};
use crate::parse::{parse, recorded, trace_of, Head, Parsed};
use crate::resources::ResponseWriter;
use crate::respond::DateField;
use crate::routes::Routes;
use crate::shared::{held, within, Access, Failure, Handed, Order, Shared, Span};
use rustix::event::epoll;
use rustix::event::epoll::{EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{acceptfrom_with, sockopt, SocketFlags};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SWEEP: Duration = Duration::from_millis(250);
const DRAIN_LOOK: Duration = Duration::from_millis(20);
const STEP_BACK: Duration = Duration::from_millis(3);
const ACCEPT_RETRY: Duration = Duration::from_millis(500);
const CLOSED: u32 = u32::MAX;
const SLOTS: usize = 256;
const PATH_LOGGED_MAX_CHARS: usize = 256;

const WAKE: u64 = u64::MAX;
const LISTENER: u64 = 1 << 63;

/// A connection's place, and which of those that had the place it is.
pub type Key = (usize, u32);

pub struct Server {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    listeners: Vec<OwnedFd>,
    accepting: bool,
    accept_again: Option<Instant>,
    stepped_back: Option<Instant>,
    table: Option<std::fs::File>,
    conns: Vec<Option<Box<Conn>>>,
    free: Vec<usize>,
    generation: u32,
    open: usize,
    ready: VecDeque<Key>,
    calls: Calls,
    routes: Routes,
    routed: bool,
    draining: bool,
    date: DateField,
    identifiers: Identifiers,
    swept: Instant,
    scratch: Vec<u8>,
}

/// Serve until told to stop. Ends the process on a panic: what it was doing is unknown.
pub fn run(shared: Arc<Shared>, listeners: Vec<OwnedFd>) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        match Server::new(shared.clone(), listeners) {
            Ok(mut server) => server.serve(),
            Err(error) => panic!("the native engine cannot start: {error}"),
        }
    }));
    if outcome.is_err() {
        eprintln!("the native engine failed; this worker ends");
        std::process::abort();
    }
    shared.stopped.store(true, Relaxed);
}

impl Server {
    fn new(shared: Arc<Shared>, listeners: Vec<OwnedFd>) -> Result<Server, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let table = match shared.settings.load_table.as_str() {
            "" => None,
            path => std::fs::OpenOptions::new().read(true).write(true).open(path).ok(),
        };
        Ok(Server {
            epoll, listeners, accepting: false, accept_again: None, stepped_back: None, table, conns: Vec::new(),
            free: Vec::new(), generation: 0, open: 0, ready: VecDeque::new(), calls: Calls::new(shared.clone()),
            routes: Routes::default(), routed: false, draining: false, date: DateField::default(),
            identifiers: Identifiers::new(), swept: Instant::now(), scratch: vec![0; 64 * 1024], shared,
        })
    }

    fn serve(&mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        loop {
            self.shared.turns.fetch_add(1, Relaxed);
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => panic!("epoll: {error}"),
            }
            let now = Instant::now();
            for event in &events {
                let flags = event.flags;
                match event.data.u64() {
                    WAKE => {
                        if self.obey() {
                            return;
                        }
                    }
                    data if data & LISTENER != 0 => self.accept((data & !LISTENER) as usize, now),
                    data => self.on_socket(((data & 0xffff_ffff) as usize, (data >> 32) as u32), flags, now),
                }
            }
            self.calls.wake_due(now);
            self.turn();
            if now.duration_since(self.swept) >= if self.draining { DRAIN_LOOK } else { SWEEP } {
                self.swept = now;
                self.sweep(now);
            }
            if self.accept_again.is_some_and(|at| at <= now) {
                self.accept_again = None;
                self.resume_accepting();
            }
        }
    }

    fn timeout(&mut self) -> rustix::time::Timespec {
        let now = Instant::now();
        let look = if self.draining { DRAIN_LOOK } else { SWEEP };
        let mut rest = (self.swept + look).saturating_duration_since(now);
        if !self.ready.is_empty() || self.calls.has_work() {
            rest = Duration::ZERO;
        }
        for at in [self.calls.next_due(), self.accept_again].into_iter().flatten() {
            rest = rest.min(at.saturating_duration_since(now));
        }
        rustix::time::Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() }
    }

    /// One round: requests that are ready, guests that can go on, and, if nobody waits, one instance made ahead.
    fn turn(&mut self) {
        for _ in 0..self.ready.len() {
            if let Some(key) = self.ready.pop_front() {
                self.advance(key);
            }
        }
        let started = self.calls.start_some();
        self.conclude(started);
        for _ in 0..self.calls.runnable() {
            let ended = self.calls.run_next();
            self.conclude(ended);
        }
        if self.ready.is_empty() && self.calls.runnable() == 0 {
            let ended = self.calls.make_ahead();
            self.conclude(ended);
        }
    }

    // --- orders -------------------------------------------------------------------------------------------------------

    fn obey(&mut self) -> bool {
        let mut counted = [0; 8];
        let _ = rustix::io::read(&self.shared.wake, &mut counted);
        let orders = std::mem::take(&mut *held(&self.shared.orders));
        for order in orders {
            match order {
                Order::Load(app) => self.calls.load(app),
                Order::Unload(number) => self.calls.unload(number),
                Order::Answered(instance) => self.calls.answered(instance),
                Order::Activate(routes) => {
                    self.routes = routes;
                    self.routed = true;
                }
                Order::Drain => {
                    self.draining = true;
                    self.pause_accepting();
                }
                Order::Stop => return true,
            }
        }
        self.tell_load();
        self.resume_accepting();
        false
    }

    // --- accepting ----------------------------------------------------------------------------------------------------

    fn count(&self) -> usize {
        self.open + self.shared.others.load(Relaxed)
    }

    fn tell_load(&self) {
        let full = self.draining || self.count() >= self.shared.settings.connections_max;
        let count = if full { CLOSED } else { u32::try_from(self.count()).unwrap_or(CLOSED) };
        self.shared.connections.store(self.open, Relaxed);
        if let Some(table) = &self.table {
            let _ = rustix::io::pwrite(table, &count.to_ne_bytes(), self.shared.settings.slot * 4);
        }
    }

    fn least_of_all(&self) -> usize {
        let mut bytes = [0xff; SLOTS * 4];
        if let Some(table) = &self.table {
            let _ = rustix::io::pread(table, &mut bytes, 0);
        }
        let counts = bytes.chunks_exact(4).map(|four| u32::from_ne_bytes([four[0], four[1], four[2], four[3]]));
        counts.min().map_or(usize::MAX, |least| least as usize)
    }

    fn resume_accepting(&mut self) {
        let room = self.count() < self.shared.settings.connections_max;
        if !self.accepting && self.routed && !self.draining && room && self.accept_again.is_none() {
            self.accepting = true;
            for (index, listener) in self.listeners.iter().enumerate() {
                let data = EventData::new_u64(LISTENER | index as u64);
                epoll::add(&self.epoll, listener, data, EventFlags::IN).expect("a listener can be watched");
            }
        }
    }

    fn pause_accepting(&mut self) {
        if std::mem::take(&mut self.accepting) {
            for listener in &self.listeners {
                epoll::delete(&self.epoll, listener).expect("it was watched");
            }
        }
    }

    /// Whether another worker ought to take the next connection; this one then tries again a moment later.
    fn step_back(&mut self, now: Instant) -> bool {
        if self.least_of_all() >= self.count() {
            return false;
        }
        if self.stepped_back.take().is_some_and(|at| now.duration_since(at) < 4 * STEP_BACK) {
            return false; // it was left to the others long enough
        }
        self.stepped_back = Some(now);
        self.pause_accepting();
        self.accept_again = Some(now + STEP_BACK);
        true
    }

    fn accept(&mut self, index: usize, now: Instant) {
        if !self.accepting || self.step_back(now) {
            return;
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, peer) = match acceptfrom_with(&self.listeners[index], flags) {
            Ok(accepted) => accepted,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(_) => {
                self.pause_accepting();
                self.accept_again = Some(now + ACCEPT_RETRY);
                return;
            }
        };
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let Some(address) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map(|peer| peer.ip()) else { return };
        if within(address, &self.shared.settings.proxies) {
            self.shared.hand_over(Handed { descriptor: socket, data: Vec::new(), waited: Duration::ZERO });
            return; // what a listed proxy says of its clients is believed there
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.conns.len() - 1
        });
        self.generation = self.generation.wrapping_add(1) & 0x3fff_ffff;
        let mut conn = Box::new(Conn::new(socket, self.generation, address.to_canonical().to_string(), now));
        conn.watched = conn.interest();
        let data = EventData::new_u64(u64::from(self.generation) << 32 | index as u64);
        if epoll::add(&self.epoll, &conn.socket, data, conn.watched).is_err() {
            self.free.push(index);
            return;
        }
        self.conns[index] = Some(conn);
        self.open += 1;
        self.tell_load();
        if self.count() >= self.shared.settings.connections_max {
            self.pause_accepting();
        }
    }

    // --- connections --------------------------------------------------------------------------------------------------

    fn conn(&mut self, key: Key) -> Option<&mut Conn> {
        self.conns.get_mut(key.0)?.as_deref_mut().filter(|conn| conn.generation == key.1)
    }

    fn on_socket(&mut self, key: Key, flags: EventFlags, now: Instant) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut io = Io::Fine;
        if let Some(conn) = self.conn(key) {
            if flags.contains(EventFlags::ERR) || flags.contains(EventFlags::HUP) {
                io = Io::Lost;
            }
            if io == Io::Fine && flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) {
                io = conn.read(&mut scratch, now);
            }
        }
        self.scratch = scratch;
        if io == Io::Lost {
            self.lose(key);
            return;
        }
        if flags.contains(EventFlags::OUT) {
            self.flush(key);
            self.settle(key);
        }
        self.advance(key);
    }

    /// Do what the connection's input asks for, as far as it can be done now.
    fn advance(&mut self, key: Key) {
        let now = Instant::now();
        let limits = self.shared.settings.head;
        let draining = self.draining;
        let Some(conn) = self.conn(key) else { return };
        match conn.phase {
            Phase::Linger => {
                if conn.half_closed.is_some() {
                    self.close(key);
                } else {
                    self.watch(key);
                }
                return;
            }
            Phase::Answer => return self.watch(key),
            Phase::Idle | Phase::Head => {}
        }
        if conn.held() > 0 || conn.then != Then::GoOn {
            return self.watch(key); // the answer before goes out first
        }
        if conn.input.is_empty() {
            if conn.half_closed.is_some() || draining {
                return self.close(key);
            }
            if conn.phase == Phase::Head {
                conn.enter(Phase::Idle, now);
            }
            return self.watch(key);
        }
        if conn.phase == Phase::Idle {
            conn.enter(Phase::Head, now);
        }
        let head = match parse(&conn.input, limits) {
            Parsed::Whole(head) => head,
            Parsed::Partial if conn.half_closed.is_none() => return self.watch(key),
            Parsed::Partial | Parsed::Other => return self.hand_over(key, now),
        };
        if conn.input.len() < head.size + head.length {
            if conn.half_closed.is_none() {
                return self.watch(key);
            }
            return self.hand_over(key, now);
        }
        let path = head.target.split('?').next().unwrap_or("");
        let app = self.routes.find(&head.authority, path).and_then(|number| self.calls.app(number));
        match app {
            Some(app) if head.length <= app.body_max => self.begin(key, *head, app, now),
            _ => self.hand_over(key, now),
        }
    }

    fn begin(&mut self, key: Key, head: Head, app: Arc<crate::shared::App>, now: Instant) {
        let Some(conn) = self.conn(key) else { return };
        let body = conn.input[head.size..head.size + head.length].to_vec();
        conn.input.drain(..head.size + head.length);
        conn.enter(Phase::Answer, now);
        let client = conn.client.clone();
        let request_id = self.identifiers.request_id();
        let (trace_id, parent, flags) = match head.traceparent.as_deref().and_then(trace_of) {
            Some((trace, parent, flags)) => (trace.to_owned(), parent.to_owned(), flags.to_owned()),
            None => {
                let flags = self.identifiers.flags(self.shared.settings.traced);
                (self.identifiers.trace_id(), String::new(), flags.to_owned())
            }
        };
        let span = Span { id: self.identifiers.span_id(), parent, recorded: recorded(&flags) };
        let mut fields = head.fields;
        if head.traceparent.as_deref().and_then(trace_of).is_some() {
            fields.extend(head.tracestate.map(|state| ("tracestate".to_owned(), state)));
        }
        fields.push(("traceparent".to_owned(), format!("00-{trace_id}-{}-{flags}", span.id).into_bytes()));
        fields.push(("x-request-id".to_owned(), request_id.clone().into_bytes()));
        fields.push(("x-forwarded-for".to_owned(), client.into_bytes()));
        fields.push(("x-forwarded-proto".to_owned(), b"http".to_vec()));
        let request = Request {
            method: head.method, authority: head.authority, target: head.target, fields,
            body: Rc::new(RefCell::new(RequestBody { data: body, at: 0 })),
        };
        let exchange = Box::new(Exchange {
            app: app.clone(), request: Rc::new(request), writer: Rc::new(RefCell::new(ResponseWriter::default())),
            request_id, trace_id, span, keep_alive: head.keep_alive, since: now, bytes_in: head.length as u64, bytes_out: 0,
            status: 0, framing: None, begun: false, call: None, outcome: None, closed: None, bad: None,
        });
        app.counters.requests.fetch_add(1, Relaxed);
        let admitted = self.calls.submit(key, &exchange);
        if let Some(conn) = self.conn(key) {
            conn.exchange = Some(exchange);
        }
        if !admitted {
            app.counters.outcomes[REFUSED].fetch_add(1, Relaxed);
            return self.refuse_busy(key);
        }
        let ended = self.calls.start_some();
        self.conclude(ended);
    }

    fn refuse_busy(&mut self, key: Key) {
        let draining = self.draining;
        let shared = self.shared.clone();
        let date = self.date.field().to_owned();
        let Some(conn) = self.conn(key) else { return };
        let Some(mut exchange) = conn.exchange.take() else { return };
        let keep_alive = exchange.keep_alive && !draining;
        exchange.refuse(&mut conn.output, &shared.settings.busy, &date, keep_alive);
        let client = conn.client.clone();
        self.account(&exchange, &client);
        self.answered(key, keep_alive, exchange.keep_alive);
    }

    /// Take up what guests have come to: outcomes for their connections, or output to be sent.
    fn conclude(&mut self, outcomes: Outcomes) {
        for (key, call) in outcomes.began {
            if let Some(exchange) = self.conn(key).and_then(|conn| conn.exchange.as_mut()) {
                exchange.call = Some(call);
            }
        }
        for (key, outcome, at) in outcomes.ended {
            let exchange = match key {
                Ok(key) => self.conn(key).and_then(|conn| conn.exchange.as_mut()),
                Err(mut detached) => {
                    detached.exchange.outcome = Some(outcome);
                    detached.exchange.closed = Some(at);
                    detached.exchange.left();
                    self.account(&detached.exchange, &detached.client);
                    continue;
                }
            };
            if let Some(exchange) = exchange {
                exchange.outcome = Some(outcome);
                exchange.closed = Some(at);
                exchange.call = None;
            }
            if let Ok(key) = key {
                self.settle(key);
            }
        }
        for key in outcomes.wrote {
            self.settle(key);
        }
        self.calls.after();
    }

    /// Send what the guest has answered so far; end the exchange once it is whole, or never will be.
    fn settle(&mut self, key: Key) {
        let draining = self.draining;
        let shared = self.shared.clone();
        let date = self.date.field().to_owned();
        let Some(conn) = self.conn(key) else { return };
        let Some(mut exchange) = conn.exchange.take() else { return };
        let (keep_alive, goes_on) = {
            if exchange.outcome.is_none() && !conn.has_room() {
                conn.exchange = Some(exchange);
                return;
            }
            match exchange.write(&mut conn.output, &date, draining, &shared.settings) {
                answered @ (Answered::NotYet | Answered::Bad) => {
                    let call = exchange.call;
                    conn.exchange = Some(exchange);
                    if answered == Answered::Bad {
                        self.calls.cancel(call);
                    }
                    self.flush(key);
                    self.calls.look_for_room(call);
                    return self.watch(key);
                }
                Answered::Whole(keep_alive) => (keep_alive, exchange.keep_alive),
                Answered::Broken => (false, false),
            }
        };
        let client = conn.client.clone();
        self.account(&exchange, &client);
        self.answered(key, keep_alive, goes_on);
    }

    /// An answer is written, or broken off: what the connection does next.
    fn answered(&mut self, key: Key, keep_alive: bool, goes_on: bool) {
        let now = Instant::now();
        let Some(conn) = self.conn(key) else { return };
        conn.enter(Phase::Idle, now);
        conn.then = match (keep_alive, goes_on) {
            (true, _) => Then::GoOn,
            (false, true) => Then::Linger,
            (false, false) => Then::Close,
        };
        self.flush(key);
        self.watch(key);
        self.ready.push_back(key);
    }

    fn flush(&mut self, key: Key) {
        let now = Instant::now();
        let Some(conn) = self.conn(key) else { return };
        if conn.flush(now) == Io::Lost {
            return self.lose(key);
        }
        if conn.held() > 0 || conn.exchange.is_some() {
            return;
        }
        match std::mem::replace(&mut conn.then, Then::GoOn) {
            Then::GoOn => {}
            Then::Close => self.close(key),
            Then::Linger if conn.half_closed.is_some() => self.close(key),
            Then::Linger => {
                conn.enter(Phase::Linger, now);
                conn.input = Vec::new();
                let _ = rustix::net::shutdown(&conn.socket, rustix::net::Shutdown::Write);
            }
        }
    }

    fn watch(&mut self, key: Key) {
        let data = EventData::new_u64(u64::from(key.1) << 32 | key.0 as u64);
        let Some(conn) = self.conns.get_mut(key.0).and_then(|conn| conn.as_deref_mut()) else { return };
        let wanted = conn.interest();
        if conn.generation == key.1 && conn.watched != wanted {
            conn.watched = wanted;
            epoll::modify(&self.epoll, &conn.socket, data, wanted).expect("it is watched");
        }
    }

    fn remove(&mut self, key: Key) -> Option<Box<Conn>> {
        self.conn(key)?;
        let conn = self.conns[key.0].take();
        self.free.push(key.0);
        self.open -= 1;
        self.tell_load();
        self.resume_accepting();
        conn
    }

    fn close(&mut self, key: Key) {
        self.remove(key);
    }

    /// The client is gone: its guest stops, unless it has answered.
    fn lose(&mut self, key: Key) {
        let Some(mut conn) = self.remove(key) else { return };
        let Some(mut exchange) = conn.exchange.take() else { return };
        if exchange.call.is_some() {
            self.calls.detach(exchange, conn.client);
            return;
        }
        self.calls.withdraw(key, &exchange.app);
        exchange.app.counters.outcomes[CANCELLED].fetch_add(1, Relaxed);
        exchange.outcome = Some(Outcome::Cancelled);
        exchange.closed = Some(Instant::now());
        exchange.left();
        self.account(&exchange, &conn.client);
    }

    fn hand_over(&mut self, key: Key, now: Instant) {
        let Some(conn) = self.remove(key) else { return };
        let _ = epoll::delete(&self.epoll, &conn.socket);
        let waited = if conn.phase == Phase::Head { now.duration_since(conn.since) } else { Duration::ZERO };
        let Conn { socket, input, .. } = *conn;
        self.shared.hand_over(Handed { descriptor: socket, data: input, waited });
    }

    /// Count and log one answered request: never its query, fields or bodies.
    fn account(&self, exchange: &Exchange, client: &str) {
        let latency = exchange.closed.map(|at| at.saturating_duration_since(exchange.since));
        exchange.app.counters.answered(exchange.status, latency);
        let mut report = self.shared.report();
        if let Some((kind, (reason, backtrace))) =
            exchange.outcome.as_ref().and_then(|outcome| Some((outcome.kind(), outcome.failure()?)))
        {
            report.fail(Failure {
                app: exchange.app.number, request_id: exchange.request_id.clone(), trace_id: exchange.trace_id.clone(),
                kind, reason: reason.to_owned(), backtrace: backtrace.to_owned(),
            });
        }
        if report.admits_access() {
            let path = exchange.request.target.split('?').next().unwrap_or("");
            report.access.push(Access {
                app: exchange.app.number, request_id: exchange.request_id.clone(), trace_id: exchange.trace_id.clone(),
                span: exchange.span.clone(), client: client.to_owned(), method: exchange.request.method.clone(),
                path: path.chars().take(PATH_LOGGED_MAX_CHARS).collect(), status: exchange.status,
                bytes_in: exchange.bytes_in, bytes_out: exchange.bytes_out, duration: exchange.since.elapsed(),
                outcome: exchange.outcome.as_ref().map(Outcome::kind),
            });
        }
    }

    // --- time limits --------------------------------------------------------------------------------------------------

    fn sweep(&mut self, now: Instant) {
        for (key, app) in self.calls.expired(now) {
            app.counters.outcomes[EXPIRED].fetch_add(1, Relaxed);
            if let Some(exchange) = self.conn(key).and_then(|conn| conn.exchange.as_mut()) {
                exchange.outcome = Some(Outcome::DeadlineExceeded);
                exchange.closed = Some(now);
            }
            self.settle(key);
        }
        let shared = self.shared.clone();
        let settings = &shared.settings;
        for index in 0..self.conns.len() {
            let Some(conn) = self.conns[index].as_deref() else { continue };
            let (key, age) = ((index, conn.generation), now.saturating_duration_since(conn.since));
            let over = |since: Option<Instant>, limit| since.is_some_and(|at| now.saturating_duration_since(at) > limit);
            let unanswered = conn.exchange.as_ref().is_some_and(|exchange| !exchange.begun);
            if over(conn.blocked, settings.write_idle)
                || (unanswered && over(conn.half_closed, settings.half_closed))
            {
                self.lose(key);
                continue;
            }
            let idle = conn.held() == 0 && conn.input.is_empty();
            match conn.phase {
                Phase::Idle if idle && (self.draining || age > settings.keep_alive) => self.close(key),
                Phase::Linger if self.draining || age > settings.linger => self.close(key),
                Phase::Head if conn.held() == 0 && age > settings.patience => self.hand_over(key, now),
                _ => {}
            }
        }
    }
}
