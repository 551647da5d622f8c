//! What stands beside one layer.

use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use candle_diffusers_kernels::{add, to_dtype};
use candle_diffusers_models::layers::{Layer, LayerAdapter, Operation};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};

use super::config::{LoraConfig, LoraInit};
use super::dora::Magnitude;
use super::dropout::{Dropout, LayerDropout};
use crate::error::Result;

/// `output + scaling * up(down(dropout(input)))`.
/// With magnitudes: see [`Magnitude`].
#[derive(Debug)]
pub(super) struct TrainedLayer {
    pub(super) down: Var,
    pub(super) up: Var,
    pub(super) magnitude: Option<Magnitude>,
    scaling: f64,
    dropout: Option<LayerDropout>,
}

impl TrainedLayer {
    pub(super) fn new(
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
        let magnitude = config.use_dora.then(|| Magnitude::new(layer)).transpose()?;
        Ok(Self {
            down: Var::from_tensor(&down)?,
            up: Var::zeros(up_shape, DType::F32, &device)?,
            magnitude,
            scaling: config.scaling(),
            dropout: dropout.map(LayerDropout::new),
        })
    }
}

impl TrainedLayer {
    /// `scaling * up @ down` in the weight's shape, in float32, without gradients.
    fn delta(&self) -> candle_core::Result<Tensor> {
        let (down, up) = (self.down.as_detached_tensor(), self.up.as_detached_tensor());
        let mut shape = down.dims().to_vec();
        shape[0] = up.dims()[0];
        let product = up.flatten_from(1)?.matmul(&down.flatten_from(1)?)?;
        (product * self.scaling)?.reshape(shape)
    }
}

impl LayerAdapter for TrainedLayer {
    fn forward(
        &self,
        layer: &Layer,
        input: &Tensor,
        output: Tensor,
    ) -> candle_diffusers_models::Result<Tensor> {
        let (down, up) = (to_dtype(&self.down, input.dtype())?, to_dtype(&self.up, input.dtype())?);
        // What is left of the input, where something is left out.
        let dropped = match &self.dropout {
            Some(dropout) => dropout.draw(input)?.map(|kept| input * kept).transpose()?,
            None => None,
        };
        let input = dropped.as_ref().unwrap_or(input);
        let operation = layer.operation();
        let hidden = operation.forward(input, &down, None)?;
        // Here there are only as many features as the rank; the change itself would be passed over once more, on one core.
        let hidden = if self.scaling == 1.0 { hidden } else { (hidden * self.scaling)? };
        let change = operation.pointwise().forward(&hidden, &up, None)?;
        let Some(magnitude) = &self.magnitude else { return Ok(add(&output, &change)?) };
        magnitude.forward(layer, dropped.as_ref(), &output, &change, &self.delta()?)
    }
}
