//! Learning-rate schedules as diffusers' `optimization.py`: what the base learning rate is multiplied by at each step.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::parameters::check_not_negative;

/// The schedules, named as the flag `lr_scheduler` names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LrScheduleName {
    /// The same at every step.
    #[default]
    Constant,
    /// Rises linearly, then stays.
    ConstantWithWarmup,
    /// Rises and falls linearly.
    Linear,
    /// Rises linearly, falls as half a cosine.
    Cosine,
    /// Rises linearly, falls as half a cosine several times.
    CosineWithRestarts,
    /// Rises linearly, falls to `lr_end` as a power.
    Polynomial,
    /// By the rules in `step_rules`.
    PiecewiseConstant,
}

impl LrScheduleName {
    /// All of them, in diffusers' order.
    pub const ALL: [Self; 7] = [
        Self::Linear,
        Self::Cosine,
        Self::CosineWithRestarts,
        Self::Polynomial,
        Self::Constant,
        Self::ConstantWithWarmup,
        Self::PiecewiseConstant,
    ];

    /// The name as the flag has it, for instance `constant_with_warmup`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::CosineWithRestarts => "cosine_with_restarts",
            Self::Polynomial => "polynomial",
            Self::PiecewiseConstant => "piecewise_constant",
        }
    }
}

impl fmt::Display for LrScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LrScheduleName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name).ok_or_else(|| Error::Field {
            field: "lr_scheduler",
            found: name.to_string(),
            expected: format!("one of {}", Self::ALL.map(Self::as_str).join(", ")),
        })
    }
}

/// What the schedules need; each reads its own. The default is diffusers' default.
#[derive(Clone, Debug, PartialEq)]
pub struct LrScheduleOptions {
    /// Steps of the rise (`lr_warmup_steps`).
    pub num_warmup_steps: usize,
    /// Steps of the whole training.
    pub num_training_steps: usize,
    /// How often `cosine_with_restarts` falls (`lr_num_cycles`).
    pub num_cycles: usize,
    /// The exponent of `polynomial` (`lr_power`).
    pub power: f64,
    /// The learning rate at which `polynomial` ends.
    pub lr_end: f64,
    /// The base learning rate, which `polynomial` needs to reach `lr_end`.
    pub learning_rate: f64,
    /// The rules of `piecewise_constant`: `1:10,0.1:20,0.005` is 1 for steps below 10, 0.1 below 20, then 0.005.
    pub step_rules: String,
}

impl Default for LrScheduleOptions {
    fn default() -> Self {
        Self {
            num_warmup_steps: 0,
            num_training_steps: 0,
            num_cycles: 1,
            power: 1.0,
            lr_end: 1e-7,
            learning_rate: 1e-3,
            step_rules: String::new(),
        }
    }
}

/// A learning-rate schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct LrSchedule {
    name: LrScheduleName,
    options: LrScheduleOptions,
    /// Factors with the step at which each ends, ascending; the last has no end.
    rules: Vec<(Option<usize>, f64)>,
}

impl LrSchedule {
    /// # Errors
    /// If an option that the schedule reads is out of range.
    pub fn new(name: LrScheduleName, options: LrScheduleOptions) -> Result<Self> {
        if name == LrScheduleName::Polynomial {
            check_not_negative("lr_power", options.power)?;
            if options.learning_rate.partial_cmp(&options.lr_end) != Some(std::cmp::Ordering::Greater) {
                let expected = format!("less than the learning rate, which is {}", options.learning_rate);
                return Err(Error::Field { field: "lr_end", found: options.lr_end.to_string(), expected });
            }
        }
        let rules = match name {
            LrScheduleName::PiecewiseConstant => parse_rules(&options.step_rules)?,
            _ => Vec::new(),
        };
        Ok(Self { name, options, rules })
    }

    /// Its name.
    pub fn name(&self) -> LrScheduleName {
        self.name
    }

    /// What the base learning rates are multiplied by at `step`, counted from 0.
    pub fn factor(&self, step: usize) -> f64 {
        match self.name {
            LrScheduleName::Constant => return 1.0,
            LrScheduleName::PiecewiseConstant => return self.by_rules(step),
            _ => {}
        }
        let LrScheduleOptions { num_warmup_steps, num_training_steps, .. } = self.options;
        if step < num_warmup_steps {
            return step as f64 / num_warmup_steps.max(1) as f64;
        }
        let decay_steps = num_training_steps.saturating_sub(num_warmup_steps);
        let progress = (step - num_warmup_steps) as f64 / decay_steps.max(1) as f64;
        match self.name {
            LrScheduleName::Linear => {
                let left = num_training_steps as f64 - step as f64;
                (left / decay_steps.max(1) as f64).max(0.0)
            }
            LrScheduleName::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            LrScheduleName::CosineWithRestarts if progress >= 1.0 => 0.0,
            LrScheduleName::CosineWithRestarts => {
                let within = (self.options.num_cycles as f64 * progress) % 1.0;
                (0.5 * (1.0 + (PI * within).cos())).max(0.0)
            }
            LrScheduleName::Polynomial => self.polynomial(step, decay_steps),
            _ => 1.0,
        }
    }

    fn polynomial(&self, step: usize, decay_steps: usize) -> f64 {
        let LrScheduleOptions { num_warmup_steps, num_training_steps, power, lr_end, learning_rate, .. } =
            self.options;
        if step > num_training_steps || decay_steps == 0 {
            return lr_end / learning_rate;
        }
        let remaining = 1.0 - (step - num_warmup_steps) as f64 / decay_steps as f64;
        ((learning_rate - lr_end) * remaining.powf(power) + lr_end) / learning_rate
    }

    fn by_rules(&self, step: usize) -> f64 {
        let rule = self.rules.iter().find(|(end, _)| end.is_none_or(|end| step < end));
        rule.map_or(1.0, |(_, factor)| *factor)
    }
}

fn parse_rules(text: &str) -> Result<Vec<(Option<usize>, f64)>> {
    let wrong = || Error::Field {
        field: "lr_step_rules",
        found: format!("{text:?}"),
        expected: "factors with the steps at which they end and a last factor, as 1:10,0.1:20,0.005"
            .to_string(),
    };
    let factor = |word: &str| match word.trim().parse::<f64>() {
        Ok(factor) if factor.is_finite() && factor >= 0.0 => Ok(factor),
        _ => Err(wrong()),
    };
    let (before, last) = text.rsplit_once(',').map_or((None, text), |(before, last)| (Some(before), last));
    let mut rules = Vec::new();
    for rule in before.iter().flat_map(|before| before.split(',')) {
        let (value, end) = rule.split_once(':').ok_or_else(wrong)?;
        rules.push((Some(end.trim().parse().map_err(|_| wrong())?), factor(value)?));
    }
    rules.sort_by_key(|(end, _)| *end);
    rules.push((None, factor(last)?));
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_wrong_ones_list_all() {
        for name in LrScheduleName::ALL {
            assert_eq!(name.to_string().parse::<LrScheduleName>().unwrap(), name);
        }
        let error = "cosin".parse::<LrScheduleName>().unwrap_err().to_string();
        assert_eq!(
            error,
            "lr_scheduler is cosin; expected one of linear, cosine, cosine_with_restarts, polynomial, constant, \
             constant_with_warmup, piecewise_constant"
        );
    }

    #[test]
    fn wrong_options_are_refused() {
        for rules in ["", "1:10", "1:x,2", "1,2", "nan", "-1"] {
            let options = LrScheduleOptions { step_rules: rules.to_string(), ..Default::default() };
            let error = LrSchedule::new(LrScheduleName::PiecewiseConstant, options).unwrap_err();
            assert!(error.to_string().starts_with("lr_step_rules is"), "{error}");
        }
        for lr_end in [1e-3, f64::NAN] {
            let options = LrScheduleOptions { lr_end, ..Default::default() };
            assert!(LrSchedule::new(LrScheduleName::Polynomial, options).is_err());
        }
    }

    #[test]
    fn no_step_makes_a_number_that_is_none() {
        let options = [(0, 0), (5, 5), (9, 5), (0, 7)].map(|(num_warmup_steps, num_training_steps)| {
            LrScheduleOptions {
                num_warmup_steps,
                num_training_steps,
                num_cycles: 0,
                step_rules: "1".into(),
                ..Default::default()
            }
        });
        for options in options {
            for name in LrScheduleName::ALL {
                let schedule = LrSchedule::new(name, options.clone()).unwrap();
                assert!(
                    (0..20).all(|step| (0.0..=1.0).contains(&schedule.factor(step))),
                    "{name} {options:?}"
                );
            }
        }
    }
}
