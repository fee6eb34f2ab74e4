//! The pool of threads that all calls from outside rayon share. It starts when first needed, with fewer threads if the system refuses some.
//!
//! rayon's global pool is not used. After a fork the child process has none of its threads, and it cannot be rebuilt; and it panics where
//! threads cannot be started.

use std::cell::RefCell;
use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, available_parallelism};

use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::atom::Geometry;
use crate::norm::Batch;
use crate::{interrupt, linalg, memory, tensor};

/// The most threads for each core: more would only wait for each other.
const FOR_EACH_CORE: usize = 4;
/// This many threads are allowed on any machine.
const ALWAYS: usize = 16;
/// The memory that a new thread takes before anything in it can be refused: two mebibytes for its stack, and as much to spare.
const FOR_A_THREAD: usize = 4 << 20;

struct Shared {
    /// The number of threads that was asked for; 0 stands for the default.
    wanted: usize,
    pool: Option<Arc<ThreadPool>>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { wanted: 0, pool: None });

fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most threads that may be asked for: four for each core, and never less than sixteen.
pub fn limit() -> usize {
    (FOR_EACH_CORE * cores()).max(ALWAYS)
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// The default number of threads: one for each core, or `RAYON_NUM_THREADS`, at most the [`limit`].
fn by_default() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|number| number.trim().parse().ok());
    asked.filter(|&threads: &usize| threads > 0).map_or_else(cores, |threads| threads.min(limit()))
}

/// Sets the number of threads of the shared pool, at most the [`limit`]; 0 restores the default: one for each core, or `RAYON_NUM_THREADS`.
///
/// Calls in progress finish on the threads that they started with.
pub fn set_threads(wanted: usize) {
    let old = std::mem::replace(&mut *shared(), Shared { wanted: wanted.min(limit()), pool: None });
    drop(old.pool);
}

/// The number of threads that the shared pool has, or will have once it is started.
pub fn threads() -> usize {
    let shared = shared();
    match (&shared.pool, shared.wanted) {
        (Some(pool), _) => pool.current_num_threads(),
        (None, 0) => by_default(),
        (None, wanted) => wanted,
    }
}

/// The shared pool, or `None` if not a single thread can be started. Where the system refuses threads, the pool has fewer than were asked
/// for.
pub fn get() -> Option<Arc<ThreadPool>> {
    let mut shared = shared();
    if shared.pool.is_none() {
        let wanted = if shared.wanted == 0 { by_default() } else { shared.wanted };
        shared.pool = start(wanted).ok().map(Arc::new);
    }
    shared.pool.clone()
}

/// Runs `work` on the calling thread alone, as a rayon pool of one thread.
pub fn alone<R>(work: impl FnOnce() -> R) -> R {
    thread_local! {
        // rayon refuses if the thread belongs to a pool already.
        static ALONE: Option<ThreadPool> = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().ok();
    }
    ALONE.with(|_| work())
}

fn start(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    let built = ThreadPoolBuilder::new().num_threads(threads).spawn_handler(spawn).build();
    match built {
        Err(_) if threads > 1 => start(threads / 2),
        built => built,
    }
}

/// Starts a thread, and waits until it has its thread-local variables. Without memory for them the C library ends the process, so a thread
/// is only started if there is memory to spare, and one after the other.
fn spawn(thread: ThreadBuilder) -> io::Result<()> {
    if !memory::available(FOR_A_THREAD) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let (sender, receiver) = sync_channel(1);
    Builder::new().name(format!("modula-{}", thread.index())).spawn(move || {
        drop(interrupt::current());
        // Sending cannot fail: the receiver waits.
        let _ = sender.send(());
        thread.run();
    })?;
    receiver.recv().map_err(io::Error::other)
}

thread_local! {
    /// This thread's lock on the shared pool while it forks. If another thread held the lock then, it would stay locked in the child for
    /// ever.
    static FORKING: RefCell<Option<MutexGuard<'static, Shared>>> = const { RefCell::new(None) };
}

/// Call this before the calling thread forks the process.
pub fn before_fork() {
    FORKING.set(Some(shared()));
}

/// Call this in the parent process after the fork, from the thread that forked.
pub fn after_fork_in_parent() {
    FORKING.take();
}

/// Call this in the child process after the fork. The child has none of the pool's threads, and the next call starts a new pool.
pub fn after_fork_in_child() {
    let old = FORKING.take().and_then(|mut shared| shared.pool.take());
    // Dropping the pool would try to wake threads that do not exist in the child.
    std::mem::forget(old);
}

/// How much a map works on each matrix. Every map reads blocks that are not matrices only a few times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// The map reads the matrix some forty times, to find its norm.
    Reads,
    /// The map does work like sixteen products of the matrix with a square matrix of its shorter side, to find its polar factor.
    Products,
}

/// Whether a map on these batches is so little work that the calling thread does it alone, without a pool.
pub fn is_small(batches: impl IntoIterator<Item = Batch>, effort: Effort) -> bool {
    // An upper estimate: at least the work that the map itself counts when it chooses its number of threads.
    let work = |Batch { geometry, count, rows, cols }| {
        let each = match (geometry, effort) {
            (Geometry::Spectral, Effort::Reads) => 40,
            (Geometry::Spectral, Effort::Products) => rows.min(cols).saturating_mul(16).max(40),
            _ => 2 * linalg::WORTH_A_THREAD / tensor::WORTH_A_THREAD,
        };
        [each, rows, cols, count].into_iter().fold(1, usize::saturating_mul)
    };
    batches.into_iter().map(work).fold(0, usize::saturating_add) < 2 * linalg::WORTH_A_THREAD
}
