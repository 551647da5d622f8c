/// What can go wrong when a model is built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of a `config.json` that cannot be used.
    #[error("{model} config: field `{field}` is {found}, expected {expected}")]
    Config {
        /// The model's class, such as `UNet2DConditionModel`.
        model: &'static str,
        /// The field's name.
        field: String,
        /// What the file says, as JSON.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// An input of the wrong shape, or one that is missing.
    #[error("{model}: {input} {problem}")]
    Input {
        /// The model's or layer's class.
        model: &'static str,
        /// The argument.
        input: &'static str,
        /// What was found and what was expected.
        problem: String,
    },
    /// A tensor that is missing or wrongly shaped, or an operation that failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
