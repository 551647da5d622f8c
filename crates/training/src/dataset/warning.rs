//! What a user should know of and that stops no run.

use std::fmt;

/// A picture that is used in another way than one may expect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A picture that is smaller than it is trained at.
    Enlarged {
        /// The file.
        file: String,
        /// Its width and height.
        size: [u32; 2],
        /// The width and height that it is cut to.
        target: [u32; 2],
    },
    /// A picture that cannot be read, left out as `skip_broken` asks.
    Skipped {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enlarged { file, size: [width, height], target: [new_width, new_height] } => {
                write!(f, "{file} is {width}x{height} and enlarged to {new_width}x{new_height}")
            }
            Self::Skipped { file, problem } => write!(f, "{file} is left out: {problem}"),
        }
    }
}
