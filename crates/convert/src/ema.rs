//! EMA weights of a UNet in checkpoints of latent-diffusion, whose `LitEma` names them as the live ones, without dots.

use std::collections::HashSet;

use crate::inventory::Inventory;
use crate::left_out::bookkeeping;
use crate::{Error, Result};

const LIVE: &str = "model.diffusion_model.";
const EMA: &str = "model_ema.diffusion_model";

/// Puts the EMA weights in place of the live ones; gives the names of those.
pub(crate) fn take_ema(source: &str, inventory: &mut Inventory) -> Result<HashSet<String>> {
    if !inventory.has_under(EMA) {
        return Ok(HashSet::new());
    }
    let live: Vec<String> = inventory.names_under(LIVE).map(str::to_string).collect();
    let mut replaced = HashSet::with_capacity(live.len());
    let mut missing = Vec::new();
    for name in live.iter().filter(|name| bookkeeping(name).is_none()) {
        let ema = format!("{EMA}{}", name[LIVE.len()..].replace('.', ""));
        if inventory.get(&ema).is_none() {
            missing.push(ema);
            continue;
        }
        inventory.replace(name, &ema);
        replaced.insert(name.clone());
    }
    if missing.is_empty() {
        return Ok(replaced);
    }
    Err(Error::MissingTensors {
        file: source.to_string(),
        component: "EMA copy of the UNet",
        count: missing.len(),
        total: live.len(),
        names: missing.into_iter().take(3).collect(),
    })
}

/// In a checkpoint that has EMA weights only, gives them the names of live ones; says whether it is such a checkpoint.
pub(crate) fn take_ema_alone(inventory: &mut Inventory) -> bool {
    if !inventory.has_under(EMA) || inventory.has_under(LIVE) {
        return false;
    }
    let names: Vec<String> = inventory.names_under(EMA).map(str::to_string).collect();
    for name in names {
        if let Some(own) = with_dots(&name[EMA.len()..]) {
            inventory.replace(&format!("{LIVE}{own}"), &name);
        }
    }
    true
}

/// The parts of a UNet's names, longer ones before those that they begin with.
const PARTS: &[&str] = &[
    "input_blocks",
    "output_blocks",
    "middle_block",
    "time_embed",
    "label_emb",
    "transformer_blocks",
    "skip_connection",
    "in_layers",
    "out_layers",
    "emb_layers",
    "proj_in",
    "proj_out",
    "to_out",
    "to_q",
    "to_k",
    "to_v",
    "attn1",
    "attn2",
    "norm1",
    "norm2",
    "norm3",
    "weight",
    "norm",
    "bias",
    "conv",
    "proj",
    "net",
    "out",
    "op",
    "ff",
];

/// The name of a UNet's tensor with its dots; `None` where it has other parts than such names have.
///
/// A row of digits is one number, but after the names of blocks, where its last digit is a place within the block.
fn with_dots(mut flat: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    while !flat.is_empty() {
        let digits = flat.len() - flat.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 {
            let part = PARTS.iter().find(|part| flat.starts_with(**part))?;
            parts.push(part);
            flat = &flat[part.len()..];
            continue;
        }
        let (number, rest) = flat.split_at(digits);
        match parts.last() {
            Some(&("input_blocks" | "output_blocks" | "label_emb")) if digits > 1 => {
                let (index, place) = number.split_at(digits - 1);
                parts.extend([index, place]);
            }
            _ => parts.push(number),
        }
        flat = rest;
    }
    Some(parts.join("."))
}
