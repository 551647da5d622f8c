//! Comparison with the reference library: see CONTRIBUTING.md.

mod torch_generator;
