//! Custom Diffusion (<https://arxiv.org/abs/2212.04488>; diffusers' `examples/custom_diffusion`): new words, and what cross-attention makes of texts, are trained; nothing
//! else of the models changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_kernels::linear;
use candle_diffusers_models::layers::{Layer, LayerAdapter, Layers};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;

use super::area_mask::area_masks;
use super::{Denoising, DenoisingOptions, Example, TextualInversionOptions, TrainedToken};
use crate::checkpoint::save_tensors;
use crate::error::{Error, Result};
use crate::parameters::Parameter;
use crate::processes::RandomSource;

/// Which of cross-attention's projections are trained (`freeze_model`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainedProjections {
    /// `crossattn_kv`: those to keys and values.
    #[default]
    KeysAndValues,
    /// `crossattn`: also those to queries, and back.
    All,
}

/// The projections and words that are trained, beside a model that stays what it is.
#[derive(Debug)]
pub struct CustomDiffusion {
    /// The words.
    pub tokens: Vec<TrainedToken>,
    projections: Vec<(String, Layer, Arc<Projection>)>,
    /// The attentions that stay as they are, which diffusers wants named in the file.
    untouched: Vec<String>,
    trained: TrainedProjections,
}

impl CustomDiffusion {
    /// Adds the words to the models, each usually of one vector, and puts variables in place of the projections in the UNet's cross-attentions.
    /// Words that begin at random take their numbers from `generator`.
    ///
    /// # Errors
    /// Those of [`TrainedToken::attach`], and when the UNet has no cross-attention. Then the models are what they were.
    pub fn attach(
        models: &mut StableDiffusionPipeline,
        tokens: &[TextualInversionOptions],
        trained: TrainedProjections,
        generator: &mut TorchGenerator,
    ) -> Result<Self> {
        let ends: &[&str] = match trained {
            TrainedProjections::KeysAndValues => &["to_k", "to_v"],
            TrainedProjections::All => &["to_k", "to_v", "to_q", "to_out.0"],
        };
        let (mut projections, mut untouched) = (Vec::new(), Vec::new());
        for (name, layer) in models.unet.layers() {
            if let Some(attention) = name.strip_suffix(".attn1.to_k") {
                untouched.push(format!("{attention}.attn1"));
            }
            if ends.iter().any(|end| name.ends_with(&format!(".attn2.{end}"))) {
                let projection = Arc::new(Projection::new(&name, &layer)?);
                projections.push((name, layer, projection));
            }
        }
        if projections.is_empty() {
            let problem =
                "the UNet has no cross-attention to train; Custom Diffusion is for Stable Diffusion";
            return Err(Error::Parameters(problem.to_string()));
        }
        let attached = TrainedToken::attach_all(models, tokens, generator)?;
        for (_, layer, projection) in &projections {
            layer.set_adapter(Some(projection.clone()));
        }
        Ok(Self { tokens: attached, projections, untouched, trained })
    }

    /// Whether [`attach`](Self::attach) can add the words: for before long work. The models stay what they are.
    ///
    /// # Errors
    /// Those of [`TrainedToken::attach`].
    pub fn check_tokens(
        models: &mut StableDiffusionPipeline,
        tokens: &[TextualInversionOptions],
    ) -> Result<()> {
        let attached = TrainedToken::attach_all(models, tokens, &mut TorchGenerator::new(0))?;
        TrainedToken::detach_all(models, &attached)
    }

    /// What is trained, in float32.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut parameters: Vec<Parameter> = self.tokens.iter().flat_map(TrainedToken::parameters).collect();
        for (name, _, projection) in &self.projections {
            let parameter =
                |part: &str, var: &Var| Parameter { name: format!("unet.{name}.{part}"), var: var.clone() };
            parameters.push(parameter("weight", &projection.weight));
            parameters.extend(projection.bias.iter().map(|bias| parameter("bias", bias)));
        }
        parameters
    }

    /// Writes what diffusers' script writes: `pytorch_custom_diffusion_weights.safetensors` for `load_attn_procs`, and a file for each word, called as it is.
    ///
    /// diffusers wants the attentions named that stay as they are, which its own script leaves out of this kind of file: they are empty tensors here.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for attention in &self.untouched {
            tensors.insert(format!("{attention}.processor"), Tensor::zeros(0, DType::F32, &Device::Cpu)?);
        }
        for (name, _, projection) in &self.projections {
            let Some((attention, end)) = name.split_once(".attn2.") else { continue };
            let end = match end {
                "to_out.0" => "to_out_custom_diffusion.0".to_string(),
                end => format!("{end}_custom_diffusion"),
            };
            let name = format!("{attention}.attn2.processor.{end}");
            tensors.insert(format!("{name}.weight"), on_cpu(&projection.weight)?);
            if let Some(bias) = &projection.bias {
                tensors.insert(format!("{name}.bias"), on_cpu(bias)?);
            }
        }
        let metadata = [("format".to_string(), "pt".to_string())];
        save_tensors(&folder.join("pytorch_custom_diffusion_weights.safetensors"), &tensors, metadata)?;
        for token in &self.tokens {
            token.save(&token.file_in(folder))?;
        }
        Ok(())
    }

    /// Writes the change as one file for every program that knows LoRA: for keys and values as a LoRA of full rank, in diffusers' layout; for all projections, whose
    /// biases fit in no LoRA, as LyCORIS' `diff` and `diff_b` in kohya's.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_as_lora(&self, path: &Path) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (name, layer, projection) in &self.projections {
            let change = change(&projection.weight, &layer.weight())?;
            if self.trained == TrainedProjections::All {
                let name = format!("lora_unet_{}", name.replace('.', "_"));
                tensors.insert(format!("{name}.diff"), change);
                if let (Some(trained), Some(before)) = (&projection.bias, layer.bias()) {
                    tensors.insert(format!("{name}.diff_b"), self::change(trained, &before)?);
                }
                continue;
            }
            let (outputs, inputs) = change.dims2()?;
            let same = Tensor::eye(outputs.min(inputs), DType::F32, &Device::Cpu)?;
            let (up, down) = if inputs <= outputs { (change, same) } else { (same, change) };
            tensors.insert(format!("unet.{name}.lora_B.weight"), up);
            tensors.insert(format!("unet.{name}.lora_A.weight"), down);
        }
        save_tensors(path, &tensors, [("format".to_string(), "pt".to_string())])
    }
}

/// What has become of a layer's tensor, in float32 on the CPU.
fn change(trained: &Var, before: &Tensor) -> Result<Tensor> {
    Ok((on_cpu(trained)? - before.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)?)
}

fn on_cpu(var: &Var) -> Result<Tensor> {
    Ok(var.as_detached_tensor().to_device(&Device::Cpu)?)
}

/// What computes losses: those of [`Denoising`], except that the squared differences are summed over the latents' channels, as in the script; those of the
/// class's pictures are not. Of pictures with an [area](Example::area) only what is within it counts, and as much as a whole picture; where pictures come with masks
/// ([`mask_temperature`](DenoisingOptions::mask_temperature)), these say how much each place within it counts.
pub struct CustomDiffusionDenoising<'a> {
    denoising: Denoising<'a>,
    channels: f64,
    has_class: bool,
}

impl<'a> CustomDiffusionDenoising<'a> {
    /// # Errors
    /// Those of [`Denoising::new`].
    pub fn new(models: &'a StableDiffusionPipeline, options: DenoisingOptions) -> Result<Self> {
        let channels = models.unet.config().out_channels as f64;
        let has_class = options.prior_loss_weight.is_some();
        let prior_loss_weight = options.prior_loss_weight.map(|weight| weight / channels);
        let denoising = Denoising::new(models, DenoisingOptions { prior_loss_weight, ..options })?;
        Ok(Self { denoising, channels, has_class })
    }

    /// The loss of a batch.
    ///
    /// # Errors
    /// Those of [`Denoising::loss`].
    pub fn loss(&self, examples: &[Example], generator: &mut dyn RandomSource) -> Result<Tensor> {
        let own = if self.has_class { &examples[..examples.len() / 2] } else { examples };
        if own.iter().all(|example| example.area.is_none()) {
            return Ok((self.denoising.loss(examples, generator)? * self.channels)?);
        }
        let (prediction, noised) = self.denoising.predict(examples, generator)?;
        let (_, _, height, width) = prediction.dims4()?;
        let areas = area_masks(own, height, width)?;
        let mask = self.denoising.own_mask_weights(&prediction, examples, generator)?;
        let loss = self.denoising.compare_areas(&prediction, &noised, &areas, mask.as_ref())?;
        Ok((loss * self.channels)?)
    }
}

/// A projection that is trained in place of a layer's own.
#[derive(Debug)]
struct Projection {
    weight: Var,
    bias: Option<Var>,
    /// Nothing is learned from the first token, which is the same in all texts.
    is_of_text: bool,
}

impl Projection {
    fn new(name: &str, layer: &Layer) -> Result<Self> {
        let var = |tensor: Tensor| Var::from_tensor(&tensor.to_dtype(DType::F32)?.force_contiguous()?);
        Ok(Self {
            weight: var(layer.weight())?,
            bias: layer.bias().map(var).transpose()?,
            is_of_text: name.ends_with("to_k") || name.ends_with("to_v"),
        })
    }
}

impl LayerAdapter for Projection {
    fn forward(&self, _: &Layer, input: &Tensor, output: Tensor) -> candle_diffusers_models::Result<Tensor> {
        let weight = self.weight.to_dtype(input.dtype())?;
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(input.dtype())).transpose()?;
        let trained = linear(input, &weight, bias.as_ref())?;
        if !self.is_of_text {
            return Ok(trained);
        }
        let (_, tokens, _) = output.dims3()?;
        let first = trained.narrow(1, 0, 1)?.detach();
        if tokens == 1 {
            return Ok(first);
        }
        Ok(Tensor::cat(&[&first, &trained.narrow(1, 1, tokens - 1)?], 1)?)
    }
}
