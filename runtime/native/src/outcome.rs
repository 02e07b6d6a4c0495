//! How one run of a guest ended, and how that is told from a trap's text (`runtime/outcome.py`, `sandbox.py`).

use crate::capi::WasmError;
use crate::guest::{Ended, Guest};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Completed,
    Exited,
    ErrorResponse(String),
    BodyAborted,
    NoResponse,
    Trapped { reason: String, backtrace: String },
    DeadlineExceeded,
    MemoryRefused { reason: String, backtrace: String },
    Cancelled,
    HostFailed { reason: String },
}

/// Counters' names, in the order of `Outcome::index`; the last two are of requests that no guest was asked.
pub const KINDS: [&str; 12] = [
    "completed", "exited", "error_response", "body_aborted", "no_response", "trapped", "deadline_exceeded",
    "memory_refused", "cancelled", "host_failed", "refused", "expired",
];
pub const REFUSED: usize = 10;
pub const EXPIRED: usize = 11;
pub const CANCELLED: usize = 8;

impl Outcome {
    pub fn index(&self) -> usize {
        match self {
            Outcome::Completed => 0,
            Outcome::Exited => 1,
            Outcome::ErrorResponse(_) => 2,
            Outcome::BodyAborted => 3,
            Outcome::NoResponse => 4,
            Outcome::Trapped { .. } => 5,
            Outcome::DeadlineExceeded => 6,
            Outcome::MemoryRefused { .. } => 7,
            Outcome::Cancelled => CANCELLED,
            Outcome::HostFailed { .. } => 9,
        }
    }

    pub fn kind(&self) -> &'static str {
        KINDS[self.index()]
    }

    /// Whether the instance that produced it may serve again.
    pub fn survives(&self) -> bool {
        matches!(
            self,
            Outcome::Completed | Outcome::ErrorResponse(_) | Outcome::BodyAborted | Outcome::NoResponse
        )
    }

    /// Why the guest failed, for the app's log: reason and backtrace.
    pub fn failure(&self) -> Option<(&str, &str)> {
        match self {
            Outcome::Trapped { reason, backtrace } | Outcome::MemoryRefused { reason, backtrace } => {
                Some((reason, backtrace))
            }
            Outcome::HostFailed { reason } => Some((reason, "")),
            _ => None,
        }
    }
}

const MEMORY_SIGNS: [&str; 9] = [
    "out of memory", "memoryerror", "memory allocation of", "alloc_error", "rust_oom", "__rust_oom",
    "exceeds memory limits", "exceeds table limits", "resource limit exceeded",
];

/// What an error of wasmtime means for the call of `guest`, whose memories may grow to `memory_max` bytes.
pub fn of_error(error: WasmError, guest: &mut Guest, memory_max: u64) -> Outcome {
    match guest.ended.take() {
        Some(Ended::Deadline) => return Outcome::DeadlineExceeded,
        Some(Ended::Cancelled) => return Outcome::Cancelled,
        Some(Ended::Exit(_)) => return Outcome::Exited,
        Some(Ended::Rule(reason)) => return Outcome::Trapped { reason, backtrace: error.message },
        Some(Ended::Defect(reason)) => return Outcome::HostFailed { reason },
        None => {}
    }
    if error.exit_status.is_some() {
        return Outcome::Exited;
    }
    let reason = reason_of(&error.message);
    let said = (error.message.clone() + &guest.stderr_tail()).to_lowercase();
    let full = memory_max / 16 * 15;
    let refused = MEMORY_SIGNS.iter().any(|sign| said.contains(sign))
        || linear_memories().values().any(|size| (full..=memory_max).contains(size));
    let backtrace = error.message;
    if refused { Outcome::MemoryRefused { reason, backtrace } } else { Outcome::Trapped { reason, backtrace } }
}

fn reason_of(message: &str) -> String {
    let lines = || message.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| line.contains("wasm trap:")).or_else(|| lines().next_back()).unwrap_or("trap");
    let line = line.strip_prefix("1: ").unwrap_or(line);
    line.strip_prefix("wasm trap: ").unwrap_or(line).to_owned()
}

const RESERVATION_MIN_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Start address and accessible bytes of every linear memory of this process (`engine/memory_use.py`).
pub fn linear_memories() -> BTreeMap<u64, u64> {
    std::fs::read_to_string("/proc/self/maps").map(|maps| memories_in(&maps)).unwrap_or_default()
}

fn memories_in(maps: &str) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    let (mut run_start, mut run_end) = (0, 0);
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(span), Some(access)) = (words.next(), words.next()) else { continue };
        let Some((Ok(start), Ok(end))) =
            span.split_once('-').map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)))
        else {
            continue;
        };
        if access.starts_with("rw") {
            if start != run_end {
                run_start = start;
            }
            run_end = end;
        } else if access.starts_with("---") && start == run_end && end - start >= RESERVATION_MIN_BYTES {
            found.insert(run_start, run_end - run_start);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_stand_before_their_reservation() {
        let maps = "10000-20000 rw-p 0 0:0 0\n20000-30000 rw-p 0 0:0 0\n30000-100000000 ---p 0 0:0 0\n\
                    100000000-100001000 rw-p 0 0:0 0\n100001000-100002000 ---p 0 0:0 0\n";
        assert_eq!(memories_in(maps).into_iter().collect::<Vec<_>>(), vec![(0x10000, 0x20000)]);
    }

    #[test]
    fn a_reason_is_the_last_line_about_the_trap() {
        let text = "error while executing\n\nCaused by:\n    0: x\n    1: wasm trap: unreachable executed\n";
        assert_eq!(reason_of(text), "wasm trap: unreachable executed".strip_prefix("wasm trap: ").unwrap());
        assert_eq!(reason_of("a\nb\n"), "b");
        assert_eq!(reason_of(""), "trap");
    }
}
