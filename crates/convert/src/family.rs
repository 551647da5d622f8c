use crate::layout::TextLayout;

/// The families of models whose checkpoints are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Stable Diffusion 1.x.
    StableDiffusion1,
    /// Stable Diffusion 2.x.
    StableDiffusion2,
    /// Stable Diffusion XL, base.
    StableDiffusionXl,
    /// Stable Diffusion XL, refiner.
    StableDiffusionXlRefiner,
}

/// What a UNet is made for, as its input channels tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// Latents alone.
    TextToImage,
    /// Latents, mask and masked latents.
    Inpainting,
    /// Latents and those of the picture to edit.
    InstructPix2Pix,
}

/// What a model predicts, the `prediction_type` of schedulers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity of Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", appendix D.
    VPrediction,
}

impl PredictionType {
    /// As configs spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::VPrediction => "v_prediction",
        }
    }

    /// The type that configs spell so.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Epsilon, Self::VPrediction].into_iter().find(|kind| kind.name() == name)
    }
}

/// Where a component of a pipeline is in either layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The folder in diffusers' layout.
    pub folder: &'static str,
    /// What stands before its names in the original layout.
    pub prefix: &'static str,
    /// Which model it is.
    pub model: ModelKind,
}

/// The models that components can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// `UNet2DConditionModel`.
    UNet,
    /// `ControlNetModel`.
    ControlNet,
    /// `AutoencoderKL`.
    Vae,
    /// `CLIPTextModel`, or `CLIPTextModelWithProjection` where `projection` is set.
    ClipText {
        /// How the original layout calls its tensors.
        layout: TextLayout,
        /// Whether the pooled output is projected.
        projection: bool,
    },
}

const UNET: Place = Place { folder: "unet", prefix: "model.diffusion_model.", model: ModelKind::UNet };
const VAE: Place = Place { folder: "vae", prefix: "first_stage_model.", model: ModelKind::Vae };

const fn text(folder: &'static str, prefix: &'static str, layout: TextLayout, projection: bool) -> Place {
    Place { folder, prefix, model: ModelKind::ClipText { layout, projection } }
}

use TextLayout::{OpenClip, Transformers};

const PLACES_SD1: &[Place] =
    &[UNET, VAE, text("text_encoder", "cond_stage_model.transformer.", Transformers, false)];
const PLACES_SD2: &[Place] = &[UNET, VAE, text("text_encoder", "cond_stage_model.model.", OpenClip, false)];
const PLACES_SDXL: &[Place] = &[
    UNET,
    VAE,
    text("text_encoder", "conditioner.embedders.0.transformer.", Transformers, false),
    text("text_encoder_2", "conditioner.embedders.1.model.", OpenClip, true),
];
const PLACES_REFINER: &[Place] =
    &[UNET, VAE, text("text_encoder_2", "conditioner.embedders.0.model.", OpenClip, true)];

impl Family {
    /// All families, the commonest first.
    pub const ALL: [Self; 4] = [
        Self::StableDiffusion1,
        Self::StableDiffusion2,
        Self::StableDiffusionXl,
        Self::StableDiffusionXlRefiner,
    ];

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::StableDiffusion1 => "Stable Diffusion 1",
            Self::StableDiffusion2 => "Stable Diffusion 2",
            Self::StableDiffusionXl => "Stable Diffusion XL",
            Self::StableDiffusionXlRefiner => "Stable Diffusion XL refiner",
        }
    }

    /// The components and where they are in either layout.
    pub fn places(self) -> &'static [Place] {
        match self {
            Self::StableDiffusion1 => PLACES_SD1,
            Self::StableDiffusion2 => PLACES_SD2,
            Self::StableDiffusionXl => PLACES_SDXL,
            Self::StableDiffusionXlRefiner => PLACES_REFINER,
        }
    }

    /// What the shapes of its tensors cannot tell, as the published models of the family have it.
    pub(crate) fn defaults(self) -> Defaults {
        use PredictionType::{Epsilon, VPrediction};
        let sd1 = Defaults {
            prediction_type: Epsilon,
            heads: Heads::Count(8),
            sample_size: 64,
            upcast_attention: false,
            vae_sample_size: 512,
            vae_scaling_factor: 0.18215,
        };
        let sdxl = Defaults {
            heads: Heads::Width(64),
            sample_size: 128,
            vae_sample_size: 1024,
            vae_scaling_factor: 0.13025,
            ..sd1
        };
        match self {
            Self::StableDiffusion1 => sd1,
            // As the reference: of stable-diffusion-2-1, the one for 768 pixels.
            Self::StableDiffusion2 => Defaults {
                prediction_type: VPrediction,
                heads: Heads::Width(64),
                sample_size: 96,
                upcast_attention: true,
                vae_sample_size: 768,
                ..sd1
            },
            Self::StableDiffusionXl | Self::StableDiffusionXlRefiner => sdxl,
        }
    }

    /// The class of the pipeline in diffusers.
    pub(crate) fn pipeline(self, task: Task) -> &'static str {
        match (self, task) {
            (Self::StableDiffusionXl, Task::TextToImage) => "StableDiffusionXLPipeline",
            (Self::StableDiffusionXl, Task::Inpainting) => "StableDiffusionXLInpaintPipeline",
            (Self::StableDiffusionXl, Task::InstructPix2Pix) => "StableDiffusionXLInstructPix2PixPipeline",
            (Self::StableDiffusionXlRefiner, Task::Inpainting) => "StableDiffusionXLInpaintPipeline",
            (Self::StableDiffusionXlRefiner, _) => "StableDiffusionXLImg2ImgPipeline",
            (_, Task::TextToImage) => "StableDiffusionPipeline",
            (_, Task::Inpainting) => "StableDiffusionInpaintPipeline",
            (_, Task::InstructPix2Pix) => "StableDiffusionInstructPix2PixPipeline",
        }
    }

    /// Whether it is one of the two for large pictures.
    pub(crate) fn is_xl(self) -> bool {
        matches!(self, Self::StableDiffusionXl | Self::StableDiffusionXlRefiner)
    }
}

/// What shapes cannot tell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) prediction_type: PredictionType,
    pub(crate) heads: Heads,
    /// Of the UNet, in latents.
    pub(crate) sample_size: usize,
    pub(crate) upcast_attention: bool,
    /// In pixels.
    pub(crate) vae_sample_size: usize,
    pub(crate) vae_scaling_factor: f64,
}

/// How the attention of a UNet is split into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heads {
    /// As many at every level.
    Count(usize),
    /// As many at a level as heads of this width fit.
    Width(usize),
}
