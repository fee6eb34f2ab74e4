//! The global allocator: the system's, with a reserve for small requests that the system refuses.
//!
//! Rust's library ends the process if it cannot allocate. Memory that grows with the input is asked for through `modula_core::memory`,
//! whose requests may fail. Many small things ask without such care: PyO3's conversions, messages of errors, the jobs of rayon, and the
//! unwinding itself. The reserve serves these until the call has ended, often with a `MemoryError`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::null_mut;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// The reserve has slots of 64, 128, ..., 256 Ki bytes. Larger requests come from code that can be refused.
const CLASSES: usize = 13;
const SMALLEST: usize = 64;
const LARGEST: usize = SMALLEST << (CLASSES - 1);
/// The slots of a class take at most this many bytes.
const ROOM_OF_A_CLASS: usize = 1 << 19;
/// The most slots of a class, and the words whose bits say which are taken.
const SLOTS: usize = 1 << 10;
const WORDS: usize = SLOTS / 64;
/// The largest alignment that the reserve serves.
const ALIGN: usize = 4096;

const fn slots(class: usize) -> usize {
    let slots = ROOM_OF_A_CLASS / (SMALLEST << class);
    if slots < SLOTS { slots } else { SLOTS }
}

/// The offset of each class in the reserve, largest slots first, so that every slot is aligned to its size; the last entry is the total.
const STARTS: [usize; CLASSES + 1] = {
    let mut starts = [0; CLASSES + 1];
    let mut class = CLASSES;
    let mut end = 0;
    while class > 0 {
        class -= 1;
        starts[class] = end;
        end += slots(class) * (SMALLEST << class);
    }
    starts[CLASSES] = end;
    starts
};
const SIZE: usize = STARTS[CLASSES];

#[repr(align(4096))]
struct Room(UnsafeCell<[u8; SIZE]>);

// SAFETY: the room is only handed out by `take`, in slots that do not overlap, each to one owner at a time.
unsafe impl Sync for Room {}

/// The room lies in the zeroed part of the library's image, so the system gives memory only to pages that are used.
static ROOM: Room = Room(UnsafeCell::new([0; SIZE]));

/// For each class one bit for each slot, set while the slot is taken.
static TAKEN: [[AtomicU64; WORDS]; CLASSES] = [const { [const { AtomicU64::new(0) }; WORDS] }; CLASSES];

/// A free slot for the layout, or null.
fn take(layout: Layout) -> *mut u8 {
    let size = layout.size().max(layout.align()).max(SMALLEST);
    if size > LARGEST || layout.align() > ALIGN {
        return null_mut();
    }
    let smallest = size.next_power_of_two().trailing_zeros() - SMALLEST.trailing_zeros();
    (smallest as usize..CLASSES).find_map(slot).map_or(null_mut(), |offset| {
        // SAFETY: the offset is below the size of the room.
        unsafe { ROOM.0.get().cast::<u8>().add(offset) }
    })
}

/// The offset of a slot of this class, which is now taken.
fn slot(class: usize) -> Option<usize> {
    for (index, word) in TAKEN[class].iter().enumerate() {
        let in_word = slots(class).saturating_sub(64 * index).min(64);
        let mut taken = word.load(Relaxed);
        while taken.trailing_ones() < in_word as u32 {
            let bit = taken.trailing_ones() as usize;
            // Acquire: whatever the last owner did to the slot has happened before.
            taken = word.fetch_or(1 << bit, Acquire);
            if taken >> bit & 1 == 0 {
                return Some(STARTS[class] + (64 * index + bit) * (SMALLEST << class));
            }
        }
    }
    None
}

/// The offset of a pointer in the room, if it is from there.
fn offset(pointer: *mut u8) -> Option<usize> {
    Some(pointer.addr().wrapping_sub(ROOM.0.get().addr())).filter(|&offset| offset < SIZE)
}

fn give_back(offset: usize) {
    // Classes of larger slots lie before those of smaller ones.
    let class = (0..CLASSES).find(|&class| offset >= STARTS[class]).unwrap_or(CLASSES - 1);
    let slot = (offset - STARTS[class]) / (SMALLEST << class);
    TAKEN[class][slot / 64].fetch_and(!(1 << (slot % 64)), Release);
}

/// The system's allocator with the reserve behind it.
pub struct Reserve;

// SAFETY: memory comes from the system's allocator, which keeps the contract, or is a slot of the room: aligned, at least as large as asked
// for, and not handed out again before it is given back. Nothing here unwinds.
unsafe impl GlobalAlloc for Reserve {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this function, which is the system's.
        let found = unsafe { System.alloc(layout) };
        if found.is_null() { take(layout) } else { found }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this function, which is the system's.
        let found = unsafe { System.alloc_zeroed(layout) };
        if !found.is_null() {
            return found;
        }
        let found = take(layout);
        if !found.is_null() {
            // SAFETY: the slot has at least this many bytes, and nobody else refers to them.
            unsafe { found.write_bytes(0, layout.size()) };
        }
        found
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match offset(pointer) {
            Some(offset) => give_back(offset),
            // SAFETY: the pointer is not from the room, so it is from the system's allocator; the layout is the one that it was asked with.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if offset(pointer).is_none() {
            // SAFETY: the pointer is from the system's allocator; the rest is the caller's part of the contract.
            let found = unsafe { System.realloc(pointer, layout, size) };
            if !found.is_null() {
                return found;
            }
        }
        // SAFETY: the caller guarantees that the size is not 0 and that, rounded up to the alignment, it fits an isize. Old and new memory
        // do not overlap, because the old memory is given back last.
        unsafe {
            let found = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !found.is_null() {
                found.copy_from_nonoverlapping(pointer, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            found
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_apart_and_used_again() {
        let layouts: Vec<_> = [(1, 1), (64, 8), (65, 64), (4096, 4096), (100_000, 16), (LARGEST, 8)]
            .map(|(size, align)| Layout::from_size_align(size, align).unwrap())
            .into();
        for _ in 0..3 {
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for layout in layouts.iter().cycle() {
                let found = take(*layout);
                let Some(start) = offset(found) else { break };
                assert_eq!(found.addr() % layout.align(), 0);
                assert!(start + layout.size() <= SIZE);
                taken.push((start, start + layout.size()));
            }
            assert!(taken.len() > 10);
            taken.sort_unstable();
            assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            taken.iter().for_each(|&(start, _)| give_back(start));
            assert!(TAKEN.iter().flatten().all(|word| word.load(Relaxed) == 0));
        }
        assert!(take(Layout::from_size_align(LARGEST + 1, 1).unwrap()).is_null());
    }
}
