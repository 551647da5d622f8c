use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::error::Result;
use crate::gradient_checkpointing::checkpoint;
use crate::layers::{Activation, LayerList, LayerNorm, Layers, Linear};
use crate::transformer_2d::Context;

/// The sizes of a [`ClipEncoderLayer`].
#[derive(Clone, Copy, Debug)]
pub(super) struct ClipLayerConfig {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_attention_heads: usize,
    pub(super) hidden_act: Activation,
    pub(super) layer_norm_eps: f64,
}

/// One layer of an encoder, of text or of pictures: attention and a perceptron, each normalised before and added to its input.
#[derive(Clone, Debug)]
pub(super) struct ClipEncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: ClipAttention,
    layer_norm2: LayerNorm,
    mlp: ClipMlp,
}

impl ClipEncoderLayer {
    pub(super) fn new(config: ClipLayerConfig, vb: VarBuilder) -> Result<Self> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        Ok(Self {
            layer_norm1: LayerNorm::new(width, eps, vb.pp("layer_norm1"))?,
            self_attn: ClipAttention::new(width, config.num_attention_heads, vb.pp("self_attn"))?,
            layer_norm2: LayerNorm::new(width, eps, vb.pp("layer_norm2"))?,
            mlp: ClipMlp::new(config, vb.pp("mlp"))?,
        })
    }

    /// `(batch, tokens, hidden_size)`, same shape out; `mask` is added to the scores, `(1, 1, tokens, tokens)`.
    pub(super) fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let x = self.self_attn.forward(&self.layer_norm1.forward(x)?, mask, x)?;
        self.mlp.forward(&self.layer_norm2.forward(&x)?, &x)
    }

    /// [`forward`](Self::forward), of which only `x` is kept for the gradients.
    pub(super) fn forward_checkpointed(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        // What a block of a UNet is given besides: a layer of an encoder has none of it.
        let nothing = Tensor::zeros((), x.dtype(), x.device())?;
        let context =
            Context { encoder_hidden_states: &nothing, mask, cache: None, gradient_checkpointing: true };
        checkpoint(self, x, &nothing, context, Self::compute)
    }

    fn compute(&self, x: &Tensor, _: &Tensor, context: Context) -> Result<Tensor> {
        self.forward(x, context.mask)
    }
}

impl Layers for ClipEncoderLayer {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("self_attn", &self.self_attn);
        list.add("mlp", &self.mlp);
    }
}

#[derive(Clone, Debug)]
struct ClipAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
    scale: f64,
}

impl ClipAttention {
    fn new(width: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        let linear = |name| Linear::new(width, width, vb.pp(name));
        Ok(Self {
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            heads,
            scale: ((width / heads) as f64).powf(-0.5),
        })
    }

    /// Adds the residual to its result.
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
        let query = self.q_proj.forward(x)?;
        let key = self.k_proj.forward(x)?;
        let value = self.v_proj.forward(x)?;
        let mixed = candle_diffusers_kernels::attention(&query, &key, &value, self.heads, self.scale, mask)?;
        self.out_proj.forward_add(&mixed, residual)
    }
}

impl Layers for ClipAttention {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("q_proj", &self.q_proj);
        list.add("k_proj", &self.k_proj);
        list.add("v_proj", &self.v_proj);
        list.add("out_proj", &self.out_proj);
    }
}

#[derive(Clone, Debug)]
struct ClipMlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl ClipMlp {
    fn new(config: ClipLayerConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(config.hidden_size, config.intermediate_size, vb.pp("fc1"))?,
            fc2: Linear::new(config.intermediate_size, config.hidden_size, vb.pp("fc2"))?,
            activation: config.hidden_act,
        })
    }

    /// Adds the residual to its result.
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.fc2.forward_add(&self.fc1.forward_activated(x, self.activation)?, residual)
    }
}

impl Layers for ClipMlp {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("fc1", &self.fc1);
        list.add("fc2", &self.fc2);
    }
}
