//! Values that host functions give to guests, and the two ways in which they end a guest instead.

use crate::capi::Loan;
use crate::guest::Ended;
use std::sync::Arc;

/// One value, to be lowered by `capi.rs`.
#[derive(Debug, PartialEq)]
pub enum Value {
    Nothing,
    Bool(bool),
    U16(u16),
    U32(u32),
    U64(u64),
    Text(Vec<u8>),
    Enum(&'static str),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Record(Vec<(&'static str, Value)>),
    Variant(&'static str, Option<Box<Value>>),
    Option(Option<Box<Value>>),
    Ok(Option<Box<Value>>),
    Err(Option<Box<Value>>),
    /// An own handle: its rep and the type of the resource.
    Own(u32, u32),
    /// What Python made of a loan, and the handles in it: where each goes, its rep and its type.
    Lent(Arc<Loan>, Vec<(usize, u32, u32)>),
}

impl Value {
    pub fn ok(value: Value) -> Value {
        Value::Ok(Some(Box::new(value)))
    }

    pub fn err(value: Value) -> Value {
        Value::Err(Some(Box::new(value)))
    }

    pub fn some(value: Value) -> Value {
        Value::Option(Some(Box::new(value)))
    }

    pub fn text(value: &str) -> Value {
        Value::Text(value.as_bytes().to_vec())
    }

    pub fn case(name: &'static str) -> Value {
        Value::Variant(name, None)
    }
}

/// The end of a guest's call, out of a host function: it broke a rule, or it must stop.
#[derive(Debug)]
pub struct Trap {
    pub reason: String,
    ended: Option<Ended>,
}

impl Trap {
    pub fn new(reason: &str) -> Trap {
        Trap { reason: reason.to_owned(), ended: None }
    }

    /// The guest must stop, for this reason.
    pub fn stop(ended: Ended) -> Trap {
        Trap { reason: format!("{ended:?}"), ended: Some(ended) }
    }

    /// What Python said that a call ends with.
    pub fn of(ended: Ended) -> Trap {
        match ended {
            Ended::Rule(reason) => Trap::new(&reason),
            other => Trap::stop(other),
        }
    }

    /// What the call ended with.
    pub fn ended(self) -> Ended {
        self.ended.unwrap_or(Ended::Rule(self.reason))
    }
}
