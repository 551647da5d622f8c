//! The names that users type for schedulers.

use serde_json::{Map, Value, json};

/// A name, diffusers' class, and the settings that the name stands for.
struct Entry {
    name: &'static str,
    class_name: &'static str,
    overrides: &'static [(&'static str, Setting)],
}

#[derive(Clone, Copy)]
enum Setting {
    Yes,
    Number(u32),
    Word(&'static str),
}

const KARRAS: (&str, Setting) = ("use_karras_sigmas", Setting::Yes);
const EXPONENTIAL: (&str, Setting) = ("use_exponential_sigmas", Setting::Yes);
const DPM_SOLVER: (&str, Setting) = ("algorithm_type", Setting::Word("dpmsolver"));
/// The only end that the first DPM-Solver takes.
const SIGMA_MIN: (&str, Setting) = ("final_sigmas_type", Setting::Word("sigma_min"));
const SDE: (&str, Setting) = ("algorithm_type", Setting::Word("sde-dpmsolver++"));

const fn entry(
    name: &'static str,
    class_name: &'static str,
    overrides: &'static [(&'static str, Setting)],
) -> Entry {
    Entry { name, class_name, overrides }
}

/// Settings that are not listed are the model's own, as diffusers' `from_config` has it. What AUTOMATIC1111's web UI calls these samplers
/// is mapped as in diffusers' documentation (api/schedulers/overview). `dpmpp-sde` is the stochastic DPM-Solver++ in its
/// multistep form, the same as `dpmpp-2m-sde`.
const ENTRIES: &[Entry] = &[
    entry("ddpm", "DDPMScheduler", &[]),
    entry("ddim", "DDIMScheduler", &[]),
    entry("pndm", "PNDMScheduler", &[]),
    entry("euler", "EulerDiscreteScheduler", &[]),
    entry("euler-karras", "EulerDiscreteScheduler", &[KARRAS]),
    entry("euler-exponential", "EulerDiscreteScheduler", &[EXPONENTIAL]),
    entry("euler-ancestral", "EulerAncestralDiscreteScheduler", &[]),
    entry("dpm", "DPMSolverMultistepScheduler", &[DPM_SOLVER, SIGMA_MIN]),
    entry("dpmpp-2m", "DPMSolverMultistepScheduler", &[]),
    entry("dpmpp-2m-karras", "DPMSolverMultistepScheduler", &[KARRAS]),
    entry("dpmpp-2m-exponential", "DPMSolverMultistepScheduler", &[EXPONENTIAL]),
    entry("dpmpp-2m-sde", "DPMSolverMultistepScheduler", &[SDE]),
    entry("dpmpp-2m-sde-karras", "DPMSolverMultistepScheduler", &[SDE, KARRAS]),
    entry("dpmpp-3m-sde", "DPMSolverMultistepScheduler", &[SDE, ("solver_order", Setting::Number(3))]),
    entry(
        "dpmpp-3m-sde-karras",
        "DPMSolverMultistepScheduler",
        &[SDE, ("solver_order", Setting::Number(3)), KARRAS],
    ),
    entry("dpmpp-sde", "DPMSolverMultistepScheduler", &[SDE]),
    entry("dpmpp-sde-karras", "DPMSolverMultistepScheduler", &[SDE, KARRAS]),
];

/// Every name.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().map(|entry| entry.name)
}

/// The class and settings that `name` stands for.
pub(crate) fn resolve(name: &str) -> Option<(&'static str, Map<String, Value>)> {
    let entry = ENTRIES.iter().find(|entry| entry.name == name)?;
    let value = |setting: Setting| match setting {
        Setting::Yes => json!(true),
        Setting::Number(number) => json!(number),
        Setting::Word(word) => json!(word),
    };
    let overrides = entry.overrides.iter().map(|&(field, setting)| (field.to_string(), value(setting)));
    Some((entry.class_name, overrides.collect()))
}

/// What AUTOMATIC1111's web UI calls a scheduler with this config, and its schedule type where that is not the plain one.
pub(crate) fn web_ui_names(config: &Value) -> (String, Option<&'static str>) {
    let word = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default();
    let is_set = |field: &str| config.get(field) == Some(&Value::Bool(true));
    let sampler = match word("_class_name") {
        "DDPMScheduler" => "DDPM".to_string(),
        "DDIMScheduler" => "DDIM".to_string(),
        "PNDMScheduler" => "PLMS".to_string(),
        "EulerDiscreteScheduler" => "Euler".to_string(),
        "EulerAncestralDiscreteScheduler" => "Euler a".to_string(),
        "DPMSolverMultistepScheduler" => {
            let algorithm = word("algorithm_type");
            let order = config.get("solver_order").and_then(Value::as_u64).unwrap_or(2);
            let generation = if algorithm.ends_with("++") { "DPM++" } else { "DPM" };
            let noise = if algorithm.starts_with("sde") { " SDE" } else { "" };
            format!("{generation} {order}M{noise}")
        }
        other => other.trim_end_matches("Scheduler").to_string(),
    };
    let schedule_type = [
        ("use_karras_sigmas", "Karras"),
        ("use_exponential_sigmas", "Exponential"),
        ("use_beta_sigmas", "Beta"),
        ("use_lu_lambdas", "Lu"),
    ];
    (sampler, schedule_type.iter().find(|(field, _)| is_set(field)).map(|(_, name)| *name))
}

#[cfg(test)]
mod tests {
    use candle_diffusers_schedulers::scheduler_from_other;

    use super::*;

    #[test]
    fn every_name_builds_a_scheduler() {
        let config =
            json!({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1});
        for name in names() {
            let (class_name, overrides) = resolve(name).unwrap();
            let mut config = config.clone();
            config.as_object_mut().unwrap().extend(overrides);
            let scheduler = scheduler_from_other(class_name, &config);
            assert!(scheduler.is_ok(), "{name}: {}", scheduler.err().unwrap());
        }
    }

    #[test]
    fn web_uis_names_follow_the_settings() {
        let (class_name, mut config) = resolve("dpmpp-2m-sde-karras").unwrap();
        config.insert("_class_name".into(), json!(class_name));
        assert_eq!(web_ui_names(&config.into()), ("DPM++ 2M SDE".to_string(), Some("Karras")));
        let config = json!({"_class_name": "EulerAncestralDiscreteScheduler"});
        assert_eq!(web_ui_names(&config), ("Euler a".to_string(), None));
    }
}
