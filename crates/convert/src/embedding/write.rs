//! An embedding file written in another layout.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::EmbeddingError;
use super::file::{Embedding, EmbeddingFile, NAME, TokenOrigin};
use super::layout::{CLIP_G, CLIP_L, EMB_PARAMS, EmbeddingLayout};
use crate::convert::Report;
use crate::lora::TensorRef;
use crate::plan::{PlannedTensor, Values};
use crate::write::{Contents, WeightFile, plain_metadata, write};
use crate::{Progress, Result, Source, WriteOptions};

/// In which layout an embedding of one text encoder is written. Those of Stable Diffusion XL have `clip_l` and `clip_g` in both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EmbeddingFormat {
    /// Each tensor is called as its token: diffusers reads it as it is, and web UIs take the file's name for the token.
    #[default]
    Diffusers,
    /// One tensor `emb_params`, with the token under `name` in the metadata.
    WebUi,
}

/// The file that a folder in diffusers' layout has.
pub(crate) const FILE_IN_FOLDER: &str = "learned_embeds.safetensors";

/// Writes the embeddings of `source` to `destination`: a file, or a folder with a `learned_embeds.safetensors`.
///
/// # Errors
/// When `source` is damaged, the format has no place for what it holds, or the destination exists or cannot be written.
pub(crate) fn convert_embedding(
    source: &dyn Source,
    destination: &Path,
    (to_folder, format): (bool, EmbeddingFormat),
    options: &WriteOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    let file = EmbeddingFile::read(source)?;
    if to_folder && format == EmbeddingFormat::WebUi {
        let problem = "web UIs read embeddings from a file, not from a folder; write to a name that ends with .safetensors";
        return Err(EmbeddingError::Format { file: file.source, problem: problem.to_string() }.into());
    }
    let (tensors, metadata) = planned(&file, format)?;
    let mut weights = WeightFile::only(tensors, source, options, (&metadata, &[]))?;
    if to_folder {
        weights.path = FILE_IN_FOLDER.to_string();
    }
    let files = vec![(weights.path.clone(), weights.bytes())];
    let contents = Contents { weights: vec![weights], ..Contents::default() };
    let seen = write(destination, options, &contents, source, progress)?;
    Ok(Report {
        title: "a textual inversion embedding".to_string(),
        files,
        notes: notes(&file, source),
        left_out: file.left_out,
        not_finite: seen.not_finite,
        overflowed: seen.overflowed,
    })
}

/// The tensors and the metadata of the file to be.
fn planned(
    file: &EmbeddingFile,
    format: EmbeddingFormat,
) -> Result<(Vec<PlannedTensor>, BTreeMap<String, String>), EmbeddingError> {
    let mut metadata = file.metadata.clone();
    metadata.extend(plain_metadata());
    let is_single = file.layout != EmbeddingLayout::TwoEncoders;
    if is_single && format == EmbeddingFormat::Diffusers {
        let tensors =
            file.embeddings.iter().filter_map(|one| Some(vectors(&one.token, one.text_encoder.as_ref()?)));
        return Ok((tensors.collect(), metadata));
    }
    let [embedding] = &file.embeddings[..] else {
        let problem = format!(
            "holds {} embeddings, but a web UI's file only one; write it in diffusers' format",
            file.embeddings.len()
        );
        return Err(EmbeddingError::Format { file: file.source.clone(), problem });
    };
    metadata.insert(NAME.to_string(), embedding.token.clone());
    let first = if is_single { EMB_PARAMS } else { CLIP_L };
    let tensors = [(first, &embedding.text_encoder), (CLIP_G, &embedding.text_encoder_2)];
    let tensors = tensors.into_iter().filter_map(|(name, tensor)| Some(vectors(name, tensor.as_ref()?)));
    Ok((tensors.collect(), metadata))
}

/// The vectors as they are, always with both axes.
fn vectors(name: &str, tensor: &TensorRef) -> PlannedTensor {
    let (count, width) = Embedding::vectors_and_width(tensor);
    PlannedTensor {
        name: name.to_string(),
        shape: vec![count, width],
        dtype: tensor.dtype,
        values: Values::Whole(tensor.name.clone()),
    }
}

fn notes(file: &EmbeddingFile, source: &dyn Source) -> Vec<String> {
    let mut notes = Vec::new();
    for embedding in &file.embeddings {
        let sizes: Vec<String> = embedding
            .tensors()
            .map(|(encoder, tensor)| {
                let (count, width) = Embedding::vectors_and_width(tensor);
                format!("{count} of width {width} for the {encoder}")
            })
            .collect();
        let origin = match embedding.token_origin {
            TokenOrigin::File => "",
            TokenOrigin::FileName => " (the file's name, as it does not say one)",
        };
        notes.push(format!("token {}{origin}: vectors {}", embedding.token, sizes.join(", ")));
    }
    if let Some(family) = file.family() {
        notes.push(format!("by their width they are for {}", family.name()));
    }
    // What became metadata of the new file is not left out.
    let is_kept =
        |line: &str| file.metadata.keys().any(|key| line.starts_with(&format!("left out: {key}: ")));
    notes.extend(source.beside().into_iter().filter(|line| !is_kept(line)));
    notes
}
