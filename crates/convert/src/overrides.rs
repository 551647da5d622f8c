//! What a user asks for in place of what a checkpoint says or its family usually has.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::config::heads_of_width;
use crate::family::Heads;
use crate::layout::Structure;
use crate::model::{Kind, Model};
use crate::read_folder::{MODEL_INDEX, SCHEDULER_CONFIG, read_json};
use crate::tokenizer::pretty;
use crate::{Error, ReadOptions, Result};

/// A scheduler for a pipeline: its class, and settings beside those of the pipeline's own noise schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerChoice {
    /// The class in diffusers, for instance `EulerDiscreteScheduler`.
    pub class_name: String,
    /// Fields of `scheduler_config.json` with their values.
    pub settings: Map<String, Value>,
}

impl Model {
    /// Lets configs that name a dtype (those of text encoders) name this one: transformers opens a model in it, whatever its file has.
    pub(crate) fn name_dtype(&mut self, dtype: Dtype) {
        let name = match dtype {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            _ => return,
        };
        for component in &mut self.components {
            for field in ["dtype", "torch_dtype"] {
                if let Some(value) = component.config.get_mut(field) {
                    *value = json!(name);
                }
            }
        }
    }

    /// Gives the pipeline another scheduler. All settings of its own are kept, as by diffusers' `from_config`.
    pub fn set_scheduler(&mut self, choice: &SchedulerChoice) {
        let (Kind::Pipeline(..), class) = (self.kind, &choice.class_name) else {
            self.notes.push(format!("{} has no scheduler: {} is not used", self.title(), choice.class_name));
            return;
        };
        let mut config = self.scheduler.take().unwrap_or_else(|| json!({}));
        config["_class_name"] = json!(class);
        if let Some(fields) = config.as_object_mut() {
            fields.extend(choice.settings.clone());
        }
        self.scheduler = Some(config);
        // What was said of the scheduler that it would have had.
        self.notes.retain(|note| !note.starts_with("scheduler "));
        self.notes.push(format!("scheduler {class}, as asked for"));
    }

    /// Follows what is asked for in a folder, whose configs say all of it already.
    pub(crate) fn apply(&mut self, options: &ReadOptions) -> Result<()> {
        if options.use_ema {
            self.notes.push("a folder has no EMA weights beside the live ones".to_string());
        }
        if let (Some(asked), Kind::Pipeline(..)) = (options.prediction_type, self.kind) {
            let config = self.scheduler.get_or_insert_with(|| json!({}));
            config["prediction_type"] = json!(asked.name());
            self.notes.push(format!("prediction type {}, as asked for", asked.name()));
        }
        let Some(heads) = options.heads else { return Ok(()) };
        for component in &mut self.components {
            if set_heads(&self.source, &component.structure, heads, &mut component.config)? {
                self.notes.push("attention heads as asked for".to_string());
            }
        }
        Ok(())
    }
}

/// Sets how the attention of a UNet or ControlNet is split; says whether it is such a model.
///
/// # Errors
/// When the channels of a level cannot be split so.
pub(crate) fn set_heads(
    source: &str,
    structure: &Structure,
    heads: Heads,
    config: &mut Value,
) -> Result<bool> {
    let unet = match structure {
        Structure::UNet(unet) => unet,
        Structure::ControlNet(net) => &net.encoder,
        Structure::Vae(_) | Structure::ClipText(_) => return Ok(false),
    };
    let fits = |channels: &&usize| match heads {
        Heads::Count(count) => count > 0 && channels.is_multiple_of(count),
        Heads::Width(width) => width > 0 && channels.is_multiple_of(width),
    };
    if let Some(channels) = unet.block_out_channels.iter().find(|channels| !fits(channels)) {
        return Err(Error::Heads { file: source.to_string(), channels: *channels, heads });
    }
    // In spite of its name the field counts heads.
    config["attention_head_dim"] = match heads {
        Heads::Count(count) => json!(count),
        Heads::Width(width) => {
            unet.block_out_channels.iter().map(|channels| heads_of_width(*channels, width).0).collect()
        }
    };
    // Where it is set it wins, and diffusers refuses it.
    if config.get("num_attention_heads").is_some() {
        config["num_attention_heads"] = Value::Null;
    }
    Ok(true)
}

/// The configs of the diffusers folder `folder` that `model`, which was read from it, has otherwise.
pub(crate) fn changed_configs(folder: &Path, model: &Model) -> Result<Vec<(String, Vec<u8>)>> {
    let path_of = |component: &crate::Component| match model.kind {
        Kind::Pipeline(..) => format!("{}/config.json", component.place.folder),
        Kind::Alone(_) => "config.json".to_string(),
    };
    let mut wanted: Vec<(String, Value)> =
        model.components.iter().map(|one| (path_of(one), one.config.clone())).collect();
    if let Some(scheduler) = &model.scheduler {
        wanted.push((SCHEDULER_CONFIG.to_string(), scheduler.clone()));
        let mut index = Value::Object(read_json(&folder.join(MODEL_INDEX))?);
        if let Some(class) = scheduler.get("_class_name") {
            index["scheduler"] = json!(["diffusers", class]);
        }
        wanted.push((MODEL_INDEX.to_string(), index));
    }
    let mut changed = Vec::new();
    for (path, config) in wanted {
        let own = folder.join(&path);
        if !own.is_file() || Value::Object(read_json(&own)?) != config {
            changed.push((path, pretty(&config)));
        }
    }
    Ok(changed)
}
