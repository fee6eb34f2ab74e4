//! The threads shared by callers outside of any pool.

#![allow(missing_docs)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use modula_core::atom::Geometry;
use modula_core::norm::Batch;
use modula_core::pool::{self, Effort};

/// Tests of one process share the pool.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn no_more_threads_are_had_than_the_limit() {
    let _alone = alone();
    pool::set_threads(usize::MAX);
    assert_eq!(pool::threads(), pool::limit());
    pool::set_threads(3);
    assert_eq!(pool::threads(), 3);
    assert_eq!(pool::get().unwrap().current_num_threads(), 3);
    pool::set_threads(0);
    assert!((1..=pool::limit()).contains(&pool::threads()));
}

#[test]
fn a_thread_alone_is_a_pool_of_one() {
    let threads = || std::thread::spawn(|| [pool::alone(rayon::current_num_threads), pool::alone(rayon::current_num_threads)]);
    assert_eq!(threads().join().unwrap(), [1, 1]);
    // A thread that belongs to a pool stays there.
    let _alone = alone();
    assert!(pool::get().unwrap().install(|| pool::alone(|| rayon::current_thread_index().is_some())));
}

#[test]
fn the_child_of_a_fork_starts_a_pool_of_its_own() {
    let _alone = alone();
    let before = pool::get().unwrap();
    pool::before_fork();
    pool::after_fork_in_parent();
    assert!(Arc::ptr_eq(&before, &pool::get().unwrap()));
    pool::before_fork();
    pool::after_fork_in_child();
    let after = pool::get().unwrap();
    assert!(!Arc::ptr_eq(&before, &after));
    assert_eq!(after.install(|| rayon::join(|| 1, || 2)), (1, 2));
}

#[test]
fn what_counts_as_small_depends_on_the_effort() {
    let matrix = Batch { geometry: Geometry::Spectral, count: 1, rows: 128, cols: 128 };
    assert!(pool::is_small([matrix], Effort::Reads) && !pool::is_small([matrix], Effort::Products));
    let table = Batch { geometry: Geometry::RowRms, count: 1, rows: 1000, cols: 100 };
    assert!(pool::is_small([table], Effort::Products));
    // Nothing at all, however often, and more than can be counted.
    let huge = Batch { geometry: Geometry::Spectral, count: usize::MAX, rows: usize::MAX, cols: usize::MAX };
    assert!(pool::is_small([Batch { cols: 0, ..huge }], Effort::Products) && !pool::is_small([huge, huge], Effort::Reads));
}
