//! What is taught, and how: each recipe is the loss of a batch, over the parts that all share.

mod area_mask;
mod controlnet;
mod custom_diffusion;
mod denoising;
mod encoded;
mod inpainting;
mod instruct_pix2pix;
mod templates;
mod textual_inversion;
mod unconditional;

pub use controlnet::{ControlNetDenoising, TrainedControlNet};
pub use custom_diffusion::{CustomDiffusion, CustomDiffusionDenoising, TrainedProjections};
pub use denoising::{Denoising, DenoisingOptions, Example};
pub use encoded::Encoded;
pub use inpainting::random_mask;
pub use instruct_pix2pix::{InstructPix2PixDenoising, InstructPix2PixOptions, trainable_edit_unet};
pub use templates::LearnableProperty;
pub use textual_inversion::{TextualInversionOptions, TrainedToken};
pub use unconditional::{
    UnconditionalDenoising, UnconditionalOptions, default_unet_2d_config, save_unconditional,
};
