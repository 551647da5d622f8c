//! The names and shapes of the checkpoints that were published, as they are listed by arenasys/stable-diffusion-webui-model-toolkit
//! (`components/*.txt` of its commit of 2023, MIT; it takes checkpoints apart for AUTOMATIC1111's web UI): each is read whole, and
//! what is written back has every name that it had, but for those that no program needs.
//!
//! What those are, and who says that they are not needed:
//! - `position_ids` and `logit_scale`: stable-diffusion.cpp lists them among `unused_tensors` (`model_loader.cpp`); the web UI loads with
//!   `strict=False` (`sd_models.py`), ComfyUI asks whether they are there (`supported_models.py`), and drops `logit_scale` when it saves.
//! - `text_projection` and the last layer of SD 2's text encoder: stable-diffusion.cpp has a projection for SDXL only (`clip.hpp`) and
//!   passes over a missing layer 23 (`model_loader.cpp`); diffusers' own script to this layout writes neither.
//! - The schedule's buffers (`betas`, `alphas_cumprod` and so on): computed from the config by all; stable-diffusion.cpp takes
//!   `alphas_cumprod` from a file where it is there.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

#[path = "parity/single_file/case.rs"]
mod case;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use candle_diffusers_convert::{Layout, Model, Plan, ReadOptions};
use case::Case;
use flate2::read::GzDecoder;

type Shapes = BTreeMap<String, Vec<usize>>;

const UNET: &str = "model.diffusion_model.";
const VAE: (&str, &str) = ("VAE-v1-SD", "first_stage_model.");
const CLIP_1: (&str, &str) = ("CLIP-v1-SD", "cond_stage_model.transformer.text_model.");
const CLIP_2: (&str, &str) = ("CLIP-v2-SD", "cond_stage_model.model.");

/// What training left in the full checkpoints (`OPTIONAL` in the toolkit).
const SCHEDULE: [&str; 13] = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "logvar",
];

/// The tensors of the components, each with what stands before its names.
fn checkpoint(parts: &[(&str, &str)]) -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/published/components.txt.gz");
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let mut case = Case::empty();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        for (_, prefix) in parts.iter().filter(|(part, _)| *part == words[0]) {
            let shape = words[2].split(',').filter(|word| *word != "-").map(|word| word.parse().unwrap());
            case.original.insert(format!("{prefix}{}", words[1]), shape.collect());
        }
    }
    case
}

fn written_back(model: &Model) -> Shapes {
    let plan = Plan::new(model, Layout::Original);
    plan.tensors().map(|(_, tensor)| (tensor.name.clone(), tensor.shape.clone())).collect()
}

/// `title` is what the checkpoint is; `absent` says which of its names are not written back.
#[track_caller]
fn check(case: &Case, title: &str, absent: impl Fn(&str) -> bool) -> Model {
    let model = case.model(&ReadOptions::default()).unwrap();
    assert_eq!(model.title(), title);
    let left_out: Vec<&str> = model.left_out.iter().map(|one| one.name.as_str()).collect();
    let expected: Vec<&str> = case.original.keys().map(String::as_str).filter(|name| absent(name)).collect();
    assert_eq!(left_out, expected);
    let mut whole = case.original.clone();
    whole.retain(|name, _| !absent(name));
    assert_eq!(written_back(&model), whole);
    model
}

/// The list that export.py makes from the reference's models has the same names and shapes, but for what training left.
#[track_caller]
fn check_list(case: &Case, name: &str) {
    let mut list = Case::read(name).original;
    list.retain(|name, _| name.contains('.') && !name.starts_with("model_ema.") && name != "denoiser.sigmas");
    assert_eq!(list, case.original, "{name}");
}

fn is_position_ids(name: &str) -> bool {
    name.ends_with(".embeddings.position_ids")
}

fn is_logit_scale(name: &str) -> bool {
    name == "logit_scale" || name.ends_with(".logit_scale")
}

fn is_unused_in_2(name: &str) -> bool {
    is_logit_scale(name) || name.ends_with(".text_projection") || name.contains(".resblocks.23.")
}

#[test]
fn stable_diffusion_1() {
    let case = checkpoint(&[("UNET-v1-SD", UNET), VAE, CLIP_1]);
    // v1-5-pruned-emaonly.safetensors.
    assert_eq!(case.original.len(), 1131);
    check(&case, "Stable Diffusion 1", is_position_ids);
    check_list(&case, "sd15");
    let case = checkpoint(&[("UNET-v1-Inpainting", UNET), VAE, CLIP_1]);
    check(&case, "Stable Diffusion 1, inpainting", is_position_ids);
    check_list(&case, "sd15_inpainting");
    let case = checkpoint(&[("UNET-v1-Pix2Pix", UNET), VAE, CLIP_1]);
    check(&case, "Stable Diffusion 1, InstructPix2Pix", is_position_ids);
    check_list(&case, "instruct_pix2pix");
}

/// Some checkpoints have the text encoder's names as transformers before 4.17 wrote them; they are written back as all others.
#[test]
fn stable_diffusion_1_with_short_names_of_the_text_encoder() {
    let case = checkpoint(&[("UNET-v1-SD", UNET), VAE, ("CLIP-v1-SD", "cond_stage_model.transformer.")]);
    let model = case.model(&ReadOptions::default()).unwrap();
    let left_out: Vec<_> = model.left_out.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(left_out, ["cond_stage_model.transformer.embeddings.position_ids"]);
    let mut usual = checkpoint(&[("UNET-v1-SD", UNET), VAE, CLIP_1]).original;
    usual.retain(|name, _| !is_position_ids(name));
    assert_eq!(written_back(&model), usual);
}

#[test]
fn full_checkpoints_with_ema_weights_and_the_schedule() {
    for (unet, ema) in [("UNET-v1-SD", "UNET-v1-EMA"), ("UNET-v1-Pix2Pix", "UNET-v1-Pix2Pix-EMA")] {
        let mut case = checkpoint(&[(unet, UNET), (ema, "model_ema.diffusion_model"), VAE, CLIP_1]);
        case.original.extend(SCHEDULE.map(|name| (name.to_string(), vec![1000])));
        case.original
            .extend(["model_ema.decay", "model_ema.num_updates"].map(|name| (name.to_string(), vec![])));
        let of_training = |name: &str| !name.contains('.') || name.starts_with("model_ema.");
        let title = case.model(&ReadOptions::default()).unwrap().title();
        check(&case, &title, |name| is_position_ids(name) || of_training(name));
        let options = ReadOptions { use_ema: true, ..ReadOptions::default() };
        let averaged = case.model(&options).unwrap();
        assert_eq!(averaged.left_out.len(), 1 + SCHEDULE.len() + 2 + 686);
        assert_eq!(written_back(&averaged), written_back(&case.model(&ReadOptions::default()).unwrap()));
    }
}

#[test]
fn ema_weights_alone_stand_for_the_live_ones() {
    let case = checkpoint(&[("UNET-v1-EMA", "model_ema.diffusion_model"), VAE, CLIP_1]);
    for use_ema in [false, true] {
        let options = ReadOptions { use_ema, ..ReadOptions::default() };
        let model = case.model(&options).unwrap();
        let mut live = checkpoint(&[("UNET-v1-SD", UNET), VAE, CLIP_1]).original;
        live.retain(|name, _| !is_position_ids(name));
        assert_eq!(written_back(&model), live);
        assert!(model.notes.iter().any(|note| note.contains("EMA weights only")), "{:?}", model.notes);
        assert_eq!(model.left_out.len(), 1);
    }
}

#[test]
fn stable_diffusion_2() {
    let case = checkpoint(&[("UNET-v2-SD", UNET), VAE, CLIP_2]);
    check(&case, "Stable Diffusion 2", is_unused_in_2);
    check_list(&case, "sd21");
    let case = checkpoint(&[("UNET-v2-Inpainting", UNET), VAE, CLIP_2]);
    check(&case, "Stable Diffusion 2, inpainting", is_unused_in_2);
    check_list(&case, "sd2_inpainting");
}

#[test]
fn stable_diffusion_xl() {
    let parts = [
        ("UNET-XL-SD", UNET),
        VAE,
        ("CLIP-v1-SD", "conditioner.embedders.0.transformer.text_model."),
        ("CLIP-XL-SD", "conditioner.embedders.1.model."),
    ];
    let case = checkpoint(&parts);
    // sd_xl_base_1.0.safetensors.
    assert_eq!(case.original.len(), 2515);
    check(&case, "Stable Diffusion XL", |name| is_position_ids(name) || is_logit_scale(name));
    check_list(&case, "sdxl_base");
    let case =
        checkpoint(&[("UNET-XL-Refiner", UNET), VAE, ("CLIP-XL-SD", "conditioner.embedders.0.model.")]);
    check(&case, "Stable Diffusion XL refiner", is_logit_scale);
    check_list(&case, "sdxl_refiner");
}

#[test]
fn models_alone() {
    check(&checkpoint(&[("ControlNet-v1-SD", "control_model.")]), "a ControlNet", |_| false);
    check(&checkpoint(&[("UNET-XL-SD", UNET)]), "a UNet", |_| false);
    check(&checkpoint(&[("VAE-v1-SD", "")]), "a VAE", |_| false);
    check(&checkpoint(&[("CLIP-v1-SD", "text_model.")]), "a text encoder", is_position_ids);
    check(&checkpoint(&[("CLIP-XL-SD", "")]), "a text encoder", is_logit_scale);
    // A UNet without a prefix gets the usual one.
    let bare = checkpoint(&[("UNET-v2-SD", "")]).model(&ReadOptions::default()).unwrap();
    assert_eq!(written_back(&bare), checkpoint(&[("UNET-v2-SD", UNET)]).original);
    // A ControlNet as it was trained, with the whole pipeline beside it.
    let parts = [("ControlNet-v1-SD", "control_model."), ("UNET-v1-SD", UNET), VAE, CLIP_1];
    check(&checkpoint(&parts), "a ControlNet", |name| !name.starts_with("control_model."));
}

#[test]
fn depth_to_image_is_refused_by_name() {
    let case = checkpoint(&[("UNET-v2-Depth", UNET), VAE, CLIP_2, ("Depth-v2-SD", "depth_model.model.")]);
    let message = case.model(&ReadOptions::default()).unwrap_err().to_string();
    assert!(message.contains("depth-to-image"), "{message}");
}

/// The tensors by which stable-diffusion.cpp, AUTOMATIC1111's web UI and ComfyUI tell the families apart.
#[test]
fn names_that_loaders_look_for_are_written() {
    let sd1 = [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.7.1.transformer_blocks.0.attn1.to_k.weight",
        "model.diffusion_model.out.2.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "first_stage_model.decoder.conv_in.weight",
    ];
    let sd2 = [
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
        "cond_stage_model.model.ln_final.weight",
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias",
    ];
    let sdxl = [
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.ln_final.weight",
        "conditioner.embedders.1.model.text_projection",
        "model.diffusion_model.label_emb.0.0.weight",
    ];
    let refiner = ["conditioner.embedders.0.model.ln_final.weight"];
    for (name, wanted) in
        [("sd15", &sd1[..]), ("sd21", &sd2), ("sdxl_base", &sdxl), ("sdxl_refiner", &refiner)]
    {
        let written = written_back(&Case::read(name).model(&ReadOptions::default()).unwrap());
        for wanted in wanted {
            assert!(written.contains_key(*wanted), "{name}: {wanted}");
        }
    }
}
