use super::Scope;

/// The structure of a `UNet2DConditionModel`, which in the original layout (CompVis' latent-diffusion, Stability's generative-models)
/// is `UNetModel` of `openaimodel.py`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UNet {
    /// Channels of the sample, with those of a mask or picture that is put beside it.
    pub in_channels: usize,
    /// Channels of the predicted noise.
    pub out_channels: usize,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// For each level, finest first, the residual blocks of its down block: how many transformer layers follow each; `None`
    /// for a residual block alone.
    pub down: Vec<Vec<Option<usize>>>,
    /// Between down and up, where there is anything.
    pub mid: Option<MidBlock>,
    /// As `down`, for the up blocks in the order in which they run, coarsest first.
    pub up: Vec<Vec<Option<usize>>>,
    /// Width of the text embeddings.
    pub cross_attention_dim: usize,
    /// Whether the transformers' first and last layers are linear; convolutions otherwise.
    pub use_linear_projection: bool,
    /// Width of the time embedding.
    pub time_embed_dim: usize,
    /// Width of what is embedded beside the time (pooled text and sizes), in SDXL.
    pub addition_embed_dim: Option<usize>,
}

/// The middle of a UNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MidBlock {
    /// One residual block.
    Plain,
    /// Two residual blocks with a transformer of so many layers between them.
    CrossAttention(usize),
}

impl UNet {
    /// Channels of the coarsest level.
    pub(crate) fn last_channels(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or_default()
    }

    /// How many residual blocks and transformer layers there are.
    pub(super) fn layers(&self) -> usize {
        let blocks = self.down.iter().chain(&self.up).flatten();
        let layers: usize = blocks.map(|depth| 1 + depth.unwrap_or_default()).sum();
        match self.mid {
            Some(MidBlock::CrossAttention(depth)) => layers + 2 + depth,
            Some(MidBlock::Plain) => layers + 1,
            None => layers,
        }
    }

    /// For each up block in the order in which they run, and each of its residual blocks: the channels that come in, with those of
    /// the skip connection, and the channels that go out.
    fn up_channels(&self) -> Vec<Vec<(usize, usize)>> {
        let channels = &self.block_out_channels;
        // What each residual block and downsampler of the way down left behind, the last on top.
        let mut skips = vec![channels.first().copied().unwrap_or_default()];
        for (level, (blocks, width)) in self.down.iter().zip(channels).enumerate() {
            skips.extend(std::iter::repeat_n(*width, blocks.len()));
            if level + 1 < channels.len() {
                skips.push(*width);
            }
        }
        let mut current = self.last_channels();
        let mut up_channels = Vec::with_capacity(self.up.len());
        for (blocks, width) in self.up.iter().zip(channels.iter().rev()) {
            let mut of_block = Vec::with_capacity(blocks.len());
            for _ in blocks {
                let skip = skips.pop().unwrap_or_default();
                of_block.push((current.saturating_add(skip), *width));
                current = *width;
            }
            up_channels.push(of_block);
        }
        up_channels
    }

    pub(super) fn rows(&self, unet: &mut Scope<'_>) {
        let first = self.block_out_channels.first().copied().unwrap_or_default();
        self.encoder_rows(unet);
        let mut index = 0;
        for (block, (depths, channels)) in self.up.iter().zip(self.up_channels()).enumerate() {
            let is_last = block + 1 == self.up.len();
            for (layer, (depth, (from, to))) in depths.iter().zip(&channels).enumerate() {
                let original = format!("output_blocks.{index}");
                self.layer_rows(unet, &format!("up_blocks.{block}"), &original, layer, (*from, *to), *depth);
                if layer + 1 == depths.len() && !is_last {
                    let position = if depth.is_some() { 2 } else { 1 };
                    unet.conv(
                        &format!("up_blocks.{block}.upsamplers.0.conv"),
                        &format!("{original}.{position}.conv"),
                        *to,
                        *to,
                        3,
                    );
                }
                index += 1;
            }
        }
        unet.norm("conv_norm_out", "out.0", first);
        unet.conv("conv_out", "out.2", first, self.out_channels, 3);
    }

    /// What a UNet shares with a ControlNet: all up to the middle.
    pub(super) fn encoder_rows(&self, unet: &mut Scope<'_>) {
        let (first, time) =
            (self.block_out_channels.first().copied().unwrap_or_default(), self.time_embed_dim);
        unet.linear("time_embedding.linear_1", "time_embed.0", first, time);
        unet.linear("time_embedding.linear_2", "time_embed.2", time, time);
        if let Some(width) = self.addition_embed_dim {
            unet.linear("add_embedding.linear_1", "label_emb.0.0", width, time);
            unet.linear("add_embedding.linear_2", "label_emb.0.2", time, time);
        }
        unet.conv("conv_in", "input_blocks.0.0", self.in_channels, first, 3);
        self.down_rows(unet);
        self.mid_rows(unet);
    }

    fn down_rows(&self, unet: &mut Scope<'_>) {
        let mut index = 1;
        let mut from = self.block_out_channels.first().copied().unwrap_or_default();
        for (block, (depths, to)) in self.down.iter().zip(&self.block_out_channels).enumerate() {
            for (layer, depth) in depths.iter().enumerate() {
                let original = format!("input_blocks.{index}");
                self.layer_rows(unet, &format!("down_blocks.{block}"), &original, layer, (from, *to), *depth);
                from = *to;
                index += 1;
            }
            if block + 1 < self.down.len() {
                let original = format!("input_blocks.{index}.0.op");
                unet.conv(&format!("down_blocks.{block}.downsamplers.0.conv"), &original, *to, *to, 3);
                index += 1;
            }
        }
    }

    fn mid_rows(&self, unet: &mut Scope<'_>) {
        let width = self.last_channels();
        match self.mid {
            None => {}
            Some(MidBlock::Plain) => {
                resnet(
                    &mut unet.at("mid_block.resnets.0", "middle_block.0"),
                    width,
                    width,
                    self.time_embed_dim,
                );
            }
            Some(MidBlock::CrossAttention(depth)) => {
                resnet(
                    &mut unet.at("mid_block.resnets.0", "middle_block.0"),
                    width,
                    width,
                    self.time_embed_dim,
                );
                self.transformer(&mut unet.at("mid_block.attentions.0", "middle_block.1"), width, depth);
                resnet(
                    &mut unet.at("mid_block.resnets.1", "middle_block.2"),
                    width,
                    width,
                    self.time_embed_dim,
                );
            }
        }
    }

    /// A residual block and the transformer that may follow it.
    fn layer_rows(
        &self,
        unet: &mut Scope<'_>,
        block: &str,
        original: &str,
        layer: usize,
        (from, to): (usize, usize),
        depth: Option<usize>,
    ) {
        let mut residual = unet.at(&format!("{block}.resnets.{layer}"), &format!("{original}.0"));
        resnet(&mut residual, from, to, self.time_embed_dim);
        if let Some(depth) = depth {
            let mut scope = unet.at(&format!("{block}.attentions.{layer}"), &format!("{original}.1"));
            self.transformer(&mut scope, to, depth);
        }
    }

    /// `SpatialTransformer`, whose parts have the same names in both layouts.
    fn transformer(&self, scope: &mut Scope<'_>, width: usize, depth: usize) {
        let text = self.cross_attention_dim;
        scope.norm("norm", "norm", width);
        let project = |scope: &mut Scope<'_>, name: &str| match self.use_linear_projection {
            true => scope.linear(name, name, width, width),
            false => scope.conv(name, name, width, width, 1),
        };
        project(scope, "proj_in");
        for layer in 0..depth {
            let name = format!("transformer_blocks.{layer}");
            let layer = &mut scope.at(&name, &name);
            layer.norm("norm1", "norm1", width);
            attention(&mut layer.at("attn1", "attn1"), width, width);
            layer.norm("norm2", "norm2", width);
            attention(&mut layer.at("attn2", "attn2"), width, text);
            layer.norm("norm3", "norm3", width);
            // GEGLU: twice the inner width comes in, for values and gates.
            layer.linear("ff.net.0.proj", "ff.net.0.proj", width, width.saturating_mul(8));
            layer.linear("ff.net.2", "ff.net.2", width.saturating_mul(4), width);
        }
        project(scope, "proj_out");
    }
}

fn resnet(block: &mut Scope<'_>, from: usize, to: usize, time: usize) {
    block.norm("norm1", "in_layers.0", from);
    block.conv("conv1", "in_layers.2", from, to, 3);
    block.linear("time_emb_proj", "emb_layers.1", time, to);
    block.norm("norm2", "out_layers.0", to);
    block.conv("conv2", "out_layers.3", to, to, 3);
    if from != to {
        block.conv("conv_shortcut", "skip_connection", from, to, 1);
    }
}

fn attention(block: &mut Scope<'_>, width: usize, context: usize) {
    block.linear_without_bias("to_q", "to_q", width, width);
    block.linear_without_bias("to_k", "to_k", context, width);
    block.linear_without_bias("to_v", "to_v", context, width);
    block.linear("to_out.0", "to_out.0", width, width);
}
