//! The new words of textual inversion and pivotal tuning: one by the flags of diffusers' scripts, or several by those of cloneofsimo's `lora_pti`.

use anyhow::{Result, bail, ensure};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::Parameter;
use candle_diffusers_training::dataset::Dataset;
use candle_diffusers_training::recipes::{TextualInversionOptions, TrainedToken};

use super::{Recipe, TrainArguments, concepts, custom_diffusion};

/// What each of several words begins as where nothing is said, as in lora_pti.
const INITIALIZER: &str = "<rand-0.017>";
/// What captions call several words where nothing is said, as there.
const AT_DATA: &str = "DUMMY";

/// The words with what each begins as; none where a recipe learns none so.
///
/// # Errors
/// When flags are missing or do not go together.
pub(super) fn read(arguments: &TrainArguments) -> Result<Vec<TextualInversionOptions>> {
    if !arguments.recipe.has_token() {
        return Ok(Vec::new());
    }
    let token = |(placeholder, initializer): (&str, &str)| TextualInversionOptions {
        placeholder_token: placeholder.to_string(),
        initializer_token: initializer.to_string(),
        num_vectors: arguments.word.num_vectors,
    };
    Ok(pairs(arguments)?.into_iter().map(token).collect())
}

/// What each word is called, and what it begins as.
fn pairs(arguments: &TrainArguments) -> Result<Vec<(&str, &str)>> {
    let word = &arguments.word;
    let one = (word.placeholder_token.as_deref(), word.initializer_token.as_deref());
    let several = (word.placeholder_tokens.as_deref(), word.initializer_tokens.as_deref());
    match (one, several) {
        ((Some(placeholder), Some(initializer)), (None, None)) => Ok(vec![(placeholder, initializer)]),
        ((None, None), (Some(placeholders), initializers)) => {
            let placeholders: Vec<&str> = placeholders.split('|').collect();
            let initializers: Vec<&str> = match initializers {
                Some(initializers) => initializers.split('|').collect(),
                None => vec![INITIALIZER; placeholders.len()],
            };
            ensure!(
                placeholders.len() == initializers.len(),
                "--initializer-tokens has {} words for the {} of --placeholder-tokens; give one for each, joined by |",
                initializers.len(),
                placeholders.len()
            );
            Ok(placeholders.into_iter().zip(initializers).collect())
        }
        (_, (None, None)) => bail!(
            "a new word needs --placeholder-token, what it is called, and --initializer-token, what it begins as; give both"
        ),
        ((None, None), (None, Some(_))) => {
            bail!("--initializer-tokens is what the words of --placeholder-tokens begin as; give both")
        }
        _ => bail!(
            "--placeholder-token and --initializer-token are for one new word, --placeholder-tokens and --initializer-tokens for several; give those of one kind"
        ),
    }
}

/// What captions call the words, and what takes its place there (`placeholder_token_at_data`).
///
/// # Errors
/// When the flag does not say both.
pub(super) fn at_data(arguments: &TrainArguments) -> Result<Option<(String, String)>> {
    let word = &arguments.word;
    let Some(at_data) = &word.placeholder_token_at_data else {
        let joined = word.placeholder_tokens.as_ref().map(|words| words.replace('|', ""));
        return Ok(joined.map(|words| (AT_DATA.to_string(), words)));
    };
    match at_data.split('|').collect::<Vec<_>>()[..] {
        [called, words] if !called.is_empty() && !words.is_empty() => {
            Ok(Some((called.to_string(), words.to_string())))
        }
        _ => bail!(
            "--placeholder-token-at-data is {at_data:?}, expected what captions call the new words and what takes its place, joined by |: \"cat|<s1><s2>\""
        ),
    }
}

/// What the words are in captions that are made: as lora_pti, what takes their place in others.
pub(super) fn in_made_captions(arguments: &TrainArguments) -> Result<Option<String>> {
    Ok(match at_data(arguments)? {
        Some((_, words)) => Some(words),
        None => arguments.word.placeholder_token.clone(),
    })
}

/// Refuses a new word that no caption has, and that would so learn nothing. `folders` is what is learned from; `is_captioned` says whether any of it has captions of
/// its own.
pub(super) fn check_captions(
    arguments: &TrainArguments,
    dataset: &Dataset,
    folders: &str,
    is_captioned: bool,
) -> Result<()> {
    let words = match arguments.recipe {
        Recipe::CustomDiffusion => custom_diffusion::tokens(arguments)?,
        _ => read(arguments)?,
    };
    for word in words.iter().map(|word| word.placeholder_token.as_str()) {
        if !is_in_captions(word, dataset) {
            let advice = advice(arguments, word, is_captioned)?;
            bail!("{folders}: no caption has the new word {word}, which would learn nothing; {advice}");
        }
    }
    Ok(())
}

/// Whether a caption has the word as tokenizers look for it: in upper or lower case, and within others.
fn is_in_captions(word: &str, dataset: &Dataset) -> bool {
    let word = word.to_lowercase();
    let is_in = |caption: &String| caption.to_lowercase().contains(&word);
    (0..dataset.len()).any(|index| dataset.captions(index).iter().any(is_in))
}

/// How a word comes into captions that lack it.
fn advice(arguments: &TrainArguments, word: &str, is_captioned: bool) -> Result<String> {
    if arguments.recipe == Recipe::CustomDiffusion {
        let prompt = concepts::prompt_name(arguments, "--instance-prompt");
        return Ok(match is_captioned {
            true => format!("write it into the captions, or take them away and write it into {prompt}"),
            false => format!("write it into {prompt}"),
        });
    }
    if !is_captioned {
        return Ok(
            "write it into --placeholder-token-at-data, which captions that are made take it from".into()
        );
    }
    let called = at_data(arguments)?.filter(|(_, words)| words.contains(word));
    let called = called.map_or(String::new(), |(called, _)| format!(" as {called}"));
    let template = match arguments.recipe {
        Recipe::PivotalTuning => ", or give --use-template object or style",
        _ => "",
    };
    Ok(format!("write it into the captions{called}, or take them away{template}, so that templates are used"))
}

/// Gives the models the words that are learned.
pub(super) fn attach(
    arguments: &TrainArguments,
    models: &mut StableDiffusionPipeline,
    generator: &mut TorchGenerator,
) -> Result<Vec<TrainedToken>> {
    Ok(TrainedToken::attach_all(models, &read(arguments)?, generator)?)
}

/// What is trained of words.
pub(super) fn parameters(words: &[TrainedToken]) -> Vec<Parameter> {
    words.iter().flat_map(TrainedToken::parameters).collect()
}
