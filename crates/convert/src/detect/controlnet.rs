use super::unet::encoder;
use crate::inventory::View;
use crate::layout::ControlNet;

/// The structure of the ControlNet whose tensors are in `view`.
pub(crate) fn controlnet(view: View<'_>) -> ControlNet {
    let layer = |index: usize| format!("input_hint_block.{}.weight", 2 * index);
    // Two layers for each step from one width to the next, between the first and the last: numbers 0, 2, 4 ...
    let layers = view.count_under("input_hint_block.").div_ceil(2);
    let mut widths: Vec<usize> = view.axis(&layer(0), 0).into_iter().collect();
    for index in (2..layers.saturating_sub(1)).step_by(2) {
        widths.extend(view.axis(&layer(index), 0).or(widths.last().copied()));
    }
    ControlNet {
        encoder: encoder(view),
        conditioning_channels: view.axis(&layer(0), 1).unwrap_or(3),
        conditioning_embedding_out_channels: widths,
    }
}
