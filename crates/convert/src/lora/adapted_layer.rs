use safetensors::Dtype;

/// The model of a pipeline that an adapted layer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LoraComponent {
    /// `unet`.
    UNet,
    /// `text_encoder`.
    TextEncoder,
    /// `text_encoder_2`: SDXL's OpenCLIP text tower.
    TextEncoder2,
}

impl LoraComponent {
    /// All of them, in the order of a pipeline's folders.
    pub const ALL: [Self; 3] = [Self::UNet, Self::TextEncoder, Self::TextEncoder2];

    /// The component's folder in diffusers' layout, which is also what stands before its layers' names in a diffusers LoRA file.
    pub fn folder(self) -> &'static str {
        match self {
            Self::UNet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }
}

/// One layer of a model and how it is changed: the same whichever layout it was read from.
///
/// With `strength` chosen by the user, the layer's weight `W` becomes `W + strength * scaling() * delta`, where `delta` is what
/// [`LoraWeights`] says. With a [`dora_scale`](Self::dora_scale) the rows of that sum are then brought to given lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptedLayer {
    /// The model that has the layer.
    pub component: LoraComponent,
    /// The layer's name in diffusers' (for text encoders transformers') state dict, without `.weight`:
    /// `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0`, `text_model.encoder.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The change.
    pub weights: LoraWeights,
    /// The number that is divided by the rank to scale the change; `None` where the file has none, which means a factor of one.
    pub alpha: Option<f64>,
    /// Whether alpha is divided by the square root of the rank (rsLoRA) and not by the rank.
    pub rank_stabilized: bool,
    /// DoRA's magnitude: the length of each output channel of the changed weight (`(out,)`, with or without axes of length one behind),
    /// or of each input channel (`(1, in)`, with or without axes of length one behind), as
    /// [`dora_is_per_input`](Self::dora_is_per_input) tells.
    pub dora_scale: Option<TensorRef>,
}

/// How a weight is changed. Convolution kernels have their two spatial axes last.
#[derive(Debug, Clone, PartialEq)]
pub enum LoraWeights {
    /// `delta = up @ down`; for convolutions `down` has the kernel's size and `up` is 1x1, or both are 1x1 and `mid` has it
    /// (LoCon's Tucker form): `delta[o, i, h, w] = sum up[o, p] mid[p, q, h, w] down[q, i]`.
    Lora {
        /// `(rank, in)` or `(rank, in, height, width)`.
        down: TensorRef,
        /// `(out, rank)` or `(out, rank, 1, 1)`.
        up: TensorRef,
        /// `(rank, rank, height, width)`.
        mid: Option<TensorRef>,
    },
    /// LoHa: the element-wise product of two such products, `(w1_a @ w1_b) * (w2_a @ w2_b)`; with `t1` and `t2` each factor is
    /// `einsum("i j k l, j r, i p -> p r k l", t, w_b, w_a)`.
    Loha {
        /// `(out, rank)`; with `t1` `(rank, out)`.
        w1_a: TensorRef,
        /// `(rank, in * height * width)`; with `t1` `(rank, in)`.
        w1_b: TensorRef,
        /// As `w1_a`.
        w2_a: TensorRef,
        /// As `w1_b`.
        w2_b: TensorRef,
        /// `(rank, rank, height, width)` each.
        t1_t2: Option<(TensorRef, TensorRef)>,
    },
    /// LoKr: the Kronecker product of two factors.
    Lokr {
        /// The left factor.
        w1: LokrFactor,
        /// The right factor, with the kernel's axes where the layer is a convolution.
        w2: LokrFactor,
    },
    /// The difference itself (`diff`, `diff_b` of LyCORIS), for layers of any kind.
    Full {
        /// The weight's shape.
        weight: Option<TensorRef>,
        /// `(out,)`.
        bias: Option<TensorRef>,
    },
}

/// One factor of a [`LoraWeights::Lokr`].
#[derive(Debug, Clone, PartialEq)]
pub enum LokrFactor {
    /// The factor itself.
    Whole(TensorRef),
    /// `a @ b`, with the kernel's axes behind; with `t` `einsum("i j k l, i p, j r -> p r k l", t, a, b)`.
    Product {
        /// `(out, rank)`; with `t` `(rank, out)`.
        a: TensorRef,
        /// `(rank, in ...)`.
        b: TensorRef,
        /// `(rank, rank, height, width)`.
        t: Option<TensorRef>,
    },
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    /// Its name there: what [`Source::bytes`](crate::Source::bytes) is asked for.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: Dtype,
}

impl AdaptedLayer {
    /// The rank of the change: the inner length of its products. `None` where there is no product.
    pub fn rank(&self) -> Option<usize> {
        match &self.weights {
            LoraWeights::Lora { down, .. } => down.shape.first().copied(),
            LoraWeights::Loha { w1_b, .. } => w1_b.shape.first().copied(),
            // As LyCORIS has it, whichever factor is a product; the right one where both are.
            LoraWeights::Lokr { w1, w2 } => [w2, w1].into_iter().find_map(|factor| match factor {
                LokrFactor::Product { b, .. } => b.shape.first().copied(),
                LokrFactor::Whole(_) => None,
            }),
            LoraWeights::Full { .. } => None,
        }
    }

    /// Whether [`dora_scale`](Self::dora_scale) has the lengths of input channels, as early LyCORIS and OneTrainer write them: of the
    /// parts of the changed weight along its second axis.
    pub fn dora_is_per_input(&self) -> bool {
        let shape = self.dora_scale.as_ref().map_or(&[][..], |scale| &scale.shape);
        matches!(shape, [1, length, ..] if *length > 1)
    }

    /// What the change is multiplied by before the user's own strength: alpha / rank, one where either is missing.
    pub fn scaling(&self) -> f64 {
        match (self.alpha, self.rank()) {
            (Some(alpha), Some(rank)) if rank > 0 && self.rank_stabilized => alpha / (rank as f64).sqrt(),
            (Some(alpha), Some(rank)) if rank > 0 => alpha / rank as f64,
            _ => 1.0,
        }
    }
}
