//! A folder's scheduler, as diffusers builds it for Stable Diffusion.

use candle_diffusers_loaders::Repository;
use candle_diffusers_schedulers::{
    Error as SchedulerError, Scheduler, scheduler_from_other, scheduler_with_overrides,
};
use serde_json::{Map, Value, json};

use super::load::Family;
use crate::error::{Error, Result};
use crate::scheduler_config::load_scheduler_config;

/// The folder's scheduler and its config: of the class that model_index.json names, whatever class the config is of. For Stable Diffusion
/// 1 and 2 two settings are put right that diffusers puts right when it builds their pipelines: folders from 2022 lack them, and were
/// meant so.
///
/// The config still counts a setting that the folder lacks among those with default values: another scheduler made
/// from it has its own default, as in diffusers.
pub(super) fn load_scheduler(
    repository: &Repository,
    family: Family,
    class_name: &str,
) -> Result<(Box<dyn Scheduler>, Value)> {
    let mut given = load_scheduler_config(repository)?;
    if family == Family::Xl {
        let scheduler = scheduler_from_other(class_name, &given)?;
        let config = scheduler.config();
        return Ok((scheduler, config));
    }
    // A field of the file, of whatever scheduler, needs no override, which must be a field of this one.
    if given.get("clip_sample") == Some(&json!(true)) {
        given["clip_sample"] = json!(false);
    }
    let scheduler = scheduler_from_other(class_name, &given)?;
    let mut config = scheduler.config();
    let mut overrides = Map::new();
    if config.get("steps_offset").is_some_and(|offset| offset != &json!(1)) {
        overrides.insert("steps_offset".into(), json!(1));
    }
    if config.get("clip_sample") == Some(&json!(true)) {
        overrides.insert("clip_sample".into(), json!(false));
    }
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
pub(super) fn load_other_scheduler(
    repository: &Repository,
    family: Family,
    folders_class: &str,
    class_name: &str,
    overrides: &Map<String, Value>,
) -> Result<(Box<dyn Scheduler>, Value)> {
    let config = match load_scheduler(repository, family, folders_class) {
        Ok((_, config)) => config,
        // All that another class needs of it is in the file.
        Err(Error::Scheduler(SchedulerError::UnknownClass { .. })) => {
            let mut given = load_scheduler_config(repository)?;
            for (field, meant) in [("steps_offset", json!(1)), ("clip_sample", json!(false))] {
                if family == Family::Clip && given.get(field).is_some() {
                    given[field] = meant;
                }
            }
            given
        }
        Err(error) => return Err(error),
    };
    let scheduler = scheduler_with_overrides(class_name, &config, overrides)?;
    let config = scheduler.config();
    Ok((scheduler, config))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let (_, config) = load_scheduler(&repository, Family::Clip, class_name).unwrap();
            assert_eq!((&config["clip_sample"], &config["steps_offset"]), (&json!(false), &json!(1)));
        }
    }

    #[test]
    fn an_unknown_scheduler_can_be_replaced() {
        let beta_end = json!(0.012);
        let folder = folder_with(json!({"beta_end": beta_end, "steps_offset": 0, "solver_type": "logrho"}));
        let repository = Repository::folder(folder.path()).unwrap();
        let replace = |class_name| {
            let overrides = Map::from_iter([("beta_start".to_string(), json!(0.001))]);
            load_other_scheduler(&repository, Family::Clip, "DEISMultistepScheduler", class_name, &overrides)
        };
        let (scheduler, config) = replace("EulerDiscreteScheduler").unwrap();
        assert_eq!(scheduler.class_name(), "EulerDiscreteScheduler");
        let found = ["beta_start", "beta_end", "steps_offset"].map(|field| &config[field]);
        assert_eq!(found, [&json!(0.001), &beta_end, &json!(1)]);
        assert!(load_scheduler(&repository, Family::Clip, "DEISMultistepScheduler").is_err());
        assert!(replace("DEISMultistepScheduler").is_err());
    }
}
