#![doc = include_str!("../README.md")]

mod control;
mod denoise;
mod error;
mod guidance;
mod image_processor;
mod latents;
mod memory;
mod predictor;
mod prompt;
mod prompt_embeds;
mod safety_checker;
mod scheduler_config;
mod stable_diffusion;
mod timesteps;
mod told;
mod unconditional;

pub use control::{Control, Steering};
pub use denoise::{Denoising, Guidance, Kept, StepCallback, StepEnd, TimeIds, denoise};
pub use error::{Error, Result};
pub use guidance::{classifier_free_guidance, guidance_scale_embedding, instruct_pix2pix_guidance};
pub use image_processor::{
    ClipImageProcessor, Filter, Region, blur, canny, denormalize, from_masks, from_pictures, load_mask,
    load_picture, normalize, overlay, resize, resize_with, to_pictures,
};
pub use latents::{
    decode_latents, encode_each, encode_pictures, prepare_latents, scale_initial_latents, scale_latents,
    unscale_latents,
};
pub use memory::working_memory;
pub use prompt::{encode_prompt, maybe_convert_prompt};
pub use prompt_embeds::{PooledPromptEmbeds, PromptEmbeds};
pub use safety_checker::SafetyChecker;
pub use scheduler_config::load_scheduler_config;
pub use stable_diffusion::{
    ClipEncoder, ImageToImage, InitImage, Inpainting, InstructPix2Pix, MicroConditions, ProjectedClipEncoder,
    Replacements, Schedule, SharedParts, StableDiffusionPipeline, StableDiffusionPipelineOutput, Task,
    TextEncoders, TextToImage, XlEncoders, check_controlnet, check_refiner, load_pipeline_scheduler,
    seeded_generators, task,
};
pub use timesteps::{first_step, first_step_from, steps_until};
pub use unconditional::{Unconditional, UnconditionalCallback, UnconditionalPipeline, UnconditionalStepEnd};
