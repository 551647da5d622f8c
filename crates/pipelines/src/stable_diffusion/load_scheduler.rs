//! A folder's scheduler, as diffusers builds it for Stable Diffusion.

use candle_diffusers_loaders::{ModelIndex, Repository};
use candle_diffusers_schedulers::{
    Error as SchedulerError, Scheduler, scheduler_from_other, scheduler_with_overrides,
};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::scheduler_config::load_scheduler_config;

/// The scheduler of a model as [`load_with`](super::StableDiffusionPipeline::load_with) builds it, without the model: to look at the steps that will be
/// taken. `other` is what [`Replacements::scheduler`](super::Replacements::scheduler) says.
///
/// # Errors
/// When a file is missing or damaged, there is no such scheduler, or a setting does not fit it.
pub fn load_pipeline_scheduler(
    repository: &Repository,
    other: Option<(&str, &Map<String, Value>)>,
) -> Result<Box<dyn Scheduler>> {
    Ok(load_either_scheduler(repository, &ModelIndex::load(repository)?, other)?.0)
}

/// The folder's scheduler or another one in its place, and its config.
pub(super) fn load_either_scheduler(
    repository: &Repository,
    index: &ModelIndex,
    other: Option<(&str, &Map<String, Value>)>,
) -> Result<(Box<dyn Scheduler>, Value)> {
    let folders_class = &index.component("scheduler")?.class_name;
    let right = put_right(&index.class_name);
    match other {
        Some((class_name, overrides)) => {
            load_other_scheduler(repository, folders_class, &right, class_name, overrides)
        }
        None => load_scheduler(repository, folders_class, &right),
    }
}

/// Settings that diffusers puts right when it builds a pipeline of this class: folders from 2022 lack them or have them wrong, and were meant so.
fn put_right(pipeline_class: &str) -> Map<String, Value> {
    let fields = match pipeline_class {
        "StableDiffusionPipeline" | "StableDiffusionImg2ImgPipeline" => {
            json!({ "steps_offset": 1, "clip_sample": false })
        }
        "StableDiffusionInpaintPipeline" => json!({ "steps_offset": 1, "skip_prk_steps": true }),
        _ => json!({}),
    };
    fields.as_object().cloned().unwrap_or_default()
}

/// The folder's scheduler and its config: of the class that model_index.json names, whatever class the config is of, with the settings of `right`
/// ([`put_right`]).
///
/// The config still counts a setting that the folder lacks among those with default values: another scheduler made
/// from it has its own default, as in diffusers.
fn load_scheduler(
    repository: &Repository,
    class_name: &str,
    right: &Map<String, Value>,
) -> Result<(Box<dyn Scheduler>, Value)> {
    let given = load_with(repository, right)?;
    let scheduler = scheduler_from_other(class_name, &given)?;
    let mut config = scheduler.config();
    let is_wrong =
        |(field, meant): &(&String, &Value)| config.get(field).is_some_and(|found| found != *meant);
    let overrides: Map<String, Value> =
        right.iter().filter(is_wrong).map(|(field, meant)| (field.clone(), meant.clone())).collect();
    if overrides.is_empty() {
        return Ok((scheduler, config));
    }
    let scheduler = scheduler_with_overrides(class_name, &given, &overrides)?;
    if let Value::Object(fields) = &mut config {
        fields.extend(overrides);
    }
    Ok((scheduler, config))
}

/// A scheduler of the class `class_name` with the settings of the folder's, which is a `folders_class`.
fn load_other_scheduler(
    repository: &Repository,
    folders_class: &str,
    right: &Map<String, Value>,
    class_name: &str,
    overrides: &Map<String, Value>,
) -> Result<(Box<dyn Scheduler>, Value)> {
    let config = match load_scheduler(repository, folders_class, right) {
        Ok((_, config)) => config,
        // All that another class needs of it is in the file.
        Err(Error::Scheduler(SchedulerError::UnknownClass { .. })) => load_with(repository, right)?,
        Err(error) => return Err(error),
    };
    let scheduler = scheduler_with_overrides(class_name, &config, overrides)?;
    let config = scheduler.config();
    Ok((scheduler, config))
}

/// The folder's config, with what it has of `right` as it is there: a field of the file, of whatever scheduler, needs no override, which must be
/// a field of the scheduler that is built.
fn load_with(repository: &Repository, right: &Map<String, Value>) -> Result<Value> {
    let mut given = load_scheduler_config(repository)?;
    for (field, meant) in right {
        if let Some(found) = given.get_mut(field) {
            *found = meant.clone();
        }
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: &str = "StableDiffusionPipeline";

    /// A folder with nothing but a scheduler's config.
    fn folder_with(config: Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("scheduler")).unwrap();
        std::fs::write(folder.path().join("scheduler/scheduler_config.json"), config.to_string()).unwrap();
        folder
    }

    #[test]
    fn a_setting_that_the_scheduler_does_not_know_is_put_right_too() {
        let folder = folder_with(json!({"clip_sample": true, "steps_offset": 0}));
        let repository = Repository::folder(folder.path()).unwrap();
        for class_name in ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"] {
            let (_, config) = load_scheduler(&repository, class_name, &put_right(CLASS)).unwrap();
            assert_eq!((&config["clip_sample"], &config["steps_offset"]), (&json!(false), &json!(1)));
        }
    }

    #[test]
    fn what_is_put_right_depends_on_the_pipeline() {
        let folder = folder_with(json!({"clip_sample": true, "skip_prk_steps": false}));
        let repository = Repository::folder(folder.path()).unwrap();
        let load = |pipeline: &str| {
            let (_, config) = load_scheduler(&repository, "PNDMScheduler", &put_right(pipeline)).unwrap();
            ["clip_sample", "skip_prk_steps", "steps_offset"].map(|field| config[field].clone())
        };
        assert_eq!(load("StableDiffusionPipeline"), [json!(false), json!(false), json!(1)]);
        assert_eq!(load("StableDiffusionImg2ImgPipeline"), [json!(false), json!(false), json!(1)]);
        assert_eq!(load("StableDiffusionInpaintPipeline"), [json!(true), json!(true), json!(1)]);
        for untouched in ["StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLPipeline"] {
            assert_eq!(load(untouched), [json!(true), json!(false), json!(0)]);
        }
    }

    #[test]
    fn an_unknown_scheduler_can_be_replaced() {
        let beta_end = json!(0.012);
        let folder = folder_with(json!({"beta_end": beta_end, "steps_offset": 0, "solver_type": "logrho"}));
        let repository = Repository::folder(folder.path()).unwrap();
        let replace = |class_name| {
            let overrides = Map::from_iter([("beta_start".to_string(), json!(0.001))]);
            load_other_scheduler(
                &repository,
                "DEISMultistepScheduler",
                &put_right(CLASS),
                class_name,
                &overrides,
            )
        };
        let (scheduler, config) = replace("EulerDiscreteScheduler").unwrap();
        assert_eq!(scheduler.class_name(), "EulerDiscreteScheduler");
        let found = ["beta_start", "beta_end", "steps_offset"].map(|field| &config[field]);
        assert_eq!(found, [&json!(0.001), &beta_end, &json!(1)]);
        assert!(load_scheduler(&repository, "DEISMultistepScheduler", &put_right(CLASS)).is_err());
        assert!(replace("DEISMultistepScheduler").is_err());
    }
}
