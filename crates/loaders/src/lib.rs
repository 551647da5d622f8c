//! From a diffusers folder or hub id to models on a device.

mod error;
mod key_names;
mod repository;
mod state_dict;

pub use error::{Error, Result};
pub use repository::Repository;
pub use state_dict::StateDict;
