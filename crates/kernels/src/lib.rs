//! Tensor operations of diffusion models behind candle tensors.
