use candle_core::Tensor;

use crate::denoise::Guidance;
use crate::error::{Result, argument};
use crate::prompt::PromptEmbeds;

/// Which noise levels are stepped through.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// This many, chosen by the scheduler.
    Steps(usize),
    /// These timesteps, descending, for schedulers that take them.
    Timesteps(Vec<f64>),
    /// These sigmas, descending, for schedulers that take them.
    Sigmas(Vec<f64>),
}

impl Schedule {
    /// How many steps were asked for.
    pub fn steps(&self) -> usize {
        match self {
            Self::Steps(steps) => *steps,
            Self::Timesteps(timesteps) => timesteps.len(),
            // The last one is where sampling ends.
            Self::Sigmas(sigmas) => sigmas.len().saturating_sub(1),
        }
    }
}

/// What to paint. The defaults are those of diffusers.
///
/// ```
/// use candle_diffusers_pipelines::{Schedule, TextToImage};
///
/// let request = TextToImage {
///     prompts: vec!["a lighthouse at dusk, oil painting".into()],
///     schedule: Schedule::Steps(25),
///     ..Default::default()
/// };
/// assert_eq!(request.guidance_scale, 7.5);
/// ```
#[derive(Clone, Debug)]
pub struct TextToImage {
    /// What the pictures show.
    pub prompts: Vec<String>,
    /// What they should not show: none, one for all, or one for each prompt.
    pub negative_prompts: Vec<String>,
    /// Embeddings instead of prompts and negative prompts, one row for each prompt.
    pub prompt_embeds: Option<PromptEmbeds>,
    /// Pictures of each prompt.
    pub num_images_per_prompt: usize,
    /// How many steps, or which.
    pub schedule: Schedule,
    /// How closely the prompt is followed; 1 or less turns guidance off.
    pub guidance_scale: f64,
    /// How far overexposure by guidance is undone, 0 to 1.
    pub guidance_rescale: f64,
    /// DDIM's eta: 0 adds no noise on the way, 1 as much as DDPM. Other schedulers ignore it.
    pub eta: f64,
    /// How many of the text encoder's last layers are left out.
    pub clip_skip: Option<usize>,
    /// Pixels; the model's own size where not given.
    pub width: Option<usize>,
    /// Pixels; the model's own size where not given.
    pub height: Option<usize>,
    /// Standard normal noise to begin with instead of drawing it, `(batch, channels, height / factor, width / factor)`.
    pub latents: Option<Tensor>,
}

impl Default for TextToImage {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            negative_prompts: Vec::new(),
            prompt_embeds: None,
            num_images_per_prompt: 1,
            schedule: Schedule::Steps(50),
            guidance_scale: 7.5,
            guidance_rescale: 0.0,
            eta: 0.0,
            clip_skip: None,
            width: None,
            height: None,
            latents: None,
        }
    }
}

impl TextToImage {
    /// How many pictures there will be.
    pub fn batch_size(&self) -> usize {
        let prompts = match &self.prompt_embeds {
            Some(embeds) => embeds.prompt.dims().first().copied().unwrap_or(0),
            None => self.prompts.len(),
        };
        prompts.saturating_mul(self.num_images_per_prompt)
    }

    pub(super) fn guidance(&self) -> Guidance {
        Guidance { scale: self.guidance_scale, rescale: self.guidance_rescale }
    }

    /// One negative prompt for each prompt.
    pub(super) fn negative_prompts_per_prompt(&self) -> Result<Vec<String>> {
        let count = self.prompts.len();
        match &self.negative_prompts[..] {
            [] => Ok(vec![String::new(); count]),
            [one] => Ok(vec![one.clone(); count]),
            several if several.len() == count => Ok(several.to_vec()),
            several => {
                let problem = format!("are {}, expected none, 1 or {count} (one a prompt)", several.len());
                argument("negative_prompts", problem)
            }
        }
    }

    /// What can be told without a model.
    pub(super) fn check(&self) -> Result<()> {
        let numbers = [
            ("guidance_scale", self.guidance_scale),
            ("guidance_rescale", self.guidance_rescale),
            ("eta", self.eta),
        ];
        for (name, value) in numbers {
            if !value.is_finite() {
                return argument(name, format!("is {value}, expected a finite number"));
            }
        }
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return argument("guidance_rescale", format!("is {}, expected 0 to 1", self.guidance_rescale));
        }
        if self.eta < 0.0 {
            return argument("eta", format!("is {}, expected 0 or more (1 is DDPM's noise)", self.eta));
        }
        if self.num_images_per_prompt == 0 {
            return argument("num_images_per_prompt", "is 0, expected 1 or more");
        }
        if self.prompt_embeds.is_some() && !(self.prompts.is_empty() && self.negative_prompts.is_empty()) {
            return argument("prompt_embeds", "are given together with prompts; give one or the other");
        }
        if self.batch_size() == 0 {
            return argument("prompts", "are missing: give at least one, or prompt_embeds");
        }
        if let Some(embeds) = &self.prompt_embeds {
            self.check_embeds(embeds)?;
        } else if self.guidance_scale > 1.0 {
            self.negative_prompts_per_prompt()?;
        }
        self.check_latents()
    }

    fn check_embeds(&self, embeds: &PromptEmbeds) -> Result<()> {
        let dims = embeds.prompt.dims();
        if dims.len() != 3 {
            return argument(
                "prompt_embeds",
                format!("are {dims:?}, expected (prompts, tokens, hidden_size)"),
            );
        }
        match &embeds.negative {
            Some(negative) if negative.dims() != dims => argument(
                "negative_prompt_embeds",
                format!("are {:?}, expected {dims:?}, as prompt_embeds", negative.dims()),
            ),
            _ => Ok(()),
        }
    }

    fn check_latents(&self) -> Result<()> {
        let Some(latents) = &self.latents else { return Ok(()) };
        let dims = latents.dims();
        if dims.len() != 4 || dims[0] != self.batch_size() {
            let problem = format!("are {dims:?}, expected ({}, channels, height, width)", self.batch_size());
            return argument("latents", problem);
        }
        Ok(())
    }
}
