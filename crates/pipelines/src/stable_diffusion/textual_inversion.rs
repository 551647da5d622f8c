use std::path::Path;

use candle_diffusers_loaders::{
    TextEncoderPlace, TextualInversion, load_textual_inversion, unload_textual_inversion,
};

use super::StableDiffusionPipeline;
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
        if let Some(embedding) = embeddings.iter().find(|embedding| embedding.text_encoder_2.is_some()) {
            let problem = format!(
                "{} is for Stable Diffusion XL, whose two text encoders it has vectors for, but this model has one",
                embedding.file
            );
            return argument("textual inversion", problem);
        }
        let (tokenizer, text_encoder) = (&mut self.tokenizer, &mut self.text_encoder);
        Ok(load_textual_inversion(tokenizer, text_encoder, embeddings, TextEncoderPlace::First)?)
    }

    /// Takes the embeddings of `tokens` away again, with all their vectors; all that were loaded where `tokens` is empty.
    ///
    /// # Errors
    /// When no embedding was loaded for a token. Then nothing is taken away.
    pub fn unload_textual_inversion(&mut self, tokens: &[impl AsRef<str>]) -> Result<()> {
        Ok(unload_textual_inversion(&mut self.tokenizer, &mut self.text_encoder, tokens)?)
    }
}
