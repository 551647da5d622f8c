//! Comparison with the reference library: see CONTRIBUTING.md.

mod loops;

mod ddim;
mod ddpm;
mod dpm_solver_multistep;
mod euler_ancestral_discrete;
mod euler_discrete;
mod pndm;
mod torch_generator;
