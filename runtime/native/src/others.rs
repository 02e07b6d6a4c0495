//! wasi:cli, clocks, random, config, and the closed interfaces: what `runtime/wasi/` does, and no more.

use crate::capi::Args;
use crate::guest::{Ended, Guest};
use crate::host::{type_id, Start};
use crate::resources::Resource;
use crate::value::{Trap, Value};
use rustix::time::{clock_getres, clock_gettime, ClockId};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const RANDOM_MAX_BYTES: u64 = 1024 * 1024;

const CLI: [&str; 8] = [
    "wasi:cli/environment", "wasi:cli/exit", "wasi:cli/stdin", "wasi:cli/stdout", "wasi:cli/stderr",
    "wasi:cli/terminal-stdin", "wasi:cli/terminal-stdout", "wasi:cli/terminal-stderr",
];

pub const FUNCTIONS: &[(&str, &str, Start)] = &[
    (CLI[0], "get-environment", Start::Now(environment)),
    (CLI[0], "get-arguments", Start::Now(empty_list)),
    (CLI[0], "initial-cwd", Start::Now(none)),
    (CLI[1], "exit", Start::Now(exit)),
    (CLI[1], "exit-with-code", Start::Now(exit_with_code)),
    (CLI[2], "get-stdin", Start::Now(stdin)),
    (CLI[3], "get-stdout", Start::Now(stdout)),
    (CLI[4], "get-stderr", Start::Now(stderr)),
    (CLI[5], "get-terminal-stdin", Start::Now(none)),
    (CLI[6], "get-terminal-stdout", Start::Now(none)),
    (CLI[7], "get-terminal-stderr", Start::Now(none)),
    ("wasi:clocks/monotonic-clock", "now", Start::Now(monotonic_now)),
    ("wasi:clocks/monotonic-clock", "resolution", Start::Now(monotonic_resolution)),
    ("wasi:clocks/monotonic-clock", "subscribe-instant", Start::Now(subscribe_instant)),
    ("wasi:clocks/monotonic-clock", "subscribe-duration", Start::Now(subscribe_duration)),
    ("wasi:clocks/wall-clock", "now", Start::Now(wall_now)),
    ("wasi:clocks/wall-clock", "resolution", Start::Now(wall_resolution)),
    ("wasi:random/random", "get-random-bytes", Start::Now(random_bytes)),
    ("wasi:random/random", "get-random-u64", Start::Now(random_u64)),
    ("wasi:random/insecure", "get-insecure-random-bytes", Start::Now(random_bytes)),
    ("wasi:random/insecure", "get-insecure-random-u64", Start::Now(random_u64)),
    ("wasi:random/insecure-seed", "insecure-seed", Start::Now(seed)),
    ("wasi:config/store", "get", Start::Now(config_get)),
    ("wasi:config/store", "get-all", Start::Now(config_get_all)),
    ("wasi:config/runtime", "get", Start::Now(config_get)),
    ("wasi:config/runtime", "get-all", Start::Now(config_get_all)),
    ("wasi:filesystem/types", "filesystem-error-code", Start::Now(none_of_error)),
    ("wasi:filesystem/preopens", "get-directories", Start::Now(empty_list)),
    ("wasi:sockets/network", "network-error-code", Start::Now(none_of_error)),
    ("wasi:sockets/instance-network", "instance-network", Start::Now(network)),
    ("wasi:sockets/tcp-create-socket", "create-tcp-socket", Start::Now(denied)),
    ("wasi:sockets/udp-create-socket", "create-udp-socket", Start::Now(denied)),
    ("wasi:sockets/ip-name-lookup", "resolve-addresses", Start::Now(denied_lookup)),
];

pub fn unreachable(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Err(Trap::new("a filesystem or socket function was called on an object that cannot exist"))
}

fn none(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::Option(None))
}

fn none_of_error(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    guest.borrow(args.at(0)?.rep()?)?;
    Ok(Value::Option(None))
}

fn empty_list(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::List(Vec::new()))
}

fn pairs(pairs: &[(String, String)]) -> Value {
    Value::List(pairs.iter().map(|(name, value)| Value::Tuple(vec![Value::text(name), Value::text(value)])).collect())
}

fn environment(guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(pairs(&guest.grants.environment))
}

fn exit(_guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let code = i32::from(args.at(0)?.result()?.is_err());
    Err(Trap::stop(Ended::Exit(code)))
}

fn exit_with_code(_guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    Err(Trap::stop(Ended::Exit(args.at(0)?.u8()?.into())))
}

fn stdin(guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::Own(guest.give(Resource::EmptyInput, 0)?, type_id("input-stream")))
}

fn stdout(guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::Own(guest.give(Resource::LogOutput { stderr: false, allowed: 0 }, 0)?, type_id("output-stream")))
}

fn stderr(guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::Own(guest.give(Resource::LogOutput { stderr: true, allowed: 0 }, 0)?, type_id("output-stream")))
}

// --- clocks and random ------------------------------------------------------------------------------------------------

fn nanoseconds(time: rustix::time::Timespec) -> u64 {
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

fn monotonic_now(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::U64(nanoseconds(clock_gettime(ClockId::Monotonic))))
}

fn monotonic_resolution(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::U64(nanoseconds(clock_getres(ClockId::Monotonic)).max(1)))
}

fn timer(guest: &mut Guest, after_ns: u64) -> Result<Value, Trap> {
    let at = Instant::now().checked_add(Duration::from_nanos(after_ns));
    Ok(Value::Own(guest.give(Resource::Timer(at), 0)?, type_id("pollable")))
}

fn subscribe_instant(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let after_ns = args.at(0)?.u64()?.saturating_sub(nanoseconds(clock_gettime(ClockId::Monotonic)));
    timer(guest, after_ns)
}

fn subscribe_duration(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    timer(guest, args.at(0)?.u64()?)
}

fn moment(seconds: u64, nanoseconds: u32) -> Value {
    Value::Record(vec![("seconds", Value::U64(seconds)), ("nanoseconds", Value::U32(nanoseconds))])
}

fn wall_now(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(moment(now.as_secs(), now.subsec_nanos()))
}

fn wall_resolution(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(moment(0, nanoseconds(clock_getres(ClockId::Realtime)).max(1) as u32))
}

/// Fill `bytes` from the operating system's generator.
pub fn fill_random(bytes: &mut [u8]) -> Result<(), Trap> {
    let mut at = 0;
    while at < bytes.len() {
        let got = rustix::rand::getrandom(&mut bytes[at..], rustix::rand::GetRandomFlags::empty());
        match got {
            Ok(count) => at += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(Trap::new("the operating system gives no random bytes")),
        }
    }
    Ok(())
}

fn one_u64() -> Result<Value, Trap> {
    let mut bytes = [0; 8];
    fill_random(&mut bytes)?;
    Ok(Value::U64(u64::from_le_bytes(bytes)))
}

fn random_bytes(_guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let len = args.at(0)?.u64()?;
    if len > RANDOM_MAX_BYTES {
        return Err(Trap::new(&format!("more than {RANDOM_MAX_BYTES} random bytes in one call")));
    }
    let mut bytes = vec![0; len as usize];
    fill_random(&mut bytes)?;
    Ok(Value::Bytes(bytes))
}

fn random_u64(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    one_u64()
}

fn seed(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::Tuple(vec![one_u64()?, one_u64()?]))
}

// --- config, and what is closed ---------------------------------------------------------------------------------------

fn config_get(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    let name = args.at(0)?.text()?;
    let found = guest.grants.config.iter().find(|(key, _)| key.as_bytes() == name);
    Ok(Value::ok(Value::Option(found.map(|(_, value)| Box::new(Value::text(value))))))
}

fn config_get_all(guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::ok(pairs(&guest.grants.config)))
}

fn network(guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::Own(guest.give(Resource::Network, 0)?, type_id("network")))
}

fn denied(_guest: &mut Guest, _args: &Args<'_>) -> Result<Value, Trap> {
    Ok(Value::err(Value::Enum("access-denied")))
}

fn denied_lookup(guest: &mut Guest, args: &Args<'_>) -> Result<Value, Trap> {
    guest.borrow(args.at(0)?.rep()?)?;
    denied(guest, args)
}
