//! wasi:http/types and the refusing side of outgoing-handler: what `runtime/wasi/http_types.py` and its neighbours do.
//!
//! The engine serves no app that may reach another host, so a request outward is denied, and no answer to one exists.

use crate::capi::{Arg, Args};
use crate::guest::Guest;
use crate::host::{type_id, Start};
use crate::resources::{forbidden, is_token, ErrorCode, FieldError, Fields, OutBody, OutRequest, Resource};
use crate::streams::wrong;
use crate::value::{Trap, Value};
use std::cell::RefCell;
use std::rc::Rc;

const TYPES: &str = "wasi:http/types";

pub const FUNCTIONS: &[(&str, &str, Start)] = &[
    (TYPES, "http-error-code", Start::Now(http_error_code)),
    (TYPES, "[constructor]fields", Start::Now(new_fields)),
    (TYPES, "[static]fields.from-list", Start::Now(fields_from_list)),
    (TYPES, "[method]fields.get", Start::Now(fields_get)),
    (TYPES, "[method]fields.has", Start::Now(fields_has)),
    (TYPES, "[method]fields.set", Start::Now(fields_set)),
    (TYPES, "[method]fields.delete", Start::Now(fields_delete)),
    (TYPES, "[method]fields.append", Start::Now(fields_append)),
    (TYPES, "[method]fields.entries", Start::Now(fields_entries)),
    (TYPES, "[method]fields.clone", Start::Now(fields_clone)),
    (TYPES, "[method]incoming-request.method", Start::Now(method)),
    (TYPES, "[method]incoming-request.path-with-query", Start::Now(path)),
    (TYPES, "[method]incoming-request.scheme", Start::Now(scheme)),
    (TYPES, "[method]incoming-request.authority", Start::Now(authority)),
    (TYPES, "[method]incoming-request.headers", Start::Now(headers)),
    (TYPES, "[method]incoming-request.consume", Start::Now(consume)),
    (TYPES, "[method]incoming-body.stream", Start::Now(body_stream)),
    (TYPES, "[static]incoming-body.finish", Start::Now(finish_incoming)),
    (TYPES, "[method]future-trailers.subscribe", Start::Now(subscribe_trailers)),
    (TYPES, "[method]future-trailers.get", Start::Now(get_trailers)),
    (TYPES, "[static]response-outparam.set", Start::Now(outparam_set)),
    (TYPES, "[method]response-outparam.send-informational", Start::Now(send_informational)),
    (TYPES, "[constructor]outgoing-response", Start::Now(new_response)),
    (TYPES, "[method]outgoing-response.status-code", Start::Now(status_code)),
    (TYPES, "[method]outgoing-response.set-status-code", Start::Now(set_status_code)),
    (TYPES, "[method]outgoing-response.headers", Start::Now(outgoing_headers)),
    (TYPES, "[method]outgoing-response.body", Start::Now(make_body)),
    (TYPES, "[method]outgoing-body.write", Start::Now(body_write)),
    (TYPES, "[static]outgoing-body.finish", Start::Now(finish_outgoing)),
    (TYPES, "[constructor]outgoing-request", Start::Now(new_request)),
    (TYPES, "[method]outgoing-request.method", Start::Now(get_method)),
    (TYPES, "[method]outgoing-request.set-method", Start::Now(set_method)),
    (TYPES, "[method]outgoing-request.path-with-query", Start::Now(get_path)),
    (TYPES, "[method]outgoing-request.set-path-with-query", Start::Now(set_path)),
    (TYPES, "[method]outgoing-request.scheme", Start::Now(get_scheme)),
    (TYPES, "[method]outgoing-request.set-scheme", Start::Now(set_scheme)),
    (TYPES, "[method]outgoing-request.authority", Start::Now(get_authority)),
    (TYPES, "[method]outgoing-request.set-authority", Start::Now(set_authority)),
    (TYPES, "[method]outgoing-request.headers", Start::Now(outgoing_headers)),
    (TYPES, "[method]outgoing-request.body", Start::Now(make_body)),
    (TYPES, "[constructor]request-options", Start::Now(new_options)),
    (TYPES, "[method]request-options.connect-timeout", Start::Now(|g, a| get_option(g, a, 0))),
    (TYPES, "[method]request-options.first-byte-timeout", Start::Now(|g, a| get_option(g, a, 1))),
    (TYPES, "[method]request-options.between-bytes-timeout", Start::Now(|g, a| get_option(g, a, 2))),
    (TYPES, "[method]request-options.set-connect-timeout", Start::Now(|g, a| set_option(g, a, 0))),
    (TYPES, "[method]request-options.set-first-byte-timeout", Start::Now(|g, a| set_option(g, a, 1))),
    (TYPES, "[method]request-options.set-between-bytes-timeout", Start::Now(|g, a| set_option(g, a, 2))),
    (TYPES, "[method]incoming-response.status", Start::Now(no_answer)),
    (TYPES, "[method]incoming-response.headers", Start::Now(no_answer)),
    (TYPES, "[method]incoming-response.consume", Start::Now(no_answer)),
    (TYPES, "[method]future-incoming-response.subscribe", Start::Now(no_answer)),
    (TYPES, "[method]future-incoming-response.get", Start::Now(no_answer)),
    ("wasi:http/outgoing-handler", "handle", Start::Now(outgoing)),
];

fn refused() -> Value {
    Value::Err(None)
}

fn done() -> Value {
    Value::Ok(None)
}

fn result(outcome: Result<(), FieldError>) -> Value {
    outcome.map_or_else(FieldError::value, |()| done())
}

fn http_error_code(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    match guest.borrow(args.at(0)?.rep()?)? {
        Resource::IoError { code, .. } => Ok(Value::Option(code.as_ref().map(|code| Box::new(code.value())))),
        _ => Err(wrong()),
    }
}

// --- fields -----------------------------------------------------------------------------------------------------------

fn give_fields(guest: &mut Guest, fields: Fields) -> Result<Value, Trap> {
    Ok(Value::Own(guest.give(Resource::Fields(fields), 0)?, type_id("fields")))
}

fn fields<'g>(guest: &'g mut Guest, arg: Arg<'_>) -> Result<&'g mut Fields, Trap> {
    match guest.borrow(arg.rep()?)? {
        Resource::Fields(fields) => Ok(fields),
        _ => Err(wrong()),
    }
}

fn take_fields(guest: &mut Guest, arg: Arg<'_>) -> Result<Fields, Trap> {
    match guest.take(arg.rep()?)? {
        Resource::Fields(fields) => Ok(fields),
        _ => Err(wrong()),
    }
}

fn new_fields(guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    give_fields(guest, Fields::default())
}

fn fields_from_list(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let mut fields = Fields::default();
    for pair in args.at(0)?.elements()? {
        let mut parts = pair.elements()?;
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { return Err(wrong()) };
        if let Err(error) = fields.add(name.text()?, value.bytes()?) {
            return Ok(error.value());
        }
    }
    Ok(Value::ok(give_fields(guest, fields)?))
}

fn lowered(arg: Arg<'_>) -> Result<String, Trap> {
    Ok(arg.string()?.to_lowercase())
}

fn fields_get(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let name = lowered(args.at(1)?)?;
    let found = fields(guest, args.at(0)?)?.entries.iter().filter(|(key, _)| *key == name);
    Ok(Value::List(found.map(|(_, value)| Value::Bytes(value.clone())).collect()))
}

fn fields_has(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let name = lowered(args.at(1)?)?;
    Ok(Value::Bool(fields(guest, args.at(0)?)?.entries.iter().any(|(key, _)| *key == name)))
}

fn fields_set(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let values = args.at(2)?.elements()?.map(|value| value.bytes()).collect::<Result<Vec<_>, _>>()?;
    Ok(result(fields(guest, args.at(0)?)?.set(args.at(1)?.text()?, values)))
}

fn fields_delete(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    Ok(result(fields(guest, args.at(0)?)?.delete(args.at(1)?.text()?)))
}

fn fields_append(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    Ok(result(fields(guest, args.at(0)?)?.add(args.at(1)?.text()?, args.at(2)?.bytes()?)))
}

fn fields_entries(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let entries = fields(guest, args.at(0)?)?.entries.iter();
    Ok(Value::List(
        entries.map(|(name, value)| Value::Tuple(vec![Value::text(name), Value::Bytes(value.clone())])).collect(),
    ))
}

fn fields_clone(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let entries = fields(guest, args.at(0)?)?.entries.clone();
    give_fields(guest, Fields::of(entries, false))
}

// --- the request ------------------------------------------------------------------------------------------------------

fn request(guest: &mut Guest, arg: Arg<'_>) -> Result<Rc<crate::guest::Request>, Trap> {
    match guest.borrow(arg.rep()?)? {
        Resource::IncomingRequest { request, .. } => Ok(request.clone()),
        _ => Err(wrong()),
    }
}

const METHODS: [(&str, &str); 9] = [
    ("GET", "get"), ("HEAD", "head"), ("POST", "post"), ("PUT", "put"), ("DELETE", "delete"), ("CONNECT", "connect"),
    ("OPTIONS", "options"), ("TRACE", "trace"), ("PATCH", "patch"),
];

fn method(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let request = request(guest, args.at(0)?)?;
    Ok(match METHODS.iter().find(|(name, _)| *name == request.method) {
        Some((_, case)) => Value::case(case),
        None => Value::Variant("other", Some(Box::new(Value::text(&request.method)))),
    })
}

fn path(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::some(Value::text(&request(guest, args.at(0)?)?.target)))
}

fn scheme(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    request(guest, args.at(0)?)?;
    Ok(Value::some(Value::case("HTTP")))
}

fn authority(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::some(Value::text(&request(guest, args.at(0)?)?.authority)))
}

fn headers(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let request = request(guest, args.at(0)?)?;
    let entries = request.fields.iter().filter(|(name, _)| !forbidden(name)).cloned().collect();
    give_fields(guest, Fields::of(entries, true))
}

fn consume(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let body = match guest.borrow(args.at(0)?.rep()?)? {
        Resource::IncomingRequest { consumed: true, .. } => return Ok(refused()),
        Resource::IncomingRequest { request, consumed } => {
            *consumed = true;
            request.body.clone()
        }
        _ => return Err(wrong()),
    };
    let given = guest.give(Resource::IncomingBody { body, streamed: false }, 0)?;
    Ok(Value::ok(Value::Own(given, type_id("incoming-body"))))
}

fn body_stream(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let rep = args.at(0)?.rep()?;
    let body = match guest.borrow(rep)? {
        Resource::IncomingBody { streamed: true, .. } => return Ok(refused()),
        Resource::IncomingBody { body, streamed } => {
            *streamed = true;
            body.clone()
        }
        _ => return Err(wrong()),
    };
    Ok(Value::ok(Value::Own(guest.give(Resource::BodyInput { body }, rep)?, type_id("input-stream"))))
}

fn finish_incoming(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    match guest.take(args.at(0)?.rep()?)? {
        Resource::IncomingBody { .. } => {}
        _ => return Err(wrong()),
    }
    Ok(Value::Own(guest.give(Resource::FutureTrailers { taken: false }, 0)?, type_id("future-trailers")))
}

fn subscribe_trailers(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let rep = args.at(0)?.rep()?;
    Ok(Value::Own(guest.give(Resource::AlwaysReady, rep)?, type_id("pollable")))
}

fn get_trailers(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    match guest.borrow(args.at(0)?.rep()?)? {
        Resource::FutureTrailers { taken } => {
            let again = std::mem::replace(taken, true);
            Ok(Value::some(if again { refused() } else { Value::ok(Value::ok(Value::Option(None))) }))
        }
        _ => Err(wrong()),
    }
}

// --- the answer -------------------------------------------------------------------------------------------------------

/// A status of a guest that a service's absence turns into the other one.
const FAILED: u16 = 500;
const UNAVAILABLE: u16 = 503;

fn outparam_set(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let writer = match guest.take(args.at(0)?.rep()?)? {
        Resource::ResponseOutparam(writer) => writer,
        _ => return Err(wrong()),
    };
    let answer = args.at(1)?.result()?;
    {
        let writer = writer.borrow();
        if writer.started || writer.refusal.is_some() {
            return Err(Trap::new("response-outparam.set twice for one request"));
        }
    }
    let given = match answer {
        Err(code) => {
            let (case, _) = code.ok_or_else(wrong)?.variant()?;
            writer.borrow_mut().refusal = Some(String::from_utf8_lossy(case).into_owned());
            return Ok(Value::Nothing);
        }
        Ok(given) => guest.take(given.ok_or_else(wrong)?.rep()?)?,
    };
    let Resource::OutgoingResponse { status, fields, body } = given else { return Err(wrong()) };
    let grants = guest.grants.clone();
    if fields.entries.len() > grants.response_fields_max || fields.size > grants.response_fields_max_bytes {
        writer.borrow_mut().refusal = Some("HTTP-response-header-section-size".to_owned());
        return Ok(Value::Nothing);
    }
    {
        let mut writer = writer.borrow_mut();
        let (mut status, mut entries) = (status, fields.entries);
        if let (FAILED, Some(away_s)) = (status, writer.away_s) {
            status = UNAVAILABLE;
            entries.retain(|(name, _)| name != "retry-after");
            entries.push(("retry-after".to_owned(), away_s.to_string().into_bytes()));
        }
        writer.head = Some((status, entries));
        writer.started = true;
        writer.complete = body.is_none();
    }
    if let Some(body) = body {
        body.borrow_mut().bind(writer);
        guest.answer_body = Some(body);
    }
    Ok(Value::Nothing)
}

fn send_informational(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    guest.borrow(args.at(0)?.rep()?)?;
    take_fields(guest, args.at(2)?)?;
    let text = Value::some(Value::text("informational responses are not supported"));
    Ok(Value::err(Value::Variant("internal-error", Some(Box::new(text)))))
}

fn new_response(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let mut fields = take_fields(guest, args.at(0)?)?;
    fields.immutable = true;
    let response = Resource::OutgoingResponse { status: 200, fields, body: None };
    Ok(Value::Own(guest.give(response, 0)?, type_id("outgoing-response")))
}

fn status_code(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    match guest.borrow(args.at(0)?.rep()?)? {
        Resource::OutgoingResponse { status, .. } => Ok(Value::U16(*status)),
        _ => Err(wrong()),
    }
}

fn set_status_code(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let wanted = args.at(1)?.u16()?;
    match guest.borrow(args.at(0)?.rep()?)? {
        Resource::OutgoingResponse { status, .. } => {
            if !(100..=999).contains(&wanted) {
                return Ok(refused());
            }
            *status = wanted;
            Ok(done())
        }
        _ => Err(wrong()),
    }
}

fn outgoing_headers(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let entries = match guest.borrow(args.at(0)?.rep()?)? {
        Resource::OutgoingResponse { fields, .. } => fields.entries.clone(),
        Resource::OutgoingRequest(request) => request.fields.entries.clone(),
        _ => return Err(wrong()),
    };
    give_fields(guest, Fields::of(entries, true))
}

fn make_body(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let (slot, fields, of_request) = match guest.borrow(args.at(0)?.rep()?)? {
        Resource::OutgoingResponse { body, fields, .. } => (body, fields, false),
        Resource::OutgoingRequest(request) => (&mut request.body, &mut request.fields, true),
        _ => return Err(wrong()),
    };
    if slot.is_some() {
        return Ok(refused());
    }
    let Ok(expected) = fields.content_length() else { return Ok(refused()) };
    let body = Rc::new(RefCell::new(OutBody::new(of_request, expected)));
    *slot = Some(body.clone());
    Ok(Value::ok(Value::Own(guest.give(Resource::OutgoingBody(body), 0)?, type_id("outgoing-body"))))
}

fn body_write(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let rep = args.at(0)?.rep()?;
    let body = match guest.borrow(rep)? {
        Resource::OutgoingBody(body) => body.clone(),
        _ => return Err(wrong()),
    };
    if std::mem::replace(&mut body.borrow_mut().streamed, true) {
        return Ok(refused());
    }
    Ok(Value::ok(Value::Own(guest.give(Resource::BodyOutput { body, allowed: 0 }, rep)?, type_id("output-stream"))))
}

fn finish_outgoing(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let body = match guest.take(args.at(0)?.rep()?)? {
        Resource::OutgoingBody(body) => body,
        _ => return Err(wrong()),
    };
    let trailers = match args.at(1)?.option()? {
        Some(fields) => take_fields(guest, fields)?.entries,
        None => Vec::new(),
    };
    let finished = body.borrow_mut().finish(trailers);
    Ok(finished.map_or_else(|code| Value::err(code.value()), |()| done()))
}

// --- requests that no app of this engine may send ---------------------------------------------------------------------

fn outward(guest: &mut Guest, rep: u32) -> Result<&mut OutRequest, Trap> {
    match guest.borrow(rep)? {
        Resource::OutgoingRequest(request) => Ok(request),
        _ => Err(wrong()),
    }
}

fn new_request(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let mut fields = take_fields(guest, args.at(0)?)?;
    fields.immutable = true;
    let request = OutRequest { method: ("get".to_owned(), None), fields, ..OutRequest::default() };
    Ok(Value::Own(guest.give(Resource::OutgoingRequest(Box::new(request)), 0)?, type_id("outgoing-request")))
}

type Case = (String, Option<String>);

/// A method or a scheme, by its case, with the text of `other`.
fn case_of(arg: Arg<'_>) -> Result<Case, Trap> {
    let (case, payload) = arg.variant()?;
    let text = payload.map(|text| text.string()).transpose()?;
    Ok((String::from_utf8_lossy(case).into_owned(), text))
}

fn case_value(case: &Case, known: &[&'static str]) -> Result<Value, Trap> {
    let name = known.iter().find(|name| **name == case.0).ok_or_else(wrong)?;
    Ok(Value::Variant(name, case.1.as_ref().map(|text| Box::new(Value::text(text)))))
}

fn get_method(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let known = ["get", "head", "post", "put", "delete", "connect", "options", "trace", "patch", "other"];
    case_value(&outward(guest, args.at(0)?.rep()?)?.method, &known)
}

fn set_method(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let case = case_of(args.at(1)?)?;
    let request = outward(guest, args.at(0)?.rep()?)?;
    if case.1.as_ref().is_some_and(|name| !is_token(name.as_bytes())) {
        return Ok(refused());
    }
    request.method = case;
    Ok(done())
}

fn text_option(text: Option<&String>) -> Value {
    Value::Option(text.map(|text| Box::new(Value::text(text))))
}

fn option_text(arg: Arg<'_>) -> Result<Option<String>, Trap> {
    arg.option()?.map(|text| text.string()).transpose()
}

fn get_path(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    Ok(text_option(outward(guest, args.at(0)?.rep()?)?.path.as_ref()))
}

fn set_path(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let path = option_text(args.at(1)?)?;
    let request = outward(guest, args.at(0)?.rep()?)?;
    let bad = |byte: u8| !matches!(byte, b'!' | b'"' | b'$'..=b'~');
    if path.as_ref().is_some_and(|path| path.bytes().any(bad)) {
        return Ok(refused());
    }
    request.path = path;
    Ok(done())
}

fn get_scheme(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let scheme = outward(guest, args.at(0)?.rep()?)?.scheme.clone();
    let value = scheme.map(|case| case_value(&case, &["HTTP", "HTTPS", "other"])).transpose()?;
    Ok(Value::Option(value.map(Box::new)))
}

fn set_scheme(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let scheme = args.at(1)?.option()?.map(case_of).transpose()?;
    let request = outward(guest, args.at(0)?.rep()?)?;
    let bad = |name: &String| {
        !name.starts_with(|first: char| first.is_ascii_alphabetic())
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    if scheme.as_ref().and_then(|case| case.1.as_ref()).is_some_and(bad) {
        return Ok(refused());
    }
    request.scheme = scheme;
    Ok(done())
}

fn get_authority(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    Ok(text_option(outward(guest, args.at(0)?.rep()?)?.authority.as_ref()))
}

fn set_authority(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let authority = option_text(args.at(1)?)?;
    let request = outward(guest, args.at(0)?.rep()?)?;
    if authority.as_ref().is_some_and(|text| !is_authority(text)) {
        return Ok(refused());
    }
    request.authority = authority;
    Ok(done())
}

/// user information (no white space nor @/?#\), then a host in brackets or a name, then a port.
fn is_authority(text: &str) -> bool {
    let rest = match text.split_once('@') {
        Some((user, rest)) => {
            if user.is_empty() || user.contains(|c: char| c.is_whitespace() || "/?#\\".contains(c)) {
                return false;
            }
            rest
        }
        None => text,
    };
    let (host, port) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((inner, after)) => {
            if inner.is_empty() || !inner.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte)) {
                return false;
            }
            (inner, after)
        }
        None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte) || byte == b':';
    let sound = !host.is_empty() && host.bytes().all(named);
    let digits = port.strip_prefix(':');
    let numbered = digits.is_some_and(|digits| {
        (1..=5).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && digits.parse::<u32>().is_ok_and(|port| port <= 65_535)
    });
    sound && (port.is_empty() || numbered)
}

fn new_options(guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::Own(guest.give(Resource::RequestOptions([None; 3]), 0)?, type_id("request-options")))
}

fn get_option(guest: &mut Guest, args: &Args<'_>, index: usize) -> Result<Value, Trap> {
    match guest.borrow(args.at(0)?.rep()?)? {
        Resource::RequestOptions(options) => Ok(Value::Option(options[index].map(|ns| Box::new(Value::U64(ns))))),
        _ => Err(wrong()),
    }
}

fn set_option(guest: &mut Guest, args: &Args<'_>, index: usize) -> Result<Value, Trap> {
    let duration = args.at(1)?.option()?.map(|ns| ns.u64()).transpose()?;
    match guest.borrow(args.at(0)?.rep()?)? {
        Resource::RequestOptions(options) => options[index] = duration,
        _ => return Err(wrong()),
    }
    Ok(done())
}

fn no_answer(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Err(Trap::new("an answer from another host was asked for, and none can exist"))
}

fn outgoing(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let Resource::OutgoingRequest(request) = guest.take(args.at(0)?.rep()?)? else { return Err(wrong()) };
    if let Some(options) = args.at(1)?.option()? {
        guest.take(options.rep()?)?;
    }
    let case = match request.scheme.as_ref().map(|scheme| scheme.0.as_str()) {
        Some("other") => "HTTP-protocol-error",
        _ if !request.authority.as_deref().is_some_and(is_destination) => "HTTP-request-URI-invalid",
        _ => "HTTP-request-denied",
    };
    Ok(Value::err(ErrorCode { case, size: None }.value()))
}

/// Whether an authority names a host and a port to connect to (`outbound/destinations.py`).
fn is_destination(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((inner, after)) => (inner, after),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    let port = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().unwrap_or(0),
        None => u16::from(port.is_empty()),
    };
    !host.trim_end_matches('.').is_empty() && host.bytes().all(named) && port > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_hosts_with_ports() {
        for good in ["a.b", "a:80", "[::1]:8080", "user:x@host", "a%20b"] {
            assert!(is_authority(good), "{good}");
        }
        for bad in ["", "a b", "a:99999", "a:", "[::1", "a/b", "@a", "[::1]x"] {
            assert!(!is_authority(bad), "{bad}");
        }
    }

    #[test]
    fn destinations_have_a_host_and_a_port() {
        assert!(is_destination("a.b") && is_destination("a.b:1") && is_destination("[::1]:1"));
        assert!(!is_destination("a.b:0") && !is_destination("...") && !is_destination("a b") && !is_destination("a:x"));
    }
}
