//! One instance's host side: its handles, its call, its log, and why it was stopped.
//!
//! The native twin of `runtime/engine/guest.py`; limits are the same. Not here: what host functions do, stores, sockets.

use crate::capi::{Given, Loan, POLL};
use crate::host::{type_id, Pending};
use crate::lending::{Errand, Lending, Message};
use crate::resources::{Fields, OutBody, Resource, ResponseWriter};
use crate::value::{Trap, Value};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Live host objects per instance.
pub const HANDLES_MAX: usize = 10_000;
/// Of a call's last lines, kept to tell why a guest trapped.
const TAIL_MAX_BYTES: usize = 2_000;
/// Of a call's output beyond its share of log: the end, logged anyway.
const LAST_LINES_MAX_BYTES: usize = 8 * 1024;

/// Why a call was stopped.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// The guest broke a rule of an interface.
    Rule(String),
    Exit(i32),
    Deadline,
    Cancelled,
    /// A defect of the host.
    Defect(String),
}

/// What a suspended guest waits for; the loop looks again when it may have come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wait {
    /// When something becomes ready by itself.
    pub at: Option<Instant>,
    /// Whether room for more of the answer would end the wait.
    pub room: bool,
}

/// What all guests of an app share.
pub struct Grants {
    /// The app's number, and where its guests ask Python.
    pub number: u64,
    pub lending: Arc<Lending>,
    /// Python's functions that read, wait and read, and write a stream, for one that is joined to another.
    pub splice: Option<[u32; 3]>,
    pub config: Vec<(String, String)>,
    pub environment: Vec<(String, String)>,
    pub response_fields_max: usize,
    pub response_fields_max_bytes: usize,
    pub log_call_max_bytes: usize,
}

/// A request as a guest sees it; its body is whole.
pub struct Request {
    pub method: String,
    pub authority: String,
    pub target: String,
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Rc<RefCell<RequestBody>>,
}

/// A whole request body, read from the front.
#[derive(Default)]
pub struct RequestBody {
    pub data: Vec<u8>,
    pub at: usize,
}

impl RequestBody {
    /// Up to `max` bytes; empty only where none are left, or none were asked for.
    pub fn read(&mut self, max: usize) -> Vec<u8> {
        let end = self.data.len().min(self.at.saturating_add(max));
        let piece = self.data[self.at..end].to_vec();
        self.at = end;
        piece
    }

    pub fn drained(&self) -> bool {
        self.at == self.data.len()
    }
}

struct Slot {
    resource: Resource,
    parent: u32,
    children: u32,
}

/// What a guest wrote to a standard stream in one call, bounded; the log's reader cuts it into lines.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Output {
    pub head: Vec<u8>,
    pub last: Vec<u8>,
    pub dropped: usize,
}

impl Output {
    fn write(&mut self, data: &[u8], room: &mut usize) {
        let (within, beyond) = data.split_at(data.len().min(*room));
        *room -= within.len();
        self.head.extend_from_slice(within);
        self.last.extend_from_slice(beyond);
        if let Some(surplus) = self.last.len().checked_sub(LAST_LINES_MAX_BYTES) {
            self.last.drain(..surplus);
            self.dropped += surplus;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && self.last.is_empty()
    }
}

/// The host side of one instance.
pub struct Guest {
    pub grants: Arc<Grants>,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    live: usize,
    pub deadline: Instant,
    pub cancelled: bool,
    pub request: Option<Rc<Request>>,
    pub writer: Option<Rc<RefCell<ResponseWriter>>>,
    /// The body of the answer, which ends when the handler returns and still holds it.
    pub answer_body: Option<Rc<RefCell<OutBody>>>,
    pub pending: Option<Pending>,
    pub wait: Option<Wait>,
    pub ended: Option<Ended>,
    pub stdout: Output,
    pub stderr: Output,
    room: [usize; 2],
    /// Its number with Python; 0 before it asked for the first time.
    pub lent: u64,
    /// What Python looks at for a guest that waits for several things.
    pub polling: Option<Arc<Loan>>,
    /// Whether this call asked, and what the guest let go of since.
    asked: bool,
    dropped: Vec<u32>,
}

impl Guest {
    pub fn new(grants: Arc<Grants>, deadline: Instant) -> Guest {
        let room = [grants.log_call_max_bytes; 2];
        Guest {
            grants, slots: Vec::new(), free: Vec::new(), live: 0, deadline, cancelled: false, request: None, writer: None,
            answer_body: None, pending: None, wait: None, ended: None, stdout: Output::default(),
            stderr: Output::default(), room, lent: 0, polling: None, asked: false, dropped: Vec::new(),
        }
    }

    /// Start a call on this instance.
    pub fn begin(&mut self, deadline: Instant, request: Rc<Request>, writer: Rc<RefCell<ResponseWriter>>) {
        self.deadline = deadline;
        self.cancelled = false;
        self.request = Some(request);
        self.writer = Some(writer);
        self.answer_body = None;
        self.pending = None;
        self.wait = None;
        self.ended = None;
        self.room = [self.grants.log_call_max_bytes; 2];
    }

    /// The call is over: what it was about is let go of, what the guest still holds stays.
    pub fn finish(&mut self) -> (Output, Output) {
        self.request = None;
        self.writer = None;
        self.answer_body = None;
        self.give_up();
        self.wait = None;
        if std::mem::take(&mut self.asked) {
            self.send(Errand::Ended);
        }
        (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr))
    }

    /// Remember why the call ended; the first reason counts.
    pub fn fail(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
    }

    /// A tick of the epoch: stop the guest if its call is over.
    pub fn tick(&mut self) -> Result<(), Trap> {
        self.check(Instant::now())
    }

    /// Whether the call may go on.
    pub fn check(&self, now: Instant) -> Result<(), Trap> {
        if self.cancelled {
            return Err(Trap::stop(Ended::Cancelled));
        }
        if now >= self.deadline {
            return Err(Trap::stop(Ended::Deadline));
        }
        Ok(())
    }

    /// Add to a standard stream of this call.
    pub fn log(&mut self, stderr: bool, data: &[u8]) {
        let (output, room) =
            if stderr { (&mut self.stderr, &mut self.room[1]) } else { (&mut self.stdout, &mut self.room[0]) };
        output.write(data, room);
    }

    /// The end of standard error, which may say why a guest trapped.
    pub fn stderr_tail(&self) -> String {
        let whole = if self.stderr.last.is_empty() { &self.stderr.head } else { &self.stderr.last };
        String::from_utf8_lossy(&whole[whole.len().saturating_sub(TAIL_MAX_BYTES)..]).into_owned()
    }

    // --- what Python serves ---------------------------------------------------------------------------------------------

    /// Have Python serve a call; the guest waits until it has answered.
    pub fn ask(&mut self, loan: Arc<Loan>) {
        self.pending = Some(Pending::Lent(loan.clone()));
        self.wait = Some(Wait { at: None, room: false });
        self.lend(loan);
    }

    /// Have Python read (0), read and wait (1) or write (2) a stream that it holds.
    pub fn ask_of_stream(&mut self, what: usize, stream: u32, about: Value) -> Result<Arc<Loan>, Trap> {
        let function = self.grants.splice.ok_or_else(|| Trap::new("no function of Python's streams is known"))?[what];
        let Resource::Lent(number) = self.borrow(stream)? else { return Err(Trap::new("Python does not hold it")) };
        let number = Value::U64((*number).into());
        let loan = Arc::new(Loan::made(self, function, vec![number, about]));
        self.lend(loan.clone());
        Ok(loan)
    }

    fn lend(&mut self, loan: Arc<Loan>) {
        if self.lent == 0 {
            self.lent = self.grants.lending.enrol();
        }
        self.asked = true;
        self.send(Errand::Ask(loan));
    }

    /// Which of some pollables that Python holds are ready; None until one is.
    pub fn poll_lent(&mut self, numbers: &[u32]) -> Result<Option<Vec<u32>>, Trap> {
        let Some(loan) = self.polling.clone() else {
            let numbers = numbers.iter().map(|number| Value::U64((*number).into())).collect();
            let loan = Arc::new(Loan::made(self, POLL, vec![Value::List(numbers)]));
            self.polling = Some(loan.clone());
            self.lend(loan);
            return Ok(None);
        };
        let Some(answer) = loan.answer() else { return Ok(None) };
        self.polling = None;
        let given = answer.given.map_err(Trap::of)?;
        Ok(Some(given.iter().map(|one| one.number).collect()))
    }

    /// The guest waits no longer for what Python looks at.
    pub fn poll_no_more(&mut self) {
        if let Some(loan) = self.polling.take() {
            loan.abandon();
        }
    }

    fn send(&mut self, errand: Errand) {
        let dropped = std::mem::take(&mut self.dropped);
        let message = Message { app: self.grants.number, instance: self.lent, dropped, errand };
        self.grants.lending.send(message);
    }

    /// The call is over: Python is told that nobody waits for its answer any more.
    fn give_up(&mut self) {
        match self.pending.take() {
            Some(Pending::Lent(loan)) => loan.abandon(),
            Some(Pending::Splice(splice)) => splice.abandon(),
            _ => {}
        }
        self.poll_no_more();
    }

    /// What Python answered, with a handle for each object it gave; None while it has not.
    pub fn lent_step(&mut self, loan: &Arc<Loan>) -> Result<Option<Value>, Trap> {
        let Some(answer) = loan.answer() else {
            self.wait = Some(Wait { at: None, room: false });
            return Ok(None);
        };
        if let (Some(away_s), Some(writer)) = (answer.away_s, &self.writer) {
            writer.borrow_mut().away_s = Some(away_s);
        }
        let given = answer.given.map_err(Trap::of)?;
        let mut handles = Vec::new();
        for Given { place, number, name, parent, entries } in given {
            let resource = match entries {
                Some(entries) => Resource::Fields(Fields::of(entries, true)),
                None => Resource::Lent(number),
            };
            let parent = if parent == 0 { 0 } else { self.lent_rep(parent)? };
            handles.push((place, self.give(resource, parent)?, type_id(&name)));
        }
        Ok(Some(Value::Lent(loan.clone(), handles)))
    }

    // --- handles ------------------------------------------------------------------------------------------------------

    /// Keep `resource` for the guest, as a child of `parent` (0: of nothing); return its rep.
    pub fn give(&mut self, resource: Resource, parent: u32) -> Result<u32, Trap> {
        if self.live >= HANDLES_MAX {
            return Err(Trap::new(&format!("more than {HANDLES_MAX} live handles")));
        }
        if parent != 0 {
            self.slot_mut(parent)?.children += 1;
        }
        self.live += 1;
        let slot = Some(Slot { resource, parent, children: 0 });
        if let Some(rep) = self.free.pop() {
            self.slots[rep as usize - 1] = slot;
            return Ok(rep);
        }
        self.slots.push(slot);
        Ok(self.slots.len() as u32)
    }

    fn slot_mut(&mut self, rep: u32) -> Result<&mut Slot, Trap> {
        let slot = (rep as usize).checked_sub(1).and_then(|index| self.slots.get_mut(index));
        slot.and_then(Option::as_mut).ok_or_else(|| Trap::new("a handle of nothing"))
    }

    /// The rep of an object that Python holds.
    fn lent_rep(&self, number: u32) -> Result<u32, Trap> {
        let is = |slot: &Option<Slot>| matches!(slot, Some(Slot { resource: Resource::Lent(held), .. }) if *held == number);
        let found = self.slots.iter().position(is);
        found.map(|index| index as u32 + 1).ok_or_else(|| Trap::new("an object was made from one that is gone"))
    }

    /// Whether a handle is of an object that Python holds.
    pub fn is_lent(&mut self, rep: u32) -> Result<bool, Trap> {
        Ok(matches!(self.borrow(rep)?, Resource::Lent(_)))
    }

    /// The request's id and its place in a trace, as its fields say them; empty while an instance is being made.
    pub fn ids(&self) -> (String, String) {
        let of = |name: &str| {
            let fields = self.request.iter().flat_map(|request| &request.fields).rev();
            let value = fields.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice());
            String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
        };
        (of("x-request-id"), of("traceparent"))
    }

    /// The object of a borrowed handle.
    pub fn borrow(&mut self, rep: u32) -> Result<&mut Resource, Trap> {
        Ok(&mut self.slot_mut(rep)?.resource)
    }

    /// What a resource was made from.
    pub fn parent(&mut self, rep: u32) -> Result<u32, Trap> {
        Ok(self.slot_mut(rep)?.parent)
    }

    /// Remove and return the object of an owned handle; traps while children of it live.
    pub fn take(&mut self, rep: u32) -> Result<Resource, Trap> {
        let slot = self.slot_mut(rep)?;
        if slot.children > 0 {
            let name = slot.resource.name();
            return Err(Trap::new(&format!("{name} was given up while a resource made from it is still held")));
        }
        let parent = slot.parent;
        let taken = self.slots[rep as usize - 1].take().expect("it was there a moment ago");
        self.free.push(rep);
        self.live -= 1;
        if parent != 0 {
            if let Ok(slot) = self.slot_mut(parent) {
                slot.children -= 1;
            }
        }
        Ok(taken.resource)
    }

    /// The guest dropped an owned handle.
    pub fn drop_handle(&mut self, rep: u32) -> Result<(), Trap> {
        let mut resource = self.take(rep)?;
        resource.dropped();
        if let Resource::Lent(id) = resource {
            self.dropped.push(id);
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.give_up();
        if self.lent != 0 {
            self.send(Errand::Gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn guest() -> Guest {
        let grants = Grants {
            number: 1, lending: Arc::default(), splice: None, config: vec![], environment: vec![], response_fields_max: 10,
            response_fields_max_bytes: 100, log_call_max_bytes: 10,
        };
        Guest::new(Arc::new(grants), Instant::now() + Duration::from_secs(60))
    }

    #[test]
    fn a_parent_outlives_its_children() {
        let mut guest = guest();
        let parent = guest.give(Resource::EmptyInput, 0).unwrap();
        let child = guest.give(Resource::AlwaysReady, parent).unwrap();
        assert!(guest.take(parent).is_err());
        guest.drop_handle(child).unwrap();
        assert!(guest.take(parent).is_ok());
        assert!(guest.borrow(parent).is_err());
        assert!(guest.borrow(0).is_err());
    }

    #[test]
    fn handles_are_bounded_and_used_again() {
        let mut guest = guest();
        for _ in 0..HANDLES_MAX {
            guest.give(Resource::EmptyInput, 0).unwrap();
        }
        assert!(guest.give(Resource::EmptyInput, 0).is_err());
        guest.drop_handle(7).unwrap();
        assert_eq!(guest.give(Resource::AlwaysReady, 0).unwrap(), 7);
    }

    #[test]
    fn output_keeps_its_beginning_and_its_end() {
        let mut guest = guest();
        guest.log(true, b"0123456");
        guest.log(true, &[b'x'; 9000]);
        guest.log(true, b"end");
        assert_eq!(guest.stderr.head, b"0123456xxx");
        assert_eq!(guest.stderr.last.len(), LAST_LINES_MAX_BYTES);
        assert!(guest.stderr_tail().ends_with("xend"));
        assert_eq!(guest.stderr.dropped, 7 + 9000 + 3 - 10 - LAST_LINES_MAX_BYTES);
    }

    #[test]
    fn a_call_ends_at_its_deadline_and_when_it_is_cancelled() {
        let mut guest = guest();
        assert!(guest.tick().is_ok());
        assert_eq!(guest.check(guest.deadline).unwrap_err().ended(), Ended::Deadline);
        guest.cancelled = true;
        assert_eq!(guest.tick().unwrap_err().ended(), Ended::Cancelled);
    }
}
