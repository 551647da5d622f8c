//! Diffusion pipelines on candle: prompt in, picture out.
