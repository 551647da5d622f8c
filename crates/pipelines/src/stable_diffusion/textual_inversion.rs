use std::path::Path;

use candle_diffusers_loaders::{
    TextEncoderPlace, TextualInversion, load_textual_inversion, unload_textual_inversion,
};

use super::{ClipEncoder, ProjectedClipEncoder, StableDiffusionPipeline, TextEncoders, XlEncoders};
use crate::error::{Result, argument};

impl StableDiffusionPipeline {
    /// Loads the textual inversion embedding in `file` (whichever layout it has, or a folder with a `learned_embeds.safetensors` or
    /// `.bin`), so that prompts and negative prompts can use it, and gives its token: `token`, or else what the file or its name
    /// says. A file of several embeddings gives several.
    ///
    /// # Errors
    /// When the file is not an embedding, is one for another family of models, or its token is taken. Then nothing is loaded.
    pub fn load_textual_inversion(
        &mut self,
        file: impl AsRef<Path>,
        token: Option<&str>,
    ) -> Result<Vec<String>> {
        let embeddings = TextualInversion::read(file, token)?;
        self.add_textual_inversions(&embeddings)?;
        Ok(embeddings.into_iter().map(|embedding| embedding.token).collect())
    }

    /// Like [`load_textual_inversion`](Self::load_textual_inversion), with embeddings that were read before: all or none.
    ///
    /// # Errors
    /// As [`load_textual_inversion`](Self::load_textual_inversion).
    pub fn add_textual_inversions(&mut self, embeddings: &[TextualInversion]) -> Result<()> {
        match &mut self.text_encoders {
            TextEncoders::Clip(clip) => add_to_one_encoder(clip, embeddings),
            TextEncoders::Xl(encoders) => add_to_xl(encoders, embeddings),
        }
    }

    /// Takes the embeddings of `tokens` away again, with all their vectors; all that were loaded where `tokens` is empty.
    ///
    /// # Errors
    /// When no embedding was loaded for a token. Then nothing is taken away.
    pub fn unload_textual_inversion(&mut self, tokens: &[impl AsRef<str>]) -> Result<()> {
        if let Some(ClipEncoder { tokenizer, text_encoder }) = self.text_encoders.first_mut() {
            unload_textual_inversion(tokenizer, text_encoder, tokens)?;
        }
        if let TextEncoders::Xl(encoders) = &mut self.text_encoders {
            let ProjectedClipEncoder { tokenizer, text_encoder } = &mut encoders.second;
            // It has the same embeddings as the first, so that this cannot fail where that has not.
            unload_textual_inversion(tokenizer, text_encoder.text_model_mut(), tokens)?;
        }
        Ok(())
    }
}

fn add_to_one_encoder(clip: &mut ClipEncoder, embeddings: &[TextualInversion]) -> Result<()> {
    if let Some(embedding) = embeddings.iter().find(|embedding| embedding.text_encoder_2.is_some()) {
        let problem = format!(
            "{} is for Stable Diffusion XL, whose two text encoders it has vectors for, but this model has one",
            embedding.file
        );
        return argument("textual inversion", problem);
    }
    let ClipEncoder { tokenizer, text_encoder } = clip;
    Ok(load_textual_inversion(tokenizer, text_encoder, embeddings, TextEncoderPlace::First)?)
}

/// To both text encoders, or to the only one of a refiner; all or none.
fn add_to_xl(encoders: &mut XlEncoders, embeddings: &[TextualInversion]) -> Result<()> {
    for embedding in embeddings {
        embedding.vectors(TextEncoderPlace::Second)?;
    }
    let XlEncoders { first, second, .. } = encoders;
    if let Some(ClipEncoder { tokenizer, text_encoder }) = first {
        load_textual_inversion(tokenizer, text_encoder, embeddings, TextEncoderPlace::First)?;
    }
    let ProjectedClipEncoder { tokenizer, text_encoder } = second;
    let encoder = text_encoder.text_model_mut();
    let added = load_textual_inversion(tokenizer, encoder, embeddings, TextEncoderPlace::Second);
    if added.is_err()
        && let Some(ClipEncoder { tokenizer, text_encoder }) = first
    {
        let tokens: Vec<&str> = embeddings.iter().map(|embedding| embedding.token.as_str()).collect();
        unload_textual_inversion(tokenizer, text_encoder, &tokens)?;
    }
    Ok(added?)
}
