//! Which of the files in a component's folder are its weights, as diffusers and transformers choose them.

use crate::{Error, ModelIndex, Repository, Result};

/// What the weights are called without their endings: by diffusers, by transformers.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
const TRANSFORMERS_STEM: &str = "model";

/// Finds the weights of the component in `folder` (`unet`; `""` where the repository is the component).
///
/// The result is a path in `repository` for [`Repository::open_checkpoint`]: a `.safetensors` file or the index of shards. With a
/// `variant` (`fp16`) the files of that variant are taken; a component that has none is loaded from its plain files, as diffusers
/// does, with a warning in the log.
///
/// # Errors
/// [`Error::MissingWeights`], which says what is there instead: another variant, or pickles.
pub fn find_weights(repository: &Repository, folder: &str, variant: Option<&str>) -> Result<String> {
    check_variant_name(variant)?;
    if repository.single_file_model().is_some() {
        return Err(Error::MissingWeights {
            folder: repository.name().to_string(),
            expected: expected_name(folder).to_string(),
            advice: "its tensors are in the one file itself: `Repository::state_dict` gives them".to_string(),
        });
    }
    let selected = choose_weights(&repository.display(folder), &repository.list(folder), variant)?;
    if let Some(variant) = variant.filter(|_| !selected.of_variant) {
        let component = repository.display(folder);
        tracing::warn!("{component} has no weights of the variant {variant}: {} is loaded", selected.name);
    }
    Ok(join(folder, &selected.name))
}

/// Fails when no component of the pipeline has weights of `variant`.
///
/// # Errors
/// [`Error::MissingVariant`].
pub fn check_variant(repository: &Repository, index: &ModelIndex, variant: &str) -> Result<()> {
    check_variant_name(Some(variant))?;
    let has_variant = |component: &String| {
        select_weights(&repository.list(component), Some(variant)).is_some_and(|selected| selected.of_variant)
    };
    if index.components.keys().any(has_variant) {
        return Ok(());
    }
    Err(Error::MissingVariant {
        repository: repository.name().to_string(),
        variant: variant.to_string(),
        advice: "leave the variant out to load the plain files".to_string(),
    })
}

/// One component's weights among its files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SelectedWeights {
    /// A `.safetensors` file or an index.
    pub(crate) name: String,
    /// Whether it is of the variant that was asked for.
    pub(crate) of_variant: bool,
}

/// As [`select_weights`]; `folder` is the component's folder in the error.
pub(crate) fn choose_weights(
    folder: &str,
    names: &[String],
    variant: Option<&str>,
) -> Result<SelectedWeights> {
    select_weights(names, variant).ok_or_else(|| Error::MissingWeights {
        folder: folder.to_string(),
        expected: expected_name(folder).to_string(),
        advice: advice(names),
    })
}

/// Chooses the weights among the `names` of a component's files.
fn select_weights(names: &[String], variant: Option<&str>) -> Option<SelectedWeights> {
    let present = |name: String| names.contains(&name).then_some(name);
    let of_variant = variant.and_then(|variant| {
        let name = candidates(&format!(".{variant}")).into_iter().find_map(present)?;
        Some(SelectedWeights { name, of_variant: true })
    });
    of_variant.or_else(|| {
        let name = candidates("").into_iter().find_map(present)?;
        Some(SelectedWeights { name, of_variant: variant.is_none() })
    })
}

/// Fails for a variant that could lead out of the folder or match nothing by its form.
pub(crate) fn check_variant_name(variant: Option<&str>) -> Result<()> {
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    match variant.filter(|variant| !is_word(variant)) {
        Some(variant) => Err(Error::BadVariant { variant: variant.to_string() }),
        None => Ok(()),
    }
}

/// `folder/name`, or `name` where the folder is the top.
pub(crate) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
}

/// The names that the weights may have, in the order in which the libraries look: diffusers for the index first
/// (model_loading_utils.py, `_fetch_index_file` and its legacy form), transformers for the file first.
fn candidates(variant: &str) -> [String; 6] {
    [
        format!("{DIFFUSERS_STEM}.safetensors.index{variant}.json"),
        format!("{DIFFUSERS_STEM}.safetensors{variant}.index.json"),
        format!("{DIFFUSERS_STEM}{variant}.safetensors"),
        format!("{TRANSFORMERS_STEM}{variant}.safetensors"),
        format!("{TRANSFORMERS_STEM}.safetensors.index{variant}.json"),
        format!("{TRANSFORMERS_STEM}.safetensors{variant}.index.json"),
    ]
}

fn expected_name(folder: &str) -> &'static str {
    let by_transformers = ["text_encoder", "image_encoder", "safety_checker"];
    if by_transformers.iter().any(|component| folder.contains(component)) {
        "model.safetensors"
    } else {
        "diffusion_pytorch_model.safetensors"
    }
}

/// What to do about a folder without the weights that were asked for.
fn advice(names: &[String]) -> String {
    if let Some(variant) = names.iter().find_map(|name| variant_of(name)) {
        return format!("it has only the variant {variant}: ask for that one");
    }
    let is_pickle = |name: &&String| [".bin", ".pt", ".ckpt"].iter().any(|ending| name.ends_with(ending));
    if let Some(pickle) = names.iter().find(is_pickle) {
        return format!("it has {pickle}, a pickle: `diffuse convert` writes safetensors of it");
    }
    match names {
        [] => "the folder is missing or empty".to_string(),
        names => format!("it has {}", names.join(", ")),
    }
}

/// The variant in the name of a weight file, as in `model.fp16.safetensors` or `model.fp16-00001-of-00002.safetensors`.
fn variant_of(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".safetensors")?;
    let variant = [DIFFUSERS_STEM, TRANSFORMERS_STEM]
        .iter()
        .find_map(|known| stem.strip_prefix(known)?.strip_prefix('.'))?;
    let variant = variant.split("-0").next().unwrap_or(variant);
    check_variant_name(Some(variant)).is_ok().then_some(variant)
}
