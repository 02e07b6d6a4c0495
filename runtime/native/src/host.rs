//! The host functions this engine has: by interface and name, each with how it starts. `lender.py` names those Python serves.
//!
//! A function that may wait is begun once, with its arguments, and leaves a `Pending` on the guest; it is looked at again whenever
//! the loop polls the guest. Not here: what the functions do (`streams.rs`, `http_types.rs`, `others.rs`).

use crate::capi::{Args, Loan};
use crate::guest::{Guest, Wait};
use crate::value::{Trap, Value};
use crate::{http_types, others, streams};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// What a function that may wait has come to.
pub enum Step {
    Done(Value),
    Wait,
}

type Now = fn(&mut Guest, &Args<'_>) -> Result<Value, Trap>;
type Suspending = fn(&mut Guest, &Args<'_>) -> Result<Step, Trap>;

/// How a host function starts.
#[derive(Clone, Copy)]
pub enum Start {
    Now(Now),
    Suspending(Suspending),
}

/// One host function.
pub struct Entry {
    pub start: Start,
}

/// What a suspended guest asked for.
pub enum Pending {
    Poll(Vec<u32>),
    Block(u32),
    Write { stream: u32, data: Vec<u8>, at: usize },
    Splice(streams::Splice),
    /// Python serves it.
    Lent(Arc<Loan>),
}

/// Begin to wait, or have it at once.
pub fn begin(guest: &mut Guest, pending: Pending) -> Result<Step, Trap> {
    guest.pending = Some(pending);
    step(guest)
}

/// Look at what a suspended guest asked for; ends its call once that is over.
pub fn look_again(guest: &mut Guest) -> Result<Step, Trap> {
    guest.check(Instant::now())?;
    step(guest)
}

fn step(guest: &mut Guest) -> Result<Step, Trap> {
    guest.wait = None;
    let Some(mut pending) = guest.pending.take() else { return Err(Trap::new("nothing is waited for")) };
    let done = match &mut pending {
        Pending::Poll(reps) => streams::poll_step(guest, reps)?.map(Value::List),
        Pending::Block(rep) => streams::poll_step(guest, &[*rep])?.map(|_| Value::Nothing),
        Pending::Write { stream, data, at } => streams::write_step(guest, *stream, data, at)?,
        Pending::Splice(splice) => streams::splice_step(guest, splice)?,
        Pending::Lent(loan) => guest.lent_step(loan)?,
    };
    if let Some(value) = done {
        return Ok(Step::Done(value));
    }
    guest.pending = Some(pending);
    guest.wait.get_or_insert(Wait { at: None, room: true });
    Ok(Step::Wait)
}

/// Interfaces whose every function is called on an object that cannot exist.
const CLOSED: [&str; 4] = ["wasi:filesystem/types", "wasi:sockets/ip-name-lookup", "wasi:sockets/tcp", "wasi:sockets/udp"];

static UNREACHABLE: Entry = Entry { start: Start::Now(others::unreachable) };

/// The function `name` of `interface` (without its version); None where this engine has none.
pub fn find(interface: &str, name: &str) -> Option<&'static Entry> {
    static TABLE: OnceLock<HashMap<&'static str, HashMap<&'static str, Entry>>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut table: HashMap<_, HashMap<_, _>> = HashMap::new();
        for (interface, name, start) in
            streams::FUNCTIONS.iter().chain(http_types::FUNCTIONS).chain(others::FUNCTIONS).copied()
        {
            table.entry(interface).or_default().insert(name, Entry { start });
        }
        table
    });
    if let Some(entry) = table.get(interface).and_then(|functions| functions.get(name)) {
        return Some(entry);
    }
    CLOSED.contains(&interface).then_some(&UNREACHABLE)
}

/// Host type ids of the resources this engine makes, by name; others have one too, since components import them.
pub fn type_id(resource: &str) -> u32 {
    const NAMES: [&str; 32] = [
        "fields", "error", "pollable", "input-stream", "output-stream", "incoming-request", "incoming-body",
        "future-trailers", "response-outparam", "outgoing-response", "outgoing-request", "request-options",
        "outgoing-body", "incoming-response", "future-incoming-response", "terminal-input", "terminal-output",
        "descriptor", "directory-entry-stream", "network", "tcp-socket", "udp-socket", "incoming-datagram-stream",
        "outgoing-datagram-stream", "resolve-address-stream", "bucket", "cas", "database", "container",
        "outgoing-value", "incoming-value", "stream-object-names",
    ];
    let name = match resource {
        "headers" | "trailers" => "fields",
        "io-error" => "error",
        "connection" => "database",
        "incoming-value-async-body" => "input-stream",
        other => other,
    };
    NAMES.iter().position(|known| *known == name).map_or(0, |index| index as u32 + 1)
}
