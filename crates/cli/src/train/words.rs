//! The new words of textual inversion and pivotal tuning.

use anyhow::Result;
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::Parameter;
use candle_diffusers_training::recipes::{TextualInversionOptions, TrainedToken};

use super::TrainArguments;

/// The words with what each begins as; none where a recipe learns none so.
fn read(arguments: &TrainArguments) -> Vec<TextualInversionOptions> {
    let word = &arguments.word;
    let (Some(placeholder), Some(initializer)) = (&word.placeholder_token, &word.initializer_token) else {
        return Vec::new();
    };
    vec![TextualInversionOptions {
        placeholder_token: placeholder.clone(),
        initializer_token: initializer.clone(),
        num_vectors: word.num_vectors,
    }]
}

/// Gives the models the words that are learned.
pub(super) fn attach(
    arguments: &TrainArguments,
    models: &mut StableDiffusionPipeline,
    generator: &mut TorchGenerator,
) -> Result<Vec<TrainedToken>> {
    Ok(TrainedToken::attach_all(models, &read(arguments), generator)?)
}

/// What is trained of words.
pub(super) fn parameters(words: &[TrainedToken]) -> Vec<Parameter> {
    words.iter().flat_map(TrainedToken::parameters).collect()
}
