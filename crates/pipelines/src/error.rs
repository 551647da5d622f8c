use candle_diffusers_loaders as loaders;
use candle_diffusers_models as models;
use candle_diffusers_schedulers as schedulers;

/// What can go wrong between a prompt and a picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument that cannot be used.
    #[error("{argument}: {problem}")]
    Argument {
        /// The argument's name.
        argument: &'static str,
        /// What was found, what was expected and what to do.
        problem: String,
    },
    /// A model folder that this pipeline cannot use.
    #[error("{file}: {problem}")]
    Folder {
        /// The file that says so.
        file: String,
        /// What was found, what was expected and what to do.
        problem: String,
    },
    /// A picture that cannot be used.
    #[error("{file}: {problem}")]
    Picture {
        /// Its file.
        file: String,
        /// What was found and what to do.
        problem: String,
    },
    /// A model that could not be loaded.
    #[error(transparent)]
    Loader(Box<loaders::Error>),
    /// A model that could not be built or run.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// A scheduler that could not be built, or a step that failed.
    #[error(transparent)]
    Scheduler(#[from] schedulers::Error),
    /// A tensor operation that failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// What a callback returned to end the work.
    #[error(transparent)]
    Callback(Box<dyn std::error::Error + Send + Sync>),
}

impl From<loaders::Error> for Error {
    fn from(error: loaders::Error) -> Self {
        // Boxed, as it is much larger than the others.
        Self::Loader(Box::new(error))
    }
}

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An [`Error::Argument`].
pub(crate) fn argument<T>(argument: &'static str, problem: impl Into<String>) -> Result<T> {
    Err(Error::Argument { argument, problem: problem.into() })
}
