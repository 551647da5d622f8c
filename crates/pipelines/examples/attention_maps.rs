//! Where the words of a prompt went: records what each pixel looks at in the text, over all steps, heads and layers, and writes the picture and a
//! heat map for each word (`out.png`, `out-0-a.png`, `out-1-red.png`, ...).
//!
//! `cargo run --release -p candle-diffusers-pipelines --example attention_maps -- FOLDER "a red circle" out.png`

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{D, Tensor};
use candle_diffusers_loaders::{ClipTokenizer, LoadOptions, Repository};
use candle_diffusers_models::attention::Attention;
use candle_diffusers_models::layers::Layers;
use candle_diffusers_models::{AttentionInput, AttentionProcessor};
use candle_diffusers_pipelines::{
    Schedule, StableDiffusionPipeline, TextEncoders, TextToImage, seeded_generators,
};
use image::imageops::{self, FilterType};
use image::{ImageBuffer, Luma, Rgb, RgbImage};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

type Heat = ImageBuffer<Luma<f32>, Vec<f32>>;

/// Sums of `(pixels, tokens)`, and how many there are in each, by their number of pixels, which differs from layer to layer.
type Sums = BTreeMap<usize, (Tensor, usize)>;

/// Computes what the model would, and keeps what its pixels looked at.
#[derive(Debug)]
struct Recorder {
    sums: Arc<Mutex<Sums>>,
}

impl AttentionProcessor for Recorder {
    fn forward(
        &self,
        attention: &Attention,
        input: AttentionInput<'_>,
    ) -> candle_diffusers_models::Result<Tensor> {
        let query = attention.query(input.hidden_states)?;
        let (key, value) = attention.key_and_value(&input)?;
        let probabilities = attention.probabilities(&query, &key, input.mask)?;
        // With guidance the prompt is the last of the batch.
        let map = probabilities.narrow(0, probabilities.dim(0)? - 1, 1)?.mean((0, 1))?;
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let pixels = map.dim(0)?;
        let (sum, count) = match sums.get(&pixels) {
            Some((sum, count)) => ((sum + map)?, count + 1),
            None => (map, 1),
        };
        sums.insert(pixels, (sum, count));
        attention.output(&attention.mix(&probabilities, &value)?)
    }
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, prompt, output] = &arguments[..] else {
        return Err("usage: attention_maps FOLDER PROMPT OUTPUT.png".into());
    };
    let mut pipeline = StableDiffusionPipeline::load(&Repository::folder(folder)?, &LoadOptions::default())?;
    let sums = Arc::new(Mutex::new(Sums::new()));
    for (name, layer) in pipeline.unet.attentions() {
        // The second attention of each block is the one that looks at the text.
        if name.ends_with("attn2") {
            layer.set_processor(Some(Arc::new(Recorder { sums: sums.clone() })));
        }
    }

    let request =
        TextToImage { prompts: vec![prompt.clone()], schedule: Schedule::Steps(25), ..Default::default() };
    let go_on = &mut |_: candle_diffusers_pipelines::StepEnd| Ok(ControlFlow::Continue(()));
    let painted = pipeline.generate(&request, &mut seeded_generators(0, 1), go_on)?;
    let picture = painted.images.first().ok_or("nothing was painted")?;
    picture.save(output)?;

    let (height, width) = pipeline.sample_size.ok_or("the model does not say its size")?;
    let sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
    for (index, (word, tokens)) in words(tokenizer(&pipeline.text_encoders), prompt)?.into_iter().enumerate()
    {
        let heat = heat(&sums, tokens, [height, width])?;
        let letters: String = word.chars().filter(|letter| letter.is_alphanumeric()).collect();
        let path = Path::new(output).with_extension("");
        let path = format!("{}-{index}-{letters}.png", path.display());
        paint_over(picture, &heat).save(&path)?;
        println!("{word}: {path}");
    }
    Ok(())
}

/// Each word with the places of its tokens, after the one that begins a text.
fn words(tokenizer: &ClipTokenizer, prompt: &str) -> Outcome<Vec<(String, Range<usize>)>> {
    let mut start = 1;
    let mut words = Vec::new();
    for word in prompt.split_whitespace() {
        let end = start + tokenizer.encode_pieces(word)?.len();
        words.push((word.to_string(), start..end));
        start = end;
    }
    // What was cut off has no heat.
    words.retain(|(_, tokens)| tokens.end < tokenizer.max_length());
    Ok(words)
}

/// How much the tokens were looked at from each latent pixel, 0 to 1.
fn heat(sums: &Sums, tokens: Range<usize>, [height, width]: [usize; 2]) -> Outcome<Heat> {
    let mut heat = Heat::new(width as u32, height as u32);
    for (&pixels, (sum, count)) in sums {
        let looked_at = sum.narrow(1, tokens.start, tokens.len())?.sum(D::Minus1)?;
        let looked_at = (looked_at / *count as f64)?;
        // Each level of the UNet halves the sides.
        let mut size = [height, width];
        while size[0] * size[1] > pixels {
            size = size.map(|side| side.div_ceil(2));
        }
        let map = Heat::from_raw(size[1] as u32, size[0] as u32, looked_at.to_vec1()?);
        let map = map.ok_or("an attention that is not of this picture")?;
        let map = imageops::resize(&map, width as u32, height as u32, FilterType::Triangle);
        heat.pixels_mut().zip(map.pixels()).for_each(|(heat, pixel)| heat[0] += pixel[0]);
    }
    let most = heat.pixels().map(|pixel| pixel[0]).fold(f32::MIN, f32::max);
    let least = heat.pixels().map(|pixel| pixel[0]).fold(f32::MAX, f32::min);
    heat.pixels_mut().for_each(|pixel| pixel[0] = (pixel[0] - least) / (most - least).max(1e-12));
    Ok(heat)
}

/// The picture, half covered with blue where it is cold and with red where it is hot.
fn paint_over(picture: &RgbImage, heat: &Heat) -> RgbImage {
    let heat = imageops::resize(heat, picture.width(), picture.height(), FilterType::Triangle);
    let mut painted = picture.clone();
    for (pixel, heat) in painted.pixels_mut().zip(heat.pixels()) {
        let heat = heat[0].clamp(0.0, 1.0);
        let colour = [heat, 1.0 - (2.0 * heat - 1.0).abs(), 1.0 - heat];
        *pixel = Rgb([0, 1, 2].map(|i| ((f32::from(pixel[i]) + 255.0 * colour[i]) / 2.0) as u8));
    }
    painted
}

/// Both of Stable Diffusion XL's cut texts up alike.
fn tokenizer(text_encoders: &TextEncoders) -> &ClipTokenizer {
    match text_encoders {
        TextEncoders::Clip(encoder) => &encoder.tokenizer,
        TextEncoders::Xl(encoders) => &encoders.second.tokenizer,
    }
}
