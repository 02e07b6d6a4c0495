//! A request head, read strictly: what is not plainly sound is not judged here but handed over to the Python path.
//!
//! So there is one judge of malformed requests, and what this parser takes, that one takes with the same meaning. It takes HTTP/1.1
//! with an origin-form target, one sound Host, at most a Content-Length, and no field that changes how a connection is read.

use crate::resources::is_token;

/// Limits of one head, from the ingress's settings.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    pub fields: usize,
    pub fields_bytes: usize,
    pub target_bytes: usize,
}

/// A head that was understood.
#[derive(Debug, PartialEq)]
pub struct Head {
    pub method: String,
    pub target: String,
    pub authority: String,
    /// In order, names in lower case; Host and fields of the connection are not among them.
    pub fields: Vec<(String, Vec<u8>)>,
    pub traceparent: Option<Vec<u8>>,
    pub tracestate: Option<Vec<u8>>,
    pub length: usize,
    pub keep_alive: bool,
    /// Bytes of the head, with its empty line.
    pub size: usize,
}

/// What the bytes at the front of a connection are.
#[derive(Debug, PartialEq)]
pub enum Parsed {
    Whole(Box<Head>),
    /// Not whole yet, and so far nothing is wrong with it.
    Partial,
    /// Somebody else must look at it.
    Other,
}

/// More than this without an empty line is not waited for.
const HEAD_MAX_BYTES: usize = 32 * 1024;
/// A longer body is streamed, which the Python path does.
pub const BODY_MAX_BYTES: usize = 64 * 1024;
const FIELDS_ROOM: usize = 100;

const METHODS: [&str; 29] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY", "ACL", "BIND", "CHECKOUT", "COPY",
    "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "PURGE", "REBIND",
    "REPORT", "SEARCH", "UNBIND", "UNLINK", "UNLOCK",
];

/// Read the head at the front of `data`.
pub fn parse(data: &[u8], limits: HeadLimits) -> Parsed {
    if !data.first().is_none_or(u8::is_ascii_uppercase) {
        return Parsed::Other;
    }
    let mut room = [httparse::EMPTY_HEADER; FIELDS_ROOM];
    let mut request = httparse::Request::new(&mut room);
    let size = match request.parse(data) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) if data.len() < HEAD_MAX_BYTES.min(limits.fields_bytes) => return Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(_) => return Parsed::Other,
    };
    if !lines_are_sound(&data[..size]) || request.version != Some(1) || request.headers.len() > limits.fields {
        return Parsed::Other;
    }
    understood(&request, size, limits).map_or(Parsed::Other, |head| Parsed::Whole(Box::new(head)))
}

/// Every line ends with CR LF, and neither stands elsewhere; httparse takes a bare LF.
fn lines_are_sound(head: &[u8]) -> bool {
    let mut previous = 0;
    for byte in head {
        if (*byte == b'\n') != (previous == b'\r') {
            return false;
        }
        previous = *byte;
    }
    head.ends_with(b"\r\n\r\n")
}

fn understood(request: &httparse::Request<'_, '_>, size: usize, limits: HeadLimits) -> Option<Head> {
    let (method, target) = (request.method?, request.path?);
    let printable = target.bytes().all(|byte| (b'!'..=b'~').contains(&byte) && byte != b'#');
    if !METHODS.contains(&method) || !target.starts_with('/') || !printable || target.len() > limits.target_bytes {
        return None;
    }
    let mut head = Head {
        method: method.to_owned(), target: target.to_owned(), authority: String::new(), fields: Vec::new(),
        traceparent: None, tracestate: None, length: 0, keep_alive: true, size,
    };
    let mut bytes = 0;
    let mut seen = [false; 3];
    for field in request.headers.iter() {
        bytes += field.name.len() + field.value.len();
        if !is_token(field.name.as_bytes()) || !value_is_plain(field.value) {
            return None;
        }
        let name = field.name.to_ascii_lowercase();
        let value = field.value;
        match name.as_str() {
            "host" => {
                let host = std::str::from_utf8(value).ok()?;
                if std::mem::replace(&mut seen[0], true) || !is_host(host) {
                    return None;
                }
                host.clone_into(&mut head.authority);
            }
            "content-length" => {
                if std::mem::replace(&mut seen[1], true) || value.is_empty() || value.len() > 9 {
                    return None;
                }
                if !value.iter().all(u8::is_ascii_digit) {
                    return None;
                }
                head.length = std::str::from_utf8(value).ok()?.parse().ok()?;
                head.fields.push((name, value.to_vec()));
            }
            "connection" => {
                if std::mem::replace(&mut seen[2], true) {
                    return None;
                }
                match value.to_ascii_lowercase().as_slice() {
                    b"keep-alive" => {}
                    b"close" => head.keep_alive = false,
                    _ => return None,
                }
            }
            "transfer-encoding" | "te" | "expect" | "upgrade" | "http2-settings" | "trailer" => return None,
            "traceparent" => head.traceparent = Some(value.to_vec()),
            "tracestate" => head.tracestate = Some(value.to_vec()),
            "keep-alive" | "proxy-authenticate" | "proxy-authorization" | "proxy-connection" => {}
            "x-forwarded-for" | "x-forwarded-proto" | "x-request-id" | "forwarded" | "x-forwarded-host"
            | "x-forwarded-port" | "x-real-ip" => {} // believed from listed proxies alone, which are not served here
            _ if name.starts_with("freehold-") => {}
            _ => head.fields.push((name, value.to_vec())),
        }
    }
    let sound = seen[0] && bytes <= limits.fields_bytes && size <= limits.fields_bytes && head.length <= BODY_MAX_BYTES;
    sound.then_some(head)
}

fn value_is_plain(value: &[u8]) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| *byte == b' ' || *byte == b'\t');
    !edge(value.first()) && !edge(value.last()) && value.iter().all(|byte| *byte == b'\t' || (0x20..0x7f).contains(byte))
}

/// A name or an IPv4 address, with a port or without; other authorities are for the other path.
fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && port.is_none_or(|port| (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The trace id, the parent's id and the flags of a W3C `traceparent`, if it is one.
pub fn trace_of(value: &[u8]) -> Option<(&str, &str, &str)> {
    let text = std::str::from_utf8(value).ok()?;
    let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let mut parts = text.splitn(5, '-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let sized = version.len() == 2 && trace.len() == 32 && parent.len() == 16 && flags.len() == 2;
    let sound = sized && [version, trace, parent, flags].into_iter().all(hex) && version != "ff";
    (sound && !zero(trace) && !zero(parent)).then_some((trace, parent, flags))
}

/// Whether the flags of a trace context ("01") say that its head is recorded.
pub fn recorded(flags: &str) -> bool {
    u8::from_str_radix(flags, 16).is_ok_and(|bits| bits & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { fields: 100, fields_bytes: 65536, target_bytes: 8192 };

    fn parsed(text: &str) -> Parsed {
        parse(text.as_bytes(), LIMITS)
    }

    fn whole(text: &str) -> Head {
        match parsed(text) {
            Parsed::Whole(head) => *head,
            other => panic!("{text:?} is {other:?}"),
        }
    }

    #[test]
    fn a_plain_head_is_understood() {
        let head = whole("GET /a?b=1 HTTP/1.1\r\nHost: app.test:80\r\nX-One:  1\r\nconnection: Close\r\n\r\nrest");
        assert_eq!((head.method.as_str(), head.target.as_str()), ("GET", "/a?b=1"));
        assert_eq!((head.authority.as_str(), head.keep_alive, head.length), ("app.test:80", false, 0));
        assert_eq!(head.fields, vec![("x-one".to_owned(), b"1".to_vec())]);
    }

    #[test]
    fn what_came_in_part_is_waited_for() {
        let text = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(parsed(&text[..cut]), Parsed::Partial, "{cut}");
        }
        assert_eq!(whole(text).length, 3);
    }

    #[test]
    fn what_is_not_plain_is_for_the_other_path() {
        for text in [
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx: 1\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /#f HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: x-one\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx : 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx: a\u{e9}\r\n\r\n",
        ] {
            assert_eq!(parsed(text), Parsed::Other, "{text:?}");
        }
    }

    #[test]
    fn limits_hold() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(8192));
        assert_eq!(parsed(&long), Parsed::Other);
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: 1\r\n".repeat(100));
        assert_eq!(parsed(&many), Parsed::Other);
        let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "x".repeat(HEAD_MAX_BYTES));
        assert_eq!(parsed(&endless), Parsed::Other);
    }

    #[test]
    fn fields_of_the_connection_and_of_proxies_stay_outside() {
        let head = whole(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1\r\nfreehold-x: 1\r\nKeep-Alive: 1\r\nX-Request-Id: 1\r\n\r\n",
        );
        assert!(head.fields.is_empty());
    }

    #[test]
    fn a_trace_is_continued_only_if_it_is_one() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        let sound = format!("00-{id}-b7ad6b7169203331-01");
        let found = Some((id, "b7ad6b7169203331", "01"));
        assert_eq!(trace_of(sound.as_bytes()), found);
        assert_eq!(trace_of(format!("{sound}-more").as_bytes()), found);
        for bad in ["", "00-x", &sound.replace("00-", "ff-"), &sound.to_uppercase(), &sound.replace(id, &"0".repeat(32))] {
            assert_eq!(trace_of(bad.as_bytes()), None, "{bad}");
        }
        let flags = ["01", "00", "02", "03", "ff"];
        assert_eq!(flags.map(recorded), [true, false, false, true, true]);
    }
}
