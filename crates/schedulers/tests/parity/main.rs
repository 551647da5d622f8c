//! Comparison with the reference library: see CONTRIBUTING.md.

// Helpers of tests fail the test, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod loops;

mod ddim;
mod ddpm;
mod dpm_solver_multistep;
mod euler_ancestral_discrete;
mod euler_discrete;
mod from_config;
mod generator_state;
mod pndm;
mod snr;
mod torch_generator;
