//! Parity with the reference library, a folder each: see CONTRIBUTING.md.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]
mod functional;
mod gradients;
