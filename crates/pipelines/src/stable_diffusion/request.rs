use candle_core::Tensor;

use super::MicroConditions;
use crate::control::Control;
use crate::error::{Result, argument};
use crate::prompt_embeds::PromptEmbeds;

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
/// assert_eq!(request.batch_size(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct TextToImage {
    /// What the pictures show.
    pub prompts: Vec<String>,
    /// What they should not show: none, one for all, or one for each prompt.
    pub negative_prompts: Vec<String>,
    /// What the second text encoder of Stable Diffusion XL is told instead of `prompts`: nothing else, one for all, or one for each prompt.
    pub prompts_2: Vec<String>,
    /// The same for `negative_prompts`.
    pub negative_prompts_2: Vec<String>,
    /// Embeddings instead of prompts and negative prompts, one row for each prompt.
    pub prompt_embeds: Option<PromptEmbeds>,
    /// Pictures of each prompt.
    pub num_images_per_prompt: usize,
    /// How many steps, or which.
    pub schedule: Schedule,
    /// How closely the prompt is followed; 1 or less turns guidance off. Where not given, it is the model's usual: 7.5, or 5 of Stable
    /// Diffusion XL.
    pub guidance_scale: Option<f64>,
    /// How far overexposure by guidance is undone, 0 to 1.
    pub guidance_rescale: f64,
    /// DDIM's eta: 0 adds no noise on the way, 1 as much as DDPM. Other schedulers ignore it.
    pub eta: f64,
    /// How many of the text encoder's last layers are left out; of Stable Diffusion XL's, which leaves out one anyway, how many more.
    pub clip_skip: Option<usize>,
    /// Pixels; the model's own size where not given.
    pub width: Option<usize>,
    /// Pixels; the model's own size where not given.
    pub height: Option<usize>,
    /// Standard normal noise to begin with instead of drawing it, `(batch, channels, height / factor, width / factor)`.
    pub latents: Option<Tensor>,
    /// What Stable Diffusion XL is told of the picture.
    pub micro_conditions: MicroConditions,
    /// How much of the denoising is done, more than 0 and less than 1: the latents are for another model to go on with. All where not given.
    pub denoising_end: Option<f64>,
    /// What steers by pictures. Where no size is given, text to image paints in that of the first picture.
    pub controls: Vec<Control>,
    /// The control pictures say more of what is painted than the prompt ([`Steering::new`](crate::Steering::new)). It is always so where the first
    /// net averages over its pixels (`global_pool_conditions`), but in inpainting with Stable Diffusion XL, as in diffusers.
    pub guess_mode: bool,
}

impl Default for TextToImage {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            negative_prompts: Vec::new(),
            prompts_2: Vec::new(),
            negative_prompts_2: Vec::new(),
            prompt_embeds: None,
            num_images_per_prompt: 1,
            schedule: Schedule::Steps(50),
            guidance_scale: None,
            guidance_rescale: 0.0,
            eta: 0.0,
            clip_skip: None,
            width: None,
            height: None,
            latents: None,
            micro_conditions: MicroConditions::default(),
            denoising_end: None,
            controls: Vec::new(),
            guess_mode: false,
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

    /// One negative prompt for each prompt.
    pub(super) fn negative_prompts_per_prompt(&self) -> Result<Vec<String>> {
        self.one_a_prompt("negative_prompts", &self.negative_prompts, &[String::new()])
    }

    /// One prompt for the second text encoder for each prompt.
    pub(super) fn prompts_2_per_prompt(&self) -> Result<Vec<String>> {
        self.one_a_prompt("prompts_2", &self.prompts_2, &self.prompts)
    }

    /// One negative prompt for the second text encoder for each prompt.
    pub(super) fn negative_prompts_2_per_prompt(&self) -> Result<Vec<String>> {
        let first = self.negative_prompts_per_prompt()?;
        self.one_a_prompt("negative_prompts_2", &self.negative_prompts_2, &first)
    }

    /// `texts`, or `otherwise` where there are none.
    fn one_a_prompt(
        &self,
        name: &'static str,
        texts: &[String],
        otherwise: &[String],
    ) -> Result<Vec<String>> {
        let count = self.prompts.len();
        match if texts.is_empty() { otherwise } else { texts } {
            several if several.len() == count => Ok(several.to_vec()),
            [one] => Ok(vec![one.clone(); count]),
            several => {
                let problem = format!("are {}, expected none, 1 or {count} (one a prompt)", several.len());
                argument(name, problem)
            }
        }
    }

    /// What can be told without a model.
    pub(super) fn check(&self) -> Result<()> {
        let conditions = &self.micro_conditions;
        let numbers = [
            ("guidance_scale", self.guidance_scale.unwrap_or_default()),
            ("guidance_rescale", self.guidance_rescale),
            ("eta", self.eta),
            ("aesthetic_score", conditions.aesthetic_score),
            ("negative_aesthetic_score", conditions.negative_aesthetic_score),
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
        let texts = [&self.prompts, &self.negative_prompts, &self.prompts_2, &self.negative_prompts_2];
        if self.prompt_embeds.is_some() && texts.iter().any(|texts| !texts.is_empty()) {
            return argument("prompt_embeds", "are given together with prompts; give one or the other");
        }
        if self.batch_size() == 0 {
            return argument("prompts", "are missing: give at least one, or prompt_embeds");
        }
        if let Some(embeds) = &self.prompt_embeds {
            self.check_embeds(embeds)?;
        } else {
            self.prompts_2_per_prompt()?;
            if self.guidance_scale.is_none_or(|scale| scale > 1.0) {
                self.negative_prompts_2_per_prompt()?;
            }
        }
        if let Some(end) = self.denoising_end {
            check_share("denoising_end", end)?;
        }
        for control in &self.controls {
            control.check(self.batch_size() / self.num_images_per_prompt)?;
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

/// A part of the denoising that is neither nothing nor all.
pub(super) fn check_share(name: &'static str, share: f64) -> Result<()> {
    if share > 0.0 && share < 1.0 {
        return Ok(());
    }
    argument(name, format!("is {share}, expected more than 0 and less than 1"))
}
