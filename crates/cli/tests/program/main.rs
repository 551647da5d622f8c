//! Runs of the whole program, as a user starts it.

// Helpers of tests fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod bad_input;
mod bad_models;
mod control_net;
mod convert;
mod custom_diffusion;
mod embeddings;
mod generate;
mod image_to_image;
mod inpainting;
mod inspect;
mod instruct_pix2pix;
mod lora;
mod lora_files;
mod lora_operations;
#[path = "../parity/pictures/mod.rs"]
mod pictures;
#[cfg(feature = "mpi")]
mod processes;
mod program;
mod safety_checker;
mod shapes;
mod single_file;
mod stable_diffusion_xl;
mod teach;
mod train;
mod train_bad_input;
mod train_checkpoints;
mod train_encoded;
mod train_flags;
#[cfg(unix)]
mod train_interrupts;
mod train_memory;
mod train_pairs;
mod train_pivotal;
mod train_reports;
mod train_xl;
mod unconditional;
mod usage;
