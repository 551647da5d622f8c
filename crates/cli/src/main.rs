//! The `diffuse` program.

fn main() {}
