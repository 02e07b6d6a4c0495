//! What the loop's thread and Python share: settings, apps with their counters, orders one way and reports the other.

use crate::capi::{Caps, Linked};
use crate::guest::{Grants, Output};
use crate::lending::Lending;
use crate::outcome::KINDS;
use crate::parse::HeadLimits;
use crate::respond::Problem;
use crate::routes::Routes;
use rustix::event::{eventfd, EventfdFlags};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub const LATENCY_BUCKETS: usize = 24;
/// Access lines kept until Python takes them; it would drop more, and counts those that are missing.
const ACCESS_MAX: usize = 500;
/// Guest output kept until Python takes it.
const SAID_MAX_BYTES: usize = 4 * 1024 * 1024;
const FAILURES_MAX: usize = 200;

/// Limits of the listener, told once.
#[derive(Debug)]
pub struct Settings {
    pub head: HeadLimits,
    pub connections_max: usize,
    pub keep_alive: Duration,
    /// A request that is not whole after this long goes to the Python path, which has the limits for it.
    pub patience: Duration,
    pub write_idle: Duration,
    pub linger: Duration,
    pub half_closed: Duration,
    pub guests_max: usize,
    pub proxies: Vec<(IpAddr, u8)>,
    pub load_table: String,
    pub slot: u64,
    /// The share of traces that begin here and are recorded.
    pub traced: f64,
    pub failed: Problem,
    pub busy: Problem,
    pub deadline: Problem,
    pub body_too_large: Problem,
    /// A service that the guest needed was away.
    pub away: Problem,
}

/// Counters of one app, exact: the loop alone adds.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub in_flight: AtomicU64,
    pub queued: AtomicU64,
    pub outcomes: [AtomicU64; KINDS.len()],
    pub statuses: [AtomicU64; 10],
    pub buckets: [AtomicU64; LATENCY_BUCKETS],
    pub latency_sum_us: AtomicU64,
}

impl Counters {
    /// Count one answer; `latency` is from its coming to the guest's end, None where no guest was asked.
    pub fn answered(&self, status: u16, latency: Option<Duration>) {
        self.statuses[usize::from(status / 100).min(9)].fetch_add(1, Relaxed);
        if let Some(latency) = latency {
            let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            let bucket = (64 - (us / 64).leading_zeros()) as usize;
            self.buckets[bucket.min(LATENCY_BUCKETS - 1)].fetch_add(1, Relaxed);
            self.latency_sum_us.fetch_add(us, Relaxed);
        }
    }
}

/// One app of one release, made by Python and served by the loop.
pub struct App {
    pub number: u64,
    pub linked: Arc<Linked>,
    pub grants: Arc<Grants>,
    pub caps: Caps,
    pub release: String,
    pub timeout: Duration,
    pub reuse: bool,
    pub uses_max: u64,
    pub ready_max: usize,
    pub concurrency: usize,
    pub queue_max: usize,
    pub body_max: usize,
    pub counters: Counters,
    /// Whether the loop has let go of every instance.
    pub gone: AtomicBool,
}

pub enum Order {
    Load(Arc<App>),
    Activate(Routes),
    Unload(u64),
    /// Python has answered this instance.
    Answered(u64),
    Drain,
    Stop,
}

/// A connection for the Python path, with what was read from it and how long its request has been coming.
pub struct Handed {
    pub descriptor: OwnedFd,
    pub data: Vec<u8>,
    pub waited: Duration,
}

/// A request's place in its trace: its id, what it came from ("" where the trace begins here), whether it is recorded.
#[derive(Debug, Clone, Default)]
pub struct Span {
    pub id: String,
    pub parent: String,
    pub recorded: bool,
}

/// One answered request, for the log.
#[derive(Debug)]
pub struct Access {
    pub app: u64,
    pub request_id: String,
    pub trace_id: String,
    pub span: Span,
    pub client: String,
    pub method: String,
    pub path: String,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration: Duration,
    pub outcome: Option<&'static str>,
}

/// What a guest wrote in one call since the last time; `ended` with the last of it.
#[derive(Debug)]
pub struct Said {
    pub call: u64,
    pub app: u64,
    pub request_id: String,
    pub trace_id: String,
    pub stdout: Output,
    pub stderr: Output,
    pub ended: bool,
}

/// Why a guest failed.
#[derive(Debug)]
pub struct Failure {
    pub app: u64,
    pub request_id: String,
    pub trace_id: String,
    pub kind: &'static str,
    pub reason: String,
    pub backtrace: String,
}

/// What Python has not taken yet; bounded, and what is left out is counted.
#[derive(Debug, Default)]
pub struct Report {
    pub access: Vec<Access>,
    pub access_left_out: u64,
    pub said: Vec<Said>,
    said_bytes: usize,
    pub said_left_out: Vec<(u64, u64)>,
    pub failures: Vec<Failure>,
}

impl Report {
    /// Whether one more access line is kept; if not, it is counted.
    pub fn admits_access(&mut self) -> bool {
        let admits = self.access.len() < ACCESS_MAX;
        self.access_left_out += u64::from(!admits);
        admits
    }

    pub fn say(&mut self, mut said: Said) {
        let size = said.stdout.head.len() + said.stdout.last.len() + said.stderr.head.len() + said.stderr.last.len();
        if self.said_bytes + size > SAID_MAX_BYTES {
            let lines = [&said.stdout, &said.stderr].iter().filter(|output| !output.is_empty()).count() as u64;
            match self.said_left_out.iter_mut().find(|(app, _)| *app == said.app) {
                Some((_, count)) => *count += lines,
                None => self.said_left_out.push((said.app, lines)),
            }
            if !said.ended {
                return;
            }
            (said.stdout, said.stderr) = Default::default();
        } else {
            self.said_bytes += size;
        }
        self.said.push(said);
    }

    pub fn fail(&mut self, failure: Failure) {
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(failure);
        }
    }
}

pub struct Shared {
    pub settings: Settings,
    pub orders: Mutex<Vec<Order>>,
    /// Wakes the loop.
    pub wake: OwnedFd,
    pub handed: Mutex<Vec<Handed>>,
    /// Wakes Python: connections were handed over.
    pub told: OwnedFd,
    pub report: Mutex<Report>,
    pub lending: Arc<Lending>,
    pub connections: AtomicUsize,
    /// Connections of this worker that the Python path holds.
    pub others: AtomicUsize,
    /// Turns of the loop: one that stands still is stuck.
    pub turns: AtomicU64,
    pub stopped: AtomicBool,
}

impl Shared {
    pub fn new(settings: Settings) -> Result<Shared, rustix::io::Errno> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Shared {
            settings, orders: Mutex::default(), wake: eventfd(0, flags)?, handed: Mutex::default(),
            told: eventfd(0, flags)?, report: Mutex::default(), lending: Arc::default(), connections: AtomicUsize::new(0),
            others: AtomicUsize::new(0), turns: AtomicU64::new(0), stopped: AtomicBool::new(false),
        })
    }

    pub fn order(&self, order: Order) {
        held(&self.orders).push(order);
        signal(&self.wake);
    }

    pub fn hand_over(&self, handed: Handed) {
        held(&self.handed).push(handed);
        signal(&self.told);
    }

    pub fn report(&self) -> MutexGuard<'_, Report> {
        held(&self.report)
    }
}

/// Lock; a thread that panicked with the lock ends the process anyway (`server::run`).
pub fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Add one to an eventfd; it is full only where the other side has been woken already.
pub fn signal(descriptor: &OwnedFd) {
    let _ = rustix::io::write(descriptor, &1u64.to_ne_bytes());
}

/// Whether `address` is in one of `networks`.
pub fn within(address: IpAddr, networks: &[(IpAddr, u8)]) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|(network, bits)| match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            let shift = 32 - u32::from(*bits).min(32);
            u64::from(a.to_bits()) >> shift == u64::from(n.to_bits()) >> shift
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            let shift = 128 - u32::from(*bits).min(128);
            shift == 128 || a.to_bits() >> shift == n.to_bits() >> shift
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_buckets_that_double() {
        let counters = Counters::default();
        for us in [0, 63, 64, 127, 128, u64::MAX / 2] {
            counters.answered(200, Some(Duration::from_micros(us)));
        }
        counters.answered(404, None);
        let buckets: Vec<u64> = counters.buckets.iter().map(|count| count.load(Relaxed)).collect();
        assert_eq!((buckets[0], buckets[1], buckets[2], buckets[23]), (2, 2, 1, 1));
        assert_eq!((counters.statuses[2].load(Relaxed), counters.statuses[4].load(Relaxed)), (6, 1));
    }

    #[test]
    fn networks_hold_their_addresses() {
        let networks = [("10.0.0.0".parse().unwrap(), 8), ("fd00::".parse().unwrap(), 8)];
        let inside = |text: &str| within(text.parse().unwrap(), &networks);
        assert!(inside("10.1.2.3") && inside("fd12::1") && inside("::ffff:10.0.0.1"));
        assert!(!inside("11.0.0.1") && !inside("fe80::1"));
        assert!(within("1.2.3.4".parse().unwrap(), &[("0.0.0.0".parse().unwrap(), 0)]));
    }

    #[test]
    fn a_report_is_bounded_and_says_what_it_left_out() {
        let mut report = Report::default();
        let said = |size: usize, ended| Said {
            call: 1, app: 7, request_id: String::new(), trace_id: String::new(),
            stdout: Output { head: vec![b'x'; size], ..Output::default() }, stderr: Output::default(), ended,
        };
        report.say(said(SAID_MAX_BYTES, false));
        report.say(said(10, false));
        report.say(said(10, true));
        assert_eq!((report.said.len(), report.said_left_out.clone()), (2, vec![(7, 2)]));
        assert!(report.said[1].ended && report.said[1].stdout.is_empty());
    }
}
