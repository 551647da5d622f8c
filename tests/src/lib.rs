//! Checks that cross crates: see the files in `tests/`. Runs of the whole program are in the folder of the program,
//! `crates/cli/tests`, where cargo says where it was built.

/// The repository's README, whose example is compiled and run as a doc test.
#[doc = include_str!("../../README.md")]
pub struct Readme;
