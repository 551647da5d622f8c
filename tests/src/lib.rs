//! Checks that cross crates: see the files in `tests/`. Runs of the whole program are in the folder of the program,
//! `crates/cli/tests`, where cargo says where it was built.
