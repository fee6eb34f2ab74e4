//! Memory for whatever grows with the input: if the system refuses it, the computation is [stopped](crate::stop) instead of the process.

use crate::stop::Stopped;

/// Makes room for `more` items, and if need be for twice as many as there is room for.
pub(crate) fn reserve<T>(items: &mut Vec<T>, more: usize) {
    if items.try_reserve(more).is_err() {
        refuse::<T>((2 * items.capacity()).max(items.len().saturating_add(more)));
    }
}

fn refuse<T>(items: usize) -> ! {
    Stopped::OutOfMemory { bytes: items.saturating_mul(size_of::<T>()) }.unwind()
}

/// A vector with room for exactly `len` items.
pub fn room<T>(len: usize) -> Vec<T> {
    let mut items = Vec::new();
    if items.try_reserve_exact(len).is_err() {
        refuse::<T>(len);
    }
    items
}

/// `len` times `value`.
pub(crate) fn filled<T: Clone>(value: T, len: usize) -> Vec<T> {
    let mut items = room(len);
    items.resize(len, value);
    items
}

/// A copy.
pub fn copied<T: Copy>(from: &[T]) -> Vec<T> {
    let mut items = room(from.len());
    items.extend_from_slice(from);
    items
}

/// What `Iterator::collect` gives.
pub fn collected<T>(from: impl IntoIterator<Item = T>) -> Vec<T> {
    let from = from.into_iter();
    let mut items = room(from.size_hint().0);
    for item in from {
        if items.len() == items.capacity() {
            reserve(&mut items, 1);
        }
        items.push(item);
    }
    items
}

/// Stops now if `bytes` are not to be had: for work whose many small requests cannot be tried one by one.
pub fn expect(bytes: usize) {
    drop(room::<u8>(bytes));
}
