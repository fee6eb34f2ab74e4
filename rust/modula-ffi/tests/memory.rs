//! Memory that the system refuses inside a handler is an error of the call.

#![allow(missing_docs)]

#[allow(dead_code, reason = "made for the tests of frames, which use more of it")]
mod frame;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use frame::{Array, Call};
use modula_ffi::HANDLERS;
use modula_ffi::abi::{RESOURCE_EXHAUSTED, dtype};

/// Requests of more bytes are refused.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);

struct Refusing;

// SAFETY: every call goes to the system's allocator as it came, or is refused.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST.load(Relaxed) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

#[test]
fn refused_memory_is_an_error_of_the_call() {
    let (_, apply) = HANDLERS.into_iter().find(|&(name, _)| name == "apply").unwrap();
    let ones = |count: i64| vec![1.0_f32; count as usize];
    let array = Array::of(dtype::F32, &[4096, 2, 1], &ones(8192));
    let mut call = Call {
        args: vec![array.clone(), Array::of(dtype::F32, &[4096], &ones(4096))],
        rets: vec![array],
        attrs: vec![("operation", vec![1]), ("accuracy", vec![0]), ("geometry", vec![0])],
    };
    // The frame of the test is smaller than this, the list of 4096 scales larger.
    LARGEST.store(1 << 14, Relaxed);
    let refused = call.run(apply);
    LARGEST.store(usize::MAX, Relaxed);
    let (code, message) = refused.unwrap_err();
    assert!(code == RESOURCE_EXHAUSTED && message.contains("out of memory"), "{code}: {message}");
    assert_eq!(call.run(apply), Ok(()));
}
