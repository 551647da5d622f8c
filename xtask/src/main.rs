//! What developers of this repository run: `cargo xtask <chore>`.

fn main() {}
