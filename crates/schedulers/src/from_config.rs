//! Building the right scheduler from a config.

use serde_json::{Map, Value};

use crate::ddim::DdimScheduler;
use crate::ddpm::DdpmScheduler;
use crate::dpm_solver_multistep::DpmSolverMultistepScheduler;
use crate::error::{Error, Result};
use crate::euler_ancestral_discrete::EulerAncestralDiscreteScheduler;
use crate::euler_discrete::EulerDiscreteScheduler;
use crate::pndm::PndmScheduler;
use crate::scheduler::Scheduler;

type Builder = fn(&Map<String, Value>, &Map<String, Value>) -> Result<Box<dyn Scheduler>>;

/// All schedulers, by diffusers' class name.
const SCHEDULERS: &[(&str, Builder)] = &[
    ("DDIMScheduler", |config, overrides| Ok(Box::new(DdimScheduler::read(config, overrides)?))),
    ("DDPMScheduler", |config, overrides| Ok(Box::new(DdpmScheduler::read(config, overrides)?))),
    ("PNDMScheduler", |config, overrides| Ok(Box::new(PndmScheduler::read(config, overrides)?))),
    ("DPMSolverMultistepScheduler", |config, overrides| {
        Ok(Box::new(DpmSolverMultistepScheduler::read(config, overrides)?))
    }),
    ("EulerDiscreteScheduler", |config, overrides| {
        Ok(Box::new(EulerDiscreteScheduler::read(config, overrides)?))
    }),
    ("EulerAncestralDiscreteScheduler", |config, overrides| {
        Ok(Box::new(EulerAncestralDiscreteScheduler::read(config, overrides)?))
    }),
];

/// The class names of all schedulers of this crate, as diffusers has them.
pub fn scheduler_class_names() -> impl Iterator<Item = &'static str> {
    SCHEDULERS.iter().map(|(name, _)| *name)
}

/// The scheduler that a `scheduler_config.json` describes, by its `_class_name`. Read the file's text with
/// [`config_from_json`](crate::config_from_json).
///
/// # Errors
/// If `_class_name` is missing or unknown, or a field has a bad value.
pub fn scheduler_from_config(config: &Value) -> Result<Box<dyn Scheduler>> {
    match config.get("_class_name") {
        Some(Value::String(class_name)) => scheduler_from_other(class_name, config),
        Some(other) => Err(Error::Config(format!(
            "`_class_name` is {other}; expected a class name such as \"DDIMScheduler\""
        ))),
        None => Err(Error::Config("no `_class_name`; expected one such as \"DDIMScheduler\"".into())),
    }
}

/// Another scheduler with the config of one: diffusers' `ClassName.from_config(scheduler.config)`.
///
/// Fields that the class has are taken over if they were given to the first scheduler, not if it only had them by default;
/// all others stay in the new one's [`config`](Scheduler::config), for a way back.
///
/// # Errors
/// If the class is unknown or a field has a bad value.
pub fn scheduler_from_other(class_name: &str, config: &Value) -> Result<Box<dyn Scheduler>> {
    scheduler_with_overrides(class_name, config, &Map::new())
}

/// As [`scheduler_from_other`], with some fields set anew: diffusers'
/// `ClassName.from_config(scheduler.config, use_karras_sigmas=True)`.
///
/// # Errors
/// If the class is unknown, has no such field, or a field has a bad value.
pub fn scheduler_with_overrides(
    class_name: &str,
    config: &Value,
    overrides: &Map<String, Value>,
) -> Result<Box<dyn Scheduler>> {
    let Value::Object(config) = config else {
        return Err(Error::Config(format!("expected a JSON object, found {config}")));
    };
    match SCHEDULERS.iter().find(|(name, _)| *name == class_name) {
        Some((_, build)) => build(config, overrides),
        None => {
            let known: Vec<&str> = scheduler_class_names().collect();
            Err(Error::UnknownClass { found: class_name.into(), known: known.join(", ") })
        }
    }
}
