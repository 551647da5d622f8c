use super::Scope;

/// The structure of an `AutoencoderKL`, which in the original layout is that of latent-diffusion (`Encoder` and `Decoder` of
/// `diffusionmodules/model.py`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vae {
    /// Channels of the picture that comes in.
    pub in_channels: usize,
    /// Channels of the picture that comes out.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder's levels have one more.
    pub layers_per_block: usize,
    /// Whether there is a layer between encoder and latents.
    pub use_quant_conv: bool,
    /// Whether there is a layer between latents and decoder.
    pub use_post_quant_conv: bool,
    /// Whether the coarsest level attends.
    pub mid_block_add_attention: bool,
}

impl Vae {
    pub(super) fn rows(&self, vae: &mut Scope<'_>) {
        let moments = self.latent_channels.saturating_mul(2);
        self.encoder(&mut vae.at("encoder", "encoder"), moments);
        if self.use_quant_conv {
            vae.conv("quant_conv", "quant_conv", moments, moments, 1);
        }
        if self.use_post_quant_conv {
            vae.conv("post_quant_conv", "post_quant_conv", self.latent_channels, self.latent_channels, 1);
        }
        self.decoder(&mut vae.at("decoder", "decoder"));
    }

    fn encoder(&self, encoder: &mut Scope<'_>, moments: usize) {
        let (first, last) = self.ends();
        encoder.conv("conv_in", "conv_in", self.in_channels, first, 3);
        let mut from = first;
        for (level, to) in self.block_out_channels.iter().enumerate() {
            let block = &mut encoder.at(&format!("down_blocks.{level}"), &format!("down.{level}"));
            for layer in 0..self.layers_per_block {
                let residual = &mut block.at(&format!("resnets.{layer}"), &format!("block.{layer}"));
                resnet(residual, from, *to);
                from = *to;
            }
            if level + 1 < self.block_out_channels.len() {
                block.conv("downsamplers.0.conv", "downsample.conv", *to, *to, 3);
            }
        }
        self.middle(encoder, last);
        encoder.norm("conv_norm_out", "norm_out", last);
        encoder.conv("conv_out", "conv_out", last, moments, 3);
    }

    fn decoder(&self, decoder: &mut Scope<'_>) {
        let (first, last) = self.ends();
        let levels = self.block_out_channels.len();
        decoder.conv("conv_in", "conv_in", self.latent_channels, last, 3);
        self.middle(decoder, last);
        let mut from = last;
        for (block, to) in self.block_out_channels.iter().rev().enumerate() {
            // The original counts levels from the finest, diffusers blocks in the order in which they run.
            let level = levels - 1 - block;
            let scope = &mut decoder.at(&format!("up_blocks.{block}"), &format!("up.{level}"));
            for layer in 0..=self.layers_per_block {
                resnet(&mut scope.at(&format!("resnets.{layer}"), &format!("block.{layer}")), from, *to);
                from = *to;
            }
            if level > 0 {
                scope.conv("upsamplers.0.conv", "upsample.conv", *to, *to, 3);
            }
        }
        decoder.norm("conv_norm_out", "norm_out", first);
        decoder.conv("conv_out", "conv_out", first, self.out_channels, 3);
    }

    fn middle(&self, scope: &mut Scope<'_>, width: usize) {
        resnet(&mut scope.at("mid_block.resnets.0", "mid.block_1"), width, width);
        if self.mid_block_add_attention {
            let attention = &mut scope.at("mid_block.attentions.0", "mid.attn_1");
            attention.norm("group_norm", "norm", width);
            attention.linear_from_conv("to_q", "q", width, width);
            attention.linear_from_conv("to_k", "k", width, width);
            attention.linear_from_conv("to_v", "v", width, width);
            attention.linear_from_conv("to_out.0", "proj_out", width, width);
        }
        resnet(&mut scope.at("mid_block.resnets.1", "mid.block_2"), width, width);
    }

    fn ends(&self) -> (usize, usize) {
        let widths = &self.block_out_channels;
        (widths.first().copied().unwrap_or_default(), widths.last().copied().unwrap_or_default())
    }
}

fn resnet(block: &mut Scope<'_>, from: usize, to: usize) {
    block.norm("norm1", "norm1", from);
    block.conv("conv1", "conv1", from, to, 3);
    block.norm("norm2", "norm2", to);
    block.conv("conv2", "conv2", to, to, 3);
    if from != to {
        block.conv("conv_shortcut", "nin_shortcut", from, to, 1);
    }
}
