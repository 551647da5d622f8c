//! What can go wrong, said so that a caller knows what to change.

use candle_core::DType;

/// The error of every function of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two parameters have one name, or the groups hold none.
    #[error("parameters: {0}")]
    Parameters(String),
    /// A parameter of a type that cannot be trained.
    #[error("parameter {name} has dtype {found:?}; expected one of f32, f16, bf16")]
    ParameterDType {
        /// The parameter.
        name: String,
        /// Its dtype.
        found: DType,
    },
    /// Gradients that were collected for other parameters.
    #[error("there are {found} gradients for {expected} parameters; collect them for the same groups")]
    GradientCount {
        /// How many gradients there are.
        found: usize,
        /// How many parameters there are.
        expected: usize,
    },
    /// A gradient of another shape than its parameter.
    #[error("the gradient of {name} has shape {found:?}; expected {expected:?}, the parameter's")]
    GradientShape {
        /// The parameter.
        name: String,
        /// The gradient's shape.
        found: Vec<usize>,
        /// The parameter's shape.
        expected: Vec<usize>,
    },
    /// A tensor of a saved state that is missing, superfluous, or of another shape or dtype.
    #[error("saved state: {tensor} is {found}; expected {expected}; it belongs to another run")]
    State {
        /// The tensor's name.
        tensor: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// `restore` without `store`.
    #[error("there are no stored parameters to restore: call store first")]
    NothingStored,
    /// A setting that is not allowed.
    #[error("{field} is {found}; expected {expected}")]
    Field {
        /// The setting, named as its flag.
        field: &'static str,
        /// The value that was found.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// Tensors of one batch that do not go together.
    #[error("{what} has shape {found:?}; expected {expected}")]
    Shape {
        /// The tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that was expected.
        expected: String,
    },
    /// A folder of pictures that cannot be trained on.
    #[error("{folder}: {problem}")]
    Folder {
        /// The folder.
        folder: String,
        /// What was found and what to do.
        problem: String,
    },
    /// A file of captions that cannot be used.
    #[error("{file}: {problem}")]
    Metadata {
        /// The file, with the line where there is one.
        file: String,
        /// What was found and what to do.
        problem: String,
    },
    /// A picture that cannot be used.
    #[error("{file}: {problem}")]
    Picture {
        /// The file.
        file: String,
        /// What was found and what to do.
        problem: String,
    },
    /// A file or folder that cannot be read or written.
    #[error("{file}: {problem}")]
    File {
        /// The file or folder.
        file: String,
        /// What happened.
        problem: String,
    },
    /// The loss of a step is no number: the run is of no use from there on.
    #[error("the loss of step {step} is {loss}: begin anew with a lower learning rate")]
    LossNotFinite {
        /// Counted from 1.
        step: u64,
        /// NaN or an infinity.
        loss: f32,
    },
    /// A parameter that nothing can be computed with: the run is of no use from there on.
    #[error("{parameter} is {value:e} after step {step}: begin anew with a lower learning rate")]
    UnusableParameter {
        /// Counted from 1.
        step: u64,
        /// The parameter.
        parameter: String,
        /// NaN, an infinity, or a number that is far too large.
        value: f32,
    },
    /// A checkpoint that was made with other settings.
    #[error(
        "{checkpoint} was made with {found}; this run has {expected}: give the same settings, or begin anew"
    )]
    Resume {
        /// The checkpoint.
        checkpoint: String,
        /// Its settings that differ.
        found: String,
        /// What this run has instead.
        expected: String,
    },
    /// Another process of the run has failed, or this one, as all know by now.
    #[error("process {rank}: {problem}")]
    Process {
        /// Its number, from 0.
        rank: usize,
        /// What has happened there.
        problem: String,
    },
    /// The processes of a run cannot speak to each other any more: all that this one can do is to end.
    #[error("the processes of this run have lost each other: {0}")]
    Connection(String),
    /// The thread that reads pictures ahead has ended.
    #[error("pictures are not read any more: an earlier batch failed")]
    ReadingEnded,
    /// A picture could not be read or resized.
    #[error(transparent)]
    Pipelines(Box<candle_diffusers_pipelines::Error>),
    /// A model could not be loaded.
    #[error(transparent)]
    Loaders(Box<candle_diffusers_loaders::Error>),
    /// A model could not compute.
    #[error(transparent)]
    Models(#[from] candle_diffusers_models::Error),
    /// The noise schedule cannot do what training asks of it.
    #[error(transparent)]
    Scheduler(#[from] candle_diffusers_schedulers::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<candle_diffusers_loaders::Error> for Error {
    fn from(error: candle_diffusers_loaders::Error) -> Self {
        Self::Loaders(Box::new(error))
    }
}

impl From<candle_diffusers_pipelines::Error> for Error {
    fn from(error: candle_diffusers_pipelines::Error) -> Self {
        // Boxed, as it is much larger than the others.
        Self::Pipelines(Box::new(error))
    }
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
