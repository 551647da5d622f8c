//! A single file in the original layout as a [`Model`].

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::config::{
    Settings, clip_to_config, controlnet_to_config, heads_of_width, unet_to_config, vae_to_config,
};
use crate::ema::{take_ema, take_ema_alone};
use crate::family::{Defaults, Family, Heads, ModelKind, Place, PredictionType, Task};
use crate::identify::{Holds, canonical_name, family_of_unet, identify, structure};
use crate::inventory::Inventory;
use crate::layout::{Structure, TextLayout, UNet};
use crate::left_out::{
    EMA_WEIGHTS_TAKEN, NO_PLACE, OTHER_MODEL, SD2_LAST_LAYER, SD2_PROJECTION, Unplaced, bookkeeping,
};
use crate::model::{Component, Kind, Layout, Model};
use crate::overrides::set_heads;
use crate::recorded::Recorded;
use crate::scheduler::scheduler_config;
use crate::{Error, Result, Source};

/// The layers of SD 2's text encoder (OpenCLIP ViT-H) in the original layout; the last is not used.
const SD2_LAYERS: usize = 24;

/// How many words `add_time_ids` has in SDXL, and in its refiner.
const TIME_IDS: usize = 6;
const TIME_IDS_REFINER: usize = 5;

/// The published models' width of the embedding of each of them.
const TIME_ID_WIDTH: usize = 256;

/// What a reader of checkpoints is told beside the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Take the EMA weights of the UNet where there are both.
    pub use_ema: bool,
    /// What the model predicts; found out, or as the family usually is, where `None`.
    pub prediction_type: Option<PredictionType>,
    /// How the UNet's attention is split into heads; as the family usually is where `None`.
    pub heads: Option<Heads>,
    /// Leave out tensors that stand among a model's own and have no place in it. An error otherwise.
    pub allow_unknown: bool,
}

impl Model {
    /// What the single file `source` holds.
    ///
    /// # Errors
    /// When it is no checkpoint of a known kind, or one whose tensors are not all there or do not fit together.
    pub fn from_single_file(source: &dyn Source, options: &ReadOptions) -> Result<Self> {
        let mut model = Self::from_inventory(source.name(), source.inventory(), &source.metadata(), options)?;
        model.notes.extend(source.beside());
        Ok(model)
    }

    /// As [`from_single_file`](Self::from_single_file), from names and shapes alone.
    ///
    /// # Errors
    /// As there.
    pub fn from_inventory(
        source: &str,
        inventory: Inventory,
        metadata: &std::collections::BTreeMap<String, String>,
        options: &ReadOptions,
    ) -> Result<Self> {
        let mut names: Vec<String> = inventory.names().map(str::to_string).collect();
        names.sort_unstable();
        let mut inventory = inventory.renamed(canonical_name);
        let mut replaced = HashSet::new();
        let has_ema_alone = take_ema_alone(&mut inventory);
        if options.use_ema && !has_ema_alone {
            replaced = take_ema(source, &mut inventory)?;
        }
        let reader = Reader { source, inventory: &inventory, recorded: Recorded::read(metadata), options };
        let mut model = match identify(source, &inventory)? {
            Holds::Pipeline(family) => reader.pipeline(family)?,
            Holds::Alone(place, prefix) => reader.alone(place, prefix)?,
        };
        model.note_vocabulary();
        if has_ema_alone {
            model.notes.push("of the UNet there are EMA weights only, which were taken".to_string());
        } else if options.use_ema && replaced.is_empty() {
            model.notes.push("there are no EMA weights: the only ones there are were taken".to_string());
        }
        model.left_out = left_out(&model, &names, &replaced, options)?;
        Ok(model)
    }
}

struct Reader<'a> {
    source: &'a str,
    inventory: &'a Inventory,
    recorded: Recorded,
    options: &'a ReadOptions,
}

impl Reader<'_> {
    fn pipeline(&self, family: Family) -> Result<Model> {
        let mut structures = Vec::new();
        for place in family.places() {
            let mut found = structure(self.inventory, place.prefix, place.model);
            match &mut found {
                // As the reference: only what has all the layers of the published models loses the last.
                Structure::ClipText(clip)
                    if family == Family::StableDiffusion2 && clip.num_hidden_layers == SD2_LAYERS =>
                {
                    clip.num_hidden_layers -= 1;
                }
                Structure::Vae(vae) => {
                    (vae.use_quant_conv, vae.use_post_quant_conv, vae.mid_block_add_attention) =
                        (true, true, true);
                }
                _ => {}
            }
            structures.push((*place, found));
        }
        let texts: Vec<_> = structures.iter().filter_map(|(_, found)| text_of(found)).collect();
        let unet = structures.iter().find_map(|(_, found)| unet_of(found));
        let unet = unet.ok_or_else(|| Error::NotConverted {
            file: self.source.to_string(),
            what: "a pipeline without a UNet",
        })?;
        let task = self.task(family, unet)?;
        self.check_widths(family, unet, &texts)?;

        let mut notes = Vec::new();
        let (prediction_type, zero_terminal_snr) = self.prediction_type(family, task, &mut notes);
        let mut defaults = family.defaults();
        if family == Family::StableDiffusion2 && prediction_type == PredictionType::Epsilon {
            // The models for 512 pixels.
            (defaults.sample_size, defaults.vae_sample_size, defaults.upcast_attention) = (64, 512, false);
        }
        let scheduler = self.scheduler(family, task, prediction_type, zero_terminal_snr, &mut notes);
        let pooled = texts.iter().find_map(|text| text.projection_dim);
        let components = structures
            .into_iter()
            .map(|(place, found)| {
                let config = self.config(&place, &found, Some(family), defaults, pooled, &mut notes);
                self.component(place, place.prefix, found, config)
            })
            .collect::<Result<_>>()?;
        Ok(self.model(Kind::Pipeline(family, task), components, Some(scheduler), notes))
    }

    fn alone(&self, place: Place, prefix: &str) -> Result<Model> {
        let found = structure(self.inventory, prefix, place.model);
        let mut notes = Vec::new();
        let family = match &found {
            Structure::ControlNet(net) => Some(family_of_unet(&net.encoder)),
            Structure::UNet(unet) => {
                let family = family_of_unet(unet);
                self.task(family, unet)?;
                notes.push(format!("a UNet of {}, without the other models of a pipeline", family.name()));
                Some(family)
            }
            Structure::Vae(_) if self.recorded.component(place.folder).is_none() => {
                notes.push(
                    "scaling_factor 0.18215: the shapes of a VAE alone do not tell its family, and this is Stable Diffusion 1's \
                     and 2's; for one of Stable Diffusion XL set it to 0.13025 in config.json"
                        .to_string(),
                );
                None
            }
            _ => None,
        };
        let defaults = family.unwrap_or(Family::StableDiffusion1).defaults();
        let config = self.config(&place, &found, family, defaults, None, &mut notes);
        let component = self.component(place, prefix, found, config)?;
        Ok(self.model(Kind::Alone(place.model), vec![component], None, notes))
    }

    fn model(
        &self,
        kind: Kind,
        components: Vec<Component>,
        scheduler: Option<Value>,
        notes: Vec<String>,
    ) -> Model {
        Model {
            source: self.source.to_string(),
            layout: Layout::Original,
            kind,
            components,
            scheduler,
            left_out: Vec::new(),
            notes,
        }
    }

    fn component(
        &self,
        place: Place,
        prefix: &str,
        found: Structure,
        mut config: Value,
    ) -> Result<Component> {
        if let Some(heads) = self.options.heads {
            set_heads(self.source, &found, heads, &mut config)?;
        }
        let checked = (place, found.clone(), config.clone());
        let component = Component::place(self.source, self.inventory, Layout::Original, prefix, checked)?;
        Component::check_config(self.source, place, &found, &config)?;
        Ok(component)
    }

    /// What the UNet's input channels say it is made for.
    fn task(&self, family: Family, unet: &UNet) -> Result<Task> {
        let latents = unet.out_channels;
        let both = latents.saturating_mul(2);
        match unet.in_channels {
            channels if channels == latents => Ok(Task::TextToImage),
            channels if channels == both.saturating_add(1) => Ok(Task::Inpainting),
            channels if channels == both => Ok(Task::InstructPix2Pix),
            channels => Err(Error::NotConverted {
                file: self.source.to_string(),
                what: match channels {
                    5 if family == Family::StableDiffusion2 => {
                        "a depth-to-image checkpoint (5 input channels)"
                    }
                    7 => "a Stable Diffusion x4 upscaler (7 input channels)",
                    _ => "a UNet with a number of input channels that no known pipeline has",
                },
            }),
        }
    }

    /// Fails where UNet and text encoders were not made for each other.
    fn check_widths(&self, family: Family, unet: &UNet, texts: &[&crate::ClipText]) -> Result<()> {
        let text_width = texts.iter().fold(0_usize, |width, text| width.saturating_add(text.hidden_size));
        let mixed = |first: String, second: String| {
            Err(Error::MixedFamilies { file: self.source.to_string(), first, second })
        };
        if unet.addition_embed_dim.is_some() != family.is_xl() {
            let what = if family.is_xl() { "lacks" } else { "has" };
            return mixed(
                format!("the text encoder is of {}", family.name()),
                format!("the UNet {what} the size embedding of Stable Diffusion XL"),
            );
        }
        if unet.cross_attention_dim != text_width {
            return mixed(
                format!("the text encoder ({}) gives embeddings of width {text_width}", family.name()),
                format!("the UNet takes a width of {}", unet.cross_attention_dim),
            );
        }
        Ok(())
    }

    /// What the model predicts, and whether its noise schedule ends in pure noise.
    fn prediction_type(&self, family: Family, task: Task, notes: &mut Vec<String>) -> (PredictionType, bool) {
        let has_marker = self.inventory.get("v_pred").is_some();
        let zero_terminal_snr = self.inventory.get("ztsnr").is_some();
        if let Some(asked) = self.options.prediction_type {
            notes.push(format!("prediction type {}, as asked for", asked.name()));
            return (asked, zero_terminal_snr);
        }
        if has_marker {
            notes.push("prediction type v_prediction, as the file's tensor v_pred says".to_string());
            return (PredictionType::VPrediction, zero_terminal_snr);
        }
        if let Some(told) = self.recorded.prediction_type() {
            notes.push(format!("prediction type {}, as the file's metadata says", told.name()));
            return (told, zero_terminal_snr);
        }
        let usual = match task {
            Task::TextToImage => family.defaults().prediction_type,
            Task::Inpainting | Task::InstructPix2Pix => PredictionType::Epsilon,
        };
        notes.push(match (family, task) {
            (Family::StableDiffusion2, Task::TextToImage) => "prediction type v_prediction is assumed, as of \
                stable-diffusion-2-1 for 768 pixels: the base models for 512 pixels have the same shapes and need \
                `--prediction-type epsilon`"
                .to_string(),
            _ => format!("prediction type {}, as {} usually has", usual.name(), family.name()),
        });
        (usual, zero_terminal_snr)
    }

    fn scheduler(
        &self,
        family: Family,
        task: Task,
        prediction_type: PredictionType,
        zero_terminal_snr: bool,
        notes: &mut Vec<String>,
    ) -> Value {
        if let Some(mut recorded) = self.recorded.scheduler() {
            recorded["prediction_type"] = json!(prediction_type.name());
            return recorded;
        }
        let config = scheduler_config(family, task, prediction_type, zero_terminal_snr);
        let class = config["_class_name"].as_str().unwrap_or_default();
        notes.push(format!("scheduler {class}, as {} usually has", family.name()));
        config
    }

    /// The config of a model: as recorded in the file where that fits, else its structure and the family's defaults.
    fn config(
        &self,
        place: &Place,
        found: &Structure,
        family: Option<Family>,
        defaults: Defaults,
        pooled: Option<usize>,
        notes: &mut Vec<String>,
    ) -> Value {
        if let Some(recorded) = self.recorded.component(place.folder) {
            let describes = Structure::from_config(self.source, place.model, &recorded);
            if describes.is_ok_and(|described| described == *found) {
                return recorded;
            }
            notes.push(format!("the {} config in the file's metadata is of another model", found.label()));
        }
        match found {
            Structure::Vae(vae) => vae_to_config(vae, defaults.vae_sample_size, defaults.vae_scaling_factor),
            Structure::ClipText(clip) => {
                let (config, is_usual) = clip_to_config(clip);
                if !is_usual {
                    notes.push(unusual_heads(
                        "text encoder",
                        clip.hidden_size,
                        &config["num_attention_heads"],
                    ));
                }
                config
            }
            Structure::UNet(unet) => {
                unet_to_config(unet, self.settings(unet, family, defaults, pooled, "UNet", notes))
            }
            Structure::ControlNet(net) => {
                let settings = self.settings(&net.encoder, family, defaults, pooled, "ControlNet", notes);
                controlnet_to_config(net, settings)
            }
        }
    }

    fn settings(
        &self,
        unet: &UNet,
        family: Option<Family>,
        defaults: Defaults,
        pooled: Option<usize>,
        label: &str,
        notes: &mut Vec<String>,
    ) -> Settings {
        let heads = self.options.heads.unwrap_or(defaults.heads);
        let family_name = family.map_or("the family", Family::name);
        match (self.options.heads, heads) {
            (Some(_), _) => notes.push("attention heads as asked for".to_string()),
            (None, Heads::Count(count)) => {
                notes.push(format!("{count} attention heads in the {label}, as {family_name} usually has"));
            }
            (None, Heads::Width(width)) => {
                let widths = &unet.block_out_channels;
                match widths.iter().find(|channels| !heads_of_width(**channels, width).1) {
                    None => notes.push(format!(
                        "attention heads of width {width} in the {label}, as {family_name} usually has"
                    )),
                    Some(channels) => {
                        notes.push(unusual_heads(
                            label,
                            *channels,
                            &json!(heads_of_width(*channels, width).0),
                        ));
                    }
                }
            }
        }
        let ids = if family == Some(Family::StableDiffusionXlRefiner) { TIME_IDS_REFINER } else { TIME_IDS };
        let time_id_width = |total: usize| match pooled {
            Some(pooled) if total > pooled && (total - pooled).is_multiple_of(ids) => (total - pooled) / ids,
            _ => TIME_ID_WIDTH,
        };
        Settings {
            heads,
            sample_size: defaults.sample_size,
            upcast_attention: defaults.upcast_attention,
            addition_time_embed_dim: unet.addition_embed_dim.map(time_id_width),
        }
    }
}

fn unusual_heads(label: &str, width: usize, heads: &Value) -> String {
    format!(
        "the number of attention heads in the {label}, {heads}, is a guess: heads of the usual width 64 do not fit into {width} channels, and \
         shapes do not tell; set them by `--attention-heads` or `--attention-head-dim`, or in config.json"
    )
}

fn text_of(found: &Structure) -> Option<&crate::ClipText> {
    match found {
        Structure::ClipText(clip) => Some(clip),
        _ => None,
    }
}

fn unet_of(found: &Structure) -> Option<&UNet> {
    match found {
        Structure::UNet(unet) => Some(unet),
        _ => None,
    }
}

/// All tensors without a place, with the reasons.
fn left_out(
    model: &Model,
    names: &[String],
    replaced: &HashSet<String>,
    options: &ReadOptions,
) -> Result<Vec<Unplaced>> {
    let placed = model.placed_names();
    let mut left_out = Vec::new();
    let mut unknown = Vec::new();
    for name in names.iter().filter(|name| !placed.contains(name.as_str())) {
        match reason(model, name, replaced) {
            Some(reason) => left_out.push(Unplaced { name: name.clone(), reason }),
            None => {
                unknown.push(name.clone());
                left_out.push(Unplaced { name: name.clone(), reason: NO_PLACE });
            }
        }
    }
    if unknown.is_empty() || options.allow_unknown {
        return Ok(left_out);
    }
    let count = unknown.len();
    unknown.truncate(3);
    Err(Error::UnknownTensors { file: model.source.clone(), title: model.title(), count, names: unknown })
}

/// Why a tensor has no place; `None` where it should have one, because it stands among a model's own.
fn reason(model: &Model, name: &str, replaced: &HashSet<String>) -> Option<&'static str> {
    if replaced.contains(name) {
        return Some(EMA_WEIGHTS_TAKEN);
    }
    if let Some(reason) = bookkeeping(name) {
        return Some(reason);
    }
    for component in &model.components {
        let Some(rest) = name.strip_prefix(component.source_prefix.as_str()) else { continue };
        return match &component.structure {
            Structure::ClipText(clip)
                if clip.layout == TextLayout::OpenClip && clip.projection_dim.is_none() =>
            {
                let last = format!("transformer.resblocks.{}.", SD2_LAYERS - 1);
                if rest.starts_with(&last) {
                    Some(SD2_LAST_LAYER)
                } else {
                    (rest == "text_projection").then_some(SD2_PROJECTION)
                }
            }
            Structure::ClipText(_)
                if rest.starts_with("vision_model.") || rest == "visual_projection.weight" =>
            {
                Some("the picture side of CLIP")
            }
            _ => None,
        };
    }
    Some(match model.kind {
        Kind::Alone(ModelKind::ControlNet) => OTHER_MODEL,
        _ => NO_PLACE,
    })
}
