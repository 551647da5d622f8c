//! What is taught, and how: each recipe is the loss of a batch, over the parts that all share.

mod denoising;

pub use denoising::{Denoising, DenoisingOptions, Example};
