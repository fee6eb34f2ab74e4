//! The threads that callers outside of any rayon pool share: started when first needed, fewer where the system refuses some.
//!
//! rayon's global pool is left alone. It cannot be rebuilt after a fork, whose child has none of its threads, and it panics where threads
//! cannot be started.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::atom::Geometry;
use crate::norm::Batch;
use crate::{linalg, tensor};

/// Threads for each core beyond which more of them only take turns.
const FOR_EACH_CORE: usize = 4;
/// As many may be had on any machine.
const ALWAYS: usize = 16;

struct Shared {
    /// How many threads were asked for; 0 for the default.
    wanted: usize,
    pool: Option<Arc<ThreadPool>>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { wanted: 0, pool: None });

fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most threads that may be asked for: four for each core, and sixteen on any machine.
pub fn limit() -> usize {
    (FOR_EACH_CORE * cores()).max(ALWAYS)
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// All cores, or `RAYON_NUM_THREADS` up to the [`limit`].
fn by_default() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|number| number.trim().parse().ok());
    asked.filter(|&threads: &usize| threads > 0).map_or_else(cores, |threads| threads.min(limit()))
}

/// Asks for as many threads, at most the [`limit`]; 0 for the default: all cores, or `RAYON_NUM_THREADS`.
///
/// Calls under way finish on the threads they began with.
pub fn set_threads(wanted: usize) {
    let old = std::mem::replace(&mut *shared(), Shared { wanted: wanted.min(limit()), pool: None });
    drop(old.pool);
}

/// How many threads the shared pool has, or will have when it is started.
pub fn threads() -> usize {
    let shared = shared();
    match (&shared.pool, shared.wanted) {
        (Some(pool), _) => pool.current_num_threads(),
        (None, 0) => by_default(),
        (None, wanted) => wanted,
    }
}

/// The shared pool. Where the system refuses threads it has fewer than were asked for; `None` if not a single one can be started.
pub fn get() -> Option<Arc<ThreadPool>> {
    let mut shared = shared();
    if shared.pool.is_none() {
        let wanted = if shared.wanted == 0 { by_default() } else { shared.wanted };
        shared.pool = start(wanted).ok().map(Arc::new);
    }
    shared.pool.clone()
}

/// Does `work` on this thread alone, as a pool of one.
pub fn alone<R>(work: impl FnOnce() -> R) -> R {
    thread_local! {
        // Refused where the thread belongs to a pool already.
        static ALONE: Option<ThreadPool> = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().ok();
    }
    ALONE.with(|_| work())
}

fn start(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    let built = ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("modula-{index}")).build();
    match built {
        Err(_) if threads > 1 => start(threads / 2),
        built => built,
    }
}

thread_local! {
    /// The lock on the shared pool while this thread forks: held by another thread, it would stay locked in the child for ever.
    static FORKING: RefCell<Option<MutexGuard<'static, Shared>>> = const { RefCell::new(None) };
}

/// To be called before this thread forks the process.
pub fn before_fork() {
    FORKING.set(Some(shared()));
}

/// To be called after the fork by the thread that has forked, in the parent.
pub fn after_fork_in_parent() {
    FORKING.take();
}

/// The same in the child, which has none of the pool's threads: the next call starts others.
pub fn after_fork_in_child() {
    let old = FORKING.take().and_then(|mut shared| shared.pool.take());
    // Dropped, it would wake threads that are not there.
    std::mem::forget(old);
}

/// What a map does with a matrix. Other blocks are read a few times by every map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Reads it some forty times, for its norm.
    Reads,
    /// Multiplies it some sixteen times with its shorter side, for its polar factor.
    Products,
}

/// Whether a map of these batches is so little work that the thread that asks for it does all of it, and needs no pool.
pub fn is_small(batches: impl IntoIterator<Item = Batch>, effort: Effort) -> bool {
    // At least what the map itself counts when it decides on how many threads to run.
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
