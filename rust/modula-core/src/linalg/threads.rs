//! Work shared out among the threads of the current rayon pool.

use std::cmp::Reverse;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::interrupt;

/// Number of multiply-adds below which starting threads costs more than the threads save.
pub(crate) const WORTH_A_THREAD: usize = 1 << 20;

/// Runs `f` on every item on the threads of the current pool, beginning with the items that take the most work. `f` also gets the number of
/// threads to use for its item: one, or all of them for an item that would keep one thread busy after the others have run out of work.
pub(super) fn for_each_largest_first<I: Send>(mut items: Vec<I>, work: impl Fn(&I) -> usize, f: impl Fn(&mut I, usize) + Sync) {
    let total = items.iter().map(&work).fold(0, usize::saturating_add);
    let watch = interrupt::current();
    let f = |item: &mut I, threads| {
        watch.check();
        f(item, threads);
    };
    // Outside of any pool, small work must not start rayon's global one.
    let threads = match total / WORTH_A_THREAD {
        0 | 1 => 1,
        most => rayon::current_num_threads().min(most),
    };
    if threads <= 1 {
        return items.iter_mut().for_each(|item| f(item, 1));
    }
    items.sort_unstable_by_key(|item| Reverse(work(item)));
    let large = items.iter().take_while(|item| work(item) > total / (2 * threads)).count();
    // Threads that work on an item together wait for each other. Equal items, as many for each thread, need no sharing.
    let equal = large == items.len() && work(&items[0]) == work(&items[large - 1]);
    let shared = if equal { large % threads } else { large };
    let (large, small) = items.split_at_mut(shared);
    let queue = Mutex::new(small.iter_mut());
    let next = || queue.lock().ok()?.next();
    let distribute = |_| {
        watch.run(|| {
            while let Some(item) = next() {
                f(item, 1);
            }
        });
    };
    large.iter_mut().for_each(|item| f(item, threads));
    (0..threads).into_par_iter().with_max_len(1).for_each(distribute);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rayon::ThreadPoolBuilder;

    use super::{WORTH_A_THREAD, for_each_largest_first};

    /// For items of these multiples of the least work worth a thread: how many of them all threads shared.
    fn shared(threads: usize, works: &[usize]) -> usize {
        let visits = Mutex::new(Vec::new());
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let items: Vec<(usize, usize)> = works.iter().copied().enumerate().collect();
        pool.install(|| {
            for_each_largest_first(
                items,
                |&(_, work)| work * WORTH_A_THREAD,
                |&mut (item, _), given| visits.lock().expect("no thread panicked").push((item, given)),
            );
        });
        let mut visits = visits.into_inner().expect("no thread panicked");
        visits.sort_unstable();
        assert_eq!(visits.iter().map(|&(item, _)| item).collect::<Vec<_>>(), (0..works.len()).collect::<Vec<_>>());
        assert!(visits.iter().all(|&(_, given)| given == 1 || given == threads));
        visits.iter().filter(|&&(_, given)| given > 1).count()
    }

    #[test]
    fn only_what_would_keep_one_thread_busy_alone_is_shared() {
        assert_eq!(shared(2, &[4]), 1);
        assert_eq!(shared(2, &[4, 4]), 0);
        assert_eq!(shared(2, &[4, 4, 4]), 1);
        assert_eq!(shared(3, &[4; 5]), 2);
        assert_eq!(shared(4, &[4, 4]), 2);
        assert_eq!(shared(2, &[8, 1, 1]), 1);
        assert_eq!(shared(2, &[4; 9]), 0);
    }
}
