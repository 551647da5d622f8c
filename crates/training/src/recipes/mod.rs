//! What is taught, and how: each recipe is the loss of a batch, over the parts that all share.

mod custom_diffusion;
mod denoising;
mod templates;
mod textual_inversion;
mod unconditional;

pub use custom_diffusion::{CustomDiffusion, CustomDiffusionDenoising, TrainedProjections};
pub use denoising::{Denoising, DenoisingOptions, Example};
pub use templates::LearnableProperty;
pub use textual_inversion::{TextualInversionOptions, TrainedToken};
pub use unconditional::{
    UnconditionalDenoising, UnconditionalOptions, default_unet_2d_config, save_unconditional,
};
