//! Call frames made by hand, as XLA makes them: the memory of results has never been written.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use modula_ffi::abi::{self, CallFrame, Handler, dtype};

/// An argument or a result.
#[derive(Clone)]
pub struct Array {
    pub dtype: c_int,
    pub dims: Vec<i64>,
    /// Room for its numbers, aligned for each dtype.
    memory: Vec<MaybeUninit<u64>>,
}

impl Array {
    /// Memory for as many numbers as the dims say, if that is no more than a test should take.
    pub fn new(dtype: c_int, dims: &[i64]) -> Self {
        let len: i64 = dims.iter().map(|&dim| dim.clamp(0, 1 << 12)).product();
        let mut memory = Vec::with_capacity(len as usize + 1);
        memory.resize_with(len as usize + 1, MaybeUninit::uninit);
        Self { dtype, dims: dims.to_vec(), memory }
    }

    /// An array of given numbers, or of their bits in half precision.
    pub fn of<T: Copy>(dtype: c_int, dims: &[i64], numbers: &[T]) -> Self {
        let mut array = Self::new(dtype, dims);
        assert!(numbers.len() <= array.memory.len() && size_of::<T>() <= 8);
        // SAFETY: the memory has eight bytes for each number, aligned for eight.
        unsafe { ptr::copy_nonoverlapping(numbers.as_ptr(), array.memory.as_mut_ptr().cast::<T>(), numbers.len()) };
        array
    }

    /// The numbers a handler has written, as many as the dims say.
    pub fn numbers<T: Copy>(&self) -> Vec<T> {
        let len = self.dims.iter().product::<i64>() as usize;
        assert!(len <= self.memory.len());
        // SAFETY: a handler that answered without an error has written them.
        (0..len).map(|index| unsafe { self.memory.as_ptr().cast::<T>().add(index).read() }).collect()
    }
}

/// What a handler is called with.
#[derive(Clone, Default)]
pub struct Call {
    pub args: Vec<Array>,
    pub rets: Vec<Array>,
    /// Attributes that are arrays of int32.
    pub attrs: Vec<(&'static str, Vec<i32>)>,
}

/// Code and message.
pub type Failure = (c_int, String);

/// `XLA_FFI_Error_Create`, to a box on the heap.
unsafe extern "C" fn create_error(args: *mut abi::ErrorCreateArgs) -> *mut abi::Error {
    // SAFETY: the caller passes valid arguments and a message that ends with NUL.
    let failure: Failure = unsafe { ((*args).code, CStr::from_ptr((*args).message).to_string_lossy().into_owned()) };
    Box::into_raw(Box::new(failure)).cast()
}

fn buffers(arrays: &mut [Array]) -> Vec<abi::Buffer> {
    let buffer = |array: &mut Array| abi::Buffer {
        struct_size: size_of::<abi::Buffer>(),
        extension_start: ptr::null_mut(),
        dtype: array.dtype,
        data: array.memory.as_mut_ptr().cast(),
        rank: array.dims.len() as i64,
        dims: array.dims.as_ptr(),
    };
    arrays.iter_mut().map(buffer).collect()
}

fn values(types: &[c_int], pointers: &[*mut c_void]) -> abi::Values {
    abi::Values {
        struct_size: size_of::<abi::Values>(),
        extension_start: ptr::null_mut(),
        size: types.len() as i64,
        types: types.as_ptr(),
        values: pointers.as_ptr(),
    }
}

impl Call {
    /// Calls a handler.
    pub fn run(&mut self, handler: Handler) -> Result<(), Failure> {
        self.distorted(handler, |_| ())
    }

    /// Calls a handler with a frame that `distort` has changed.
    pub fn distorted(&mut self, handler: Handler, distort: impl FnOnce(&mut CallFrame)) -> Result<(), Failure> {
        let (mut args, mut rets) = (buffers(&mut self.args), buffers(&mut self.rets));
        let pointers =
            |buffers: &mut [abi::Buffer]| buffers.iter_mut().map(|buffer| ptr::from_mut(buffer).cast()).collect::<Vec<*mut c_void>>();
        let (args, rets) = (pointers(&mut args), pointers(&mut rets));
        let (arg_types, ret_types) = (vec![abi::BUFFER; args.len()], vec![abi::BUFFER; rets.len()]);

        let spans: Vec<_> = self.attrs.iter().map(|(name, _)| abi::ByteSpan { ptr: name.as_ptr().cast(), len: name.len() }).collect();
        let array = |(_, numbers): &(&str, Vec<i32>)| abi::Array { dtype: dtype::S32, size: numbers.len(), data: numbers.as_ptr().cast() };
        let arrays: Vec<_> = self.attrs.iter().map(array).collect();
        let names: Vec<*const abi::ByteSpan> = spans.iter().map(ptr::from_ref).collect();
        let attrs: Vec<*const c_void> = arrays.iter().map(|array| ptr::from_ref(array).cast()).collect();
        let attr_types = vec![abi::ARRAY; attrs.len()];

        let api = abi::Api {
            struct_size: size_of::<abi::Api>(),
            extension_start: ptr::null_mut(),
            api_version: abi::ApiVersion {
                struct_size: size_of::<abi::ApiVersion>(),
                extension_start: ptr::null_mut(),
                major: 0,
                minor: 1,
            },
            internal_api: ptr::null(),
            error_create: Some(create_error),
        };
        let mut frame = CallFrame {
            struct_size: size_of::<CallFrame>(),
            extension_start: ptr::null_mut(),
            api: &api,
            context: ptr::null_mut(),
            stage: abi::EXECUTE,
            args: values(&arg_types, &args),
            rets: values(&ret_types, &rets),
            attrs: abi::Attrs {
                struct_size: size_of::<abi::Attrs>(),
                extension_start: ptr::null_mut(),
                size: attrs.len() as i64,
                types: attr_types.as_ptr(),
                names: names.as_ptr(),
                attrs: attrs.as_ptr(),
            },
        };
        distort(&mut frame);
        // SAFETY: all that the frame points to lives here, and what `distort` may have left out is refused or not read.
        let error = unsafe { handler(&mut frame) };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: errors come from `create_error` alone.
        Err(*unsafe { Box::from_raw(error.cast::<Failure>()) })
    }
}
