//! LoRA (Hu et al., 2021) that is trained: two small variables beside each layer that is chosen, as PEFT adds them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_kernels::{add, linear};
use candle_diffusers_models::layers::{Layer, LayerAdapter, Layers, Operation};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};

use crate::checkpoint::save_tensors;
use crate::error::{Error, Result};
use crate::parameters::Parameter;
use crate::processes::{BatchShare, RandomSource, ShareOfRandom};

/// The layers that diffusers' scripts give a LoRA in UNets: the projections of every attention.
pub const UNET_TARGETS: [&str; 4] = ["to_k", "to_q", "to_v", "to_out.0"];
/// The same in CLIP's text encoders.
pub const TEXT_ENCODER_TARGETS: [&str; 4] = ["q_proj", "k_proj", "v_proj", "out_proj"];

/// What PEFT's `LoraConfig` says; [`new`](Self::new) is what diffusers' scripts use.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// How many numbers stand between the two variables of a layer.
    pub rank: usize,
    /// The change is multiplied by this over the rank.
    pub alpha: f64,
    /// The share of the input's numbers that is left out in each step.
    pub dropout: f64,
    /// Layers whose names end with one of these, after a dot or whole.
    pub target_modules: Vec<String>,
    /// What the first variable begins as; the second begins as zeros.
    pub init: LoraInit,
    /// Multiply by alpha over the rank's square root instead (rsLoRA, <https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
}

impl LoraConfig {
    /// Alpha equal to the rank, no dropout, normally distributed beginnings.
    pub fn new(rank: usize, target_modules: &[&str]) -> Self {
        let target_modules = target_modules.iter().map(|name| name.to_string()).collect();
        let (alpha, init) = (rank as f64, LoraInit::Gaussian);
        Self { rank, alpha, dropout: 0.0, target_modules, init, use_rslora: false }
    }

    /// What the change is multiplied by.
    pub fn scaling(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    fn check(&self) -> Result<()> {
        let field = |field, found: String, expected: &str| {
            Err(Error::Field { field, found, expected: expected.to_string() })
        };
        if self.rank == 0 {
            return field("rank", "0".to_string(), "1 or more");
        }
        if !self.alpha.is_finite() {
            return field("lora_alpha", self.alpha.to_string(), "a finite number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return field("lora_dropout", self.dropout.to_string(), "0 or more and less than 1");
        }
        Ok(())
    }

    fn chooses(&self, name: &str) -> bool {
        let is_end =
            |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        self.target_modules.iter().any(|end| is_end(end))
    }
}

/// PEFT's `init_lora_weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraInit {
    /// `gaussian`: normally distributed, with a deviation of 1 over the rank.
    Gaussian,
    /// `true`: evenly distributed up to 1 over the root of the inputs, as torch's linear layers begin (He et al., 2015).
    Kaiming,
}

/// The LoRA of one model.
#[derive(Debug)]
pub struct TrainedLora {
    component: &'static str,
    layers: Vec<(String, Arc<TrainedLayer>)>,
    scaling: f64,
    dropout: Option<Arc<Dropout>>,
}

impl TrainedLora {
    /// Puts a LoRA beside the layers of `model` that the config chooses. `component` is `unet`, `text_encoder` or `text_encoder_2`, where the
    /// parameters' names begin. Random numbers come from `generator`, layer after layer.
    ///
    /// # Errors
    /// When a setting is out of range, or no layer is chosen.
    pub fn attach(
        model: &dyn Layers,
        component: &'static str,
        config: &LoraConfig,
        generator: &mut TorchGenerator,
    ) -> Result<Self> {
        config.check()?;
        let share = config.dropout;
        let random = || Mutex::new((TorchGenerator::new(0), BatchShare::default()));
        let dropout = (share > 0.0).then(|| Arc::new(Dropout { share, random: random() }));
        let mut layers = Vec::new();
        let all = model.layers();
        for (name, layer) in all.iter().filter(|(name, _)| config.chooses(name)) {
            let trained = Arc::new(TrainedLayer::new(layer, config, dropout.clone(), generator)?);
            layer.set_adapter(Some(trained.clone()));
            layers.push((name.clone(), trained));
        }
        if layers.is_empty() {
            let found = format!("{:?}", config.target_modules);
            let example = all.first().map_or("", |(name, _)| name.as_str());
            let expected = format!("ends of names of the {component}'s layers, such as {example}");
            return Err(Error::Field { field: "target_modules", found, expected });
        }
        Ok(Self { component, layers, scaling: config.scaling(), dropout })
    }

    /// Begins the dropout of a step, which follows from `seed` alone, so that a run can go on from any step. `batches` is which part of the whole batches this
    /// process sees; by default all.
    pub fn begin_step(&self, seed: u64, batches: BatchShare) {
        if let Some(dropout) = &self.dropout {
            *dropout.random.lock().unwrap_or_else(PoisonError::into_inner) =
                (TorchGenerator::new(seed), batches);
        }
    }

    /// What is trained, in float32.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameter = |name: &str, part: &str, var: &Var| Parameter {
            name: format!("{}.{name}.{part}.weight", self.component),
            var: var.clone(),
        };
        let both = |(name, layer): &(String, Arc<TrainedLayer>)| {
            [parameter(name, "lora_A", &layer.down), parameter(name, "lora_B", &layer.up)]
        };
        self.layers.iter().flat_map(both).collect()
    }

    /// The tensors of a LoRA file in diffusers' layout (`unet.NAME.lora.down.weight`), on the CPU. What the change is multiplied by is in them, so that
    /// no program needs to be told an alpha.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (name, layer) in &self.layers {
            let name = format!("{}.{name}.lora", self.component);
            tensors.insert(
                format!("{name}.down.weight"),
                layer.down.as_detached_tensor().to_device(&Device::Cpu)?,
            );
            let up = layer.up.as_detached_tensor();
            let up = if self.scaling == 1.0 { up } else { (up * self.scaling)? };
            tensors.insert(format!("{name}.up.weight"), up.to_device(&Device::Cpu)?);
        }
        Ok(tensors)
    }
}

/// Writes what was trained as one LoRA file in diffusers' layout, whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn save_lora(path: &Path, loras: &[TrainedLora]) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for lora in loras {
        tensors.extend(lora.tensors()?);
    }
    save_tensors(path, &tensors, [("format".to_string(), "pt".to_string())])
}

/// `output + scaling * up(down(dropout(input)))`.
#[derive(Debug)]
struct TrainedLayer {
    down: Var,
    up: Var,
    scaling: f64,
    dropout: Option<Arc<Dropout>>,
}

/// Which numbers are left out, drawn afresh for each layer of each step.
#[derive(Debug)]
struct Dropout {
    share: f64,
    random: Mutex<(TorchGenerator, BatchShare)>,
}

impl Dropout {
    /// Zeros where a number is left out, and what makes up for them elsewhere, in the shape and dtype of `input`.
    fn draw(&self, input: &Tensor) -> candle_diffusers_models::Result<Tensor> {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let (generator, share) = &mut *random;
        let drawn = ShareOfRandom { generator, share: *share }
            .rand(input.dims(), DType::F32, input.device())
            .map_err(candle_core::Error::wrap)?;
        Ok((drawn.ge(self.share)?.to_dtype(DType::F32)? / (1.0 - self.share))?.to_dtype(input.dtype())?)
    }
}

impl TrainedLayer {
    fn new(
        layer: &Layer,
        config: &LoraConfig,
        dropout: Option<Arc<Dropout>>,
        generator: &mut TorchGenerator,
    ) -> Result<Self> {
        let (device, shape) = (layer.device(), layer.shape());
        let mut down_shape = shape.dims().to_vec();
        let mut up_shape = vec![down_shape[0], config.rank];
        down_shape[0] = config.rank;
        if let Operation::Conv2d(_) = layer.operation() {
            up_shape.extend([1, 1]);
        }
        let inputs: usize = down_shape[1..].iter().product();
        let down = match config.init {
            LoraInit::Gaussian => (generator.randn(&down_shape, DType::F32, &device)? / config.rank as f64)?,
            LoraInit::Kaiming => {
                let bound = (inputs as f64).powf(-0.5);
                generator.rand(&down_shape, DType::F32, &device)?.affine(2.0 * bound, -bound)?
            }
        };
        Ok(Self {
            down: Var::from_tensor(&down)?,
            up: Var::zeros(up_shape, DType::F32, &device)?,
            scaling: config.scaling(),
            dropout,
        })
    }
}

impl LayerAdapter for TrainedLayer {
    fn forward(
        &self,
        layer: &Layer,
        input: &Tensor,
        output: Tensor,
    ) -> candle_diffusers_models::Result<Tensor> {
        let (down, up) = (self.down.to_dtype(input.dtype())?, self.up.to_dtype(input.dtype())?);
        let input = match &self.dropout {
            Some(dropout) => (input * dropout.draw(input)?)?,
            None => input.clone(),
        };
        let change = match layer.operation() {
            Operation::Linear => linear(&linear(&input, &down, None)?, &up, None)?,
            operation => {
                operation.pointwise().forward(&operation.forward(&input, &down, None)?, &up, None)?
            }
        };
        let change = if self.scaling == 1.0 { change } else { (change * self.scaling)? };
        Ok(add(&output, &change)?)
    }
}
