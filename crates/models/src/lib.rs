#![doc = include_str!("../README.md")]

mod config;
mod error;
pub mod layers;
mod resampling;
mod resnet;

pub use error::{Error, Result};
pub use resampling::{Downsample2D, Upsample2D};
pub use resnet::{ResnetBlock2D, ResnetConfig, TimeScaleShift};
