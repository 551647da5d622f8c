use std::path::Path;

use anyhow::Result;
use candle_diffusers_loaders::{ComponentClass, ModelIndex, Repository};
use candle_diffusers_pipelines::load_scheduler_config;
use serde_json::{Map, Value, json};

use super::component::weights;
use super::family;

/// Diffusers' own default, for schedulers whose config does not say.
const DEFAULT_PREDICTION_TYPE: &str = "epsilon";

/// A model folder in diffusers' layout.
pub(super) fn inspect(source: &Path) -> Result<Value> {
    let repository = Repository::folder(source)?;
    let index = ModelIndex::load(&repository)?;
    let mut components = Map::new();
    let mut parameters = 0;
    for (name, ComponentClass { library, class_name }) in &index.components {
        let mut component = Map::new();
        component.insert("class_name".into(), class_name.clone().into());
        component.insert("library".into(), library.clone().into());
        let weights = weights(&repository, name)?;
        parameters += weights.get("parameters").and_then(Value::as_u64).unwrap_or(0);
        component.extend(weights);
        components.insert(name.clone(), Value::Object(component));
    }
    let has = |component: &str| index.components.contains_key(component);
    let unet = if has("unet") { Some(repository.read_json::<Value>("unet/config.json")?) } else { None };
    let vae = if has("vae") { Some(repository.read_json::<Value>("vae/config.json")?) } else { None };
    let scheduler = if has("scheduler") { Some(load_scheduler_config(&repository)?) } else { None };
    let number = |config: &Option<Value>, field: &str| config.as_ref()?.get(field)?.as_u64();
    let latent_channels = number(&vae, "latent_channels").unwrap_or(4);
    let prediction_type = scheduler.as_ref().map(|config| {
        config.get("prediction_type").and_then(Value::as_str).unwrap_or(DEFAULT_PREDICTION_TYPE).to_string()
    });
    Ok(json!({
        "kind": "pipeline",
        "class_name": index.class_name,
        "diffusers_version": index.diffusers_version,
        "family": unet.as_ref().map(|unet| match family::family(unet) {
            // Its text encoders tell the refiner, whatever the size.
            "sdxl" | "sdxl-refiner" if has("text_encoder") => "sdxl",
            "sdxl" | "sdxl-refiner" if has("text_encoder_2") => "sdxl-refiner",
            family => family,
        }),
        "task": unet.as_ref().and_then(|unet| family::task(unet, latent_channels)),
        "prediction_type": prediction_type,
        "parameters": parameters,
        "components": components,
    }))
}
