//! One execution of a handler, as safe Rust sees it: arguments and results as slices, attributes, errors as values.

use std::ffi::{CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{ptr, slice};

use half::{bf16, f16};
use modula_core::stop::Stopped;
use modula_core::tensor::{Tensor, TensorMut};

use super::abi::{self, CallFrame, dtype};

/// Answers XLA: its question about the version, or an execution through `body`, whose errors and panics become XLA's errors.
///
/// # Safety
/// `frame` must come from XLA: a valid call frame, not used by anyone else until this returns.
pub unsafe fn answer(frame: *mut CallFrame, body: fn(Call<'_>) -> Result<(), String>) -> *mut abi::Error {
    // SAFETY: the extension chain is a list of structs that begin with `Extension`, null at its end; the metadata extension is the only one of
    // its kind, and XLA asks for its fields to be written.
    unsafe {
        let mut extension = (*frame).extension_start;
        while !extension.is_null() {
            if (*extension).kind == abi::METADATA {
                if (*extension).struct_size < size_of::<abi::MetadataExtension>() {
                    break;
                }
                let metadata = (*extension.cast::<abi::MetadataExtension>()).metadata;
                // The oldest version that has what is used here: a reported version newer than XLA's own would fail the whole backend.
                (*metadata).api_version.major = 0;
                (*metadata).api_version.minor = 1;
                (*metadata).traits = 0;
                return ptr::null_mut();
            }
            extension = (*extension).next;
        }
    }
    let run = || {
        // SAFETY: the first field is the size of the frame as its maker knows it; a smaller one is not read further.
        let frame = unsafe {
            if (*frame).struct_size < size_of::<CallFrame>() {
                return Err(format!("this XLA's call frames have {} bytes, expected {}", (*frame).struct_size, size_of::<CallFrame>()));
            }
            &*frame
        };
        // These lie in the frame by value: a version that appends to one of them has moved all that follows it.
        let values = size_of::<abi::Values>();
        let found = [frame.args.struct_size, frame.rets.struct_size, frame.attrs.struct_size];
        if found != [values, values, size_of::<abi::Attrs>()] {
            return Err(format!("this XLA's arguments, results and attributes have {found:?} bytes"));
        }
        if frame.stage == abi::EXECUTE { Call::new(frame).and_then(body) } else { Ok(()) }
    };
    let (code, message) = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return ptr::null_mut(),
        Ok(Err(message)) => (abi::INVALID_ARGUMENT, message),
        Err(stopped) if stopped.is::<Stopped>() => {
            (abi::RESOURCE_EXHAUSTED, stopped.downcast::<Stopped>().map_or_else(|_| String::new(), |stopped| stopped.to_string()))
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            (abi::INTERNAL, format!("panic in Rust: {}", text.unwrap_or("no message")))
        }
    };
    let message = CString::new(format!("modula_rs: {}", message.replace('\0', " "))).unwrap_or_default();
    let mut args = abi::ErrorCreateArgs {
        struct_size: size_of::<abi::ErrorCreateArgs>(),
        extension_start: ptr::null_mut(),
        message: message.as_ptr(),
        code,
    };
    // SAFETY: every version's frame has the table of functions in this place; it outlives the call, and the function copies the message.
    unsafe { (*(*frame).api).error_create.map_or(ptr::null_mut(), |create| create(&mut args)) }
}

/// A buffer of XLA: `rank >= 1`, the numbers in C order.
#[derive(Clone, Copy)]
pub struct Buffer<'a> {
    dtype: c_int,
    data: *mut c_void,
    /// Its shape.
    pub dims: &'a [i64],
    /// Number of entries.
    pub len: usize,
}

/// What a handler is called with. Arguments are only read, results only written, and no two results overlap.
pub struct Call<'a> {
    /// The arguments.
    pub args: Vec<Buffer<'a>>,
    /// The results.
    pub rets: Vec<ResultBuffer<'a>>,
    attrs: &'a abi::Attrs,
}

/// A result that has not been borrowed yet: it can be taken once.
pub struct ResultBuffer<'a>(Buffer<'a>);

impl<'a> Call<'a> {
    fn new(frame: &'a CallFrame) -> Result<Self, String> {
        let rets = buffers(&frame.rets)?.into_iter().map(ResultBuffer).collect();
        Ok(Self { args: buffers(&frame.args)?, rets, attrs: &frame.attrs })
    }

    /// An attribute that is an array of int32.
    pub fn integers(&self, name: &str) -> Result<&'a [i32], String> {
        for index in 0..usize::try_from(self.attrs.size).unwrap_or(0) {
            // SAFETY: the three arrays of the attributes have `size` entries, and names are spans of bytes that live as long as the call.
            let (found, kind, value) = unsafe {
                let span = &**self.attrs.names.add(index);
                let found = if span.len == 0 { &[] } else { slice::from_raw_parts(span.ptr.cast::<u8>(), span.len) };
                (found, *self.attrs.types.add(index), *self.attrs.attrs.add(index))
            };
            if found != name.as_bytes() {
                continue;
            }
            if kind != abi::ARRAY {
                return Err(format!("attribute {name} must be an array, got kind {kind}"));
            }
            // SAFETY: an attribute of this kind is an `Array`.
            let array = unsafe { &*value.cast::<abi::Array>() };
            if array.dtype != dtype::S32 {
                return Err(format!("attribute {name} must be of int32, got type {}", array.dtype));
            }
            // SAFETY: `data` holds `size` numbers of the type just checked; alignment and null are checked by `span`.
            return unsafe { span(array.data, array.size) };
        }
        Err(format!("attribute {name} is missing"))
    }
}

fn buffers(values: &abi::Values) -> Result<Vec<Buffer<'_>>, String> {
    (0..usize::try_from(values.size).unwrap_or(0))
        .map(|index| {
            // SAFETY: both arrays have `size` entries, and a value of the kind checked is a `Buffer` that lives as long as the call.
            let buffer = unsafe {
                let kind = *values.types.add(index);
                if kind != abi::BUFFER {
                    return Err(format!("value {index} must be a buffer, got kind {kind}"));
                }
                &*(*values.values.add(index)).cast::<abi::Buffer>()
            };
            if buffer.struct_size < size_of::<abi::Buffer>() {
                return Err(format!("value {index} is a buffer of {} bytes, expected {}", buffer.struct_size, size_of::<abi::Buffer>()));
            }
            // SAFETY: `dims` holds `rank` numbers; alignment and null are checked by `span`.
            let dims: &[i64] = unsafe { span(buffer.dims.cast(), usize::try_from(buffer.rank).unwrap_or(0))? };
            let len = dims.iter().try_fold(1_usize, |len, &dim| len.checked_mul(usize::try_from(dim).ok()?));
            let len = len.ok_or_else(|| format!("value {index} has no size: its shape is {dims:?}"))?;
            Ok(Buffer { dtype: buffer.dtype, data: buffer.data, dims, len })
        })
        .collect()
}

/// A slice from a pointer that may be null if there is nothing behind it.
///
/// # Safety
/// If `len` is not 0, `data` must point to `len` numbers of type `T` that live and are not written to for `'a`.
unsafe fn span<'a, T>(data: *const c_void, len: usize) -> Result<&'a [T], String> {
    if len == 0 {
        return Ok(&[]);
    }
    let data = data.cast::<T>();
    if data.is_null() || !data.is_aligned() {
        return Err(format!("a buffer of {len} numbers lies at {data:?}"));
    }
    // SAFETY: not null, aligned; the rest is this function's own contract.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// As [`span`], to write. The memory may never have been written before, as that of XLA's results, and is filled with zeros.
///
/// # Safety
/// If `len` is not 0, `data` must point to memory for `len` numbers of type `T`, for which zero bytes are a value, that lives and that
/// nothing else refers to for `'a`.
unsafe fn span_mut<'a, T>(data: *mut c_void, len: usize) -> Result<&'a mut [T], String> {
    if len == 0 {
        return Ok(&mut []);
    }
    let data = data.cast::<T>();
    if data.is_null() || !data.is_aligned() {
        return Err(format!("a buffer of {len} numbers lies at {data:?}"));
    }
    // SAFETY: not null, aligned; the rest is this function's own contract. Zeros are numbers of each type, so that the slice is of initialised ones.
    Ok(unsafe {
        data.write_bytes(0, len);
        slice::from_raw_parts_mut(data, len)
    })
}

impl<'a> Buffer<'a> {
    /// Its numbers.
    pub fn tensor(&self) -> Result<Tensor<'a>, String> {
        // SAFETY: XLA's arguments hold as many numbers of their dtype as their shape says, and nobody writes to them during the call. f16 and
        // bf16 are transparent over u16, and every bit pattern of the four types is valid.
        unsafe {
            Ok(match self.dtype {
                dtype::F32 => Tensor::F32(span::<f32>(self.data, self.len)?),
                dtype::F64 => Tensor::F64(span::<f64>(self.data, self.len)?),
                dtype::F16 => Tensor::F16(span::<f16>(self.data, self.len)?),
                dtype::BF16 => Tensor::BF16(span::<bf16>(self.data, self.len)?),
                other => return Err(format!("arrays must be of float16, bfloat16, float32 or float64, got XLA type {other}")),
            })
        }
    }
}

impl<'a> ResultBuffer<'a> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Its numbers, to be written: zeros.
    pub fn into_tensor(self) -> Result<TensorMut<'a>, String> {
        let Buffer { dtype, data, len, .. } = self.0;
        // SAFETY: as for arguments; XLA gives every result memory of its own (no aliasing of arguments is asked for), `self` is consumed so that
        // there is one borrow only, and any bit pattern is valid.
        unsafe {
            Ok(match dtype {
                dtype::F32 => TensorMut::F32(span_mut::<f32>(data, len)?),
                dtype::F64 => TensorMut::F64(span_mut::<f64>(data, len)?),
                dtype::F16 => TensorMut::F16(span_mut::<f16>(data, len)?),
                dtype::BF16 => TensorMut::BF16(span_mut::<bf16>(data, len)?),
                other => return Err(format!("results must be of float16, bfloat16, float32 or float64, got XLA type {other}")),
            })
        }
    }
}
