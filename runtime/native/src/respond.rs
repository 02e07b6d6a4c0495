//! The bytes of an answer: status line, fields, framing, trailers, and the node's own problems (`response_head.py`).

use crate::resources::FieldList;
use std::time::{SystemTime, UNIX_EPOCH};

/// How the body goes out. `length` is what was declared (None: unknown), `sent` counts body bytes.
#[derive(Debug)]
pub struct Framing {
    pub chunked: bool,
    pub bodiless: bool,
    pub length: Option<u64>,
    pub keep_alive: bool,
    pub sent: u64,
    pub ended: bool,
}

impl Framing {
    /// Whether the client has all that it was promised.
    pub fn whole(&self) -> bool {
        self.ended || self.bodiless || self.length.is_some_and(|length| self.sent >= length)
    }
}

/// The guest's answer cannot be put on the wire; the reason is for the log.
#[derive(Debug, PartialEq)]
pub struct BadResponse(pub String);

/// Fields a guest may not set: framing, the connection, and what this node says about itself.
fn dropped(name: &str) -> bool {
    matches!(
        name,
        "connection" | "date" | "freehold-release" | "http2-settings" | "keep-alive" | "proxy-authenticate"
            | "proxy-connection" | "te" | "trailer" | "transfer-encoding" | "upgrade" | "x-request-id"
    )
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK", 201 => "Created", 202 => "Accepted", 203 => "Non-Authoritative Information", 204 => "No Content",
        205 => "Reset Content", 206 => "Partial Content", 207 => "Multi-Status", 208 => "Already Reported",
        226 => "IM Used", 300 => "Multiple Choices", 301 => "Moved Permanently", 302 => "Found", 303 => "See Other",
        304 => "Not Modified", 305 => "Use Proxy", 307 => "Temporary Redirect", 308 => "Permanent Redirect",
        400 => "Bad Request", 401 => "Unauthorized", 402 => "Payment Required", 403 => "Forbidden",
        404 => "Not Found", 405 => "Method Not Allowed", 406 => "Not Acceptable",
        407 => "Proxy Authentication Required", 408 => "Request Timeout", 409 => "Conflict", 410 => "Gone",
        411 => "Length Required", 412 => "Precondition Failed", 413 => "Content Too Large", 414 => "URI Too Long",
        415 => "Unsupported Media Type", 416 => "Range Not Satisfiable", 417 => "Expectation Failed",
        418 => "I'm a Teapot", 421 => "Misdirected Request", 422 => "Unprocessable Content", 423 => "Locked",
        424 => "Failed Dependency", 425 => "Too Early", 426 => "Upgrade Required", 428 => "Precondition Required",
        429 => "Too Many Requests", 431 => "Request Header Fields Too Large", 451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error", 501 => "Not Implemented", 502 => "Bad Gateway", 503 => "Service Unavailable",
        504 => "Gateway Timeout", 505 => "HTTP Version Not Supported", 506 => "Variant Also Negotiates",
        507 => "Insufficient Storage", 508 => "Loop Detected", 510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

/// What this node adds to an answer.
pub struct Own<'a> {
    pub date: &'a str,
    pub request_id: &'a str,
    pub release: &'a str,
}

/// What a head depends on beside the guest's fields.
pub struct About {
    pub head_only: bool,
    pub keep_alive: bool,
    /// The body's size where all of it is known.
    pub whole: Option<u64>,
}

fn is_field_value(value: &[u8]) -> bool {
    !value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
}

/// Append the head of an answer to `out`; nothing is appended on an error.
pub fn write_head(
    out: &mut Vec<u8>, status: u16, fields: &FieldList, own: &Own<'_>, about: &About,
) -> Result<Framing, BadResponse> {
    if !(200..=999).contains(&status) {
        return Err(BadResponse(format!("status {status}")));
    }
    let declared = declared_length(fields)?;
    let bodiless = about.head_only || status == 204 || status == 304;
    let mut length = declared;
    if let (Some(whole), false) = (about.whole, bodiless) {
        if declared.is_some_and(|declared| declared != whole) {
            return Err(BadResponse(format!("content-length {}, but {whole} bytes", declared.unwrap_or(0))));
        }
        length = Some(whole);
    }
    let chunked = length.is_none() && !bodiless;
    out.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", reason(status)).as_bytes());
    for (name, value) in fields.iter().filter(|(name, _)| name != "content-length" && !dropped(name)) {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    if chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    } else if let (Some(length), false) = (length, status == 204 || status == 304) {
        out.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
    }
    if !about.keep_alive {
        out.extend_from_slice(b"connection: close\r\n");
    }
    for part in [own.date, "x-request-id: ", own.request_id, "\r\nfreehold-release: ", own.release, "\r\n\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let length = if chunked { None } else { length };
    Ok(Framing { chunked, bodiless, length, keep_alive: about.keep_alive, sent: 0, ended: false })
}

fn declared_length(fields: &FieldList) -> Result<Option<u64>, BadResponse> {
    let mut declared = None;
    for (name, value) in fields {
        if name == "content-length" {
            let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
            let number = digits.then(|| value.iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0')));
            if number.is_none() || declared.is_some_and(|other| Some(other) != number) {
                return Err(BadResponse("content-length is not one number".into()));
            }
            declared = number;
        } else if !dropped(name) && !is_field_value(value) {
            return Err(BadResponse("a field value has a control character".into()));
        }
    }
    Ok(declared)
}

/// Append body bytes as they go on the wire.
pub fn write_body(out: &mut Vec<u8>, framing: &mut Framing, data: &[u8]) -> Result<(), BadResponse> {
    framing.sent += data.len() as u64;
    if framing.bodiless || data.is_empty() {
        return Ok(());
    }
    if framing.chunked {
        out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
        return Ok(());
    }
    if framing.length.is_some_and(|length| framing.sent > length) {
        return Err(BadResponse(format!("more than content-length {}", framing.length.unwrap_or(0))));
    }
    out.extend_from_slice(data);
    Ok(())
}

/// Append what ends the body. No client served here asked for trailers, so none are sent.
pub fn write_end(out: &mut Vec<u8>, framing: &mut Framing) -> Result<(), BadResponse> {
    if framing.chunked {
        out.extend_from_slice(b"0\r\n\r\n");
    } else if let (Some(length), false) = (framing.length, framing.bodiless) {
        if framing.sent != length {
            return Err(BadResponse(format!("{} bytes, but content-length {length}", framing.sent)));
        }
    }
    framing.ended = true;
    Ok(())
}

/// One of the node's own answers, cut where the request's id stands in its body. Made by Python, so that there is one text.
#[derive(Debug, Clone)]
pub struct Problem {
    pub status: u16,
    pub fields: FieldList,
    pub before_id: Vec<u8>,
    pub after_id: Vec<u8>,
}

impl Problem {
    /// Append the whole answer to `out`; return the size of its body.
    pub fn write(&self, out: &mut Vec<u8>, own: &Own<'_>, head_only: bool, keep_alive: bool) -> u64 {
        let size = (self.before_id.len() + own.request_id.len() + self.after_id.len()) as u64;
        let about = About { head_only, keep_alive, whole: Some(size) };
        if write_head(out, self.status, &self.fields, own, &about).is_ok() && !head_only {
            for part in [self.before_id.as_slice(), own.request_id.as_bytes(), self.after_id.as_slice()] {
                out.extend_from_slice(part);
            }
        }
        size
    }
}

/// The `date` field with its line end, made once a second.
#[derive(Default)]
pub struct DateField {
    second: u64,
    field: String,
}

impl DateField {
    pub fn field(&mut self) -> &str {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if second != self.second || self.field.is_empty() {
            self.second = second;
            self.field = date_field(second);
        }
        &self.field
    }
}

/// A Unix time as a `date` field (RFC 9110, 5.6.7).
fn date_field(second: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, rest) = (second / 86_400, second % 86_400);
    // Days to a date of the Gregorian calendar, by eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = (march + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    format!(
        "date: {}, {day:02} {} {year} {:02}:{:02}:{:02} GMT\r\n",
        DAYS[(days % 7) as usize], MONTHS[month as usize], rest / 3600, rest / 60 % 60, rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Own<'_> = Own { date: "date: now\r\n", request_id: "id", release: "r1" };

    fn head(status: u16, fields: &[(&str, &str)], about: &About) -> Result<(String, Framing), BadResponse> {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        let mut out = Vec::new();
        let framing = write_head(&mut out, status, &fields, &OWN, about)?;
        Ok((String::from_utf8(out).unwrap(), framing))
    }

    const KEEP: About = About { head_only: false, keep_alive: true, whole: None };

    #[test]
    fn a_whole_answer_has_a_length_and_an_open_one_is_chunked() {
        let (text, framing) = head(200, &[("x", "1"), ("connection", "x")], &About { whole: Some(5), ..KEEP }).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 200 OK\r\nx: 1\r\ncontent-length: 5\r\ndate: now\r\nx-request-id: id\r\nfreehold-release: r1\r\n\r\n"
        );
        assert!(!framing.chunked && framing.keep_alive);
        let (text, mut framing) = head(299, &[], &About { keep_alive: false, ..KEEP }).unwrap();
        assert!(text.starts_with("HTTP/1.1 299 \r\ntransfer-encoding: chunked\r\nconnection: close\r\n"));
        let mut out = Vec::new();
        write_body(&mut out, &mut framing, b"0123456789abcdef").unwrap();
        write_end(&mut out, &mut framing).unwrap();
        assert_eq!(out, b"10\r\n0123456789abcdef\r\n0\r\n\r\n");
        assert!(framing.whole());
    }

    #[test]
    fn a_guest_cannot_forge_framing() {
        assert!(head(200, &[("x", "a\r\nb: c")], &KEEP).is_err());
        assert!(head(200, &[("content-length", "5"), ("content-length", "6")], &KEEP).is_err());
        assert!(head(200, &[("content-length", "-5")], &KEEP).is_err());
        assert!(head(100, &[], &KEEP).is_err());
        assert!(head(200, &[("content-length", "4")], &About { whole: Some(5), ..KEEP }).is_err());
    }

    #[test]
    fn a_declared_length_is_held_to() {
        let (_, mut framing) = head(200, &[("content-length", "3")], &KEEP).unwrap();
        let mut out = Vec::new();
        assert!(write_body(&mut out, &mut framing, b"ab").is_ok());
        assert!(write_end(&mut out, &mut framing).is_err());
        assert!(write_body(&mut out, &mut framing, b"cd").is_err());
    }

    #[test]
    fn answers_without_a_body_have_none() {
        let (text, framing) = head(204, &[("content-length", "0")], &KEEP).unwrap();
        assert!(!text.contains("content-length") && framing.bodiless && framing.whole());
        let (text, framing) = head(200, &[("content-length", "7")], &About { head_only: true, ..KEEP }).unwrap();
        assert!(text.contains("content-length: 7") && framing.whole());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date_field(0), "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n");
        assert_eq!(date_field(784_111_777), "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
        assert_eq!(date_field(951_782_400), "date: Tue, 29 Feb 2000 00:00:00 GMT\r\n");
        assert_eq!(date_field(4_102_444_799), "date: Thu, 31 Dec 2099 23:59:59 GMT\r\n");
    }
}
