//! What guests hold handles to, and the two ends of an answer: the guest writes it, the loop takes it.
//!
//! The native twin of `http_fields.py`, `http_body.py` and `exchange.py`; the same limits, names and orders of checks.

use crate::guest::RequestBody;
use crate::value::Value;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

pub const FIELDS_MAX: usize = 1_024;
pub const FIELDS_MAX_BYTES: usize = 128 * 1024;
/// Bytes of a body whose head has not been sent yet.
pub const UNBOUND_MAX_BYTES: usize = 64 * 1024;
/// Answer bytes held for a slow client; above it the guest's stream gives no permit.
pub const RESPONSE_BUFFER_MAX_BYTES: usize = 256 * 1024;

pub type FieldList = Vec<(String, Vec<u8>)>;

/// A `wasi:http` error-code: its case, and the size some of them carry.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorCode {
    pub case: &'static str,
    pub size: Option<u64>,
}

impl ErrorCode {
    pub fn value(&self) -> Value {
        match self.size {
            None => Value::case(self.case),
            Some(size) => Value::Variant(self.case, Some(Box::new(Value::some(Value::U64(size))))),
        }
    }
}

/// What is wrong with a field, as a `header-error`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FieldError {
    Syntax,
    Forbidden,
    Immutable,
}

impl FieldError {
    pub fn value(self) -> Value {
        Value::err(Value::case(match self {
            FieldError::Syntax => "invalid-syntax",
            FieldError::Forbidden => "forbidden",
            FieldError::Immutable => "immutable",
        }))
    }
}

/// An ordered multimap of lower-case names.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Fields {
    pub entries: FieldList,
    pub immutable: bool,
    pub size: usize,
}

pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn is_value(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f))
}

/// Fields of the connection, not of the message.
pub fn forbidden(name: &str) -> bool {
    matches!(
        name,
        "connection" | "host" | "http2-settings" | "keep-alive" | "proxy-authenticate" | "proxy-authorization"
            | "proxy-connection" | "transfer-encoding" | "upgrade"
    )
}

/// A name in lower case, or what is wrong with it.
pub fn checked_name(name: &[u8]) -> Result<String, FieldError> {
    if !is_token(name) {
        return Err(FieldError::Syntax);
    }
    let lowered = String::from_utf8_lossy(name).to_ascii_lowercase();
    if forbidden(&lowered) { Err(FieldError::Forbidden) } else { Ok(lowered) }
}

impl Fields {
    pub fn of(entries: FieldList, immutable: bool) -> Fields {
        let size = entries.iter().map(|(name, value)| name.len() + value.len()).sum();
        Fields { entries, immutable, size }
    }

    pub fn add(&mut self, name: &[u8], value: Vec<u8>) -> Result<(), FieldError> {
        let lowered = checked_name(name)?;
        if !is_value(&value) {
            return Err(FieldError::Syntax);
        }
        if self.immutable {
            return Err(FieldError::Immutable);
        }
        let size = self.size + name.len() + value.len();
        if size > FIELDS_MAX_BYTES || self.entries.len() >= FIELDS_MAX {
            return Err(FieldError::Syntax); // `header-error` has no case for size in 0.2
        }
        self.size = size;
        self.entries.push((lowered, value));
        Ok(())
    }

    pub fn remove(&mut self, name: &str) {
        self.entries.retain(|(key, _)| key != name);
        self.size = self.entries.iter().map(|(name, value)| name.len() + value.len()).sum();
    }

    pub fn set(&mut self, name: &[u8], values: Vec<Vec<u8>>) -> Result<(), FieldError> {
        let lowered = checked_name(name)?;
        if !values.iter().all(|value| is_value(value)) {
            return Err(FieldError::Syntax);
        }
        if self.immutable {
            return Err(FieldError::Immutable);
        }
        self.remove(&lowered);
        values.into_iter().try_for_each(|value| self.add(lowered.as_bytes(), value))
    }

    pub fn delete(&mut self, name: &[u8]) -> Result<(), FieldError> {
        let lowered = checked_name(name)?;
        if self.immutable {
            return Err(FieldError::Immutable);
        }
        self.remove(&lowered);
        Ok(())
    }

    /// The declared length, None if there is none; an error where it is no number, or differs.
    pub fn content_length(&self) -> Result<Option<u64>, ()> {
        let mut found: Option<&[u8]> = None;
        for (_, value) in self.entries.iter().filter(|(name, _)| name == "content-length") {
            let value = value.trim_ascii();
            if found.is_some_and(|other| other != value) {
                return Err(());
            }
            found = Some(value);
        }
        let Some(digits) = found else { return Ok(None) };
        if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
            return Err(());
        }
        std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).map(Some).ok_or(())
    }
}

/// What the guest has answered so far and the loop has not taken.
#[derive(Default)]
pub struct ResponseWriter {
    pub head: Option<(u16, FieldList)>,
    pub data: Vec<u8>,
    pub trailers: FieldList,
    pub refusal: Option<String>,
    /// A service that the guest needed was away: when to try again. What fails then is answered with 503.
    pub away_s: Option<u32>,
    pub started: bool,
    pub complete: bool,
    pub closed: bool,
}

impl ResponseWriter {
    pub fn permit(&self) -> usize {
        RESPONSE_BUFFER_MAX_BYTES.saturating_sub(self.data.len())
    }
}

/// A body the guest writes: into itself until `bind`, then straight into the writer.
#[derive(Default)]
pub struct OutBody {
    pub of_request: bool,
    pub expected: Option<u64>,
    pub written: u64,
    pub streamed: bool,
    pending: Vec<u8>,
    writer: Option<Rc<RefCell<ResponseWriter>>>,
    trailers: FieldList,
    finished: bool,
    aborted: bool,
}

impl OutBody {
    pub fn new(of_request: bool, expected: Option<u64>) -> OutBody {
        OutBody { of_request, expected, ..OutBody::default() }
    }

    pub fn open(&self) -> bool {
        !(self.finished || self.aborted)
    }

    fn refused(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.borrow().closed)
    }

    pub fn bind(&mut self, writer: Rc<RefCell<ResponseWriter>>) {
        {
            let mut to = writer.borrow_mut();
            to.data.append(&mut self.pending);
            if self.finished {
                to.trailers = std::mem::take(&mut self.trailers);
                to.complete = true;
            }
        }
        self.writer = Some(writer);
    }

    /// How many bytes fit now; None once it was given up.
    pub fn permit(&self) -> Option<usize> {
        if !self.open() || self.refused() {
            return None;
        }
        Some(match &self.writer {
            Some(writer) => writer.borrow().permit(),
            None => UNBOUND_MAX_BYTES.saturating_sub(self.pending.len()),
        })
    }

    pub fn put(&mut self, data: &[u8]) -> Result<(), ErrorCode> {
        self.written += data.len() as u64;
        if self.expected.is_some_and(|expected| self.written > expected) {
            self.abort();
            return Err(self.size_error());
        }
        match &self.writer {
            Some(writer) => writer.borrow_mut().data.extend_from_slice(data),
            None => self.pending.extend_from_slice(data),
        }
        Ok(())
    }

    /// End the body; an error code if its length is not the declared one.
    pub fn finish(&mut self, trailers: FieldList) -> Result<(), ErrorCode> {
        if self.expected.is_some_and(|expected| self.written != expected) {
            self.abort();
            return Err(self.size_error());
        }
        self.finished = true;
        match &self.writer {
            Some(writer) => {
                let mut to = writer.borrow_mut();
                to.trailers = trailers;
                to.complete = true;
            }
            None => self.trailers = trailers,
        }
        Ok(())
    }

    /// The handler returned and still held the body: it ends here; whether it ended well.
    pub fn left(&mut self) -> bool {
        self.open() && self.finish(Vec::new()).is_ok()
    }

    pub fn abort(&mut self) {
        if self.open() {
            self.aborted = true;
        }
    }

    fn size_error(&self) -> ErrorCode {
        let case = if self.of_request { "HTTP-request-body-size" } else { "HTTP-response-body-size" };
        ErrorCode { case, size: Some(self.written) }
    }
}

/// A request that a guest makes; none leaves, since the engine serves no app that may send one.
#[derive(Default)]
pub struct OutRequest {
    pub method: (String, Option<String>),
    pub scheme: Option<(String, Option<String>)>,
    pub authority: Option<String>,
    pub path: Option<String>,
    pub fields: Fields,
    pub body: Option<Rc<RefCell<OutBody>>>,
}

/// A host object.
pub enum Resource {
    Fields(Fields),
    IncomingRequest { request: Rc<crate::guest::Request>, consumed: bool },
    IncomingBody { body: Rc<RefCell<RequestBody>>, streamed: bool },
    BodyInput { body: Rc<RefCell<RequestBody>> },
    EmptyInput,
    FutureTrailers { taken: bool },
    ResponseOutparam(Rc<RefCell<ResponseWriter>>),
    OutgoingResponse { status: u16, fields: Fields, body: Option<Rc<RefCell<OutBody>>> },
    OutgoingRequest(Box<OutRequest>),
    RequestOptions([Option<u64>; 3]),
    OutgoingBody(Rc<RefCell<OutBody>>),
    BodyOutput { body: Rc<RefCell<OutBody>>, allowed: usize },
    LogOutput { stderr: bool, allowed: usize },
    IoError { text: String, code: Option<ErrorCode> },
    AlwaysReady,
    Timer(Option<Instant>),
    /// An output stream, its parent, has a permit or a failure to give.
    OutputReady,
    Network,
    /// An object that Python holds, by its number there.
    Lent(u32),
}

impl Resource {
    pub fn name(&self) -> &'static str {
        match self {
            Resource::Fields(_) => "fields",
            Resource::IncomingRequest { .. } => "incoming-request",
            Resource::IncomingBody { .. } => "incoming-body",
            Resource::BodyInput { .. } | Resource::EmptyInput => "input-stream",
            Resource::FutureTrailers { .. } => "future-trailers",
            Resource::ResponseOutparam(_) => "response-outparam",
            Resource::OutgoingResponse { .. } => "outgoing-response",
            Resource::OutgoingRequest(_) => "outgoing-request",
            Resource::RequestOptions(_) => "request-options",
            Resource::OutgoingBody(_) => "outgoing-body",
            Resource::BodyOutput { .. } | Resource::LogOutput { .. } => "output-stream",
            Resource::IoError { .. } => "error",
            Resource::AlwaysReady | Resource::Timer(_) | Resource::OutputReady => "pollable",
            Resource::Network => "network",
            Resource::Lent(_) => "resource",
        }
    }

    /// The guest let go of its last handle.
    pub fn dropped(&mut self) {
        if let Resource::OutgoingBody(body) = self {
            body.borrow_mut().abort(); // dropped instead of finished: incomplete
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_checked_before_they_are_kept() {
        let mut fields = Fields::default();
        assert_eq!(fields.add(b"X-One", b"1".to_vec()), Ok(()));
        assert_eq!(fields.entries, vec![("x-one".to_owned(), b"1".to_vec())]);
        assert_eq!(fields.add(b"bad name", b"1".to_vec()), Err(FieldError::Syntax));
        assert_eq!(fields.add(b"Connection", b"close".to_vec()), Err(FieldError::Forbidden));
        assert_eq!(fields.add(b"x", b"a\r\nb: c".to_vec()), Err(FieldError::Syntax));
        assert_eq!(fields.add(b"x", vec![0]), Err(FieldError::Syntax));
        fields.immutable = true;
        assert_eq!(fields.add(b"x", b"1".to_vec()), Err(FieldError::Immutable));
        assert_eq!(fields.set(b"x-one", vec![]), Err(FieldError::Immutable));
    }

    #[test]
    fn fields_are_bounded() {
        let mut fields = Fields::default();
        assert_eq!(fields.add(b"a", vec![b'x'; FIELDS_MAX_BYTES]), Err(FieldError::Syntax));
        for _ in 0..FIELDS_MAX {
            fields.add(b"a", vec![]).unwrap();
        }
        assert_eq!(fields.add(b"a", vec![]), Err(FieldError::Syntax));
    }

    #[test]
    fn one_content_length_is_a_number() {
        let of = |values: &[&str]| {
            let entries = values.iter().map(|value| ("content-length".to_owned(), value.as_bytes().to_vec()));
            Fields::of(entries.collect(), false).content_length()
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[" 5", "5"]), Ok(Some(5)));
        assert_eq!(of(&["5", "6"]), Err(()));
        assert_eq!(of(&["+5"]), Err(()));
        assert_eq!(of(&["99999999999999999999"]), Err(()));
    }

    #[test]
    fn a_body_holds_to_its_declared_length() {
        let mut body = OutBody::new(false, Some(3));
        assert!(body.put(b"ab").is_ok());
        assert!(body.finish(vec![]).is_err());
        assert!(!body.open());
        let mut longer = OutBody::new(false, Some(1));
        assert_eq!(longer.put(b"ab").unwrap_err().size, Some(2));
        assert_eq!(longer.permit(), None);
    }

    #[test]
    fn what_was_written_before_the_head_goes_out_behind_it() {
        let writer = Rc::new(RefCell::new(ResponseWriter::default()));
        let mut body = OutBody::new(false, None);
        body.put(b"early ").unwrap();
        body.bind(writer.clone());
        body.put(b"late").unwrap();
        assert!(!writer.borrow().complete);
        assert!(body.left());
        assert_eq!(writer.borrow().data, b"early late");
        assert!(writer.borrow().complete);
    }
}
