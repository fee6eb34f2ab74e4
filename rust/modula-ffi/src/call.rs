//! One call of a handler in safe Rust: arguments and results are slices, errors are values.

use std::ffi::{CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{ptr, slice};

use half::{bf16, f16};
use modula_core::stop::Stopped;
use modula_core::tensor::{Tensor, TensorMut};

use super::abi::{self, CallFrame, dtype};

/// Answers a call from XLA. XLA either asks for the handler's version, or executes the handler: then `body` runs, and its errors and panics
/// become errors of XLA.
///
/// # Safety
/// `frame` must come from XLA: a valid call frame, not used by anyone else until this returns.
pub unsafe fn answer(frame: *mut CallFrame, body: fn(Call<'_>) -> Result<(), String>) -> *mut abi::Error {
    // SAFETY: the extensions are a linked list of structs that begin with `Extension`, ended by null. The metadata extension is the only
    // one of its kind, and XLA asks for its fields to be written.
    unsafe {
        let mut extension = (*frame).extension_start;
        while !extension.is_null() {
            if (*extension).kind == abi::METADATA {
                if (*extension).struct_size < size_of::<abi::MetadataExtension>() {
                    break;
                }
                let metadata = (*extension.cast::<abi::MetadataExtension>()).metadata;
                // The oldest version that has all fields used here. A version newer than XLA's own would make the whole backend fail.
                (*metadata).api_version.major = 0;
                (*metadata).api_version.minor = 1;
                (*metadata).traits = 0;
                return ptr::null_mut();
            }
            extension = (*extension).next;
        }
    }
    let run = || {
        // SAFETY: the first field is the size of the frame in XLA's version. No other field of a frame that is too small is read.
        let frame = unsafe {
            if (*frame).struct_size < size_of::<CallFrame>() {
                return Err(format!("this XLA's call frames have {} bytes, expected {}", (*frame).struct_size, size_of::<CallFrame>()));
            }
            &*frame
        };
        // These three structs lie in the frame by value. A version that appends fields to one of them has moved all that follows it.
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
    // SAFETY: the frames of all versions have the table of functions at this offset. It outlives the call, and the function copies the
    // message.
    unsafe { (*(*frame).api).error_create.map_or(ptr::null_mut(), |create| create(&mut args)) }
}

/// A buffer of XLA, with its numbers in C order.
#[derive(Clone, Copy)]
pub struct Buffer<'a> {
    dtype: c_int,
    data: *mut c_void,
    /// The shape.
    pub dims: &'a [i64],
    /// Number of entries.
    pub len: usize,
}

/// The arguments, results and attributes of one call. Arguments are only read, results only written, and no two results overlap.
pub struct Call<'a> {
    /// The arguments.
    pub args: Vec<Buffer<'a>>,
    /// The results.
    pub rets: Vec<ResultBuffer<'a>>,
    attrs: &'a abi::Attrs,
}

/// A result that has not been borrowed yet. It can be borrowed once, by [`ResultBuffer::into_tensor`].
pub struct ResultBuffer<'a>(Buffer<'a>);

impl<'a> Call<'a> {
    fn new(frame: &'a CallFrame) -> Result<Self, String> {
        let rets = buffers(&frame.rets)?.into_iter().map(ResultBuffer).collect();
        Ok(Self { args: buffers(&frame.args)?, rets, attrs: &frame.attrs })
    }

    /// The attribute with this name, which must be an array of int32.
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

/// A slice of `len` numbers at `data`. The pointer may be null if `len` is 0.
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
    // SAFETY: `data` is not null and aligned; the rest is this function's own contract.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// A slice of `len` numbers at `data`, to be written. It is filled with zeros first, because XLA does not initialise the memory of results.
///
/// # Safety
/// If `len` is not 0, `data` must point to memory for `len` numbers of type `T` that lives for `'a` and that nothing else refers to. Zero
/// bytes must be a valid `T`.
unsafe fn span_mut<'a, T>(data: *mut c_void, len: usize) -> Result<&'a mut [T], String> {
    if len == 0 {
        return Ok(&mut []);
    }
    let data = data.cast::<T>();
    if data.is_null() || !data.is_aligned() {
        return Err(format!("a buffer of {len} numbers lies at {data:?}"));
    }
    // SAFETY: `data` is not null and aligned; the rest is this function's own contract. The zeros make every number of the slice
    // initialised.
    Ok(unsafe {
        data.write_bytes(0, len);
        slice::from_raw_parts_mut(data, len)
    })
}

impl<'a> Buffer<'a> {
    /// The numbers of the buffer.
    pub fn tensor(&self) -> Result<Tensor<'a>, String> {
        // SAFETY: an argument of XLA holds as many numbers of its dtype as its shape says, and nobody writes to it during the call. f16 and
        // bf16 are transparent wrappers of u16, and every bit pattern of the four types is valid.
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

    /// The numbers of the result, all zero, to be written.
    pub fn into_tensor(self) -> Result<TensorMut<'a>, String> {
        let Buffer { dtype, data, len, .. } = self.0;
        // SAFETY: a result holds as many numbers of its dtype as its shape says. XLA gives every result memory of its own, because the
        // handlers do not ask for results that alias arguments; `self` is consumed, so there is only one borrow; zero bytes are valid
        // numbers.
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
