//! Where a loop stands, for schedulers that step by index.

use crate::error::{Error, Result};
use crate::variance_preserving::describe_timesteps;

/// The index of the next step: unknown until the first one, which may be in the middle (image-to-image).
#[derive(Clone, Debug, Default)]
pub(crate) struct StepPosition {
    step_index: Option<usize>,
    begin_index: Option<usize>,
}

impl StepPosition {
    pub(crate) fn set_begin_index(&mut self, begin_index: usize) {
        self.begin_index = Some(begin_index);
    }

    /// The index whose turn it is, which must be that of `timestep`.
    pub(crate) fn current(&mut self, class: &'static str, timesteps: &[f64], timestep: f64) -> Result<usize> {
        let index = match (self.step_index, self.begin_index) {
            (Some(index), _) | (None, Some(index)) => index,
            // A whole loop starts at the first timestep, also where the second one is equal.
            (None, None) if timesteps.first() == Some(&timestep) => 0,
            (None, None) => index_for_timestep(class, timesteps, timestep)?,
        };
        let expected = match timesteps.get(index) {
            Some(&expected) if expected as f32 == timestep as f32 => {
                self.step_index = Some(index);
                return Ok(index);
            }
            Some(expected) => {
                format!("it is the turn of timestep {expected}; call set_timesteps to start afresh")
            }
            None => format!("all {} timesteps are done; call set_timesteps to start afresh", timesteps.len()),
        };
        Err(Error::OutOfOrder { scheduler: class, timestep, expected })
    }

    /// Goes on to the step after `index`.
    pub(crate) fn advance_from(&mut self, index: usize) {
        self.step_index = Some(index + 1);
    }

    /// The indices whose noise level `add_noise` uses: where the loop stands once it was told where to begin, else those of
    /// the timesteps.
    pub(crate) fn noise_indices(
        &self,
        class: &'static str,
        schedule: &[f64],
        timesteps: &[f64],
    ) -> Result<Vec<usize>> {
        let standing = self.begin_index.map(|begin_index| self.step_index.unwrap_or(begin_index));
        let index = |timestep: &f64| match standing {
            Some(index) => Ok(index.min(schedule.len())),
            None => index_for_timestep(class, schedule, *timestep),
        };
        timesteps.iter().map(index).collect()
    }
}

/// The index of a timestep. Of two equal ones it is the second, so that a loop that starts there leaves out no sigma.
pub(crate) fn index_for_timestep(class: &'static str, schedule: &[f64], timestep: f64) -> Result<usize> {
    let same = |other: &f64| *other as f32 == timestep as f32;
    let mut found = schedule.iter().enumerate().filter(|(_, other)| same(other)).map(|(index, _)| index);
    match (found.next(), found.next()) {
        (Some(_), Some(second)) => Ok(second),
        (Some(first), None) => Ok(first),
        (None, _) => {
            let expected = describe_timesteps(schedule);
            Err(Error::UnknownTimestep { scheduler: class, timestep, expected })
        }
    }
}
