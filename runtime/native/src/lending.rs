//! What guests ask of Python: a queue of suspended calls, served by threads of Python, in order for each instance.
//!
//! A host function that this engine lacks suspends its guest. A thread of Python takes the loan (`capi.rs`), serves the function
//! with the node's own code and answers; the loop then looks at the guest again. Not here: which functions these are (`lender.py`).

use crate::capi::Loan;
use crate::shared::held;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// What an instance has to say to Python.
pub enum Errand {
    /// Serve this call.
    Ask(Arc<Loan>),
    /// The request is over: what others wait for must not be kept until the next one.
    Ended,
    /// The instance is gone, and everything it held.
    Gone,
    /// Something that the guest may wait for has changed.
    Woken,
}

/// One errand, and what the guest let go of since the last one.
pub struct Message {
    pub app: u64,
    pub instance: u64,
    pub dropped: Vec<u32>,
    pub errand: Errand,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    busy: HashSet<u64>,
    instances: u64,
    idle: usize,
    closed: bool,
}

/// The queue of one engine. It is short: an instance has one call at a time.
#[derive(Default)]
pub struct Lending {
    state: Mutex<State>,
    wake: Condvar,
}

impl Lending {
    /// The number of an instance that asks for the first time.
    pub fn enrol(&self) -> u64 {
        let mut state = held(&self.state);
        state.instances += 1;
        state.instances
    }

    pub fn send(&self, message: Message) {
        held(&self.state).queue.push_back(message);
        self.wake.notify_one();
    }

    /// Have a thread look at what an instance waits for, unless one is about to.
    pub fn nudge(&self, app: u64, instance: u64) {
        let mut state = held(&self.state);
        let about_to = |one: &Message| one.instance == instance && matches!(one.errand, Errand::Woken);
        if !state.queue.iter().any(about_to) {
            state.queue.push_back(Message { app, instance, dropped: Vec::new(), errand: Errand::Woken });
            self.wake.notify_one();
        }
    }

    /// Wait for a message of an instance that no other thread serves now, and whether every thread is busy then; None once
    /// the queue is closed.
    pub fn next(&self) -> Option<(Message, bool)> {
        let mut state = held(&self.state);
        state.idle += 1;
        loop {
            let State { queue, busy, .. } = &*state;
            if let Some(index) = queue.iter().position(|message| !busy.contains(&message.instance)) {
                state.idle -= 1;
                let message = state.queue.remove(index).expect("it was found there");
                state.busy.insert(message.instance);
                let all_busy = state.idle == 0;
                return Some((message, all_busy));
            }
            if state.closed {
                state.idle -= 1;
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread that took a message of this instance is done with it.
    pub fn done(&self, instance: u64) {
        let mut state = held(&self.state);
        state.busy.remove(&instance);
        if state.queue.iter().any(|message| message.instance == instance) {
            self.wake.notify_one();
        }
    }

    /// Let the threads end once the queue is empty.
    pub fn close(&self) {
        held(&self.state).closed = true;
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(instance: u64) -> Message {
        Message { app: 1, instance, dropped: vec![], errand: Errand::Ended }
    }

    #[test]
    fn an_instance_is_served_in_order_and_by_one_thread() {
        let lending = Lending::default();
        let (one, other) = (lending.enrol(), lending.enrol());
        for instance in [one, one, other] {
            lending.send(message(instance));
        }
        assert_eq!(lending.next().unwrap().0.instance, one);
        assert_eq!(lending.next().unwrap().0.instance, other);
        lending.done(one);
        assert_eq!(lending.next().unwrap().0.instance, one);
    }

    #[test]
    fn one_look_serves_for_many_wakes() {
        let lending = Lending::default();
        for instance in [1, 1, 2] {
            lending.nudge(7, instance);
        }
        lending.close();
        assert_eq!(std::iter::from_fn(|| lending.next()).count(), 2);
    }

    #[test]
    fn what_was_sent_is_served_before_the_end() {
        let lending = Lending::default();
        lending.send(message(7));
        lending.close();
        assert!(lending.next().is_some());
        assert!(lending.next().is_none());
    }

    #[test]
    fn a_thread_hears_when_none_is_left_for_the_next() {
        let lending = Lending::default();
        lending.send(message(1));
        assert!(lending.next().unwrap().1);
    }
}
