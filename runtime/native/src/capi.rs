//! The C API of the wasmtime wheel's own library: the one file with `unsafe` in it.
//!
//! Invariants, each named where it is used:
//! * **V (version).** `Api` is loaded only for a release whose header was read (`KNOWN_VERSIONS`, which `open` checks) and whose
//!   values lie in memory as `Val` says (`probe`). The library is never closed, so function pointers stay good.
//! * **P (one place).** `Instance` owns its store, its guest, its buffers and at most one future over them. All are boxed and never
//!   move while the store lives. It is neither `Send` nor `Sync`: one thread makes it, polls it and drops it.
//! * **G (one guest).** A store's data is the address of its guest. Rust code holds `&mut Guest` either through `Instance::guest`,
//!   which needs `&mut Instance` and so cannot be in a poll, or inside a callback, which runs in a poll. Never both.
//! * **F (future first).** A future ends (returned true, or deleted) before its arguments, its store or its guest are freed.
//! * **A (arguments).** In a callback the library owns `args`, which are initialised, and lends `results`, which is ours to fill
//!   until the callback, or the continuation it gave, has said that it is done.
//! * **T (trusted caller).** `front.py` alone calls the face in `lib.rs`. It gives away duplicates of its listening sockets, which
//!   nobody else closes, and addresses of live objects of the opened library together with what keeps them alive; the imports' types
//!   are those of the interfaces, which `linking.py` has checked.
//! * **L (loan).** A `Loan` alone owns its values, which are copies. Python alone reads and writes them until it has answered, and
//!   the loop alone after that. Places that an answer names are blank values of the result, which nothing moves but `lower`.
//! * **K (kinds).** A payload is read only as its kind says; what has another kind is an error of the guest.
//!
//! Not here: what host functions do (`host.rs` and behind it), or which guest runs when (`calls.rs`).
#![allow(unsafe_code)]

use crate::guest::{Ended, Guest};
use crate::host::{self, Start, Step};
use crate::resources::{FieldList, Resource};
use crate::shared::held;
use crate::value::{Trap, Value};
use std::cell::UnsafeCell;
use std::ffi::{c_char, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

/// Releases whose C header was read and tested.
pub const KNOWN_VERSIONS: [&str; 1] = ["50.0.1"];

type Ptr = *mut c_void;
type Finalizer = Option<unsafe extern "C" fn(Ptr)>;
type Callback = unsafe extern "C" fn(Ptr, Ptr, Ptr, *const Val, usize, *mut Val, usize) -> Ptr;
type AsyncCallback =
    unsafe extern "C" fn(Ptr, Ptr, Ptr, *const Val, usize, *mut Val, usize, *mut Ptr, *mut Continuation);
type Destructor = unsafe extern "C" fn(Ptr, Ptr, u32) -> Ptr;
type EpochCallback = unsafe extern "C" fn(Ptr, Ptr, *mut u64, *mut u8) -> Ptr;

/// `wasmtime_component_val_t`: a kind, then a payload of up to three words.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Val {
    kind: u8,
    a: u64,
    b: u64,
    c: u64,
}

/// `wasmtime_component_valrecord_entry_t`: a name, then the value.
#[repr(C)]
struct Entry {
    name: Vector,
    value: Val,
}

/// `wasm_byte_vec_t`, and every vector of values: how many, and where.
#[repr(C)]
struct Vector {
    size: usize,
    data: *mut c_void,
}

/// `wasmtime_async_continuation_t`.
#[repr(C)]
struct Continuation {
    callback: unsafe extern "C" fn(Ptr) -> bool,
    env: Ptr,
    finalizer: Finalizer,
}

const BLANK: Val = Val { kind: 0, a: 0, b: 0, c: 0 };

const BOOL: u8 = 0;
const U8: u8 = 2;
const U16: u8 = 4;
const U32: u8 = 6;
const U64: u8 = 8;
const STRING: u8 = 12;
const LIST: u8 = 13;
const RECORD: u8 = 14;
const TUPLE: u8 = 15;
const VARIANT: u8 = 16;
const ENUM: u8 = 17;
const OPTION: u8 = 18;
const RESULT: u8 = 19;
const RESOURCE: u8 = 21;

const YIELD: u8 = 1;

macro_rules! api {
    ($($field:ident = $symbol:literal ($($argument:ty),*) $(-> $result:ty)?;)*) => {
        struct Api { $($field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        impl Api {
            fn load(library: &libloading::Library) -> Result<Api, String> {
                // SAFETY: V; the types are those of the header of the known release.
                unsafe {
                    Ok(Api { $($field: *library.get(concat!($symbol, "\0").as_bytes())
                        .map_err(|error| format!("{}: {error}", $symbol))?,)* })
                }
            }
        }
    };
}

api! {
    bytes_new = "wasm_byte_vec_new"(*mut Vector, usize, *const u8);
    bytes_delete = "wasm_byte_vec_delete"(*mut Vector);
    list_new = "wasmtime_component_vallist_new_uninit"(*mut Vector, usize);
    tuple_new = "wasmtime_component_valtuple_new_uninit"(*mut Vector, usize);
    record_new = "wasmtime_component_valrecord_new_uninit"(*mut Vector, usize);
    val_new = "wasmtime_component_val_new"(*mut Val) -> *mut Val;
    val_clone = "wasmtime_component_val_clone"(*const Val, *mut Val);
    val_delete = "wasmtime_component_val_delete"(*mut Val);
    host_new = "wasmtime_component_resource_host_new"(bool, u32, u32) -> Ptr;
    host_rep = "wasmtime_component_resource_host_rep"(Ptr) -> u32;
    host_owned = "wasmtime_component_resource_host_owned"(Ptr) -> bool;
    host_delete = "wasmtime_component_resource_host_delete"(Ptr);
    any_to_host = "wasmtime_component_resource_any_to_host"(Ptr, Ptr, *mut Ptr) -> Ptr;
    host_to_any = "wasmtime_component_resource_host_to_any"(Ptr, Ptr, *mut Ptr) -> Ptr;
    type_new_host = "wasmtime_component_resource_type_new_host"(u32) -> Ptr;
    type_delete = "wasmtime_component_resource_type_delete"(Ptr);
    error_new = "wasmtime_error_new"(*const c_char) -> Ptr;
    error_message = "wasmtime_error_message"(Ptr, *mut Vector);
    error_exit = "wasmtime_error_exit_status"(Ptr, *mut i32) -> bool;
    error_delete = "wasmtime_error_delete"(Ptr);
    store_new = "wasmtime_store_new"(Ptr, Ptr, Finalizer) -> Ptr;
    store_context = "wasmtime_store_context"(Ptr) -> Ptr;
    store_limiter = "wasmtime_store_limiter"(Ptr, i64, i64, i64, i64, i64);
    store_epoch = "wasmtime_store_epoch_deadline_callback"(Ptr, EpochCallback, Ptr, Finalizer);
    store_delete = "wasmtime_store_delete"(Ptr);
    set_epoch = "wasmtime_context_set_epoch_deadline"(Ptr, u64);
    get_data = "wasmtime_context_get_data"(Ptr) -> Ptr;
    increment_epoch = "wasmtime_engine_increment_epoch"(Ptr);
    linker_new = "wasmtime_component_linker_new"(Ptr) -> Ptr;
    linker_root = "wasmtime_component_linker_root"(Ptr) -> Ptr;
    linker_delete = "wasmtime_component_linker_delete"(Ptr);
    add_instance = "wasmtime_component_linker_instance_add_instance"(Ptr, *const u8, usize, *mut Ptr) -> Ptr;
    add_func = "wasmtime_component_linker_instance_add_func"(Ptr, *const u8, usize, Callback, Ptr, Finalizer) -> Ptr;
    add_func_async = "wasmtime_component_linker_instance_add_func_async"(Ptr, *const u8, usize, AsyncCallback, Ptr, Finalizer) -> Ptr;
    add_resource = "wasmtime_component_linker_instance_add_resource"(Ptr, *const u8, usize, Ptr, Destructor, Ptr, Finalizer) -> Ptr;
    instance_delete = "wasmtime_component_linker_instance_delete"(Ptr);
    export_index = "wasmtime_component_get_export_index"(Ptr, Ptr, *const u8, usize) -> Ptr;
    export_index_delete = "wasmtime_component_export_index_delete"(Ptr);
    instantiate_async = "wasmtime_component_linker_instantiate_async"(Ptr, Ptr, Ptr, *mut u64, *mut Ptr) -> Ptr;
    get_func = "wasmtime_component_instance_get_func"(*const u64, Ptr, Ptr, *mut u64) -> bool;
    call_async = "wasmtime_component_func_call_async"(*const u64, Ptr, *const Val, usize, *mut Val, usize, *mut Ptr) -> Ptr;
    future_poll = "wasmtime_call_future_poll"(Ptr) -> bool;
    future_delete = "wasmtime_call_future_delete"(Ptr);
}

static API: OnceLock<Api> = OnceLock::new();

fn api() -> &'static Api {
    API.get().expect("`open` comes before everything else")
}

/// Open the wheel's library at `path`, of the release `version`; an error says what does not fit.
pub fn open(path: &str, version: &str) -> Result<(), String> {
    if !KNOWN_VERSIONS.contains(&version) {
        return Err(format!("wasmtime {version} is not one this engine knows ({})", KNOWN_VERSIONS.join(", ")));
    }
    if API.get().is_some() {
        return Ok(());
    }
    // SAFETY: V; the process has this library open already, so no initialiser of it runs a second time.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
    let api = Api::load(&library)?;
    std::mem::forget(library);
    probe(&api)?;
    let _ = API.set(api);
    Ok(())
}

/// Whether values lie in memory as `Val` says: the library copies a string in a list in a result, and we read the copy.
fn probe(api: &Api) -> Result<(), String> {
    let (mut copy, mut blank) = (BLANK, BLANK);
    // SAFETY: every value is made by the library, of kinds that the header names, and deleted once.
    let same = unsafe {
        let mut text = Val { kind: STRING, ..BLANK };
        (api.bytes_new)((&raw mut text.a).cast(), 5, b"probe".as_ptr());
        let mut list = Val { kind: LIST, ..BLANK };
        (api.list_new)((&raw mut list.a).cast(), 1);
        *(list.b as *mut Val) = text;
        let inner = (api.val_new)(&raw mut blank);
        *inner = list;
        let mut whole = Val { kind: RESULT, a: 1, b: inner as u64, c: 0 };
        (api.val_clone)(&raw const whole, &raw mut copy);
        let same = copy.kind == RESULT && copy.a & 0xff == 1 && copy.b != 0 && copy.b != whole.b && {
            let list = *(copy.b as *const Val);
            list.kind == LIST && list.a == 1 && {
                let text = *(list.b as *const Val);
                text.kind == STRING && std::slice::from_raw_parts(text.b as *const u8, text.a as usize) == b"probe"
            }
        };
        (api.val_delete)(&raw mut whole);
        if same {
            (api.val_delete)(&raw mut copy);
        }
        same
    };
    if same { Ok(()) } else { Err("this library's values have another layout than its header says".into()) }
}

/// Take over descriptors that Python gives away (T).
pub fn adopt_descriptors(descriptors: Vec<i32>) -> Vec<OwnedFd> {
    // SAFETY: T.
    descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

/// An error of wasmtime, as text; `exit_status` where the guest called `exit` of preview 1.
#[derive(Debug)]
pub struct WasmError {
    pub message: String,
    pub exit_status: Option<i32>,
}

fn consume_error(error: Ptr) -> WasmError {
    let mut text = Vector { size: 0, data: null_mut() };
    let mut status = 0;
    // SAFETY: `error` is an owned error of the library, which is deleted here; the text is ours until it is deleted.
    unsafe {
        (api().error_message)(error, &raw mut text);
        let message = String::from_utf8_lossy(std::slice::from_raw_parts(text.data.cast::<u8>(), text.size)).into_owned();
        (api().bytes_delete)(&raw mut text);
        let exited = (api().error_exit)(error, &raw mut status);
        (api().error_delete)(error);
        WasmError { message, exit_status: exited.then_some(status) }
    }
}

fn new_error(message: &str) -> Ptr {
    let text = std::ffi::CString::new(message.replace('\0', " ")).expect("no zero byte is left");
    // SAFETY: the library copies the text.
    unsafe { (api().error_new)(text.as_ptr()) }
}

// --- what a host function is given ------------------------------------------------------------------------------------

/// The arguments of one call of a host function.
pub struct Args<'a> {
    values: &'a [Val],
    context: Ptr,
    /// The rep of the first argument, where it was looked at before: a borrow may be consumed but once.
    first: Option<u32>,
}

/// One value that the guest gave; read as its kind says (K).
#[derive(Clone, Copy)]
pub struct Arg<'a> {
    value: &'a Val,
    context: Ptr,
    known: Option<u32>,
}

impl<'a> Args<'a> {
    /// The argument at `index`.
    pub fn at(&self, index: usize) -> Result<Arg<'a>, Trap> {
        let value = self.values.get(index).ok_or_else(|| Trap::new("an argument is missing"))?;
        Ok(Arg { value, context: self.context, known: self.first.filter(|_| index == 0) })
    }
}

impl<'a> Arg<'a> {
    fn expect(&self, kind: u8) -> Result<(), Trap> {
        if self.value.kind == kind { Ok(()) } else { Err(Trap::new("an argument has another type than the interface")) }
    }

    fn boxed(&self, address: u64) -> Option<Arg<'a>> {
        // SAFETY: A, K; a payload of an option, result or variant is null or an initialised value that lives as long.
        let value = unsafe { (address as *const Val).as_ref() }?;
        Some(Arg { value, context: self.context, known: None })
    }

    fn slice<T>(&self, size: u64, data: u64) -> &'a [T] {
        if size == 0 {
            return &[];
        }
        // SAFETY: A, K; a vector of the library is that many initialised elements, and lives as long as the arguments.
        unsafe { std::slice::from_raw_parts(data as *const T, size as usize) }
    }

    pub fn u64(&self) -> Result<u64, Trap> {
        self.expect(U64)?;
        Ok(self.value.a)
    }

    pub fn u16(&self) -> Result<u16, Trap> {
        self.expect(U16)?;
        Ok(self.value.a as u16)
    }

    pub fn u8(&self) -> Result<u8, Trap> {
        self.expect(U8)?;
        Ok(self.value.a as u8)
    }

    /// A string, as the bytes of its UTF-8.
    pub fn text(&self) -> Result<&'a [u8], Trap> {
        self.expect(STRING)?;
        Ok(self.slice(self.value.a, self.value.b))
    }

    pub fn string(&self) -> Result<String, Trap> {
        Ok(String::from_utf8_lossy(self.text()?).into_owned())
    }


    /// A `list<u8>`.
    pub fn bytes(&self) -> Result<Vec<u8>, Trap> {
        self.expect(LIST)?;
        let values: &[Val] = self.slice(self.value.a, self.value.b);
        if values.iter().any(|value| value.kind != U8) {
            return Err(Trap::new("a list of bytes has something else in it"));
        }
        Ok(values.iter().map(|value| value.a as u8).collect())
    }

    /// The elements of a list or a tuple.
    pub fn elements(&self) -> Result<impl ExactSizeIterator<Item = Arg<'a>> + use<'a>, Trap> {
        if self.value.kind != LIST && self.value.kind != TUPLE {
            return Err(Trap::new("an argument is no list"));
        }
        let context = self.context;
        let values: &[Val] = self.slice(self.value.a, self.value.b);
        Ok(values.iter().map(move |value| Arg { value, context, known: None }))
    }

    pub fn option(&self) -> Result<Option<Arg<'a>>, Trap> {
        self.expect(OPTION)?;
        Ok(self.boxed(self.value.a))
    }

    pub fn result(&self) -> Result<Result<Option<Arg<'a>>, Option<Arg<'a>>>, Trap> {
        self.expect(RESULT)?;
        let payload = self.boxed(self.value.b);
        Ok(if self.value.a & 0xff != 0 { Ok(payload) } else { Err(payload) })
    }

    /// A variant's case and payload.
    pub fn variant(&self) -> Result<(&'a [u8], Option<Arg<'a>>), Trap> {
        self.expect(VARIANT)?;
        Ok((self.slice(self.value.a, self.value.b), self.boxed(self.value.c)))
    }

    /// The rep of a handle, own or borrowed; once for each argument, since a borrow is consumed by it.
    pub fn rep(&self) -> Result<u32, Trap> {
        self.known.map_or_else(|| Ok(self.handle()?.0), Ok)
    }

    /// The rep of a handle, and whether the guest gives it away.
    fn handle(&self) -> Result<(u32, bool), Trap> {
        self.expect(RESOURCE)?;
        let mut host = null_mut();
        // SAFETY: A, K; the context is that of the running callback.
        unsafe {
            let error = (api().any_to_host)(self.context, self.value.a as Ptr, &raw mut host);
            if !error.is_null() {
                return Err(Trap::new(&consume_error(error).message));
            }
            let found = ((api().host_rep)(host), (api().host_owned)(host));
            (api().host_delete)(host);
            Ok(found)
        }
    }
}

// --- what Python is lent ----------------------------------------------------------------------------------------------

/// The number of the function that looks at pollables.
pub const POLL: u32 = u32::MAX;

/// An object in the result of a loan: its place, its number and type with Python, the number of what it is a part of (0: of
/// nothing). Of fields, which are given by value, the entries.
pub struct Given {
    pub place: usize,
    pub number: u32,
    pub name: String,
    pub parent: u32,
    pub entries: Option<FieldList>,
}

/// What Python made of a loan: the objects in its result, or why the guest's call ends.
pub struct LoanAnswer {
    pub given: Result<Vec<Given>, Ended>,
    pub away_s: Option<u32>,
}

/// One call of a host function that Python serves (L).
pub struct Loan {
    pub function: u32,
    pub ids: (String, String),
    pub deadline: Instant,
    arguments: Box<[Val]>,
    result: Box<UnsafeCell<Val>>,
    answer: Mutex<Option<LoanAnswer>>,
    settled: AtomicBool,
    abandoned: AtomicBool,
}

// SAFETY: L; the values are plain memory of the library, which may be read, written and freed on any thread.
unsafe impl Send for Loan {}
// SAFETY: L; all else is behind locks and atomics.
unsafe impl Sync for Loan {}

impl std::fmt::Debug for Loan {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "loan of {}", self.function)
    }
}

impl PartialEq for Loan {
    fn eq(&self, other: &Loan) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Loan {
    fn blank(guest: &Guest, function: u32, size: usize) -> Loan {
        Loan {
            function, ids: guest.ids(), deadline: guest.deadline, arguments: vec![BLANK; size].into(),
            result: Box::new(UnsafeCell::new(BLANK)), answer: Mutex::default(), settled: false.into(),
            abandoned: false.into(),
        }
    }

    /// Copy a call's arguments; a handle becomes the number of its object, which leaves the guest if it gave it away, and
    /// fields become their entries. `first` is the first argument's handle, if that was looked at before.
    fn new(guest: &mut Guest, function: u32, args: &Args<'_>, first: Option<(u32, bool)>) -> Result<Loan, Trap> {
        let mut loan = Loan::blank(guest, function, args.values.len());
        for (index, copy) in loan.arguments.iter_mut().enumerate() {
            export(guest, args.at(index)?, copy, first.filter(|_| index == 0))?;
        }
        Ok(loan)
    }

    /// A loan with arguments of our own, among which are no handles.
    pub fn made(guest: &Guest, function: u32, values: Vec<Value>) -> Loan {
        let mut loan = Loan::blank(guest, function, values.len());
        for (value, place) in values.into_iter().zip(loan.arguments.iter_mut()) {
            let lowered = lower(value, null_mut(), place);
            debug_assert!(lowered.is_ok(), "no handle is among them");
        }
        loan
    }

    /// The result, which is of the kind `result`; the answer was taken, so it is the loop's.
    fn outcome(&self) -> Option<Result<Option<Arg<'_>>, Option<Arg<'_>>>> {
        // SAFETY: L; Python has answered, and only the loop's thread calls this.
        let value = unsafe { &*self.result.get() };
        Arg { value, context: null_mut(), known: None }.result().ok()
    }

    /// Whether the result says that it went well.
    pub fn went_well(&self) -> bool {
        matches!(self.outcome(), Some(Ok(_)))
    }

    /// The bytes of a result that went well.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        self.outcome()?.ok()??.bytes().ok()
    }

    pub fn arguments(&self) -> usize {
        self.arguments.as_ptr() as usize
    }

    pub fn result(&self) -> usize {
        self.result.get() as usize
    }

    /// Keep the answer; false where there is one already.
    pub fn settle(&self, answer: LoanAnswer) -> bool {
        if self.settled.swap(true, SeqCst) {
            return false;
        }
        *held(&self.answer) = Some(answer);
        true
    }

    /// Take the answer, once there is one.
    pub fn answer(&self) -> Option<LoanAnswer> {
        held(&self.answer).take()
    }

    /// Nobody waits for the answer any more.
    pub fn abandon(&self) {
        self.abandoned.store(true, SeqCst);
    }

    pub fn abandoned(&self) -> bool {
        self.abandoned.load(SeqCst)
    }

    /// Move the result out; the answer was taken, so it is the loop's.
    fn take_result(&self) -> Val {
        // SAFETY: L; Python has answered, and only the loop's thread calls this.
        unsafe { std::mem::replace(&mut *self.result.get(), BLANK) }
    }
}

/// Copy one argument for Python.
fn export(guest: &mut Guest, arg: Arg<'_>, copy: &mut Val, seen: Option<(u32, bool)>) -> Result<(), Trap> {
    let is_handle = |arg: &Arg<'_>| arg.value.kind == RESOURCE;
    if arg.value.kind == OPTION {
        if let Some(inner) = arg.option()?.filter(is_handle) {
            let mut blank = BLANK;
            // SAFETY: the library moves the blank into a new allocation, which the copy owns.
            let place = unsafe { (api().val_new)(&raw mut blank) };
            *copy = Val { kind: OPTION, a: place as u64, ..BLANK };
            // SAFETY: it was made above, and nobody else has its address.
            return export(guest, inner, unsafe { &mut *place }, None);
        }
    }
    if !is_handle(&arg) {
        // SAFETY: A; the copy is the loan's, which frees it.
        unsafe { (api().val_clone)(arg.value, copy) };
        return Ok(());
    }
    let (rep, owned) = seen.map_or_else(|| arg.handle(), Ok)?;
    let given = if owned { Some(guest.take(rep)?) } else { None };
    match given.as_ref().map_or_else(|| guest.borrow(rep).map(|held| &*held), Ok)? {
        Resource::Lent(number) => *copy = Val { kind: U64, a: (*number).into(), ..BLANK },
        Resource::Fields(fields) => {
            let pair = |(name, value): &(String, Vec<u8>)| Value::Tuple(vec![Value::text(name), Value::Bytes(value.clone())]);
            let entries = fields.entries.iter().map(pair).collect();
            lower(Value::List(entries), null_mut(), copy)?;
        }
        _ => return Err(Trap::new("a handle stands for something else than its type says")),
    }
    Ok(())
}

impl Drop for Loan {
    fn drop(&mut self) {
        // SAFETY: L; every value is whole or blank, and nobody else has the loan any more.
        unsafe {
            for value in self.arguments.iter_mut() {
                (api().val_delete)(value);
            }
            (api().val_delete)(self.result.get());
        }
    }
}

// --- what it gives back -----------------------------------------------------------------------------------------------

/// Write `value` to `target`; the kind is written last, so that a failure leaves nothing half made (A).
fn lower(value: Value, context: Ptr, target: *mut Val) -> Result<(), Trap> {
    // SAFETY: `target` is a value of the library, or an element of a vector it made, that nobody else writes; each vector is
    // filled whole before its kind is set.
    unsafe {
        let vector: *mut Vector = (&raw mut (*target).a).cast();
        let kind = match value {
            Value::Nothing => return Ok(()),
            Value::Bool(it) => {
                (*target).a = it.into();
                BOOL
            }
            Value::U16(it) => {
                (*target).a = it.into();
                U16
            }
            Value::U32(it) => {
                (*target).a = it.into();
                U32
            }
            Value::U64(it) => {
                (*target).a = it;
                U64
            }
            Value::Text(it) => {
                (api().bytes_new)(vector, it.len(), it.as_ptr());
                STRING
            }
            Value::Enum(it) => {
                (api().bytes_new)(vector, it.len(), it.as_ptr());
                ENUM
            }
            Value::Bytes(it) => {
                (api().list_new)(vector, it.len());
                let data = (*vector).data.cast::<Val>();
                for (index, byte) in it.iter().enumerate() {
                    data.add(index).write(Val { kind: U8, a: (*byte).into(), ..BLANK });
                }
                LIST
            }
            Value::List(items) => {
                (api().list_new)(vector, items.len());
                lower_all(items, context, (*vector).data.cast())?;
                LIST
            }
            Value::Tuple(items) => {
                (api().tuple_new)(vector, items.len());
                lower_all(items, context, (*vector).data.cast())?;
                TUPLE
            }
            Value::Record(fields) => {
                (api().record_new)(vector, fields.len());
                let data = (*vector).data.cast::<Entry>();
                for index in 0..fields.len() {
                    (&raw mut (*data.add(index)).value).write(BLANK);
                }
                for (index, (name, field)) in fields.into_iter().enumerate() {
                    (api().bytes_new)(&raw mut (*data.add(index)).name, name.len(), name.as_ptr());
                    lower(field, context, &raw mut (*data.add(index)).value)?;
                }
                RECORD
            }
            Value::Variant(case, payload) => {
                (*target).c = boxed(payload, context)?;
                (api().bytes_new)(vector, case.len(), case.as_ptr());
                VARIANT
            }
            Value::Option(payload) => {
                (*target).a = boxed(payload, context)?;
                OPTION
            }
            Value::Ok(payload) => {
                (*target).b = boxed(payload, context)?;
                (*target).a = 1;
                RESULT
            }
            Value::Err(payload) => {
                (*target).b = boxed(payload, context)?;
                (*target).a = 0;
                RESULT
            }
            Value::Lent(loan, handles) => {
                for (place, rep, type_id) in handles {
                    lower(Value::Own(rep, type_id), context, place as *mut Val)?; // L
                }
                *target = loan.take_result();
                return Ok(());
            }
            Value::Own(rep, type_id) => {
                let host = (api().host_new)(true, rep, type_id);
                let mut any = null_mut();
                let error = (api().host_to_any)(context, host, &raw mut any);
                (api().host_delete)(host);
                if !error.is_null() {
                    return Err(Trap::new(&consume_error(error).message));
                }
                (*target).a = any as u64;
                RESOURCE
            }
        };
        (*target).kind = kind;
    }
    Ok(())
}

/// Fill a fresh vector; every element is blank first, so that one that fails leaves a vector that can be freed.
fn lower_all(items: Vec<Value>, context: Ptr, data: *mut Val) -> Result<(), Trap> {
    // SAFETY: the vector was made with that many elements.
    unsafe {
        for index in 0..items.len() {
            data.add(index).write(BLANK);
        }
        for (index, item) in items.into_iter().enumerate() {
            lower(item, context, data.add(index))?;
        }
    }
    Ok(())
}

fn boxed(payload: Option<Box<Value>>, context: Ptr) -> Result<u64, Trap> {
    let Some(value) = payload else { return Ok(0) };
    if matches!(*value, Value::Nothing) {
        return Ok(0);
    }
    let mut blank = BLANK;
    // SAFETY: the library moves the blank into a new allocation, which the value that points to it owns.
    let address = unsafe { (api().val_new)(&raw mut blank) };
    lower(*value, context, address)?;
    Ok(address as u64)
}

// --- callbacks --------------------------------------------------------------------------------------------------------

/// The guest of a context (G).
///
/// # Safety
/// Only inside a callback that the library makes for this context, and one reference at a time.
unsafe fn guest_of<'a>(context: Ptr) -> &'a mut Guest {
    // SAFETY: G; `Instance::new` gave the store this address, and drops the guest after the store.
    unsafe { &mut *(api().get_data)(context).cast::<Guest>() }
}

/// Run ours at the library's border: a panic must not cross it, so it ends the guest's call as a defect of the host.
fn guarded<T>(guest: &mut Guest, run: impl FnOnce(&mut Guest) -> Result<T, Trap>) -> Result<T, Ptr> {
    match catch_unwind(AssertUnwindSafe(|| run(guest))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(trap)) => {
            let error = new_error(&trap.reason);
            guest.fail(trap.ended());
            Err(error)
        }
        Err(_) => {
            guest.fail(Ended::Defect("a host function panicked".into()));
            Err(new_error("the host failed"))
        }
    }
}

unsafe extern "C" fn on_call(
    data: Ptr, context: Ptr, _type: Ptr, args: *const Val, nargs: usize, results: *mut Val, nresults: usize,
) -> Ptr {
    // SAFETY: G, A; `data` is the `&'static` entry of the table that `Linker::new` passed.
    let (guest, entry, values) = unsafe { (guest_of(context), &*data.cast::<host::Entry>(), values_at(args, nargs)) };
    let answer = guarded(guest, |guest| {
        let Start::Now(run) = entry.start else { return Err(Trap::new("not a function of this kind")) };
        let value = run(guest, &Args { values, context, first: None })?;
        if nresults == 1 { lower(value, context, results) } else { Ok(()) }
    });
    answer.err().unwrap_or(null_mut())
}

/// What a suspended host function needs when it is looked at again.
struct Suspended {
    context: Ptr,
    results: *mut Val,
    nresults: usize,
    error: *mut Ptr,
}

unsafe extern "C" fn on_call_async(
    data: Ptr, context: Ptr, _type: Ptr, args: *const Val, nargs: usize, results: *mut Val, nresults: usize,
    error: *mut Ptr, continuation: *mut Continuation,
) {
    // SAFETY: as in `on_call`; `error` and `results` stay good until the continuation has returned true (A).
    unsafe {
        let (guest, entry, values) = (guest_of(context), &*data.cast::<host::Entry>(), values_at(args, nargs));
        let answer = guarded(guest, |guest| {
            let Start::Suspending(begin) = entry.start else { return Err(Trap::new("not a function of this kind")) };
            match begin(guest, &Args { values, context, first: None })? {
                Step::Done(value) if nresults == 1 => lower(value, context, results).map(|()| true),
                Step::Done(_) => Ok(true),
                Step::Wait => Ok(false),
            }
        });
        settle_call(answer, Suspended { context, results, nresults, error }, continuation);
    }
}

/// A function of the engine that Python serves for its own objects.
struct Either {
    entry: &'static host::Entry,
    number: u32,
}

unsafe extern "C" fn on_either(
    data: Ptr, context: Ptr, _type: Ptr, args: *const Val, nargs: usize, results: *mut Val, nresults: usize,
    error: *mut Ptr, continuation: *mut Continuation,
) {
    // SAFETY: as in `on_call_async`; `data` is a box that the linker's `Linked` keeps.
    unsafe {
        let (guest, either, values) = (guest_of(context), &*data.cast::<Either>(), values_at(args, nargs));
        let answer = guarded(guest, |guest| {
            let mut args = Args { values, context, first: None };
            let first = match values.first() {
                Some(value) if value.kind == RESOURCE => Some(args.at(0)?.handle()?),
                _ => None,
            };
            if let Some((rep, _)) = first {
                if guest.is_lent(rep)? {
                    let loan = Loan::new(guest, either.number, &args, first)?;
                    guest.ask(Arc::new(loan));
                    return Ok(false);
                }
            }
            args.first = first.map(|(rep, _)| rep);
            let value = match either.entry.start {
                Start::Now(run) => run(guest, &args)?,
                Start::Suspending(begin) => match begin(guest, &args)? {
                    Step::Done(value) => value,
                    Step::Wait => return Ok(false),
                },
            };
            if nresults == 1 { lower(value, context, results).map(|()| true) } else { Ok(true) }
        });
        settle_call(answer, Suspended { context, results, nresults, error }, continuation);
    }
}

/// A host function that Python serves: the guest waits for it.
unsafe extern "C" fn on_lend(
    data: Ptr, context: Ptr, _type: Ptr, args: *const Val, nargs: usize, results: *mut Val, nresults: usize,
    error: *mut Ptr, continuation: *mut Continuation,
) {
    // SAFETY: as in `on_call_async`; `data` is a number, not an address.
    unsafe {
        let (guest, values) = (guest_of(context), values_at(args, nargs));
        let asked = guarded(guest, |guest| {
            let loan = Loan::new(guest, data as usize as u32, &Args { values, context, first: None }, None)?;
            guest.ask(Arc::new(loan));
            Ok(false)
        });
        settle_call(asked, Suspended { context, results, nresults, error }, continuation);
    }
}

/// Tell the library what has become of a call: it failed, it is done (true), or it is to be looked at again.
///
/// # Safety
/// A: `continuation` and what `suspended` points to are those of the running callback.
unsafe fn settle_call(answer: Result<bool, Ptr>, suspended: Suspended, continuation: *mut Continuation) {
    // SAFETY: the caller's promise; the box is freed by `forget_suspended` alone.
    unsafe {
        continuation.write(Continuation { callback: already_done, env: null_mut(), finalizer: None });
        match answer {
            Err(failed) => *suspended.error = failed,
            Ok(true) => {}
            Ok(false) => continuation.write(Continuation {
                callback: look_again,
                env: Box::into_raw(Box::new(suspended)).cast(),
                finalizer: Some(forget_suspended),
            }),
        }
    }
}

unsafe extern "C" fn already_done(_env: Ptr) -> bool {
    true
}

unsafe extern "C" fn look_again(env: Ptr) -> bool {
    // SAFETY: `env` is the box of `on_call_async`, which the library frees by `forget_suspended` alone; G, A.
    unsafe {
        let suspended = &*env.cast::<Suspended>();
        let guest = guest_of(suspended.context);
        let answer = guarded(guest, |guest| match host::look_again(guest)? {
            Step::Done(value) if suspended.nresults == 1 => {
                lower(value, suspended.context, suspended.results).map(|()| true)
            }
            Step::Done(_) => Ok(true),
            Step::Wait => Ok(false),
        });
        answer.unwrap_or_else(|failed| {
            *suspended.error = failed;
            true
        })
    }
}

unsafe extern "C" fn forget_suspended(env: Ptr) {
    // SAFETY: the library calls it once, with the box that `on_call_async` gave.
    drop(unsafe { Box::from_raw(env.cast::<Suspended>()) });
}

unsafe extern "C" fn on_drop(_data: Ptr, context: Ptr, rep: u32) -> Ptr {
    // SAFETY: G.
    let guest = unsafe { guest_of(context) };
    guarded(guest, |guest| guest.drop_handle(rep)).err().unwrap_or(null_mut())
}

unsafe extern "C" fn on_epoch(context: Ptr, _data: Ptr, delta: *mut u64, kind: *mut u8) -> Ptr {
    // SAFETY: G; both places are the library's to be written.
    unsafe {
        let guest = guest_of(context);
        let answer = guarded(guest, Guest::tick);
        *delta = 1;
        *kind = YIELD;
        answer.err().unwrap_or(null_mut())
    }
}

/// # Safety
/// A: `count` initialised values at `values`, for as long as the callback runs.
unsafe fn values_at<'a>(values: *const Val, count: usize) -> &'a [Val] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(values, count) }
}

// --- linking ----------------------------------------------------------------------------------------------------------

/// One imported interface: its full name, its resources with their host type ids, its functions.
pub struct Import {
    pub name: String,
    pub resources: Vec<(String, u32)>,
    pub functions: Vec<(String, &'static host::Entry)>,
    /// Functions that Python serves, each with its number there.
    pub lent: Vec<(String, u32)>,
    /// Functions that Python serves for objects which it holds, and the engine for its own.
    pub either: Vec<(String, &'static host::Entry, u32)>,
}

/// A component, joined to the host functions, and where its handler is. `Send` and `Sync` as the objects behind it are in
/// wasmtime; the engine and the component are kept alive by what it holds.
pub struct Linked {
    engine: Ptr,
    component: Ptr,
    linker: Ptr,
    entry: Ptr,
    eithers: Vec<Box<Either>>,
    _keep: Box<dyn std::any::Any + Send + Sync>,
}

// SAFETY: wasmtime's Engine, Component and component Linker are Send and Sync, and nothing here changes them after `new`.
unsafe impl Send for Linked {}
// SAFETY: as above.
unsafe impl Sync for Linked {}

impl Linked {
    /// Join the component at `component`, of the engine at `engine`, to `imports`; `entry` is an interface and its function.
    pub fn new(
        engine: usize, component: usize, imports: &[Import], entry: (&str, &str), keep: Box<dyn std::any::Any + Send + Sync>,
    ) -> Result<Linked, String> {
        let (engine, component) = (engine as Ptr, component as Ptr);
        // SAFETY: T, V; names are copied by the library; the linker is freed by `drop`.
        unsafe {
            let parent = (api().export_index)(component, null_mut(), entry.0.as_ptr(), entry.0.len());
            if parent.is_null() {
                return Err(format!("no export {}", entry.0));
            }
            let index = (api().export_index)(component, parent, entry.1.as_ptr(), entry.1.len());
            (api().export_index_delete)(parent);
            if index.is_null() {
                return Err(format!("no export {} in {}", entry.1, entry.0));
            }
            let linker = (api().linker_new)(engine);
            let mut linked = Linked { engine, component, linker, entry: index, eithers: Vec::new(), _keep: keep };
            for import in imports {
                linked.define(import)?;
            }
            Ok(linked)
        }
    }

    fn define(&mut self, import: &Import) -> Result<(), String> {
        // SAFETY: V; a root borrows the linker until it is deleted, an instance its root.
        unsafe {
            let root = (api().linker_root)(self.linker);
            let mut instance = null_mut();
            let error = (api().add_instance)(root, import.name.as_ptr(), import.name.len(), &raw mut instance);
            let mut found = if error.is_null() { Ok(()) } else { Err(consume_error(error).message) };
            if found.is_ok() {
                for (name, type_id) in &import.resources {
                    let kind = (api().type_new_host)(*type_id);
                    let error = (api().add_resource)(instance, name.as_ptr(), name.len(), kind, on_drop, null_mut(), None);
                    (api().type_delete)(kind);
                    found = found.and_then(|()| if error.is_null() { Ok(()) } else { Err(consume_error(error).message) });
                }
                for (name, entry) in &import.functions {
                    let data = std::ptr::from_ref::<host::Entry>(entry).cast_mut().cast();
                    let error = match entry.start {
                        Start::Now(_) => (api().add_func)(instance, name.as_ptr(), name.len(), on_call, data, None),
                        Start::Suspending(_) => {
                            (api().add_func_async)(instance, name.as_ptr(), name.len(), on_call_async, data, None)
                        }
                    };
                    found = found.and_then(|()| if error.is_null() { Ok(()) } else { Err(consume_error(error).message) });
                }
                for (name, entry, number) in &import.either {
                    let either = Box::new(Either { entry, number: *number });
                    let data = (&raw const *either).cast_mut().cast();
                    self.eithers.push(either); // its place stays the same
                    let error = (api().add_func_async)(instance, name.as_ptr(), name.len(), on_either, data, None);
                    found = found.and_then(|()| if error.is_null() { Ok(()) } else { Err(consume_error(error).message) });
                }
                for (name, number) in &import.lent {
                    let data = *number as usize as Ptr; // a number in the place of an address, which nothing follows
                    let error = (api().add_func_async)(instance, name.as_ptr(), name.len(), on_lend, data, None);
                    found = found.and_then(|()| if error.is_null() { Ok(()) } else { Err(consume_error(error).message) });
                }
                (api().instance_delete)(instance);
            }
            (api().instance_delete)(root);
            found
        }
    }

    /// Let a tick of the epoch pass.
    pub fn increment_epoch(&self) {
        // SAFETY: V; the engine lives, and may be ticked from any thread.
        unsafe { (api().increment_epoch)(self.engine) }
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        // SAFETY: both were made by `new` and are freed once; instances hold what they need of the linker themselves.
        unsafe {
            (api().export_index_delete)(self.entry);
            (api().linker_delete)(self.linker);
        }
    }
}

// --- instances --------------------------------------------------------------------------------------------------------

/// Caps of one store.
#[derive(Clone, Copy)]
pub struct Caps {
    pub memory_bytes: i64,
    pub table_elements: i64,
    pub instances: i64,
    pub tables: i64,
    pub memories: i64,
}

/// What a poll found.
pub enum Progress {
    /// It yielded, or waits for what `Guest::wait` says.
    Pending,
    Ended(Result<(), WasmError>),
}

/// One store with one instance, its guest, and at most one call on it (P, G, F).
pub struct Instance {
    linked: Arc<Linked>,
    store: Ptr,
    context: Ptr,
    guest: NonNull<Guest>,
    future: Ptr,
    error: Box<Ptr>,
    instance: Box<[u64; 4]>,
    function: Box<[u64; 4]>,
    args: Box<[Val; 2]>,
    calling: bool,
}

impl Instance {
    /// A store for `guest`, without an instance in it yet.
    pub fn new(linked: Arc<Linked>, caps: Caps, guest: Guest) -> Instance {
        let guest = NonNull::from(Box::leak(Box::new(guest)));
        // SAFETY: V, P, G; the guest's address is the store's data, and no finalizer frees it.
        let (store, context) = unsafe {
            let store = (api().store_new)(linked.engine, guest.as_ptr().cast(), None);
            let Caps { memory_bytes, table_elements, instances, tables, memories } = caps;
            (api().store_limiter)(store, memory_bytes, table_elements, instances, tables, memories);
            (api().store_epoch)(store, on_epoch, null_mut(), None);
            let context = (api().store_context)(store);
            (api().set_epoch)(context, 1);
            (store, context)
        };
        Instance {
            linked, store, context, guest, future: null_mut(), error: Box::new(null_mut()), instance: Box::new([0; 4]),
            function: Box::new([0; 4]), args: Box::new([BLANK; 2]), calling: false,
        }
    }

    /// The guest, while nothing polls (G).
    pub fn guest(&mut self) -> &mut Guest {
        // SAFETY: G; `&mut self` excludes `poll`, in which alone callbacks run.
        unsafe { self.guest.as_mut() }
    }

    /// Begin to instantiate; `poll` until it ended.
    pub fn start(&mut self) {
        assert!(self.future.is_null(), "one call at a time");
        let linked = &self.linked;
        // SAFETY: P, F; both places are boxed and live until the future ended.
        self.future = unsafe {
            (api().instantiate_async)(
                linked.linker, self.context, linked.component, self.instance.as_mut_ptr(), &raw mut *self.error,
            )
        };
    }

    /// Begin to call the handler with two handles, each a rep and its type; `poll` until it ended.
    pub fn handle(&mut self, request: (u32, u32), outparam: (u32, u32)) -> Result<(), Trap> {
        assert!(self.future.is_null(), "one call at a time");
        lower(Value::Own(request.0, request.1), self.context, &raw mut self.args[0])?;
        lower(Value::Own(outparam.0, outparam.1), self.context, &raw mut self.args[1])?;
        self.calling = true;
        // SAFETY: V; the context is that of our live store. A kept instance begins without the ticks that passed since.
        unsafe { (api().set_epoch)(self.context, 1) };
        // SAFETY: P, F; function and arguments are boxed and live until the future ended.
        self.future = unsafe {
            (api().call_async)(
                self.function.as_ptr(), self.context, self.args.as_ptr(), 2, null_mut(), 0, &raw mut *self.error,
            )
        };
        Ok(())
    }

    /// Run guest code until it ends, yields or waits.
    pub fn poll(&mut self) -> Progress {
        assert!(!self.future.is_null(), "a call was begun");
        // SAFETY: P, F; callbacks run now, and reach the guest by its address (G).
        if !unsafe { (api().future_poll)(self.future) } {
            return Progress::Pending;
        }
        self.end_future();
        let error = std::mem::replace(&mut *self.error, null_mut());
        if !error.is_null() {
            return Progress::Ended(Err(consume_error(error)));
        }
        // SAFETY: the store has its instance; the index came from its component.
        let found = unsafe {
            (api().get_func)(self.instance.as_ptr(), self.context, self.linked.entry, self.function.as_mut_ptr())
        };
        assert!(found, "the index came from this component");
        Progress::Ended(Ok(()))
    }

    fn end_future(&mut self) {
        let future = std::mem::replace(&mut self.future, null_mut());
        if !future.is_null() {
            // SAFETY: F; deleted once. A fiber that is still suspended is unwound here, which may run destructors (G).
            unsafe { (api().future_delete)(future) };
        }
        if std::mem::take(&mut self.calling) {
            for value in self.args.iter_mut() {
                // SAFETY: `handle` made both; the future that read them is gone.
                unsafe { (api().val_delete)(value) };
                *value = BLANK;
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.end_future();
        // SAFETY: F, G; the future is gone, then the store, then the guest that its callbacks used.
        unsafe {
            if !self.error.is_null() {
                (api().error_delete)(*self.error);
            }
            (api().store_delete)(self.store);
            drop(Box::from_raw(self.guest.as_ptr()));
        }
    }
}
