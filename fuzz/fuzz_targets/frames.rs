//! Call frames made from bytes: each must be answered, or refused as a bad argument.

#![no_main]

#[allow(dead_code, reason = "made for the tests, which use more of it")]
#[path = "../../rust/modula-ffi/tests/frame/mod.rs"]
mod frame;

use frame::{Array, Call};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use modula_ffi::HANDLERS;
use modula_ffi::abi::{INVALID_ARGUMENT, dtype};

fn array(u: &mut Unstructured<'_>, written: bool) -> Result<Array> {
    let dims: Vec<i64> = (0..u.int_in_range(0..=4)?).map(|_| u.int_in_range(0..=5)).collect::<Result<_>>()?;
    let dtype = *u.choose(&[dtype::F32, dtype::F32, dtype::F64, dtype::F16, dtype::BF16, dtype::S32, 0])?;
    if !written {
        return Ok(Array::new(dtype, &dims));
    }
    // Any bits: numbers of every size, infinite and undefined ones among them.
    let numbers = (0..dims.iter().product::<i64>()).map(|_| u.arbitrary()).collect::<Result<Vec<u64>>>()?;
    Ok(Array::of(dtype, &dims, &numbers))
}

fn call(u: &mut Unstructured<'_>) -> Result<()> {
    let (_, handler) = *u.choose(&HANDLERS)?;
    let leaves = u.int_in_range(0..=3)?;
    let mut args = (0..leaves).map(|_| array(u, true)).collect::<Result<Vec<_>>>()?;
    let mut rets = if u.arbitrary()? { args.clone() } else { Vec::new() };
    let fitting: Vec<_> = args.iter().map(|array| array.dims[..array.dims.len().saturating_sub(2)].to_vec()).collect();
    for dims in fitting {
        let scales = vec![1.0_f32; dims.iter().product::<i64>() as usize];
        args.push(Array::of(dtype::F32, &dims, &scales));
    }
    for _ in 0..u.int_in_range(0..=2)? {
        rets.push(array(u, false)?);
    }
    let indices = |u: &mut Unstructured<'_>, count| (0..count).map(|_| u.int_in_range(-1..=4)).collect::<Result<Vec<i32>>>();
    let attrs = vec![("operation", indices(u, 1)?), ("accuracy", indices(u, 1)?), ("geometry", indices(u, leaves)?)];
    if let Err((code, message)) = (Call { args, rets, attrs }).run(handler) {
        assert_eq!(code, INVALID_ARGUMENT, "{message}");
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let _ = call(&mut Unstructured::new(bytes));
});
