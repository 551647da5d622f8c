//! What can go wrong, said so that a caller knows what to change.

/// The error of every function of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a scheduler's config has a wrong type or a value that is not allowed.
    #[error("{class}: field `{field}` is {found}; {expected}")]
    Field {
        /// The scheduler's class name.
        class: &'static str,
        /// The field, as `scheduler_config.json` calls it.
        field: String,
        /// The value that was found.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// The text of a config is not JSON.
    #[error("scheduler config is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A config is not a JSON object, or says no usable `_class_name`.
    #[error("scheduler config: {0}")]
    Config(String),
    /// `_class_name` names no scheduler of this crate.
    #[error("unknown scheduler class `{found}`; known: {known}")]
    UnknownClass {
        /// The name that was found.
        found: String,
        /// The names of this crate's schedulers.
        known: String,
    },
    /// A number of steps, or custom timesteps or sigmas, that the scheduler cannot take.
    #[error("{scheduler}: {message}")]
    Timesteps {
        /// The scheduler's class name.
        scheduler: &'static str,
        /// What was found and what is allowed.
        message: String,
    },
    /// The scheduler has no such operation in the reference library.
    #[error("{scheduler} does not support {operation}{hint}")]
    Unsupported {
        /// The scheduler's class name.
        scheduler: &'static str,
        /// What was asked.
        operation: &'static str,
        /// What to do instead; empty, or starting with "; ".
        hint: &'static str,
    },
    /// `step` was called before `set_timesteps`.
    #[error("{scheduler}: call set_timesteps before step")]
    NoTimesteps {
        /// The scheduler's class name.
        scheduler: &'static str,
    },
    /// A timestep that is not one of the schedule's.
    #[error("{scheduler}: timestep {timestep} is not in the schedule; {expected}")]
    UnknownTimestep {
        /// The scheduler's class name.
        scheduler: &'static str,
        /// The timestep that was passed.
        timestep: f64,
        /// The timesteps of the schedule.
        expected: String,
    },
    /// A step at another timestep than the one whose turn it is.
    #[error("{scheduler}: step out of order at timestep {timestep}: {expected}")]
    OutOfOrder {
        /// The scheduler's class name.
        scheduler: &'static str,
        /// The timestep that was passed.
        timestep: f64,
        /// What would have been in order.
        expected: String,
    },
    /// A tensor's shape does not fit.
    #[error("{what} has shape {found:?}; {expected}")]
    Shape {
        /// The tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that was expected.
        expected: String,
    },
    /// A dtype that an operation cannot work in.
    #[error("{what} has dtype {found:?}; expected one of f64, f32, f16, bf16")]
    DType {
        /// The tensor or argument.
        what: &'static str,
        /// Its dtype.
        found: candle_core::DType,
    },
    /// An argument that is out of range.
    #[error("{argument} is {found}; expected {expected}")]
    Argument {
        /// The argument.
        argument: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
