//! One client connection of the loop: its buffers, its phase, and the exchange it is in. Not here: who polls it (`server.rs`).

use crate::guest::Request;
use crate::outcome::Outcome;
use crate::resources::ResponseWriter;
use crate::respond::{write_body, write_end, write_head, About, BadResponse, Framing, Own};
use crate::shared::{App, Settings, Span};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Input kept while a request is answered; above it the socket is not read.
const INPUT_MAX_BYTES: usize = 128 * 1024;
/// Output waiting for a slow client; above it nothing is taken from the guest.
const OUTPUT_HELD_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 64 * 1024;
/// Status in the log for a client that left before the answer.
const CLIENT_GONE: u16 = 499;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Phase {
    Idle,
    /// A request has begun and is not whole.
    Head,
    Answer,
    /// Half closed; what still comes is dropped.
    Linger,
}

/// What follows once the output is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Then {
    GoOn,
    Linger,
    Close,
}

pub struct Conn {
    pub socket: OwnedFd,
    pub generation: u32,
    pub client: String,
    pub input: Vec<u8>,
    pub output: Vec<u8>,
    pub written: usize,
    pub phase: Phase,
    pub since: Instant,
    pub half_closed: Option<Instant>,
    pub blocked: Option<Instant>,
    pub watched: EventFlags,
    pub exchange: Option<Box<Exchange>>,
    pub then: Then,
}

/// One request and its answer.
pub struct Exchange {
    pub app: Arc<App>,
    pub request: Rc<Request>,
    pub writer: Rc<RefCell<ResponseWriter>>,
    pub request_id: String,
    pub trace_id: String,
    pub span: Span,
    pub keep_alive: bool,
    pub since: Instant,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub status: u16,
    pub framing: Option<Framing>,
    pub begun: bool,
    pub call: Option<usize>,
    pub outcome: Option<Outcome>,
    pub closed: Option<Instant>,
    /// Why the answer could not be put on the wire.
    pub bad: Option<String>,
}

/// What writing an answer has come to.
#[derive(Debug, PartialEq)]
pub enum Answered {
    NotYet,
    /// The guest must be stopped: its answer cannot be sent.
    Bad,
    /// The client has a whole answer; whether the connection may go on.
    Whole(bool),
    /// What has begun is broken off.
    Broken,
}

impl Exchange {
    /// Whether the client has all that it was promised.
    pub fn whole(&self) -> bool {
        self.framing.as_ref().is_some_and(Framing::whole)
    }

    /// The client is gone: what the log says.
    pub fn left(&mut self) {
        if self.status == 0 {
            self.status = CLIENT_GONE;
        }
    }

    /// Move what the guest has written to `output`, and see how far the answer is.
    pub fn write(&mut self, output: &mut Vec<u8>, date: &str, draining: bool, settings: &Settings) -> Answered {
        if self.bad.is_none() {
            let before = output.len();
            if let Err(BadResponse(why)) = self.take(output, date, draining) {
                output.truncate(before);
                self.writer.borrow_mut().closed = true;
                self.bad = Some(why);
                if self.outcome.is_none() {
                    return Answered::Bad;
                }
            } else if output.len() > before {
                self.begun = true;
            }
        }
        let Some(outcome) = self.outcome.clone() else { return Answered::NotYet };
        if let Some(why) = &self.bad {
            self.outcome = Some(Outcome::HostFailed { reason: format!("bad response: {why}") });
        } else if let Some(framing) = self.framing.as_ref().filter(|framing| framing.ended) {
            return Answered::Whole(framing.keep_alive);
        }
        if self.begun {
            return Answered::Broken;
        }
        let problem = match (&outcome, &self.bad) {
            (Outcome::DeadlineExceeded, None) => &settings.deadline,
            (Outcome::ErrorResponse(code), None) if code == "HTTP-request-body-size" => &settings.body_too_large,
            _ => &settings.failed,
        };
        let away_s = self.writer.borrow().away_s;
        let away = away_s.filter(|_| std::ptr::eq(problem, &settings.failed)).map(|away_s| {
            let mut away = settings.away.clone();
            away.fields.retain(|(name, _)| name != "retry-after");
            away.fields.push(("retry-after".to_owned(), away_s.to_string().into_bytes()));
            away
        });
        let problem = away.as_ref().unwrap_or(problem);
        let keep_alive = self.keep_alive && !draining;
        self.refuse(output, problem, date, keep_alive);
        Answered::Whole(keep_alive)
    }

    /// Answer in the guest's place.
    pub fn refuse(&mut self, output: &mut Vec<u8>, problem: &crate::respond::Problem, date: &str, keep_alive: bool) {
        let own = Own { date, request_id: &self.request_id, release: &self.app.release };
        self.status = problem.status;
        self.bytes_out = problem.write(output, &own, self.request.method == "HEAD", keep_alive);
    }

    fn take(&mut self, output: &mut Vec<u8>, date: &str, draining: bool) -> Result<(), BadResponse> {
        let mut writer = self.writer.borrow_mut();
        if let Some((status, fields)) = writer.head.take() {
            let about = About {
                head_only: self.request.method == "HEAD",
                keep_alive: self.keep_alive && !draining,
                whole: writer.complete.then_some(writer.data.len() as u64),
            };
            let own = Own { date, request_id: &self.request_id, release: &self.app.release };
            self.framing = Some(write_head(output, status, &fields, &own, &about)?);
            self.status = status;
        }
        let Some(framing) = &mut self.framing else { return Ok(()) };
        let data = std::mem::take(&mut writer.data);
        write_body(output, framing, &data)?;
        self.bytes_out = framing.sent;
        if writer.complete && !framing.ended {
            write_end(output, framing)?;
        }
        Ok(())
    }
}

/// What came of reading or writing a socket.
#[derive(Debug, PartialEq)]
pub enum Io {
    Fine,
    Lost,
}

impl Conn {
    pub fn new(socket: OwnedFd, generation: u32, client: String, now: Instant) -> Conn {
        Conn {
            socket, generation, client, input: Vec::new(), output: Vec::new(), written: 0, phase: Phase::Idle, since: now,
            half_closed: None, blocked: None, watched: EventFlags::empty(), exchange: None, then: Then::GoOn,
        }
    }

    pub fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }

    /// Bytes of output that the socket has not taken.
    pub fn held(&self) -> usize {
        self.output.len() - self.written
    }

    /// Whether the guest's output may be taken now.
    pub fn has_room(&self) -> bool {
        self.held() <= OUTPUT_HELD_BYTES
    }

    /// What to watch the socket for.
    pub fn interest(&self) -> EventFlags {
        let mut wanted = EventFlags::empty();
        if self.half_closed.is_none() && (self.input.len() < INPUT_MAX_BYTES || self.phase == Phase::Linger) {
            wanted |= EventFlags::IN | EventFlags::RDHUP;
        }
        if self.held() > 0 {
            wanted |= EventFlags::OUT;
        }
        wanted
    }

    /// Read what is here, up to the limit.
    pub fn read(&mut self, scratch: &mut [u8], now: Instant) -> Io {
        while self.half_closed.is_none() && self.input.len() < INPUT_MAX_BYTES {
            let room = scratch.len().min(READ_BYTES);
            match rustix::io::read(&self.socket, &mut scratch[..room]) {
                Ok(0) => self.half_closed = Some(now),
                Ok(count) => {
                    if self.phase != Phase::Linger {
                        self.input.extend_from_slice(&scratch[..count]);
                    }
                    if count < room {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Io::Lost,
            }
        }
        Io::Fine
    }

    /// Write what is held, as far as the socket takes it.
    pub fn flush(&mut self, now: Instant) -> Io {
        while self.held() > 0 {
            match rustix::net::send(&self.socket, &self.output[self.written..], rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.written += count;
                    self.blocked = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.blocked.get_or_insert(now);
                    return Io::Fine;
                }
                Err(_) => return Io::Lost,
            }
        }
        self.output.clear();
        self.written = 0;
        self.output.shrink_to(READ_BYTES);
        Io::Fine
    }
}
