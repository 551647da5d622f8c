#![doc = include_str!("../README.md")]

mod activation;
mod attention;
mod conv2d;
mod dtype;
mod exponential;
mod linear;
mod memory;
mod norm;
mod product;
mod softmax;
mod upsample;

pub use activation::{geglu, gelu, quick_gelu, silu};
pub use attention::attention;
pub use conv2d::{Conv2dParams, conv2d};
pub use linear::linear;
pub use memory::PooledAllocator;
pub use norm::{group_norm, group_norm_silu, layer_norm};
pub use product::{Level, PackedWeight};
pub use softmax::softmax_last_dim;
pub use upsample::{upsample_nearest2d, upsample_nearest2d_to};
