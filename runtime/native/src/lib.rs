//! The engine's face to Python (`runtime/native/front.py`): it starts the loop, gives it apps and routes, takes its reports.

mod calls;
mod capi;
mod connection;
mod guest;
mod host;
mod http_types;
mod ids;
mod lending;
mod others;
mod outcome;
pub mod parse;
mod resources;
mod respond;
mod routes;
mod server;
mod shared;
mod streams;
mod ticker;
mod value;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use lending::Errand;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use resources::FieldList;
use shared::{held, Order, Settings, Shared};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Open the wasmtime library at `path`, of the release `version`; raises RuntimeError where it does not fit.
#[pyfunction]
fn open(path: &str, version: &str) -> PyResult<()> {
    capi::open(path, version).map_err(PyRuntimeError::new_err)
}

/// The names among `functions` of `interface` (without its version) that this engine does not have.
#[pyfunction]
fn missing(interface: &str, functions: Vec<String>) -> Vec<String> {
    functions.into_iter().filter(|name| host::find(interface, name).is_none()).collect()
}

/// One interface a component imports: its full name, its name without a version, its resources, its functions.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyImport {
    name: String,
    interface: String,
    resources: Vec<String>,
    functions: Vec<String>,
    /// Those of its functions that Python serves: each with its number there.
    lent: Vec<(String, u32)>,
    /// Those of its functions that Python serves for objects which it holds.
    either: Vec<(String, u32)>,
}

/// What Python says of an app.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyApp {
    number: u64,
    engine: usize,
    component: usize,
    imports: Vec<PyImport>,
    export: String,
    function: String,
    release: String,
    timeout_ms: u64,
    memory_max_bytes: i64,
    table_elements_max: i64,
    instances_max: i64,
    tables_max: i64,
    memories_max: i64,
    reuse: bool,
    uses_max: u64,
    ready_max: usize,
    concurrency: usize,
    queue_max: usize,
    body_max_bytes: usize,
    config: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    response_fields_max: usize,
    response_fields_max_bytes: usize,
    log_call_max_bytes: usize,
    splice: Option<[u32; 3]>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyProblem {
    status: u16,
    fields: Vec<(String, Vec<u8>)>,
    before_id: Vec<u8>,
    after_id: Vec<u8>,
}

impl From<PyProblem> for respond::Problem {
    fn from(it: PyProblem) -> respond::Problem {
        respond::Problem { status: it.status, fields: it.fields, before_id: it.before_id, after_id: it.after_id }
    }
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PySettings {
    fields_max: usize,
    fields_max_bytes: usize,
    target_max_bytes: usize,
    connections_max: usize,
    keep_alive_s: f64,
    patience_s: f64,
    write_idle_timeout_s: f64,
    linger_s: f64,
    half_closed_s: f64,
    guests_max: usize,
    proxies: Vec<(IpAddr, u8)>,
    load_table: String,
    slot: u64,
    traced: f64,
    failed: PyProblem,
    busy: PyProblem,
    deadline: PyProblem,
    body_too_large: PyProblem,
    away: PyProblem,
}

fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// One call of a guest that Python serves. What its addresses name is Python's until it has answered, once.
#[pyclass(frozen)]
struct Ask {
    loan: Arc<capi::Loan>,
    instance: u64,
    shared: Arc<Shared>,
}

impl Ask {
    fn say(&self, given: Result<Vec<capi::Given>, guest::Ended>, away_s: Option<u32>) {
        if self.loan.settle(capi::LoanAnswer { given, away_s }) {
            self.shared.order(Order::Answered(self.instance));
        }
    }
}

#[pymethods]
impl Ask {
    /// The number of the function, which `front.py` gave it.
    #[getter]
    fn function(&self) -> u32 {
        self.loan.function
    }

    /// Where its arguments lie, as values of wasmtime; handles are numbers of objects.
    #[getter]
    fn arguments(&self) -> usize {
        self.loan.arguments()
    }

    /// Where its result goes; handles in it stay blank.
    #[getter]
    fn result(&self) -> usize {
        self.loan.result()
    }

    /// The request's id and its `traceparent`; empty while an instance is being made.
    #[getter]
    fn ids(&self) -> (String, String) {
        self.loan.ids.clone()
    }

    /// Seconds until the call's deadline.
    #[getter]
    fn rest_s(&self) -> f64 {
        self.loan.deadline.saturating_duration_since(std::time::Instant::now()).as_secs_f64()
    }

    /// Whether nobody waits for the answer any more.
    #[getter]
    fn abandoned(&self) -> bool {
        self.loan.abandoned()
    }

    /// The result is in its place; `handles` are the objects in it: where, number, name of the type, number of what it is a
    /// part of or 0, and of fields their entries. `away_s`: a service was away. For a poll the numbers are indexes.
    #[pyo3(signature = (handles, away_s=None))]
    fn answer(&self, handles: Vec<(usize, u32, String, u32, Option<FieldList>)>, away_s: Option<u32>) {
        let given = handles.into_iter().map(|(place, number, name, parent, entries)| capi::Given {
            place, number, name, parent, entries,
        });
        self.say(Ok(given.collect()), away_s);
    }

    /// The guest broke a rule, which ends its call.
    fn refuse(&self, reason: String) {
        self.say(Err(guest::Ended::Rule(reason)), None);
    }

    /// The host has a defect, which ends the guest's call.
    fn fail(&self, reason: String) {
        self.say(Err(guest::Ended::Defect(reason)), None);
    }
}

/// The counters of one app of the engine.
#[pyclass(frozen)]
struct Hosted {
    app: Arc<shared::App>,
}

#[pymethods]
impl Hosted {
    /// Requests, in flight, queued, outcomes by kind, answers by hundreds of status, latency buckets, their sum in us.
    #[allow(clippy::type_complexity)]
    fn counters(&self) -> (u64, u64, u64, Vec<(&'static str, u64)>, Vec<u64>, Vec<u64>, u64) {
        let counters = &self.app.counters;
        let all = |counts: &[std::sync::atomic::AtomicU64]| counts.iter().map(|count| count.load(Relaxed)).collect::<Vec<_>>();
        let outcomes = outcome::KINDS.into_iter().zip(all(&counters.outcomes)).filter(|(_, count)| *count > 0).collect();
        (
            counters.requests.load(Relaxed), counters.in_flight.load(Relaxed), counters.queued.load(Relaxed), outcomes,
            all(&counters.statuses), all(&counters.buckets), counters.latency_sum_us.load(Relaxed),
        )
    }

    /// Whether the engine has let go of every instance of it.
    #[getter]
    fn gone(&self) -> bool {
        self.app.gone.load(Relaxed)
    }
}

/// The loop of one process: made, started once, stopped once.
#[pyclass(frozen)]
struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

#[pymethods]
impl Engine {
    #[new]
    fn new(settings: PySettings) -> PyResult<Engine> {
        let head = parse::HeadLimits {
            fields: settings.fields_max, fields_bytes: settings.fields_max_bytes, target_bytes: settings.target_max_bytes,
        };
        let settings = Settings {
            head, connections_max: settings.connections_max, keep_alive: seconds(settings.keep_alive_s)?,
            patience: seconds(settings.patience_s)?,
            write_idle: seconds(settings.write_idle_timeout_s)?, linger: seconds(settings.linger_s)?,
            half_closed: seconds(settings.half_closed_s)?, guests_max: settings.guests_max, proxies: settings.proxies,
            load_table: settings.load_table, slot: settings.slot, traced: settings.traced, failed: settings.failed.into(),
            busy: settings.busy.into(), deadline: settings.deadline.into(),
            body_too_large: settings.body_too_large.into(), away: settings.away.into(),
        };
        let shared = Shared::new(settings).map_err(|error| PyOSError::new_err(error.to_string()))?;
        Ok(Engine { shared: Arc::new(shared), thread: Mutex::default() })
    }

    /// Serve the listening sockets `descriptors`, which are the engine's from now on.
    fn start(&self, descriptors: Vec<i32>) -> PyResult<()> {
        let listeners = capi::adopt_descriptors(descriptors);
        let shared = self.shared.clone();
        let mut thread = held(&self.thread);
        if thread.is_some() {
            return Err(PyRuntimeError::new_err("started already"));
        }
        let started = std::thread::Builder::new().name("native-loop".into()).spawn(move || server::run(shared, listeners));
        *thread = Some(started.map_err(|error| PyOSError::new_err(error.to_string()))?);
        Ok(())
    }

    /// Serve an app; `keep` keeps what its addresses point to alive. Raises RuntimeError where it cannot be linked.
    fn load(&self, app: PyApp, keep: Py<PyAny>) -> PyResult<Hosted> {
        let mut imports = Vec::new();
        for import in app.imports {
            let functions = import.functions.into_iter().map(|name| match host::find(&import.interface, &name) {
                Some(entry) => Ok((name, entry)),
                None => Err(PyRuntimeError::new_err(format!("{name} of {} is not native", import.interface))),
            });
            let resources = import.resources.into_iter().map(|name| {
                let type_id = host::type_id(&name);
                if type_id == 0 { Err(PyRuntimeError::new_err(format!("{name} is not native"))) } else { Ok((name, type_id)) }
            });
            let either = import.either.into_iter().map(|(name, number)| match host::find(&import.interface, &name) {
                Some(entry) => Ok((name, entry, number)),
                None => Err(PyRuntimeError::new_err(format!("{name} of {} is not native", import.interface))),
            });
            imports.push(capi::Import {
                either: either.collect::<PyResult<_>>()?,
                name: import.name, resources: resources.collect::<PyResult<_>>()?, functions: functions.collect::<PyResult<_>>()?,
                lent: import.lent,
            });
        }
        let entry = (app.export.as_str(), app.function.as_str());
        let linked = capi::Linked::new(app.engine, app.component, &imports, entry, Box::new(keep));
        let caps = capi::Caps {
            memory_bytes: app.memory_max_bytes, table_elements: app.table_elements_max, instances: app.instances_max,
            tables: app.tables_max, memories: app.memories_max,
        };
        let grants = guest::Grants {
            number: app.number, lending: self.shared.lending.clone(), splice: app.splice,
            config: app.config, environment: app.environment, response_fields_max: app.response_fields_max,
            response_fields_max_bytes: app.response_fields_max_bytes, log_call_max_bytes: app.log_call_max_bytes,
        };
        let app = Arc::new(shared::App {
            number: app.number, linked: Arc::new(linked.map_err(PyRuntimeError::new_err)?), grants: Arc::new(grants), caps,
            release: app.release, timeout: Duration::from_millis(app.timeout_ms), reuse: app.reuse, uses_max: app.uses_max,
            ready_max: app.ready_max, concurrency: app.concurrency, queue_max: app.queue_max, body_max: app.body_max_bytes,
            counters: shared::Counters::default(), gone: false.into(),
        });
        self.shared.order(Order::Load(app.clone()));
        Ok(Hosted { app })
    }

    /// Replace the routing table: (host or None, normal prefix, number of an app or None for the Python path).
    fn activate(&self, routes: Vec<(Option<String>, String, Option<u64>)>) {
        self.shared.order(Order::Activate(routes::Routes::new(routes)));
    }

    fn unload(&self, number: u64) {
        self.shared.order(Order::Unload(number));
    }

    /// Accept nothing more, and close connections as they become idle.
    fn drain(&self) {
        self.shared.order(Order::Drain);
    }

    /// End the loop; what is under way is broken off.
    fn stop(&self, py: Python<'_>) {
        self.shared.order(Order::Stop);
        self.shared.lending.close();
        let thread = held(&self.thread).take();
        py.detach(|| {
            if let Some(thread) = thread {
                let _ = thread.join();
            }
        });
    }

    /// Wait for what a guest asks of Python: (app, instance, numbers of objects it let go of, what: an `Ask`, or "ended" for the
    /// end of a request, "gone" for that of the instance, "woken"; whether every thread is busy now). None once it stopped.
    #[allow(clippy::type_complexity)]
    fn next_errand(&self, py: Python<'_>) -> PyResult<Option<(u64, u64, Vec<u32>, Py<PyAny>, bool)>> {
        let Some((message, all_busy)) = py.detach(|| self.shared.lending.next()) else { return Ok(None) };
        let what = match message.errand {
            Errand::Ask(loan) => {
                let ask = Ask { loan, instance: message.instance, shared: self.shared.clone() };
                Py::new(py, ask)?.into_any()
            }
            Errand::Ended => PyString::new(py, "ended").unbind().into_any(),
            Errand::Gone => PyString::new(py, "gone").unbind().into_any(),
            Errand::Woken => PyString::new(py, "woken").unbind().into_any(),
        };
        Ok(Some((message.app, message.instance, message.dropped, what, all_busy)))
    }

    /// Have a thread look at what an instance waits for.
    fn nudge(&self, app: u64, instance: u64) {
        self.shared.lending.nudge(app, instance);
    }

    /// The thread that took an errand of this instance is done with it.
    fn errand_done(&self, instance: u64) {
        self.shared.lending.done(instance);
    }

    /// Say how many connections of this worker the Python path holds.
    fn set_others(&self, count: usize) {
        self.shared.others.store(count, Relaxed);
        shared::signal(&self.shared.wake);
    }

    #[getter]
    fn connections(&self) -> usize {
        self.shared.connections.load(Relaxed)
    }

    /// Turns of the loop so far; it makes several a second, also when nothing comes.
    #[getter]
    fn turns(&self) -> u64 {
        self.shared.turns.load(Relaxed)
    }

    /// A descriptor that is readable when connections were handed over.
    #[getter]
    fn told(&self) -> i32 {
        self.shared.told.as_raw_fd()
    }

    /// Take the connections that were handed over: (descriptor, what was read from it, seconds its request has waited).
    fn take_handed(&self, py: Python<'_>) -> Vec<(i32, Py<PyBytes>, f64)> {
        let mut counted = [0; 8];
        let _ = rustix::io::read(&self.shared.told, &mut counted);
        let handed = std::mem::take(&mut *held(&self.shared.handed));
        let given = |one: shared::Handed| {
            (one.descriptor.into_raw_fd(), PyBytes::new(py, &one.data).unbind(), one.waited.as_secs_f64())
        };
        handed.into_iter().map(given).collect()
    }

    /// Take what is to be logged.
    fn take_report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = std::mem::take(&mut *self.shared.report());
        let taken = PyDict::new(py);
        let access = PyList::empty(py);
        for line in report.access {
            let fields = PyDict::new(py);
            fields.set_item("request_id", line.request_id)?;
            fields.set_item("trace_id", line.trace_id)?;
            fields.set_item("span_id", line.span.id)?;
            if !line.span.parent.is_empty() {
                fields.set_item("parent_id", line.span.parent)?;
            }
            if !line.span.recorded {
                fields.set_item("recorded", false)?;
            }
            fields.set_item("client", line.client)?;
            fields.set_item("method", line.method)?;
            fields.set_item("path", line.path)?;
            fields.set_item("status", line.status)?;
            fields.set_item("bytes_in", line.bytes_in)?;
            fields.set_item("bytes_out", line.bytes_out)?;
            fields.set_item("duration_ms", line.duration.as_micros() as f64 / 1000.0)?;
            if let Some(outcome) = line.outcome {
                fields.set_item("outcome", outcome)?;
            }
            access.append((line.app, fields))?;
        }
        let said = PyList::empty(py);
        for one in report.said {
            let output = |it: guest::Output| (PyBytes::new(py, &it.head), PyBytes::new(py, &it.last), it.dropped);
            said.append((
                one.call, one.app, one.request_id, one.trace_id, output(one.stdout), output(one.stderr), one.ended,
            ))?;
        }
        let failures = PyList::empty(py);
        for one in report.failures {
            failures.append((one.app, one.kind, one.reason, one.backtrace, one.request_id, one.trace_id))?;
        }
        taken.set_item("access", access)?;
        taken.set_item("access_left_out", report.access_left_out)?;
        taken.set_item("said", said)?;
        taken.set_item("said_left_out", report.said_left_out)?;
        taken.set_item("failures", failures)?;
        Ok(taken)
    }
}

#[pymodule]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Engine>()?;
    module.add_class::<Hosted>()?;
    module.add_class::<Ask>()?;
    module.add("POLL", capi::POLL)?;
    module.add_function(wrap_pyfunction!(open, module)?)?;
    module.add_function(wrap_pyfunction!(missing, module)?)?;
    Ok(())
}
