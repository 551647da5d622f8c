//! What a picture begins as: noise, another picture, or another picture of which a part is painted anew.

use anyhow::{Result, bail, ensure};
use candle_core::Tensor;
use candle_diffusers_pipelines::{
    ImageToImage, InitImage, Inpainting, InstructPix2Pix, StableDiffusionPipeline,
    StableDiffusionPipelineOutput, StepCallback, Task, TextToImage, blur, load_mask, load_picture, resize,
    task,
};
use candle_diffusers_schedulers::NoiseSource;
use image::{GrayImage, Luma, RgbImage, imageops};

use crate::arguments::GenerateArguments;
use crate::models::NamedModel;

pub(crate) enum Start {
    Noise,
    Picture(RgbImage),
    /// White parts of the mask are painted.
    Masked(RgbImage, GrayImage),
    /// The prompt says what to change.
    Edited(RgbImage),
}

impl Start {
    /// Reads the pictures that the command line names.
    pub(crate) fn read(arguments: &GenerateArguments) -> Result<Self> {
        let Some(path) = &arguments.init_image else { return Ok(Self::Noise) };
        let picture = load_picture(path)?;
        let mask = match &arguments.mask {
            Some(mask_path) => {
                let mask = load_mask(mask_path)?;
                let ((width, height), (other_width, other_height)) =
                    (mask.dimensions(), picture.dimensions());
                ensure!(
                    mask.dimensions() == picture.dimensions(),
                    "{}: is {width}x{height}, expected {other_width}x{other_height}, the size of {}",
                    mask_path.display(),
                    path.display()
                );
                Some(mask)
            }
            None => None,
        };
        let (picture, mask) = match &arguments.outpaint {
            Some(margins) => {
                let mask = mask.unwrap_or(GrayImage::new(picture.width(), picture.height()));
                (margins.extend(&picture)?, Some(margins.mark(&mask)?))
            }
            None => (picture, mask),
        };
        Ok(match mask {
            Some(mask) => Self::Masked(picture, blur(&mask, arguments.mask_blur)),
            None => Self::Picture(picture),
        })
    }

    /// The same for this model, when what was given goes with what it was trained for.
    pub(crate) fn for_task(self, arguments: &GenerateArguments, model: &NamedModel) -> Result<Self> {
        let name = model.repository.name();
        let task = task(&model.repository)?;
        if task != Task::Edit {
            ensure!(
                arguments.image_guidance_scale.is_none(),
                "--image-guidance-scale is for models that edit pictures by instructions (InstructPix2Pix), and {name} does not; leave it out"
            );
        }
        match (task, self) {
            (Task::Paint, start) | (Task::Inpaint, start @ Self::Masked(..)) => Ok(start),
            (Task::Inpaint, _) => bail!(
                "{name} was trained to paint into pictures: give one with --init-image, and --mask or --outpaint"
            ),
            (Task::Edit, Self::Picture(picture)) => {
                check_edit(arguments, name)?;
                Ok(Self::Edited(picture))
            }
            (Task::Edit, Self::Noise) => {
                bail!("{name} edits pictures by instructions: give one with --init-image")
            }
            (Task::Edit, _) => bail!(
                "--mask and --outpaint are for models that paint, and {name} edits whole pictures by instructions; leave them out"
            ),
        }
    }

    /// What is odd about what was given, though it can be painted.
    pub(crate) fn warning(&self, arguments: &GenerateArguments) -> Option<String> {
        let (Self::Masked(_, mask), Some(path)) = (self, &arguments.mask) else { return None };
        let is_black = mask.iter().all(|brightness| *brightness < 128);
        is_black.then(|| {
            format!(
                "warning: {}: is black all over, so that nothing is painted; white is what is painted, and transparency is left out",
                path.display()
            )
        })
    }

    /// The size of what will be written, at the most.
    pub(crate) fn size(
        &self,
        arguments: &GenerateArguments,
        pipeline: &StableDiffusionPipeline,
        text: &TextToImage,
    ) -> Result<(usize, usize)> {
        let (Self::Picture(picture) | Self::Masked(picture, _) | Self::Edited(picture)) = self else {
            return Ok(pipeline.picture_size(text)?);
        };
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Ok(match arguments.padding_mask_crop {
            Some(_) => (width, height),
            None => (arguments.width.unwrap_or(width), arguments.height.unwrap_or(height)),
        })
    }

    /// How closely a picture that is edited is followed.
    pub(crate) fn image_guidance_scale(arguments: &GenerateArguments) -> f64 {
        arguments.image_guidance_scale.unwrap_or(1.5)
    }

    /// Takes the steps: the latents of a picture.
    pub(crate) fn latents(
        &self,
        arguments: &GenerateArguments,
        pipeline: &mut StableDiffusionPipeline,
        text: TextToImage,
        strength: f64,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<Tensor> {
        Ok(match self {
            Self::Noise => pipeline.generate_latents(&text, noise, on_step_end)?,
            Self::Picture(picture) => {
                let image = InitImage::Pictures(vec![picture.clone()]);
                let request = ImageToImage { text, image, strength, denoising_start: None };
                pipeline.image_to_image_latents(&request, noise, on_step_end)?
            }
            Self::Edited(picture) => {
                let factor = pipeline.vae.config().vae_scale_factor();
                let side = |asked: Option<usize>, side: u32| asked.or(Some(side as usize / factor * factor));
                let text = TextToImage {
                    width: side(text.width, picture.width()),
                    height: side(text.height, picture.height()),
                    ..text
                };
                let image = InitImage::Pictures(vec![picture.clone()]);
                let image_guidance_scale = Self::image_guidance_scale(arguments);
                let request = InstructPix2Pix { text, image, image_guidance_scale };
                pipeline.instruct_pix2pix_latents(&request, noise, on_step_end)?
            }
            Self::Masked(picture, mask) => {
                let request =
                    Inpainting { strength, ..inpainting(arguments, pipeline, picture, mask, text)? };
                pipeline.inpaint_latents(&request, noise, on_step_end)?
            }
        })
    }

    /// Takes the steps that a base has left to its refiner.
    pub(crate) fn refined(
        &self,
        arguments: &GenerateArguments,
        pipeline: &mut StableDiffusionPipeline,
        text: TextToImage,
        latents: Tensor,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<Tensor> {
        let image = InitImage::Latents(latents);
        let denoising_start = Some(arguments.xl.denoising_split);
        Ok(match self {
            Self::Noise | Self::Picture(_) | Self::Edited(_) => {
                let request = ImageToImage { text, image, strength: 1.0, denoising_start };
                pipeline.image_to_image_latents(&request, noise, on_step_end)?
            }
            Self::Masked(picture, mask) => {
                let begun = inpainting(arguments, pipeline, picture, mask, text)?;
                let request = Inpainting { image, denoising_start, keep_unmasked: false, ..begun };
                pipeline.inpaint_latents(&request, noise, on_step_end)?
            }
        })
    }

    /// The picture that those are of.
    pub(crate) fn picture(
        &self,
        arguments: &GenerateArguments,
        pipeline: &StableDiffusionPipeline,
        text: TextToImage,
        latents: &Tensor,
    ) -> Result<StableDiffusionPipelineOutput> {
        Ok(match self {
            Self::Noise | Self::Picture(_) | Self::Edited(_) => pipeline.pictures(latents)?,
            Self::Masked(picture, mask) => {
                let request = inpainting(arguments, pipeline, picture, mask, text)?;
                pipeline.inpainted_pictures(&request, latents)?
            }
        })
    }
}

/// What a model that edits could do nothing with.
fn check_edit(arguments: &GenerateArguments, model: &str) -> Result<()> {
    let flags = [
        ("--strength", arguments.strength.is_some()),
        ("--refiner", arguments.xl.refiner.is_some()),
        ("--control", !arguments.control.controls.is_empty()),
    ];
    for (flag, is_given) in flags {
        ensure!(
            !is_given,
            "{flag} is for models that paint, and {model} edits pictures by instructions; leave it out"
        );
    }
    Ok(())
}

fn inpainting(
    arguments: &GenerateArguments,
    pipeline: &StableDiffusionPipeline,
    picture: &RgbImage,
    mask: &GrayImage,
    text: TextToImage,
) -> Result<Inpainting> {
    let (picture, mask, text) = match arguments.padding_mask_crop {
        Some(_) => (picture.clone(), mask.clone(), text),
        None => fit(arguments, pipeline, picture, mask, text)?,
    };
    Ok(Inpainting {
        text,
        image: InitImage::Pictures(vec![picture]),
        denoising_start: None,
        masks: vec![mask],
        strength: 1.0,
        padding_mask_crop: arguments.padding_mask_crop,
        keep_unmasked: !arguments.no_keep_unmasked,
    })
}

/// The picture and its mask in the size that the command line names; what is painted is the next lower size that the model can paint.
fn fit(
    arguments: &GenerateArguments,
    pipeline: &StableDiffusionPipeline,
    picture: &RgbImage,
    mask: &GrayImage,
    text: TextToImage,
) -> Result<(RgbImage, GrayImage, TextToImage)> {
    let side = |asked: Option<usize>, found: u32| asked.map_or(found, |asked| asked as u32);
    let (width, height) = (side(arguments.width, picture.width()), side(arguments.height, picture.height()));
    let factor = pipeline.vae.config().vae_scale_factor();
    let painted = |asked: Option<usize>, side: u32| asked.unwrap_or(side as usize / factor * factor);
    let text = TextToImage {
        width: Some(painted(arguments.width, width)),
        height: Some(painted(arguments.height, height)),
        ..text
    };
    // Told of before resizing.
    pipeline.picture_size(&text)?;
    if picture.dimensions() == (width, height) {
        return Ok((picture.clone(), mask.clone(), text));
    }
    let grey = imageops::resize(mask, width, height, imageops::FilterType::Triangle);
    Ok((resize(picture, width, height)?, grey, text))
}

/// How many pixels a picture grows at each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Margins {
    left: u32,
    top: u32,
    right: u32,
    bottom: u32,
}

/// No picture is larger.
const MOST: u32 = 1 << 16;
const MOST_PIXELS: u64 = 1 << 28;

impl std::str::FromStr for Margins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sides: Result<Vec<u32>, _> = text.split(',').map(|side| side.trim().parse()).collect();
        match sides.as_deref() {
            Ok([0, 0, 0, 0]) => Err("a picture that grows at no side has nothing to paint".into()),
            Ok(&[left, top, right, bottom])
                if [left, top, right, bottom].iter().all(|side| *side <= MOST) =>
            {
                Ok(Self { left, top, right, bottom })
            }
            _ => Err(format!("expected left,top,right,bottom in pixels up to {MOST}, such as 0,0,128,0")),
        }
    }
}

impl Margins {
    fn size(self, width: u32, height: u32) -> Result<(u32, u32)> {
        let grown = |side: u32, before: u32, behind: u32| {
            side.checked_add(before)?.checked_add(behind).filter(|side| *side <= MOST)
        };
        match (grown(width, self.left, self.right), grown(height, self.top, self.bottom)) {
            (Some(width), Some(height)) if u64::from(width) * u64::from(height) <= MOST_PIXELS => {
                Ok((width, height))
            }
            _ => bail!(
                "--outpaint makes {width}x{height} larger than {MOST} pixels a side or {MOST_PIXELS} in all; ask for less"
            ),
        }
    }

    /// The picture with its edges drawn out.
    fn extend(self, picture: &RgbImage) -> Result<RgbImage> {
        let (width, height) = self.size(picture.width(), picture.height())?;
        let inside = |place: u32, before: u32, size: u32| place.saturating_sub(before).min(size - 1);
        ensure!(picture.width() > 0 && picture.height() > 0, "the picture has no pixels");
        Ok(RgbImage::from_fn(width, height, |x, y| {
            *picture.get_pixel(inside(x, self.left, picture.width()), inside(y, self.top, picture.height()))
        }))
    }

    /// The mask in the middle of what is painted.
    fn mark(self, mask: &GrayImage) -> Result<GrayImage> {
        let (width, height) = self.size(mask.width(), mask.height())?;
        let mut marked = GrayImage::from_pixel(width, height, Luma([255]));
        imageops::replace(&mut marked, mask, self.left.into(), self.top.into());
        Ok(marked)
    }
}
