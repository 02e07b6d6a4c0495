//! The thread that ticks the epoch while guests run, and sleeps once none ran for a second.

use crate::capi::Linked;
use crate::shared::held;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How late a deadline or a cancellation of a computing guest may be, and how long one may keep the loop.
const TICK: Duration = Duration::from_millis(10);
/// Ticks without a guest before the thread sleeps.
const LINGER_TICKS: usize = 100;

#[derive(Default)]
struct State {
    running: AtomicUsize,
    entered: AtomicUsize,
    ticking: AtomicBool,
    stopped: Mutex<bool>,
    wake: Condvar,
}

pub struct Ticker {
    state: Arc<State>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ticker {
    /// Tick the engine behind `linked`, which is one for the whole process.
    pub fn new(linked: Arc<Linked>) -> Ticker {
        let state = Arc::new(State::default());
        let ticking = state.clone();
        let thread = std::thread::Builder::new().name("native-epoch".into());
        let thread = thread.spawn(move || tick(&ticking, &linked)).expect("a thread can be started");
        Ticker { state, thread: Some(thread) }
    }

    /// A guest runs.
    pub fn enter(&self) {
        self.state.running.fetch_add(1, SeqCst);
        self.state.entered.fetch_add(1, SeqCst);
        if !self.state.ticking.load(SeqCst) {
            let _stopped = held(&self.state.stopped);
            self.state.ticking.store(true, SeqCst);
            self.state.wake.notify_one();
        }
    }

    /// It runs no more.
    pub fn leave(&self) {
        self.state.running.fetch_sub(1, SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        *held(&self.state.stopped) = true;
        self.state.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tick(state: &State, linked: &Linked) {
    let (mut idle, mut seen) = (0, 0);
    let mut stopped = held(&state.stopped);
    while !*stopped {
        if idle >= LINGER_TICKS {
            state.ticking.store(false, SeqCst);
            // Looked at after the store: who enters now sees that nobody ticks, or is seen here.
            if state.running.load(SeqCst) == 0 {
                stopped = state
                    .wake
                    .wait_while(stopped, |stopped| !*stopped && !state.ticking.load(SeqCst))
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.ticking.store(true, SeqCst);
            idle = 0;
        }
        drop(stopped);
        std::thread::sleep(TICK);
        linked.increment_epoch();
        let entered = state.entered.load(SeqCst);
        idle = if entered != seen || state.running.load(SeqCst) > 0 { 0 } else { idle + 1 };
        seen = entered;
        stopped = held(&state.stopped);
    }
}
