//! The guests' side of the loop: who waits, which instance serves, when a fiber goes on, and what its end means.
//!
//! An app has at most its `concurrency` of guests at once, the worker `guests_max`; apps take turns. The newest waiting instance
//! serves first, since its memory is warm. Not here: sockets (`server.rs`), what guests may call (`host.rs`).

use crate::capi::{Instance, Progress, WasmError};
use crate::connection::Exchange;
use crate::guest::{Guest, Output, Request};
use crate::host::type_id;
use crate::outcome::{linear_memories, of_error, Outcome};
use crate::resources::{Resource, ResponseWriter};
use crate::server::Key;
use crate::shared::{App, Said, Shared};
use crate::ticker::Ticker;
use crate::value::Trap;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;

/// How many uses of a kept instance pass between two looks at its memory; each costs 0.3 ms.
const MEMORY_LOOK_USES: u64 = 128;
/// How many instances wait ahead for an app that keeps its instances: the loop runs one at a time, unless they wait.
const KEPT_AHEAD: usize = 1;

/// An exchange whose client is gone while its guest still runs.
pub struct Detached {
    pub exchange: Box<Exchange>,
    pub client: String,
}

/// What polling guests has come to, for their connections.
#[derive(Default)]
pub struct Outcomes {
    pub began: Vec<(Key, usize)>,
    pub ended: Vec<(Result<Key, Box<Detached>>, Outcome, Instant)>,
    /// Those whose guests wait or yielded, and may have written.
    pub wrote: Vec<Key>,
}

struct Ticket {
    key: Key,
    request: Rc<Request>,
    writer: Rc<RefCell<ResponseWriter>>,
    deadline: Instant,
    request_id: String,
    trace_id: String,
}

struct Kept {
    instance: Instance,
    uses: u64,
    memories: BTreeSet<u64>,
}

struct Hosted {
    app: Arc<App>,
    kept: Vec<Kept>,
    waiting: VecDeque<Ticket>,
    active: usize,
    making: usize,
    in_turn: bool,
    wanted: bool,
    closing: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    /// An instance ahead of requests.
    Making,
    /// An instance for a request.
    Starting,
    Handling,
}

struct Running {
    kept: Kept,
    app: Arc<App>,
    stage: Stage,
    conn: Option<Key>,
    detached: Option<Box<Detached>>,
    number: u64,
    request_id: String,
    trace_id: String,
    said: bool,
    parked: bool,
    before: BTreeSet<u64>,
}

pub struct Calls {
    shared: Arc<Shared>,
    apps: HashMap<u64, Hosted>,
    calls: Vec<Option<Box<Running>>>,
    free: Vec<usize>,
    runnable: VecDeque<usize>,
    turns: VecDeque<u64>,
    wanted: VecDeque<u64>,
    leaving: Vec<Instance>,
    active: usize,
    number: u64,
    ticker: Option<Ticker>,
}

impl Calls {
    pub fn new(shared: Arc<Shared>) -> Calls {
        Calls {
            shared, apps: HashMap::new(), calls: Vec::new(), free: Vec::new(), runnable: VecDeque::new(),
            turns: VecDeque::new(), wanted: VecDeque::new(), leaving: Vec::new(), active: 0, number: 0, ticker: None,
        }
    }

    // --- apps ---------------------------------------------------------------------------------------------------------

    pub fn load(&mut self, app: Arc<App>) {
        self.ticker.get_or_insert_with(|| Ticker::new(app.linked.clone()));
        let number = app.number;
        let hosted = Hosted {
            app, kept: Vec::new(), waiting: VecDeque::new(), active: 0, making: 0, in_turn: false, wanted: false,
            closing: false,
        };
        self.apps.insert(number, hosted);
        self.want_ahead(number);
    }

    pub fn app(&self, number: u64) -> Option<Arc<App>> {
        self.apps.get(&number).filter(|hosted| !hosted.closing).map(|hosted| hosted.app.clone())
    }

    /// Let an app go once its last request has ended.
    pub fn unload(&mut self, number: u64) {
        if let Some(hosted) = self.apps.get_mut(&number) {
            hosted.closing = true;
            hosted.kept.clear();
        }
        self.forget_if_idle(number);
    }

    fn forget_if_idle(&mut self, number: u64) {
        let idle = |hosted: &Hosted| hosted.closing && hosted.active + hosted.making == 0 && hosted.waiting.is_empty();
        if self.apps.get(&number).is_some_and(idle) {
            self.leaving.clear(); // an instance of it may still be among those that are put away
            if let Some(hosted) = self.apps.remove(&number) {
                hosted.app.gone.store(true, Relaxed);
            }
        }
    }

    fn want_ahead(&mut self, number: u64) {
        let Some(hosted) = self.apps.get_mut(&number) else { return };
        let ahead = if hosted.app.reuse { KEPT_AHEAD } else { hosted.app.ready_max };
        if !hosted.wanted && !hosted.closing && hosted.kept.len() + hosted.making < ahead {
            hosted.wanted = true;
            self.wanted.push_back(number);
        }
    }

    // --- the queue ----------------------------------------------------------------------------------------------------

    /// Queue a request; false when the app's queue is full, and nothing was kept.
    pub fn submit(&mut self, key: Key, exchange: &Exchange) -> bool {
        let number = exchange.app.number;
        let Some(hosted) = self.apps.get_mut(&number) else { return false };
        if hosted.waiting.len() + hosted.active >= hosted.app.queue_max + hosted.app.concurrency {
            return false;
        }
        hosted.waiting.push_back(Ticket {
            key, request: exchange.request.clone(), writer: exchange.writer.clone(),
            deadline: exchange.since + hosted.app.timeout, request_id: exchange.request_id.clone(),
            trace_id: exchange.trace_id.clone(),
        });
        hosted.app.counters.queued.store(hosted.waiting.len() as u64, Relaxed);
        self.take_turn(number);
        true
    }

    fn take_turn(&mut self, number: u64) {
        let Some(hosted) = self.apps.get_mut(&number) else { return };
        if !hosted.in_turn && !hosted.waiting.is_empty() && hosted.active < hosted.app.concurrency {
            hosted.in_turn = true;
            self.turns.push_back(number);
        }
    }

    /// Take a request back that no guest has begun.
    pub fn withdraw(&mut self, key: Key, app: &App) {
        if let Some(hosted) = self.apps.get_mut(&app.number) {
            hosted.waiting.retain(|ticket| ticket.key != key);
            hosted.app.counters.queued.store(hosted.waiting.len() as u64, Relaxed);
        }
        self.forget_if_idle(app.number);
    }

    /// Withdraw the requests whose deadline passed while they waited.
    pub fn expired(&mut self, now: Instant) -> Vec<(Key, Arc<App>)> {
        let mut late = Vec::new();
        for hosted in self.apps.values_mut() {
            while hosted.waiting.front().is_some_and(|ticket| ticket.deadline <= now) {
                late.extend(hosted.waiting.pop_front().map(|ticket| (ticket.key, hosted.app.clone())));
            }
            hosted.app.counters.queued.store(hosted.waiting.len() as u64, Relaxed);
        }
        late
    }

    /// Start guests for waiting requests, an app at a time, and run each until it ends, waits or yields.
    pub fn start_some(&mut self) -> Outcomes {
        let mut outcomes = Outcomes::default();
        while self.active < self.shared.settings.guests_max {
            let Some(number) = self.turns.pop_front() else { break };
            let Some(hosted) = self.apps.get_mut(&number) else { continue };
            hosted.in_turn = false;
            let Some(ticket) = hosted.waiting.pop_front() else { continue };
            hosted.active += 1;
            hosted.app.counters.queued.store(hosted.waiting.len() as u64, Relaxed);
            hosted.app.counters.in_flight.store(hosted.active as u64, Relaxed);
            self.active += 1;
            let (app, kept) = (hosted.app.clone(), hosted.kept.pop());
            self.take_turn(number);
            self.start(app, kept, ticket, &mut outcomes);
        }
        outcomes
    }

    fn start(&mut self, app: Arc<App>, kept: Option<Kept>, ticket: Ticket, outcomes: &mut Outcomes) {
        let fresh = kept.is_none();
        let before = if fresh && app.reuse { linear_memories().into_keys().collect() } else { BTreeSet::new() };
        let mut kept = kept.unwrap_or_else(|| new_instance(&app, ticket.deadline));
        kept.instance.guest().begin(ticket.deadline, ticket.request, ticket.writer);
        self.number += 1;
        let mut running = Box::new(Running {
            kept, app, stage: Stage::Starting, conn: Some(ticket.key), detached: None, number: self.number,
            request_id: ticket.request_id, trace_id: ticket.trace_id, said: false, parked: false, before,
        });
        let entered = if fresh {
            running.kept.instance.start();
            Ok(())
        } else {
            enter(&mut running)
        };
        let id = self.keep(running);
        outcomes.began.push((ticket.key, id));
        match entered {
            Ok(()) => self.poll(id, outcomes),
            Err(trap) => self.end(id, Err(as_error(trap)), outcomes),
        }
    }

    fn keep(&mut self, running: Box<Running>) -> usize {
        match self.free.pop() {
            Some(id) => {
                self.calls[id] = Some(running);
                id
            }
            None => {
                self.calls.push(Some(running));
                self.calls.len() - 1
            }
        }
    }

    fn running(&mut self, id: usize) -> Option<&mut Running> {
        self.calls.get_mut(id)?.as_deref_mut()
    }

    // --- running ------------------------------------------------------------------------------------------------------

    fn poll(&mut self, id: usize, outcomes: &mut Outcomes) {
        loop {
            let Some(running) = self.calls.get_mut(id).and_then(|running| running.as_deref_mut()) else { return };
            running.parked = false;
            let ticker = self.ticker.as_ref().expect("an app was loaded");
            ticker.enter();
            let progress = running.kept.instance.poll();
            ticker.leave();
            match (progress, running.stage) {
                (Progress::Pending, _) => return self.pause(id, outcomes),
                (Progress::Ended(result), Stage::Making) => return self.made(id, result.is_ok()),
                (Progress::Ended(Ok(())), Stage::Starting) => {
                    if running.app.reuse {
                        let now: BTreeSet<u64> = linear_memories().into_keys().collect();
                        running.kept.memories = now.difference(&running.before).copied().collect();
                    }
                    if let Err(trap) = enter(running) {
                        return self.end(id, Err(as_error(trap)), outcomes);
                    }
                }
                (Progress::Ended(result), _) => return self.end(id, result, outcomes),
            }
        }
    }

    /// It yielded or waits: let what it wrote go out, and say when it is to be looked at again.
    fn pause(&mut self, id: usize, outcomes: &mut Outcomes) {
        let Some(running) = self.running(id) else { return };
        running.parked = running.kept.instance.guest().wait.is_some();
        outcomes.wrote.extend(running.conn);
        let yielded = !running.parked;
        let guest = running.kept.instance.guest();
        if !(guest.stdout.is_empty() && guest.stderr.is_empty()) {
            let output = (take_head(&mut guest.stdout), take_head(&mut guest.stderr));
            self.say(id, output, false);
        }
        if yielded {
            self.runnable.push_back(id);
        }
    }

    fn say(&mut self, id: usize, (stdout, stderr): (Output, Output), ended: bool) {
        let Some(running) = self.running(id) else { return };
        if stdout.is_empty() && stderr.is_empty() && !(ended && running.said) {
            return;
        }
        running.said = true;
        let said = Said {
            call: running.number, app: running.app.number, request_id: running.request_id.clone(),
            trace_id: running.trace_id.clone(), stdout, stderr, ended,
        };
        self.shared.report().say(said);
    }

    fn end(&mut self, id: usize, result: Result<(), WasmError>, outcomes: &mut Outcomes) {
        let Some(running) = self.running(id) else { return };
        let memory_max = running.app.caps.memory_bytes as u64;
        let guest = running.kept.instance.guest();
        let outcome = match result {
            Ok(()) => of_answer(guest),
            Err(error) => of_error(error, guest, memory_max),
        };
        let output = guest.finish();
        self.say(id, output, true);
        let Some(running) = self.calls[id].take() else { return };
        self.free.push(id);
        self.runnable.retain(|other| *other != id);
        let Running { kept, app, conn, detached, .. } = *running;
        let counters = &app.counters;
        counters.outcomes[outcome.index()].fetch_add(1, Relaxed);
        self.active -= 1;
        let survives = outcome.survives();
        let place = match (conn, detached) {
            (_, Some(detached)) => Some(Err(detached)),
            (Some(key), None) => Some(Ok(key)),
            (None, None) => None,
        };
        outcomes.ended.extend(place.map(|place| (place, outcome, Instant::now())));
        if let Some(hosted) = self.apps.get_mut(&app.number) {
            hosted.active -= 1;
            hosted.app.counters.in_flight.store(hosted.active as u64, Relaxed);
        }
        self.give_back(&app, kept, survives);
        self.take_turn(app.number);
        self.forget_if_idle(app.number);
    }

    fn give_back(&mut self, app: &App, mut kept: Kept, survives: bool) {
        kept.uses += 1;
        let Some(hosted) = self.apps.get_mut(&app.number) else {
            self.leaving.push(kept.instance);
            return;
        };
        let keep = app.reuse && survives && !hosted.closing && kept.uses < app.uses_max && !outgrown(&kept, app);
        if keep {
            hosted.kept.push(kept);
        } else {
            self.leaving.push(kept.instance);
            self.want_ahead(app.number);
        }
    }

    /// Free the instances that ended, now that their answers are on their way.
    pub fn after(&mut self) {
        self.leaving.clear();
    }

    pub fn runnable(&self) -> usize {
        self.runnable.len()
    }

    pub fn run_next(&mut self) -> Outcomes {
        let mut outcomes = Outcomes::default();
        if let Some(id) = self.runnable.pop_front() {
            self.poll(id, &mut outcomes);
        }
        outcomes
    }

    /// Whether something can go on without an event.
    pub fn has_work(&self) -> bool {
        let startable = !self.turns.is_empty() && self.active < self.shared.settings.guests_max;
        !self.runnable.is_empty() || !self.wanted.is_empty() || startable
    }

    fn resume(&mut self, id: usize) {
        if let Some(running) = self.running(id) {
            if std::mem::take(&mut running.parked) {
                self.runnable.push_back(id);
            }
        }
    }

    /// Make those go on whose clock or deadline has come.
    pub fn wake_due(&mut self, now: Instant) {
        for id in 0..self.calls.len() {
            if self.due(id).is_some_and(|at| at <= now) {
                self.resume(id);
            }
        }
    }

    /// When the next of them is due.
    pub fn next_due(&mut self) -> Option<Instant> {
        (0..self.calls.len()).filter_map(|id| self.due(id)).min()
    }

    fn due(&mut self, id: usize) -> Option<Instant> {
        let running = self.running(id)?;
        if !running.parked {
            return None;
        }
        let guest = running.kept.instance.guest();
        let at = guest.wait.and_then(|wait| wait.at);
        Some(at.map_or(guest.deadline, |at| at.min(guest.deadline)))
    }

    /// The connection took output: a guest that waits for room goes on.
    pub fn look_for_room(&mut self, call: Option<usize>) {
        let Some(running) = call.and_then(|id| self.running(id)) else { return };
        let guest = running.kept.instance.guest();
        let waits = guest.wait.is_some_and(|wait| wait.room);
        let room = guest.writer.as_ref().is_some_and(|writer| writer.borrow().permit() > 0 || writer.borrow().closed);
        if let (true, true, Some(id)) = (waits, room, call) {
            self.resume(id);
        }
    }

    /// Python has answered the guest of this instance: it goes on.
    pub fn answered(&mut self, instance: u64) {
        let of = |running: &mut Box<Running>| running.kept.instance.guest().lent == instance;
        let found = self.calls.iter_mut().position(|call| call.as_mut().is_some_and(of));
        if let Some(id) = found {
            self.resume(id);
        }
    }

    /// Stop a guest at its next wait or tick.
    pub fn cancel(&mut self, call: Option<usize>) {
        let Some(id) = call else { return };
        if let Some(running) = self.running(id) {
            running.kept.instance.guest().cancelled = true;
            self.resume(id);
        }
    }

    /// The client of a running guest is gone; the guest stops, unless it has answered.
    pub fn detach(&mut self, exchange: Box<Exchange>, client: String) {
        let Some(id) = exchange.call else { return };
        let whole = exchange.whole();
        if let Some(running) = self.running(id) {
            running.conn = None;
            running.detached = Some(Box::new(Detached { exchange, client }));
        }
        if !whole {
            self.cancel(Some(id));
        }
    }

    // --- instances ahead of requests ----------------------------------------------------------------------------------

    /// Make one instance that an app wants to have ready.
    pub fn make_ahead(&mut self) -> Outcomes {
        let mut outcomes = Outcomes::default();
        let Some(number) = self.wanted.pop_front() else { return outcomes };
        let Some(hosted) = self.apps.get_mut(&number) else { return outcomes };
        hosted.wanted = false;
        if hosted.closing {
            return outcomes;
        }
        hosted.making += 1;
        let app = hosted.app.clone();
        let before = if app.reuse { linear_memories().into_keys().collect() } else { BTreeSet::new() };
        let mut kept = new_instance(&app, Instant::now() + app.timeout);
        kept.instance.start();
        let id = self.keep(Box::new(Running {
            kept, app, stage: Stage::Making, conn: None, detached: None, number: 0, request_id: String::new(),
            trace_id: String::new(), said: false, parked: false, before,
        }));
        self.poll(id, &mut outcomes);
        outcomes
    }

    fn made(&mut self, id: usize, sound: bool) {
        let Some(running) = self.calls[id].take() else { return };
        self.free.push(id);
        let Running { mut kept, app, before, .. } = *running;
        if let Some(hosted) = self.apps.get_mut(&app.number) {
            hosted.making -= 1;
            if sound && !hosted.closing {
                if app.reuse {
                    kept.memories = linear_memories().into_keys().filter(|start| !before.contains(start)).collect();
                }
                hosted.kept.push(kept);
                self.want_ahead(app.number);
            } // what makes an instance fail shows again, with its outcome, in the first request
        }
        self.forget_if_idle(app.number);
    }
}

fn new_instance(app: &Arc<App>, deadline: Instant) -> Kept {
    let guest = Guest::new(app.grants.clone(), deadline);
    Kept { instance: Instance::new(app.linked.clone(), app.caps, guest), uses: 0, memories: BTreeSet::new() }
}

/// Begin the call of the handler.
fn enter(running: &mut Running) -> Result<(), Trap> {
    let instance = &mut running.kept.instance;
    let guest = instance.guest();
    let (Some(request), Some(writer)) = (guest.request.clone(), guest.writer.clone()) else {
        return Err(Trap::new("a call without a request"));
    };
    let request = guest.give(Resource::IncomingRequest { request, consumed: false }, 0)?;
    let outparam = guest.give(Resource::ResponseOutparam(writer), 0)?;
    running.stage = Stage::Handling;
    instance.handle((request, type_id("incoming-request")), (outparam, type_id("response-outparam")))
}

fn as_error(trap: Trap) -> WasmError {
    WasmError { message: trap.reason, exit_status: None }
}

/// What stands of a stream's output, to be logged before the call ended; what is beyond its share stays until then.
fn take_head(output: &mut Output) -> Output {
    Output { head: std::mem::take(&mut output.head), ..Output::default() }
}

/// What a handler that returned has come to.
fn of_answer(guest: &mut Guest) -> Outcome {
    let Some(writer) = guest.writer.clone() else { return Outcome::NoResponse };
    if let Some(code) = writer.borrow_mut().refusal.take() {
        return Outcome::ErrorResponse(code);
    }
    if !writer.borrow().started {
        return Outcome::NoResponse;
    }
    let complete = writer.borrow().complete;
    if !complete && !guest.answer_body.take().is_some_and(|body| body.borrow_mut().left()) {
        return Outcome::BodyAborted;
    }
    Outcome::Completed
}

fn outgrown(kept: &Kept, app: &App) -> bool {
    if kept.uses % MEMORY_LOOK_USES != 0 || kept.memories.is_empty() {
        return false;
    }
    let sizes = linear_memories();
    let largest = kept.memories.iter().filter_map(|start| sizes.get(start)).max();
    largest.is_some_and(|size| *size > app.caps.memory_bytes as u64 / 4 * 3)
}
