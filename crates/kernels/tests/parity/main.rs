//! Parity with the reference library, a folder each: see CONTRIBUTING.md.
mod functional;
