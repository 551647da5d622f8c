//! AutoencoderKL, UNet2DConditionModel and CLIP text encoders on candle, with diffusers' configs and state-dict keys.
