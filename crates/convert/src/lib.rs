//! Checkpoint files of diffusion models as names and bytes.
