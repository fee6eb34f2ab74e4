//! Allocation of memory whose size grows with the input. If the operating system refuses it, the computation is
//! [stopped](crate::stop), and the process lives on.

use crate::stop::Stopped;

/// Makes room for `more` items; a vector that must grow at least doubles its capacity.
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

/// A vector of `len` copies of `value`.
pub(crate) fn filled<T: Clone>(value: T, len: usize) -> Vec<T> {
    let mut items = room(len);
    items.resize(len, value);
    items
}

/// A copy of a slice.
pub fn copied<T: Copy>(from: &[T]) -> Vec<T> {
    let mut items = room(from.len());
    items.extend_from_slice(from);
    items
}

/// Adds an item to a vector.
pub fn push<T>(items: &mut Vec<T>, item: T) {
    if items.len() == items.capacity() {
        reserve(items, 1);
    }
    items.push(item);
}

/// A vector of all items, as from `Iterator::collect`.
pub fn collected<T>(from: impl IntoIterator<Item = T>) -> Vec<T> {
    let from = from.into_iter();
    let mut items = room(from.size_hint().0);
    from.for_each(|item| push(&mut items, item));
    items
}

/// Whether `bytes` can be allocated now.
pub(crate) fn available(bytes: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
}

/// Stops the computation if `bytes` cannot be allocated. Call this before work that makes many small allocations, which are not checked one
/// by one.
pub fn expect(bytes: usize) {
    drop(room::<u8>(bytes));
}
