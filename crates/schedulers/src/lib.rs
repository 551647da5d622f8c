//! Diffusion schedulers (DDPM, DDIM, PNDM, DPM-Solver++, Euler) on candle tensors, equal to Hugging Face diffusers.
