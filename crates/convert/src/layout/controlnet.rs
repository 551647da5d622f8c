use super::{Scope, UNet};

/// The structure of a `ControlNetModel`, which in the original layout is `ControlNet` of `cldm.py` (lllyasviel/ControlNet).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlNet {
    /// The copy of the UNet's first half; its up blocks are empty.
    pub encoder: UNet,
    /// Channels of the picture that conditions.
    pub conditioning_channels: usize,
    /// Channels of the layers that embed that picture.
    pub conditioning_embedding_out_channels: Vec<usize>,
}

impl ControlNet {
    pub(super) fn rows(&self, net: &mut Scope<'_>) {
        self.encoder.encoder_rows(net);
        self.embedding_rows(net);
        for (index, channels) in self.residual_channels().into_iter().enumerate() {
            let name = format!("controlnet_down_blocks.{index}");
            net.conv(&name, &format!("zero_convs.{index}.0"), channels, channels, 1);
        }
        let width = self.encoder.last_channels();
        net.conv("controlnet_mid_block", "middle_block_out.0", width, width, 1);
    }

    /// The layers that embed the picture; between any two of them the original counts a nonlinearity as well.
    fn embedding_rows(&self, net: &mut Scope<'_>) {
        let widths = &self.conditioning_embedding_out_channels;
        let (Some(first), Some(last)) = (widths.first(), widths.last()) else {
            return;
        };
        let embedding = &mut net.at("controlnet_cond_embedding", "input_hint_block");
        embedding.conv("conv_in", "0", self.conditioning_channels, *first, 3);
        let mut index = 0;
        for pair in widths.windows(2) {
            for (from, to) in [(pair[0], pair[0]), (pair[0], pair[1])] {
                embedding.conv(&format!("blocks.{index}"), &format!("{}", 2 * (index + 1)), from, to, 3);
                index += 1;
            }
        }
        let channels = self.encoder.block_out_channels.first().copied().unwrap_or_default();
        embedding.conv("conv_out", &format!("{}", 2 * (index + 1)), *last, channels, 3);
    }

    /// Channels of what the first half hands to the second: of `conv_in`, each residual block and each downsampler.
    fn residual_channels(&self) -> Vec<usize> {
        let widths = &self.encoder.block_out_channels;
        let mut channels = vec![widths.first().copied().unwrap_or_default()];
        for (level, (blocks, width)) in self.encoder.down.iter().zip(widths).enumerate() {
            let downsampler = usize::from(level + 1 < widths.len());
            channels.extend(std::iter::repeat_n(*width, blocks.len() + downsampler));
        }
        channels
    }
}
