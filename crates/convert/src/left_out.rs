//! Tensors that checkpoints carry and models do not need, with the reason why each has no place.

/// A tensor of the source that the destination does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaced {
    /// Its name in the source.
    pub name: String,
    /// Why it is left out.
    pub reason: &'static str,
}

pub(crate) const LIVE_WEIGHTS_TAKEN: &str = "EMA weights: the live ones are taken";
pub(crate) const EMA_WEIGHTS_TAKEN: &str = "live weights: the EMA ones are taken";
pub(crate) const SD2_LAST_LAYER: &str =
    "the last layer of the text encoder, which Stable Diffusion 2 does not use";
pub(crate) const SD2_PROJECTION: &str =
    "the text encoder's projection, which Stable Diffusion 2 does not use";
pub(crate) const OTHER_MODEL: &str = "part of the pipeline that the ControlNet was trained with";
pub(crate) const NO_LORA_LAYER: &str = "no part of a LoRA that is known";
pub(crate) const NO_PLACE: &str = "no tensor of a known model";

const SCHEDULE: &str = "the noise schedule, which is in the scheduler's config";
const MARKER: &str = "says how the model was trained, which is in the scheduler's config";

const LORA: &str = "of a LoRA beside the model, whose weights do not have it";
const EMBEDDING: &str = "a textual inversion embedding beside the model";

/// Where a pattern stands in a name.
enum At {
    Start(&'static str),
    End(&'static str),
    Whole(&'static str),
    Inside(&'static str),
}

use At::{End, Inside, Start, Whole};

/// Names of tensors that are no weights, or weights that nothing uses, with the reason.
const BOOKKEEPING: &[(At, &str)] = &[
    (Whole("betas"), SCHEDULE),
    (Start("alphas_cumprod"), SCHEDULE),
    (Start("sqrt_alphas_cumprod"), SCHEDULE),
    (Start("sqrt_one_minus_alphas_cumprod"), SCHEDULE),
    (Start("log_one_minus_alphas_cumprod"), SCHEDULE),
    (Start("sqrt_recip_alphas_cumprod"), SCHEDULE),
    (Start("sqrt_recipm1_alphas_cumprod"), SCHEDULE),
    (Start("posterior_"), SCHEDULE),
    (Whole("lvlb_weights"), SCHEDULE),
    (Whole("denoiser.sigmas"), SCHEDULE),
    (Whole("scale_factor"), SCHEDULE),
    (Whole("v_pred"), MARKER),
    (Whole("ztsnr"), MARKER),
    (Whole("logvar"), "weights of the training loss"),
    (Start("first_stage_model.loss."), "weights of the training loss"),
    (Start("loss."), "weights of the training loss"),
    (Start("first_stage_model.model_ema."), "EMA weights of the VAE"),
    (Start("model_ema."), LIVE_WEIGHTS_TAKEN),
    (End("position_ids"), "the numbers of the positions, which the model counts itself"),
    (End("logit_scale"), "for comparing texts with pictures"),
    (End("attn_mask"), "the causal mask, which the model makes itself"),
    (Inside(".model.visual."), "the picture side of CLIP"),
    (Start("model.diffusion_model.__"), "left behind by a tool that merges models"),
    (Start("lora_"), LORA),
    (Inside(".lora_"), LORA),
    (Inside(".lora."), LORA),
    (Start("bundle_emb."), EMBEDDING),
    (Inside("string_to_param"), EMBEDDING),
    (Whole("emb_params"), EMBEDDING),
    (Whole("global_step"), "where training stopped"),
    (Start("embedding_manager."), "an embedding under training"),
];

/// Why the tensor called `name` is left out, if it is known as one that no model needs.
pub(crate) fn bookkeeping(name: &str) -> Option<&'static str> {
    let matches = |at: &At| match at {
        Start(text) => name.starts_with(text),
        End(text) => name.ends_with(text),
        Whole(text) => name == *text,
        Inside(text) => name.contains(text),
    };
    BOOKKEEPING.iter().find(|(at, _)| matches(at)).map(|(_, reason)| *reason)
}
