//! ControlNets in the denoising loop (what diffusers' `pipelines/controlnet/` do there; Zhang et al., 2023).

use std::sync::Arc;

use candle_core::Tensor;
use candle_diffusers_models::{ControlNetModel, ControlNetOutput, ControlScale, TextCache};
use image::RgbImage;

use crate::error::{Result, argument};
use crate::latents::repeat_all;
use crate::told::Told;

/// A picture that steers what is painted, by the ControlNet that knows its kind: of edges, poses, depths.
#[derive(Clone, Debug)]
pub struct Control {
    /// Several may share one: its weights are in memory once.
    pub net: Arc<ControlNetModel>,
    /// One for all, or one for each prompt; they are resized to what is painted.
    pub pictures: Vec<RgbImage>,
    /// How strongly, 1 as it was trained.
    pub scale: f64,
    /// When it begins, as a part of the steps, 0 to 1.
    pub start: f64,
    /// When it ends.
    pub end: f64,
}

impl Control {
    /// One picture through all steps, as strongly as the net was trained.
    pub fn new(net: Arc<ControlNetModel>, picture: RgbImage) -> Self {
        Self { net, pictures: vec![picture], scale: 1.0, start: 0.0, end: 1.0 }
    }

    /// What can be told without a model; `prompts` is how many there are.
    pub(crate) fn check(&self, prompts: usize) -> Result<()> {
        if !self.scale.is_finite() {
            return argument("control.scale", format!("is {}, expected a finite number", self.scale));
        }
        let (start, end) = (self.start, self.end);
        if !(0.0..1.0).contains(&start) || !(0.0..=1.0).contains(&end) || start >= end {
            let problem = format!("are {start} and {end}, expected 0 or more, then more than that up to 1");
            return argument("control.start, control.end", problem);
        }
        let count = self.pictures.len();
        if count != 1 && count != prompts {
            let problem = format!("are {count}, expected 1, or {prompts} (one a prompt)");
            return argument("control.pictures", problem);
        }
        if self.pictures.iter().any(|picture| picture.width() == 0 || picture.height() == 0) {
            return argument("control.pictures", "are 0 pixels wide or high");
        }
        Ok(())
    }
}

/// ControlNets with their pictures as they see them, for [`Denoising`](crate::Denoising).
#[derive(Clone, Debug)]
pub struct Steering {
    nets: Vec<Steered>,
    guess_mode: bool,
}

#[derive(Clone, Debug)]
struct Steered {
    net: Arc<ControlNetModel>,
    /// Its pictures embedded, one for each of the batch.
    condition: Tensor,
    scale: f64,
    start: f64,
    end: f64,
}

/// Where in the loop a step is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) index: usize,
    /// Steps to the end of the schedule, though another model may take the last ones.
    pub(crate) total: usize,
    pub(crate) timestep: f64,
}

impl Steering {
    /// `controls` for a batch of this many; `fit` brings their pictures to the size that is painted, as `(pictures, 3, height, width)` with values
    /// from 0 to 1 in the nets' dtype on their device.
    ///
    /// In `guess_mode` the nets see the prompts alone, not the negative ones, and steer more weakly from the middle outwards: a picture can then say
    /// all that is to be painted.
    ///
    /// # Errors
    /// When the batch is no multiple of the pictures, or their size does not fit.
    pub fn new(
        controls: &[Control],
        guess_mode: bool,
        batch: usize,
        fit: impl Fn(&[RgbImage]) -> Result<Tensor>,
    ) -> Result<Self> {
        let embed = |control: &Control| -> Result<Steered> {
            let net = control.net.clone();
            let condition = repeat_each(&net.embed_condition(&fit(&control.pictures)?)?, batch)?;
            Ok(Steered { net, condition, scale: control.scale, start: control.start, end: control.end })
        };
        Ok(Self { nets: controls.iter().map(embed).collect::<Result<_>>()?, guess_mode })
    }

    /// What all nets together add in a step; none where no net is on.
    ///
    /// `input` is what the UNet sees of the latents, a row for each that it is `told`; the last rows are those of the prompts, of which alone
    /// `told_prompts` is.
    pub(crate) fn residuals(
        &self,
        place: Place,
        input: &Tensor,
        told: &Told,
        told_prompts: &Told,
        text_cache: &TextCache,
    ) -> Result<Option<ControlNetOutput>> {
        let rows = input.dim(0)?;
        let prompts = told_prompts.text.dim(0)?;
        let (told, input) = match self.guess_mode && prompts < rows {
            true => (told_prompts, input.narrow(0, rows - prompts, prompts)?),
            false => (told, input.clone()),
        };
        let mut sum: Option<ControlNetOutput> = None;
        for steered in self.nets.iter().filter(|steered| steered.is_on(place)) {
            let scale = ControlScale { conditioning_scale: steered.scale, guess_mode: self.guess_mode };
            let condition = repeat_all(&steered.condition, input.dim(0)?)?;
            let conditions = told.conditions(text_cache);
            let output =
                steered.net.forward(&input, &[place.timestep], &told.text, &condition, scale, conditions)?;
            sum = Some(match sum {
                Some(sum) => add(&sum, &output)?,
                None => output,
            });
        }
        match sum {
            Some(sum) if input.dim(0)? < rows => Ok(Some(after_zeros(&sum)?)),
            sum => Ok(sum),
        }
    }
}

impl Steered {
    fn is_on(&self, Place { index, total, .. }: Place) -> bool {
        let share = |steps: usize| steps as f64 / total as f64;
        share(index) >= self.start && share(index + 1) <= self.end
    }
}

/// One row for each of the batch: each of the pictures so many times in a row.
fn repeat_each(condition: &Tensor, batch: usize) -> Result<Tensor> {
    let count = condition.dim(0)?;
    if count == 0 || !batch.is_multiple_of(count) {
        let problem = format!("are {count}, of which a batch of {batch} cannot be made");
        return argument("control.pictures", problem);
    }
    let mut rows = Vec::with_capacity(batch);
    for row in 0..batch {
        rows.push(condition.narrow(0, row / (batch / count), 1)?);
    }
    Ok(Tensor::cat(&rows, 0)?)
}

fn add(one: &ControlNetOutput, other: &ControlNetOutput) -> Result<ControlNetOutput> {
    map_pairs(one, other, |one, other| Ok(one.broadcast_add(other)?))
}

/// With zeros for the negative prompts, which come first.
fn after_zeros(output: &ControlNetOutput) -> Result<ControlNetOutput> {
    map_pairs(output, output, |residual, _| Ok(Tensor::cat(&[&residual.zeros_like()?, residual], 0)?))
}

fn map_pairs(
    one: &ControlNetOutput,
    other: &ControlNetOutput,
    map: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<ControlNetOutput> {
    let down_block = one.down_block.iter().zip(&other.down_block).map(|(one, other)| map(one, other));
    Ok(ControlNetOutput {
        down_block: down_block.collect::<Result<_>>()?,
        mid_block: map(&one.mid_block, &other.mid_block)?,
    })
}
