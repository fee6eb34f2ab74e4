//! The part of XLA's C interface for custom calls that a handler on the CPU needs, versions 0.1 to 0.5. The original is the header
//! `xla/ffi/api/c_api.h` of jaxlib, in the folder `jax.ffi.include_dir()`.
//!
//! Every struct begins with its size in the caller's version. Later minor versions only append fields, and the appended fields are not
//! read.

// Fields have their names from the header, which documents them.
#![allow(missing_docs)]

use std::ffi::{c_char, c_int, c_void};

/// `XLA_FFI_Extension_Base`
#[repr(C)]
pub struct Extension {
    pub struct_size: usize,
    pub kind: c_int,
    pub next: *mut Extension,
}

/// `XLA_FFI_Extension_Metadata`
pub const METADATA: c_int = 1;

/// `XLA_FFI_Api_Version`
#[repr(C)]
pub struct ApiVersion {
    pub struct_size: usize,
    pub extension_start: *mut Extension,
    pub major: c_int,
    pub minor: c_int,
}

/// The fields of `XLA_FFI_Metadata` that a handler writes. The last field, the type of the state, keeps the value that XLA gave it.
#[repr(C)]
pub struct Metadata {
    pub struct_size: usize,
    pub api_version: ApiVersion,
    pub traits: u32,
}

/// `XLA_FFI_Metadata_Extension`
#[repr(C)]
pub struct MetadataExtension {
    pub base: Extension,
    pub metadata: *mut Metadata,
}

/// `XLA_FFI_Error`, owned by XLA.
#[repr(C)]
pub struct Error {
    _opaque: [u8; 0],
}

/// `XLA_FFI_Error_Create_Args`
#[repr(C)]
pub struct ErrorCreateArgs {
    pub struct_size: usize,
    pub extension_start: *mut Extension,
    pub message: *const c_char,
    pub code: c_int,
}

/// `XLA_FFI_Error_Code_INVALID_ARGUMENT`
pub const INVALID_ARGUMENT: c_int = 3;
/// `XLA_FFI_Error_Code_RESOURCE_EXHAUSTED`
pub const RESOURCE_EXHAUSTED: c_int = 8;
/// `XLA_FFI_Error_Code_INTERNAL`
pub const INTERNAL: c_int = 13;

/// The first fields of `XLA_FFI_Api`.
#[repr(C)]
pub struct Api {
    pub struct_size: usize,
    pub extension_start: *mut Extension,
    pub api_version: ApiVersion,
    pub internal_api: *const c_void,
    pub error_create: Option<unsafe extern "C" fn(*mut ErrorCreateArgs) -> *mut Error>,
}

/// The values of `XLA_FFI_DataType` for the types that the handlers accept.
pub mod dtype {
    use std::ffi::c_int;
    pub const S32: c_int = 4;
    pub const F16: c_int = 10;
    pub const F32: c_int = 11;
    pub const F64: c_int = 12;
    pub const BF16: c_int = 16;
}

/// `XLA_FFI_Buffer`: dense, in C order.
#[repr(C)]
pub struct Buffer {
    pub struct_size: usize,
    pub extension_start: *mut Extension,
    pub dtype: c_int,
    pub data: *mut c_void,
    pub rank: i64,
    pub dims: *const i64,
}

/// `XLA_FFI_ArgType_BUFFER` and `XLA_FFI_RetType_BUFFER`
pub const BUFFER: c_int = 1;

/// `XLA_FFI_Args`, and `XLA_FFI_Rets`, which has the same fields.
#[repr(C)]
pub struct Values {
    pub struct_size: usize,
    pub extension_start: *mut Extension,
    pub size: i64,
    pub types: *const c_int,
    pub values: *const *mut c_void,
}

/// `XLA_FFI_ByteSpan`
#[repr(C)]
pub struct ByteSpan {
    pub ptr: *const c_char,
    pub len: usize,
}

/// `XLA_FFI_Array`
#[repr(C)]
pub struct Array {
    pub dtype: c_int,
    pub size: usize,
    pub data: *const c_void,
}

/// `XLA_FFI_AttrType_ARRAY`
pub const ARRAY: c_int = 1;

/// `XLA_FFI_Attrs`
#[repr(C)]
pub struct Attrs {
    pub struct_size: usize,
    pub extension_start: *mut Extension,
    pub size: i64,
    pub types: *const c_int,
    pub names: *const *const ByteSpan,
    pub attrs: *const *const c_void,
}

/// `XLA_FFI_ExecutionStage_EXECUTE`
pub const EXECUTE: c_int = 3;

/// `XLA_FFI_CallFrame`, without the fields that later versions append.
#[repr(C)]
pub struct CallFrame {
    pub struct_size: usize,
    pub extension_start: *mut Extension,
    pub api: *const Api,
    pub context: *mut c_void,
    pub stage: c_int,
    pub args: Values,
    pub rets: Values,
    pub attrs: Attrs,
}

/// `XLA_FFI_Handler`
pub type Handler = unsafe extern "C" fn(*mut CallFrame) -> *mut Error;
