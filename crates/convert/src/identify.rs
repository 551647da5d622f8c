//! What a single file holds, from the names and shapes of its tensors.

use crate::detect;
use crate::family::{Family, ModelKind, Place};
use crate::inventory::{Inventory, View};
use crate::layout::{Structure, TextLayout, UNet};
use crate::published::published;
use crate::{Error, Result};

/// What a single file holds, and what stands before the names of each model there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holds {
    Pipeline(Family),
    Alone(Place, &'static str),
}

/// Kinds of checkpoints that are known and not converted: a part of a name that only they have, and what they are.
const OTHERS: &[(&str, &str)] = &[
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("double_blocks.", "a Flux checkpoint"),
    ("double_layers.", "an AuraFlow checkpoint"),
    (".time_stack.", "a Stable Video Diffusion checkpoint"),
    ("motion_modules.", "an AnimateDiff motion module"),
    ("clip_txt_mapper.", "a Stable Cascade checkpoint"),
    ("edm_mean", "a Playground v2.5 checkpoint"),
    ("edm_vpred.sigma_max", "a CosXL checkpoint"),
    ("model.diffusion_model.label_emb.weight", "a Stable Diffusion x4 upscaler"),
    ("noise_augmentor.", "a Stable unCLIP checkpoint"),
    ("cc_projection.", "a Zero123 checkpoint"),
    ("t5_yproj.", "a Mochi checkpoint"),
    ("mlp_t5.", "a Hunyuan-DiT checkpoint"),
    ("adaln_single.", "a PixArt or LTX-Video checkpoint"),
    ("cap_embedder.", "a Lumina checkpoint"),
    ("txt_in.individual_token_refiner.", "a HunyuanVideo checkpoint"),
    ("blocks.0.cross_attn.norm_k.", "a Wan checkpoint"),
    ("lora_controlnet", "a Control-LoRA"),
    (".scale_weight", "a checkpoint with scaled 8-bit weights"),
];

/// Kinds of small files, which whole checkpoints may carry pieces of.
const SMALL: &[(&str, &str)] = &[
    ("lora_unet_", "a LoRA file"),
    ("lora_te_", "a LoRA file"),
    (".lora_down.", "a LoRA file"),
    (".lora_A.", "a LoRA file"),
    (".lora.down.", "a LoRA file"),
    ("emb_params", "a textual inversion embedding"),
    ("string_to_param", "a textual inversion embedding"),
    ("single_transformer_blocks.", "a Flux transformer in diffusers' layout"),
    ("down_blocks.", "one model in diffusers' layout: its folder is already what diffusers reads"),
];

const UNET_PREFIX: &str = "model.diffusion_model.";
const VAE_PREFIX: &str = "first_stage_model.";

/// Gives tensors the names that the tables have, where checkpoints are known to spell them otherwise.
pub(crate) fn canonical_name(name: &str) -> Option<String> {
    // Text encoders that were saved by transformers before 4.17, and VAEs as some tools name them.
    const RENAMED: [(&str, &str); 2] = [
        ("cond_stage_model.transformer.embeddings.", "cond_stage_model.transformer.text_model.embeddings."),
        ("cond_stage_model.transformer.encoder.", "cond_stage_model.transformer.text_model.encoder."),
    ];
    const FINAL_NORM: (&str, &str) = (
        "cond_stage_model.transformer.final_layer_norm.",
        "cond_stage_model.transformer.text_model.final_layer_norm.",
    );
    const OTHER_VAE_PREFIX: (&str, &str) = ("vae.", VAE_PREFIX);
    let renamed = RENAMED
        .iter()
        .chain([&FINAL_NORM, &OTHER_VAE_PREFIX])
        .find_map(|(from, to)| name.strip_prefix(from).map(|rest| format!("{to}{rest}")));
    // Written by a version of the reference's script that left diffusers' names in the VAE's attention.
    const ATTENTION: [(&str, &str); 4] = [
        (".mid.attn_1.to_q.", ".mid.attn_1.q."),
        (".mid.attn_1.to_k.", ".mid.attn_1.k."),
        (".mid.attn_1.to_v.", ".mid.attn_1.v."),
        (".mid.attn_1.to_out.0.", ".mid.attn_1.proj_out."),
    ];
    let attention =
        ATTENTION.iter().find(|(from, _)| name.contains(from)).map(|(from, to)| name.replacen(from, to, 1));
    renamed.or(attention)
}

/// What the file called `source` holds.
///
/// # Errors
/// When it is no checkpoint of a known kind, has models of several families, or lacks some of a pipeline's.
pub(crate) fn identify(source: &str, inventory: &Inventory) -> Result<Holds> {
    let is_whole = inventory.has_under(UNET_PREFIX) || inventory.has_under(VAE_PREFIX);
    let small = SMALL.iter().filter(|_| !is_whole);
    let refused = OTHERS.iter().chain(small).find(|(part, _)| match *part {
        // So short that it must be the whole name, or its beginning.
        "edm_mean" | "emb_params" | "down_blocks." => inventory.has_under(part),
        part => inventory.names().any(|name| name.contains(part)),
    });
    if let Some((_, what)) = refused {
        return Err(Error::NotConverted { file: source.to_string(), what });
    }
    if let Some(prefix) = ["control_model.", ""].into_iter().find(|prefix| is_controlnet(inventory, prefix)) {
        let place = Place { folder: "controlnet", prefix: "control_model.", model: ModelKind::ControlNet };
        return Ok(Holds::Alone(place, prefix));
    }
    if let Some(alone) = model_without_prefix(inventory) {
        return Ok(alone);
    }
    let families = families(inventory);
    if let [(first, first_name), (second, second_name), ..] = families[..] {
        return Err(Error::MixedFamilies {
            file: source.to_string(),
            first: format!("{first_name} is of {}", first.name()),
            second: format!("{second_name} is of {}", second.name()),
        });
    }
    let (has_unet, has_vae) = (inventory.has_under(UNET_PREFIX), inventory.has_under(VAE_PREFIX));
    match (has_unet, has_vae, families.first()) {
        (false, false, None) => Err(Error::NotACheckpoint {
            file: source.to_string(),
            count: inventory.len(),
            names: inventory.names().take(3).map(str::to_string).collect(),
        }),
        (false, true, None) => Ok(Holds::Alone(vae_place(), VAE_PREFIX)),
        (false, false, Some((family, _))) => text_encoder_alone(source, inventory, *family),
        (_, _, Some((family, _))) => all_there(source, inventory, *family),
        // Distributed so for tools that take UNets by themselves.
        (true, false, None) => Ok(Holds::Alone(unet_place(), UNET_PREFIX)),
        (true, true, None) => {
            let unet = detect::unet(View { inventory, prefix: UNET_PREFIX });
            all_there(source, inventory, family_of_unet(&unet))
        }
    }
}

fn is_controlnet(inventory: &Inventory, prefix: &str) -> bool {
    ["input_hint_block.", "zero_convs.", "middle_block_out."]
        .iter()
        .any(|part| inventory.has_under(&format!("{prefix}{part}")))
}

/// A model whose names have nothing before them.
fn model_without_prefix(inventory: &Inventory) -> Option<Holds> {
    let has = |parts: &[&str]| parts.iter().any(|part| inventory.has_under(part));
    if has(&["encoder.down.", "encoder.mid.", "decoder.up.", "decoder.mid."]) {
        return Some(Holds::Alone(vae_place(), ""));
    }
    if has(&["input_blocks.", "output_blocks."]) {
        return Some(Holds::Alone(unet_place(), ""));
    }
    let text = |layout, has_projection, prefix| {
        let model = ModelKind::ClipText { layout, projection: has_projection };
        Holds::Alone(Place { folder: "text_encoder", prefix: "", model }, prefix)
    };
    for prefix in ["", "transformer."] {
        if inventory.has_under(&format!("{prefix}text_model.")) {
            let has_projection = inventory.get(&format!("{prefix}text_projection.weight")).is_some();
            return Some(text(TextLayout::Transformers, has_projection, prefix));
        }
    }
    let has_projection = inventory.get("text_projection").is_some();
    has(&["transformer.resblocks."]).then(|| text(TextLayout::OpenClip, has_projection, ""))
}

/// Tools that take a VAE alone want its names with nothing before them.
fn vae_place() -> Place {
    Place { folder: "vae", prefix: "", model: ModelKind::Vae }
}

/// A UNet alone keeps the prefix that it has in a checkpoint: all tools that take one know it.
fn unet_place() -> Place {
    Place { folder: "unet", prefix: UNET_PREFIX, model: ModelKind::UNet }
}

/// The families whose text encoders are there, with the name of one of their tensors.
fn families(inventory: &Inventory) -> Vec<(Family, &str)> {
    let mut families = Vec::new();
    for family in Family::ALL {
        let is_text = |place: &&Place| matches!(place.model, ModelKind::ClipText { .. });
        let first = family.places().iter().filter(is_text).find_map(|place| {
            // In a checkpoint of SD 2, `model.` is OpenCLIP's; nothing else begins like that.
            inventory.names_under(place.prefix).next()
        });
        families.extend(first.map(|name| (family, name)));
    }
    families
}

/// The family whose text encoders have the width that the UNet wants.
pub(crate) fn family_of_unet(unet: &UNet) -> Family {
    match (unet.addition_embed_dim, unet.cross_attention_dim) {
        (Some(_), width) if width <= 1280 => Family::StableDiffusionXlRefiner,
        (Some(_), _) => Family::StableDiffusionXl,
        (None, 1024) => Family::StableDiffusion2,
        // Of a width that no published model has: linear projections came with SD 2.
        (None, width) if width != 768 && unet.use_linear_projection => Family::StableDiffusion2,
        (None, _) => Family::StableDiffusion1,
    }
}

/// The family, if it has all its models.
fn all_there(source: &str, inventory: &Inventory, family: Family) -> Result<Holds> {
    match family.places().iter().find(|place| !inventory.has_under(place.prefix)) {
        None => Ok(Holds::Pipeline(family)),
        Some(place) => {
            let table = published(family, *place).table();
            let names = table.iter().take(3).map(|row| format!("{}{}", place.prefix, row.original.name));
            Err(Error::MissingComponent {
                file: source.to_string(),
                family: family.name(),
                component: place.folder,
                count: table.len(),
                names: names.collect(),
            })
        }
    }
}

fn text_encoder_alone(source: &str, inventory: &Inventory, family: Family) -> Result<Holds> {
    let there: Vec<&Place> =
        family.places().iter().filter(|place| inventory.has_under(place.prefix)).collect();
    match there[..] {
        [place] => {
            Ok(Holds::Alone(Place { folder: "text_encoder", prefix: "", model: place.model }, place.prefix))
        }
        _ => all_there(source, inventory, family),
    }
}

/// The structure of the model whose tensors have `prefix` before their names.
pub(crate) fn structure(inventory: &Inventory, prefix: &str, kind: ModelKind) -> Structure {
    let view = View { inventory, prefix };
    match kind {
        ModelKind::UNet => Structure::UNet(detect::unet(view)),
        ModelKind::ControlNet => Structure::ControlNet(detect::controlnet(view)),
        ModelKind::Vae => Structure::Vae(detect::vae(view)),
        ModelKind::ClipText { layout: TextLayout::Transformers, projection } => {
            let mut clip = detect::transformers_clip(view);
            clip.projection_dim = clip.projection_dim.filter(|_| projection);
            Structure::ClipText(clip)
        }
        ModelKind::ClipText { layout: TextLayout::OpenClip, projection } => {
            let mut clip = detect::open_clip(view);
            // A projection that should be there and is not is listed as missing.
            clip.projection_dim = projection.then(|| clip.projection_dim.unwrap_or(clip.hidden_size));
            Structure::ClipText(clip)
        }
    }
}
