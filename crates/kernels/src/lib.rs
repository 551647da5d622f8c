#![doc = include_str!("../README.md")]

mod activation;
mod attention;
mod cast;
mod conv2d;
mod cpu;
mod dtype;
mod elementwise;
mod exponential;
mod gradient;
mod layout;
mod linear;
mod memory;
mod norm;
mod parameters;
mod product;
mod reduction;
mod softmax;
mod threads;
mod upsample;

pub use activation::{Activation, geglu, gelu, quick_gelu, silu};
pub use attention::attention;
pub use cast::to_dtype;
pub use conv2d::{Conv2dParams, conv2d};
pub use elementwise::{add, add_per_channel, scale_shift_per_channel};
pub use gradient::{GradientHook, nested_backward};
pub use layout::{cat, pixels_to_tokens, tokens_to_pixels};
pub use linear::linear;
pub use memory::PooledAllocator;
pub use norm::{GroupNormSilu, add_group_norm_silu, group_norm, group_norm_silu, layer_norm};
pub use product::{
    Float32MatmulPrecision, Level, PackedWeight, float32_matmul_precision, keep_transposed_weights,
    peak_operations_per_second, set_float32_matmul_precision,
};
pub use softmax::softmax_last_dim;
pub use threads::compute_with_this_thread;
pub use upsample::{upsample_nearest2d, upsample_nearest2d_to};
