//! Single files of every family: names, shapes and bytes of what they become, beside those that the reference's converters give.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_diffusers_convert::{Family, Kind, Layout, Model, ModelKind, Plan, ReadOptions, Task, TextLayout};
use flate2::Crc;

use case::Case;

mod case;

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[track_caller]
fn check(name: &str, kind: Kind) {
    let case = Case::read(name);
    let model = case.model(&ReadOptions::default()).unwrap();
    assert_eq!(model.kind, kind);
    let plan = Plan::new(&model, Layout::Diffusers);
    let mut found = BTreeMap::new();
    for (folder, tensor) in plan.tensors() {
        let folder = match model.kind {
            Kind::Alone(_) => "",
            Kind::Pipeline(..) => folder,
        };
        // The reference's text encoders have lost this prefix in memory; both read files that have it.
        let is_bare = case.diffusers.contains_key(&format!("{folder}/embeddings.token_embedding.weight"));
        let short = tensor.name.strip_prefix("text_model.").filter(|_| is_bare).unwrap_or(&tensor.name);
        let is_small = case.diffusers.values().any(|(_, crc)| crc.is_some());
        let checksum = is_small.then(|| crc(&tensor.read(&case).unwrap()));
        found.insert(format!("{folder}/{short}"), (tensor.shape.clone(), checksum));
    }
    let missing: Vec<_> = case.diffusers.keys().filter(|name| !found.contains_key(*name)).collect();
    let over: Vec<_> = found.keys().filter(|name| !case.diffusers.contains_key(*name)).collect();
    assert!(missing.is_empty() && over.is_empty(), "{name}: missing {missing:?}, over {over:?}");
    for (tensor, expected) in &case.diffusers {
        assert_eq!(found[tensor], *expected, "{name}: {tensor}");
    }
    check_all_accounted_for(&case, &model, &plan);
    check_way_back(&case, &model);
}

/// Each tensor of the source is either used or listed as left out.
fn check_all_accounted_for(case: &Case, model: &Model, plan: &Plan) {
    let placed: usize = model.components.iter().map(|component| component.tensors.len()).sum();
    assert_eq!(placed + model.left_out.len(), case.original.len());
    assert!(model.left_out.iter().all(|left_out| case.original.contains_key(&left_out.name)));
    assert!(plan.tensors().count() >= placed);
}

/// The original layout is the source itself, without what was left out.
fn check_way_back(case: &Case, model: &Model) {
    let plan = Plan::new(model, Layout::Original);
    for (_, tensor) in plan.tensors() {
        assert_eq!(case.original[&tensor.name], tensor.shape, "{}", tensor.name);
    }
    assert_eq!(plan.tensors().count() + model.left_out.len(), case.original.len());
}

macro_rules! cases {
    ($($name:ident: $kind:expr;)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), $kind);
        })*
    };
}

use Family::{StableDiffusion1, StableDiffusion2, StableDiffusionXl, StableDiffusionXlRefiner};
use Task::{Inpainting, InstructPix2Pix, TextToImage};

cases! {
    sd15: Kind::Pipeline(StableDiffusion1, TextToImage);
    sd15_inpainting: Kind::Pipeline(StableDiffusion1, Inpainting);
    instruct_pix2pix: Kind::Pipeline(StableDiffusion1, InstructPix2Pix);
    sd21: Kind::Pipeline(StableDiffusion2, TextToImage);
    sd2_inpainting: Kind::Pipeline(StableDiffusion2, Inpainting);
    sdxl_base: Kind::Pipeline(StableDiffusionXl, TextToImage);
    sdxl_inpainting: Kind::Pipeline(StableDiffusionXl, Inpainting);
    sdxl_refiner: Kind::Pipeline(StableDiffusionXlRefiner, TextToImage);
    controlnet_sd15: Kind::Alone(ModelKind::ControlNet);
    controlnet_sdxl: Kind::Alone(ModelKind::ControlNet);
    vae: Kind::Alone(ModelKind::Vae);
    clip_l: Kind::Alone(ModelKind::ClipText { layout: TextLayout::Transformers, projection: false });
    clip_g: Kind::Alone(ModelKind::ClipText { layout: TextLayout::OpenClip, projection: true });
    unet_sd15: Kind::Alone(ModelKind::UNet);
    small_sd1: Kind::Pipeline(StableDiffusion1, TextToImage);
    small_inpainting: Kind::Pipeline(StableDiffusion1, Inpainting);
    small_sd2: Kind::Pipeline(StableDiffusion2, TextToImage);
    small_sdxl: Kind::Pipeline(StableDiffusionXl, TextToImage);
    small_refiner: Kind::Pipeline(StableDiffusionXlRefiner, TextToImage);
    small_controlnet: Kind::Alone(ModelKind::ControlNet);
    small_vae: Kind::Alone(ModelKind::Vae);
    small_clip: Kind::Alone(ModelKind::ClipText { layout: TextLayout::Transformers, projection: false });
    small_open_clip: Kind::Alone(ModelKind::ClipText { layout: TextLayout::OpenClip, projection: true });
    small_unet: Kind::Alone(ModelKind::UNet);
}
