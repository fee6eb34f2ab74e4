//! Work shared out among the threads of the current rayon pool.

use std::cmp::Reverse;
use std::sync::Mutex;

use rayon::prelude::*;

/// Multiply-adds below which starting the threads costs more than they save.
const WORTH_A_THREAD: usize = 1 << 20;

/// Does all items on the threads of the current pool, those with the most work first. `f` is told how many threads to use for its item:
/// one, or all for those items that would keep one thread busy while the others have nothing left to do.
pub(super) fn for_each_largest_first<I: Send>(mut items: Vec<I>, work: impl Fn(&I) -> usize, f: impl Fn(&mut I, usize) + Sync) {
    let total: usize = items.iter().map(&work).sum();
    let threads = rayon::current_num_threads().min(total / WORTH_A_THREAD);
    if threads <= 1 {
        return items.iter_mut().for_each(|item| f(item, 1));
    }
    items.sort_by_cached_key(|item| Reverse(work(item)));
    let shared = items.iter().take_while(|item| work(item) > total / (2 * threads)).count();
    let (large, small) = items.split_at_mut(shared);
    let queue = Mutex::new(small.iter_mut());
    let next = || queue.lock().ok()?.next();
    let distribute = |_| {
        while let Some(item) = next() {
            f(item, 1);
        }
    };
    large.iter_mut().for_each(|item| f(item, threads));
    (0..threads).into_par_iter().with_max_len(1).for_each(distribute);
}
