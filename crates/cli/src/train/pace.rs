//! How many batches steps take.

/// Batches of epochs and of steps. A step ends where its epoch does, with the batches that are left there, as accelerate has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// 1 or more.
    pub(super) batches_per_epoch: u64,
    /// 1 or more.
    pub(super) batches_per_step: u64,
}

impl Pace {
    /// Steps in which all pictures come once.
    pub(super) fn steps_per_epoch(self) -> u64 {
        self.batches_per_epoch.div_ceil(self.batches_per_step)
    }

    /// Batches that have come after so many steps.
    pub(super) fn batches_in(self, steps: u64) -> u64 {
        let (epochs, rest) = (steps / self.steps_per_epoch(), steps % self.steps_per_epoch());
        epochs.saturating_mul(self.batches_per_epoch).saturating_add(rest * self.batches_per_step)
    }

    /// Batches of the step after so many.
    pub(super) fn batches_after(self, steps: u64) -> usize {
        (self.batches_in(steps + 1) - self.batches_in(steps)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_of_an_epoch_takes_what_is_left() {
        let batches = |batches_per_epoch, batches_per_step| {
            let pace = Pace { batches_per_epoch, batches_per_step };
            (0..5).map(move |steps| pace.batches_after(steps)).collect::<Vec<_>>()
        };
        assert_eq!(batches(5, 2), [2, 2, 1, 2, 2]);
        assert_eq!(batches(4, 2), [2; 5]);
        assert_eq!(batches(3, 8), [3; 5]);
        assert_eq!(batches(3, u64::MAX), [3; 5]);
        assert_eq!(Pace { batches_per_epoch: 5, batches_per_step: 2 }.batches_in(7), 12);
    }
}
