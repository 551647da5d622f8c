//! More or less of a word: multiplies how much each pixel looks at it.
//!
//! `cargo run --release -p candle-diffusers-pipelines --example scale_word -- FOLDER "a red circle" red 0.2 out.png`

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use candle_core::{D, Tensor};
use candle_diffusers_loaders::{ClipTokenizer, LoadOptions, Repository};
use candle_diffusers_models::attention::Attention;
use candle_diffusers_models::layers::Layers;
use candle_diffusers_models::{AttentionInput, AttentionProcessor};
use candle_diffusers_pipelines::{
    Schedule, StableDiffusionPipeline, TextEncoders, TextToImage, seeded_generators,
};

/// Multiplies what is looked at in some tokens by a factor.
#[derive(Debug)]
struct ScaleWord {
    tokens: Range<usize>,
    factor: f32,
}

impl AttentionProcessor for ScaleWord {
    fn forward(
        &self,
        attention: &Attention,
        input: AttentionInput<'_>,
    ) -> candle_diffusers_models::Result<Tensor> {
        let query = attention.query(input.hidden_states)?;
        let (key, value) = attention.key_and_value(&input)?;
        let probabilities = attention.probabilities(&query, &key, input.mask)?;
        let (batch, tokens) = (probabilities.dim(0)?, probabilities.dim(D::Minus1)?);
        // With guidance the prompt is the last of the batch; the negative one has not the word.
        let mut factors = vec![1f32; batch * tokens];
        factors[(batch - 1) * tokens..][self.tokens.clone()].fill(self.factor);
        let factors = Tensor::from_vec(factors, (batch, 1, 1, tokens), probabilities.device())?;
        attention.output(&attention.mix(&probabilities.broadcast_mul(&factors)?, &value)?)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, prompt, word, factor, output] = &arguments[..] else {
        return Err("usage: scale_word FOLDER PROMPT WORD FACTOR OUTPUT.png".into());
    };
    let mut pipeline = StableDiffusionPipeline::load(&Repository::folder(folder)?, &LoadOptions::default())?;
    let tokens = tokens_of(tokenizer(&pipeline.text_encoders), prompt, word)?;
    let processor = Arc::new(ScaleWord { tokens, factor: factor.parse()? });
    for (name, layer) in pipeline.unet.attentions() {
        // The second attention of each block is the one that looks at the text.
        if name.ends_with("attn2") {
            layer.set_processor(Some(processor.clone()));
        }
    }
    let request =
        TextToImage { prompts: vec![prompt.clone()], schedule: Schedule::Steps(25), ..Default::default() };
    let go_on = &mut |_: candle_diffusers_pipelines::StepEnd| Ok(ControlFlow::Continue(()));
    let painted = pipeline.generate(&request, &mut seeded_generators(0, 1), go_on)?;
    painted.images.first().ok_or("nothing was painted")?.save(output)?;
    Ok(())
}

/// The places of the word's tokens, after the one that begins a text.
fn tokens_of(
    tokenizer: &ClipTokenizer,
    prompt: &str,
    word: &str,
) -> Result<Range<usize>, Box<dyn std::error::Error>> {
    let mut start = 1;
    for found in prompt.split_whitespace() {
        let end = start + tokenizer.encode_pieces(found)?.len();
        if found == word && end < tokenizer.max_length() {
            return Ok(start..end);
        }
        start = end;
    }
    Err(format!("{word:?} is no word of the prompt").into())
}

/// Both of Stable Diffusion XL's cut texts up alike.
fn tokenizer(text_encoders: &TextEncoders) -> &ClipTokenizer {
    match text_encoders {
        TextEncoders::Clip(encoder) => &encoder.tokenizer,
        TextEncoders::Xl(encoders) => &encoders.second.tokenizer,
    }
}
