//! wasi:io: errors, pollables and streams, with the limits of `runtime/wasi/streams.py` and `poll.py`.
//!
//! A request body is whole before its guest starts, so input never waits; output waits for room, pollables for a clock or for room.

use crate::capi::{Args, Loan};
use crate::guest::{Guest, Wait};
use crate::host::{begin, type_id, Pending, Start, Step};
use crate::resources::{ErrorCode, Resource};
use crate::value::{Trap, Value};
use std::sync::Arc;
use std::time::Instant;

pub const READ_MAX_BYTES: u64 = 256 * 1024;
const BLOCKING_WRITE_MAX_BYTES: usize = 4096;
const POLL_MAX: usize = 4_096;
const OUTPUT_PERMIT_BYTES: usize = 64 * 1024;

const IO: &str = "wasi:io/streams";
const HEX: &str = "freehold:io/hex";

pub const FUNCTIONS: &[(&str, &str, Start)] = &[
    ("wasi:io/error", "[method]error.to-debug-string", Start::Now(debug_string)),
    ("wasi:io/poll", "[method]pollable.ready", Start::Now(ready)),
    ("wasi:io/poll", "[method]pollable.block", Start::Suspending(block)),
    ("wasi:io/poll", "poll", Start::Suspending(poll)),
    (IO, "[method]input-stream.read", Start::Now(read)),
    (IO, "[method]input-stream.blocking-read", Start::Now(read)),
    (IO, "[method]input-stream.skip", Start::Now(skip)),
    (IO, "[method]input-stream.blocking-skip", Start::Now(skip)),
    (IO, "[method]input-stream.subscribe", Start::Now(subscribe_input)),
    (IO, "[method]output-stream.check-write", Start::Now(check_write)),
    (IO, "[method]output-stream.write", Start::Now(write)),
    (IO, "[method]output-stream.blocking-write-and-flush", Start::Suspending(blocking_write)),
    (IO, "[method]output-stream.flush", Start::Now(flush)),
    (IO, "[method]output-stream.blocking-flush", Start::Now(flush)),
    (IO, "[method]output-stream.subscribe", Start::Now(subscribe_output)),
    (IO, "[method]output-stream.write-zeroes", Start::Now(write_zeroes)),
    (IO, "[method]output-stream.blocking-write-zeroes-and-flush", Start::Suspending(blocking_write_zeroes)),
    (IO, "[method]output-stream.splice", Start::Suspending(splice)),
    (IO, "[method]output-stream.blocking-splice", Start::Suspending(blocking_splice)),
    (HEX, "input-stream-read", Start::Now(read_hex)),
    (HEX, "input-stream-blocking-read", Start::Now(read_hex)),
    (HEX, "output-stream-write", Start::Now(write_hex)),
    (HEX, "output-stream-blocking-write-and-flush", Start::Suspending(blocking_write_hex)),
];

fn closed() -> Value {
    Value::err(Value::case("closed"))
}

/// The stream error for a failure, as a result.
fn failed(guest: &mut Guest, code: ErrorCode) -> Result<Value, Trap> {
    let error = guest.give(Resource::IoError { text: code.case.to_owned(), code: Some(code) }, 0)?;
    let payload = Value::Own(error, type_id("error"));
    Ok(Value::err(Value::Variant("last-operation-failed", Some(Box::new(payload)))))
}

fn debug_string(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    match guest.borrow(args.at(0)?.rep()?)? {
        Resource::IoError { text, .. } => Ok(Value::text(text)),
        _ => Err(wrong()),
    }
}

/// A handle of one type that stands for an object of another: wasmtime's static types exclude it.
pub fn wrong() -> Trap {
    Trap::new("a handle stands for something else than its type says")
}

// --- pollables --------------------------------------------------------------------------------------------------------

/// Whether a pollable is ready, and if not, when it will be by itself (None: when there is room).
fn look(guest: &mut Guest, rep: u32, now: Instant) -> Result<(bool, Option<Instant>), Trap> {
    match guest.borrow(rep)? {
        Resource::AlwaysReady => Ok((true, None)),
        Resource::Timer(at) => {
            let at = *at;
            Ok((at.is_some_and(|at| at <= now), at))
        }
        Resource::OutputReady => {
            let stream = guest.parent(rep)?;
            Ok((permit(guest, stream)? != Some(0), None))
        }
        _ => Err(wrong()),
    }
}

fn ready(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let rep = args.at(0)?.rep()?;
    Ok(Value::Bool(look(guest, rep, Instant::now())?.0))
}

fn block(guest: &mut Guest, args: &Args<'_>) -> Result<Step, Trap> {
    let rep = args.at(0)?.rep()?;
    begin(guest, Pending::Block(rep))
}

fn poll(guest: &mut Guest, args: &Args<'_>) -> Result<Step, Trap> {
    let pollables = args.at(0)?.elements()?;
    if pollables.len() == 0 {
        return Err(Trap::new("poll with an empty list"));
    }
    if pollables.len() > POLL_MAX {
        return Err(Trap::new(&format!("poll with more than {POLL_MAX} pollables")));
    }
    let reps = pollables.map(|one| one.rep()).collect::<Result<Vec<_>, _>>()?;
    begin(guest, Pending::Poll(reps))
}

/// The indexes of those that are ready; None, and why to look again, while none is.
pub fn poll_step(guest: &mut Guest, reps: &[u32]) -> Result<Option<Vec<Value>>, Trap> {
    let now = Instant::now();
    let mut found = Vec::new();
    let mut wait = Wait { at: None, room: false };
    let mut lent = Vec::new();
    for (index, rep) in reps.iter().enumerate() {
        if let Resource::Lent(number) = guest.borrow(*rep)? {
            lent.push((index as u32, *number));
            continue;
        }
        match look(guest, *rep, now)? {
            (true, _) => found.push(Value::U32(index as u32)),
            (false, Some(at)) => wait.at = Some(wait.at.map_or(at, |other| other.min(at))),
            (false, None) => wait.room = true,
        }
    }
    if !found.is_empty() {
        guest.poll_no_more();
        return Ok(Some(found));
    }
    if !lent.is_empty() {
        let numbers: Vec<u32> = lent.iter().map(|(_, number)| *number).collect();
        if let Some(ready) = guest.poll_lent(&numbers)? {
            let index = |place: &u32| lent.get(*place as usize).map(|(index, _)| Value::U32(*index)).ok_or_else(wrong);
            return ready.iter().map(index).collect::<Result<Vec<_>, _>>().map(Some);
        }
    }
    guest.wait = Some(wait);
    Ok(None)
}

// --- input ------------------------------------------------------------------------------------------------------------

/// Bytes of an input stream; None at its end.
fn take(guest: &mut Guest, rep: u32, max: u64) -> Result<Option<Vec<u8>>, Trap> {
    match guest.borrow(rep)? {
        Resource::EmptyInput => Ok(None),
        Resource::BodyInput { body } => {
            let mut body = body.borrow_mut();
            if body.drained() {
                return Ok(None);
            }
            Ok(Some(body.read(max.min(READ_MAX_BYTES) as usize)))
        }
        _ => Err(wrong()),
    }
}

fn read(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let got = take(guest, args.at(0)?.rep()?, args.at(1)?.u64()?)?;
    Ok(got.map_or_else(closed, |data| Value::ok(Value::Bytes(data))))
}

fn read_hex(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let got = take(guest, args.at(0)?.rep()?, args.at(1)?.u64()?)?;
    Ok(got.map_or_else(closed, |data| Value::ok(Value::Text(to_hex(&data)))))
}

fn skip(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let got = take(guest, args.at(0)?.rep()?, args.at(1)?.u64()?)?;
    Ok(got.map_or_else(closed, |data| Value::ok(Value::U64(data.len() as u64))))
}

fn subscribe_input(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let stream = args.at(0)?.rep()?;
    Ok(Value::Own(guest.give(Resource::AlwaysReady, stream)?, type_id("pollable")))
}

// --- output -----------------------------------------------------------------------------------------------------------

/// How many bytes fit now; None once the stream is closed.
fn permit(guest: &mut Guest, stream: u32) -> Result<Option<usize>, Trap> {
    match guest.borrow(stream)? {
        Resource::LogOutput { .. } => Ok(Some(OUTPUT_PERMIT_BYTES)),
        Resource::BodyOutput { body, .. } => Ok(body.borrow().permit()),
        _ => Err(wrong()),
    }
}

fn allowed(guest: &mut Guest, stream: u32) -> Result<&mut usize, Trap> {
    match guest.borrow(stream)? {
        Resource::LogOutput { allowed, .. } | Resource::BodyOutput { allowed, .. } => Ok(allowed),
        _ => Err(wrong()),
    }
}

/// Take bytes within the permit; None when that went well, else what the guest is told.
fn put(guest: &mut Guest, stream: u32, data: &[u8]) -> Result<Option<Value>, Trap> {
    let refused = match guest.borrow(stream)? {
        Resource::LogOutput { stderr, .. } => {
            let stderr = *stderr;
            guest.log(stderr, data);
            return Ok(None);
        }
        Resource::BodyOutput { body, .. } => {
            let mut body = body.borrow_mut();
            if !body.open() {
                return Ok(Some(closed()));
            }
            body.put(data)
        }
        _ => return Err(wrong()),
    };
    match refused {
        Ok(()) => Ok(None),
        Err(code) => failed(guest, code).map(Some),
    }
}

fn check_write(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let stream = args.at(0)?.rep()?;
    let Some(room) = permit(guest, stream)? else { return Ok(closed()) };
    *allowed(guest, stream)? = room;
    Ok(Value::ok(Value::U64(room as u64)))
}

fn write_within(guest: &mut Guest, stream: u32, data: &[u8], name: &str) -> Result<Value, Trap> {
    let left = allowed(guest, stream)?;
    if data.len() > *left {
        return Err(Trap::new(&format!("output-stream.{name} of more bytes than check-write permitted")));
    }
    *left -= data.len();
    Ok(put(guest, stream, data)?.unwrap_or(Value::Ok(None)))
}

fn write(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    write_within(guest, args.at(0)?.rep()?, &args.at(1)?.bytes()?, "write")
}

fn write_hex(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    write_within(guest, args.at(0)?.rep()?, &from_hex(args.at(1)?.text()?)?, "write")
}

fn write_zeroes(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let (stream, len) = (args.at(0)?.rep()?, args.at(1)?.u64()?);
    if len > *allowed(guest, stream)? as u64 {
        return Err(Trap::new("output-stream.write-zeroes of more bytes than check-write permitted"));
    }
    write_within(guest, stream, &vec![0; len as usize], "write-zeroes")
}

fn blocking(guest: &mut Guest, stream: u32, data: Vec<u8>) -> Result<Step, Trap> {
    if data.len() > BLOCKING_WRITE_MAX_BYTES {
        let text = format!("output-stream.blocking-write-and-flush of more than {BLOCKING_WRITE_MAX_BYTES} bytes");
        return Err(Trap::new(&text));
    }
    begin(guest, Pending::Write { stream, data, at: 0 })
}

fn blocking_write(guest: &mut Guest, args: &Args<'_>) -> Result<Step, Trap> {
    let stream = args.at(0)?.rep()?;
    blocking(guest, stream, args.at(1)?.bytes()?)
}

fn blocking_write_hex(guest: &mut Guest, args: &Args<'_>) -> Result<Step, Trap> {
    let stream = args.at(0)?.rep()?;
    blocking(guest, stream, from_hex(args.at(1)?.text()?)?)
}

fn blocking_write_zeroes(guest: &mut Guest, args: &Args<'_>) -> Result<Step, Trap> {
    let (stream, len) = (args.at(0)?.rep()?, args.at(1)?.u64()?);
    if len > BLOCKING_WRITE_MAX_BYTES as u64 {
        let text = format!("blocking-write-zeroes-and-flush of more than {BLOCKING_WRITE_MAX_BYTES} bytes");
        return Err(Trap::new(&text));
    }
    blocking(guest, stream, vec![0; len as usize])
}

/// Write what fits; the result once all is written or refused.
pub fn write_step(guest: &mut Guest, stream: u32, data: &[u8], at: &mut usize) -> Result<Option<Value>, Trap> {
    while *at < data.len() {
        let Some(room) = permit(guest, stream)? else { return Ok(Some(closed())) };
        if room == 0 {
            return Ok(None);
        }
        let end = data.len().min(*at + room);
        if let Some(refused) = put(guest, stream, &data[*at..end])? {
            return Ok(Some(refused));
        }
        *at = end;
    }
    Ok(Some(Value::Ok(None)))
}

fn flush(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    guest.borrow(args.at(0)?.rep()?)?;
    Ok(Value::Ok(None))
}

fn subscribe_output(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let stream = args.at(0)?.rep()?;
    Ok(Value::Own(guest.give(Resource::OutputReady, stream)?, type_id("pollable")))
}

/// A guest that moves bytes from one stream to another, each of which may be Python's; a loan for each side that is.
pub struct Splice {
    to: u32,
    from: u32,
    len: usize,
    blocking: bool,
    read: Option<Arc<Loan>>,
    data: Option<Vec<u8>>,
    written: usize,
    write: Option<Arc<Loan>>,
}

impl Splice {
    /// Its call is over: nobody waits for Python's answers any more.
    pub fn abandon(&self) {
        for loan in self.read.iter().chain(&self.write) {
            loan.abandon();
        }
    }
}

fn begin_splice(guest: &mut Guest, args: &Args<'_>, blocking: bool) -> Result<Step, Trap> {
    let len = args.at(2)?.u64()?.min(READ_MAX_BYTES) as usize;
    let (to, from) = (args.at(0)?.rep()?, args.at(1)?.rep()?);
    begin(guest, Pending::Splice(Splice { to, from, len, blocking, read: None, data: None, written: 0, write: None }))
}

fn splice(guest: &mut Guest, args: &Args<'_>) -> Result<Step, Trap> {
    begin_splice(guest, args, false)
}

fn blocking_splice(guest: &mut Guest, args: &Args<'_>) -> Result<Step, Trap> {
    begin_splice(guest, args, true)
}

fn moved(size: usize) -> Option<Value> {
    Some(Value::ok(Value::U64(size as u64)))
}

/// Move what fits from one stream to another; None while it waits for room or for Python.
pub fn splice_step(guest: &mut Guest, it: &mut Splice) -> Result<Option<Value>, Trap> {
    let (to_lent, from_lent) = (guest.is_lent(it.to)?, guest.is_lent(it.from)?);
    loop {
        if let Some(loan) = &it.write {
            let Some(answer) = guest.lent_step(loan)? else { return Ok(None) };
            return Ok(if loan.went_well() { moved(it.written) } else { Some(answer) });
        }
        if let Some(data) = it.data.take() {
            it.written = data.len();
            if !to_lent {
                return Ok(put(guest, it.to, &data)?.or_else(|| moved(it.written)));
            }
            it.write = Some(guest.ask_of_stream(2, it.to, Value::Bytes(data))?);
            continue;
        }
        if let Some(loan) = it.read.take() {
            let Some(answer) = guest.lent_step(&loan)? else {
                it.read = Some(loan);
                return Ok(None);
            };
            match loan.bytes() {
                None => return Ok(Some(answer)),
                Some(data) if data.is_empty() => return Ok(moved(0)),
                Some(data) => it.data = Some(data),
            }
            continue;
        }
        let room = if to_lent { BLOCKING_WRITE_MAX_BYTES } else {
            let Some(room) = permit(guest, it.to)? else { return Ok(Some(closed())) };
            room
        };
        let size = it.len.min(room);
        if size == 0 {
            return Ok(if it.blocking && it.len > 0 { None } else { moved(0) });
        }
        if from_lent {
            it.read = Some(guest.ask_of_stream(it.blocking.into(), it.from, Value::U64(size as u64))?);
        } else {
            let Some(got) = take(guest, it.from, size as u64)? else { return Ok(Some(closed())) };
            it.data = Some(got);
        }
    }
}

// --- digits -----------------------------------------------------------------------------------------------------------

pub fn to_hex(data: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = vec![0; data.len() * 2];
    for (pair, byte) in text.chunks_exact_mut(2).zip(data) {
        pair[0] = DIGITS[(byte >> 4) as usize];
        pair[1] = DIGITS[(byte & 15) as usize];
    }
    text
}

pub fn from_hex(text: &[u8]) -> Result<Vec<u8>, Trap> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let pairs = text.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(Trap::new("an odd number of hexadecimal digits"));
    }
    pairs
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| Trap::new("something else than hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_say_what_they_were_made_of() {
        let data: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&data)).unwrap(), data);
        assert_eq!(from_hex(b"0aFf").unwrap(), vec![10, 255]);
        assert!(from_hex(b"0").is_err());
        assert!(from_hex(b"0g").is_err());
        assert!(from_hex("é".as_bytes()).is_err());
    }
}
