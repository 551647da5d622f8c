//! Every way in which a pickled checkpoint can be damaged or hostile is an error that names it; none is a panic or takes memory
//! that the file does not have.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

mod build;
mod damaged;
mod fuzz;
mod hostile;
