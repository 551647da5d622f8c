//! A run from its first step, or a checkpoint, to its last.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use candle_diffusers_loaders::Repository;
use candle_diffusers_training::dataset::Position;
use candle_diffusers_training::recipes::{CustomDiffusion, TrainedToken};
use candle_diffusers_training::{Checkpoint, Checkpoints, Error, StepReport, TrainedLora, Trainer};

use super::beginning::find;
use super::data::Data;
use super::encode_ahead::encode_ahead;
use super::processes::Started;
use super::report::Report;
use super::taught::Taught;
use super::validation::Validation;
use super::{TrainArguments, interrupt, result, settings};
use crate::progress::{Progress, Shown};
use crate::terminal;

/// How often the validation prompt is painted where nothing is said.
const VALIDATION_STEPS: u64 = 100;

/// What a run makes, where that is not the models' own weights.
#[derive(Default)]
pub(super) struct Learned {
    pub(super) loras: Vec<TrainedLora>,
    pub(super) tokens: Vec<TrainedToken>,
    pub(super) custom: Option<CustomDiffusion>,
}

/// What a run is made of.
pub(super) struct Parts {
    /// Where all goes.
    pub(super) folder: PathBuf,
    pub(super) taught: Taught,
    pub(super) learned: Learned,
    pub(super) trainer: Trainer,
    pub(super) data: Data,
    pub(super) max_steps: u64,
    pub(super) stage: Stage,
}

/// Which part of a recipe a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Only,
    /// Pivotal tuning: the word, in a folder of its own.
    Word,
    /// The LoRA that comes then.
    Lora,
}

impl Stage {
    /// Where all of it goes.
    pub(super) fn folder(self, arguments: &TrainArguments) -> PathBuf {
        match self {
            Self::Word => arguments.output_dir.join("inversion"),
            Self::Only | Self::Lora => arguments.output_dir.clone(),
        }
    }
}

pub(super) struct Session<'a> {
    pub(super) arguments: &'a TrainArguments,
    pub(super) progress: &'a Progress,
    started: &'a Started,
    checkpoints: Checkpoints,
    /// What its pictures are known by.
    pictures: BTreeMap<String, String>,
    pub(super) parts: Parts,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        arguments: &'a TrainArguments,
        progress: &'a Progress,
        started: &'a Started,
        mut parts: Parts,
    ) -> Result<Self> {
        let limit = arguments.watch.checkpoints_total_limit;
        let checkpoints = started.first_before_others(|| Ok(Checkpoints::new(&parts.folder, limit)?))?;
        parts.trainer.share_batches(started.processes.clone(), parts.data.kinds());
        if !started.is_first() && parts.stage != Stage::Word {
            // The average changes no step, and the first writes it; but a LoRA goes on from a word's.
            parts.trainer.ema = None;
        }
        // Once, as a run does not look again at which pictures there are.
        let pictures = parts.data.known_by();
        Ok(Self { arguments, progress, started, checkpoints, pictures, parts })
    }

    /// Goes through the run, and writes what it has made.
    pub(super) fn run(&mut self, repository: Option<&Repository>) -> Result<()> {
        self.resume()?;
        self.started.check_same_beginning(&self.parts.trainer, &self.pictures)?;
        if self.started.is_first() {
            self.tell_of_earlier_checkpoints()?;
            self.write_settings()?;
        }
        self.train()?;
        if let Some(ema) = &self.parts.trainer.ema {
            ema.copy_to(&self.parts.trainer.groups)?;
        }
        if self.started.is_first() {
            self.check_weights()?;
            result::write(self, repository)?;
        }
        Ok(())
    }

    /// What a checkpoint must have been made with.
    fn settings(&self) -> Result<BTreeMap<String, String>> {
        let Parts { data, stage, .. } = &self.parts;
        settings::settings(self.arguments, self.started, data, *stage, self.pictures.clone())
    }

    /// Goes on from the checkpoint that was named, if there is one.
    fn resume(&mut self) -> Result<()> {
        let Some(folder) = find(self.arguments, &self.checkpoints, self.parts.stage)? else {
            if self.arguments.watch.resume_from_checkpoint.is_some() {
                terminal::note("there is no checkpoint yet; beginning anew");
            }
            return Ok(());
        };
        let shown = folder.display().to_string();
        let mut checkpoint = Checkpoint::read(&folder)?;
        let settings = self.settings()?;
        settings::assume_defaults(self.arguments, &mut checkpoint, &settings)?;
        let position = self.parts.trainer.resume(&shown, checkpoint, &settings)?;
        if position != self.position() {
            terminal::note(&format!(
                "warning: other batches had come before {shown} than come before it now; the run goes on, but not as one that never stopped"
            ));
        }
        terminal::note(&format!("going on from {shown}"));
        let (step, last) = (self.parts.trainer.steps_done(), self.parts.max_steps);
        // The word's run is at its end wherever the LoRA's goes on.
        if step >= last && self.parts.stage != Stage::Word {
            terminal::note(&format!(
                "{shown} is already at step {step}, and the run ends at step {last}: nothing more is learned; give a larger --max-train-steps to go on"
            ));
        }
        Ok(())
    }

    /// Says of an earlier run's checkpoints in the folder of one that begins what they are in the way of. With a limit they go as this one writes its own.
    fn tell_of_earlier_checkpoints(&self) -> Result<()> {
        if self.parts.trainer.steps_done() > 0 || self.arguments.watch.checkpoints_total_limit.is_some() {
            return Ok(());
        }
        let steps = self.checkpoints.steps()?;
        let Some(newest) = steps.last() else { return Ok(()) };
        let names: Vec<String> = steps.iter().map(|step| format!("checkpoint-{step}")).collect();
        terminal::note(&format!(
            "{} has checkpoints of an earlier run, {}; --resume-from-checkpoint latest takes the newest step, which is checkpoint-{newest} until this run has come further: remove them, or give another --output-dir",
            self.parts.folder.display(),
            names.join(", ")
        ));
        Ok(())
    }

    /// Writes the settings that the run ended up with, as --config reads them.
    fn write_settings(&self) -> Result<()> {
        let folder = &self.parts.folder;
        fs::create_dir_all(folder).with_context(|| format!("writing {}", folder.display()))?;
        let path = folder.join("settings.toml");
        let mut table = settings::resolved(self.arguments, &self.parts.data, self.parts.stage)?;
        table.extend(toml::Table::try_from(&self.arguments.watch)?);
        if let Some(folder) = &self.arguments.pictures.encoder_cache_dir {
            table.insert("encoder_cache_dir".to_string(), folder.display().to_string().into());
        }
        let text = format!("# diffuse train {}\n{table}", self.arguments.recipe.name());
        let write = || -> std::io::Result<()> {
            let mut builder = tempfile::Builder::new();
            builder.prefix(result::PARTIAL);
            // As any file that a program makes: others may read it where the user's mask lets them.
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
            let mut file = builder.tempfile_in(folder)?;
            file.write_all(text.as_bytes())?;
            file.persist(&path)?;
            Ok(())
        };
        write().with_context(|| format!("writing {}", path.display()))
    }

    /// Takes the steps that are left.
    fn train(&mut self) -> Result<()> {
        interrupt::listen();
        let pace = self.parts.data.pace(self.arguments);
        let begun = self.parts.trainer.steps_done();
        let log = || Report::open(self.arguments, &self.parts.folder, begun, &self.parts.trainer.groups);
        let mut log = self.started.is_first().then(log).transpose()?;
        let mut validation = Validation::open(&self.parts.folder, begun);
        let mut notes = self.started.notes(self.progress);
        encode_ahead(self.arguments, self.progress, &self.parts)?;
        let mut reader = self.parts.data.reader(pace.batches_in(begun))?;
        let bar = self.progress.steps("training", self.parts.max_steps as usize);
        bar.begin_at(self.parts.trainer.steps_done() as usize, self.parts.max_steps as usize);
        let mut spent = Duration::ZERO;
        while self.parts.trainer.steps_done() < self.parts.max_steps {
            // Anew after each look, for which the models are needed: it knows the captions' embeddings only.
            let taken = pace.batches_in(self.parts.trainer.steps_done());
            let batch = self.arguments.steps.train_batch_size * self.started.processes.size();
            let teacher = self.parts.taught.teacher(taken * batch as u64)?;
            let stopped = loop {
                let step = self.parts.trainer.steps_done();
                let share = self.parts.trainer.batch_share();
                self.parts.learned.loras.iter().for_each(|lora| {
                    lora.begin_step(self.arguments.steps.seed ^ step.wrapping_mul(0x9e37_79b9), share)
                });
                let start = Instant::now();
                let mut failure = None;
                let report =
                    self.parts.trainer.step_of(pace.batches_after(step), |generator| match reader.next() {
                        Ok(examples) => teacher(&examples, generator),
                        Err(error) => {
                            failure = Some(error);
                            Err(Error::ReadingEnded)
                        }
                    });
                if let Some(error) = failure {
                    return Err(error);
                }
                let report = report.map_err(|error| self.with_last_checkpoint(error))?;
                show(&bar, &report, self.parts.max_steps);
                notes.step(&report, self.parts.max_steps);
                if let Some(log) = &mut log {
                    log.step(&report, start.elapsed())?;
                }
                spent += start.elapsed();
                let is_last = report.step == self.parts.max_steps;
                let stopped = self.started.any(interrupt::has_come())?;
                if is_last || stopped || self.is_kept(report.step) {
                    self.write_checkpoint()?;
                }
                if is_last || stopped || self.is_looked_at(report.step) {
                    break stopped;
                }
            };
            drop(teacher);
            if !stopped && let Some(log) = &mut log {
                self.validate(&mut validation, log)?;
            }
            self.end_if_interrupted(stopped)?;
        }
        let (waited, seconds) = (reader.waited().as_secs_f64(), spent.as_secs_f64());
        let share = if spent.is_zero() { 0.0 } else { waited / seconds * 100.0 };
        self.progress.suspend(|| {
            terminal::note(&format!("trained for {seconds:.0} s, of which {share:.1}% waiting for pictures"));
        });
        Ok(())
    }

    /// Fails where the weights are of no use, before anything is written that looks as if they were.
    fn check_weights(&self) -> Result<()> {
        self.parts.trainer.check_usable().map_err(|error| self.with_last_checkpoint(error))
    }

    fn with_last_checkpoint(&self, error: Error) -> anyhow::Error {
        let ruined = match error {
            // The weights after the step before gave this loss; those after the one before that gave a number.
            Error::LossNotFinite { step, .. } => step.saturating_sub(1),
            Error::UnusableParameter { step, .. } => step,
            _ => return error.into(),
        };
        let mut steps = self.checkpoints.steps().unwrap_or_default();
        steps.retain(|step| *step < ruined);
        match steps.last() {
            Some(step) => {
                let folder = self.checkpoints.path(*step);
                anyhow::anyhow!("{error} (the last good checkpoint is {})", folder.display())
            }
            None => error.into(),
        }
    }

    /// Ends the run where an interrupt has come before the last step; with a checkpoint of the step that was taken, which there is if `stopped`. Painting takes long, so that one
    /// may have come since the step.
    fn end_if_interrupted(&self, stopped: bool) -> Result<()> {
        let step = self.parts.trainer.steps_done();
        if step == self.parts.max_steps || !(stopped || self.started.any(interrupt::has_come())?) {
            return Ok(());
        }
        if !stopped && !self.is_kept(step) {
            self.write_checkpoint()?;
        }
        bail!("interrupted after step {step}; --resume-from-checkpoint latest goes on");
    }

    /// Whether there is a checkpoint of this step in any case.
    fn is_kept(&self, step: u64) -> bool {
        step.is_multiple_of(self.arguments.watch.checkpointing_steps)
    }

    /// Where the next step begins in the pictures.
    fn position(&self) -> Position {
        let steps = self.parts.trainer.steps_done();
        self.parts.data.position(self.parts.data.pace(self.arguments).batches_in(steps))
    }

    /// Writes a checkpoint, in the first process.
    fn write_checkpoint(&self) -> Result<()> {
        if !self.started.is_first() {
            return Ok(());
        }
        self.check_weights()?;
        let step = self.parts.trainer.steps_done();
        let checkpoint = self.parts.trainer.checkpoint(self.position(), self.settings()?)?;
        self.checkpoints
            .write(step, &checkpoint, |folder| result::write_learned(folder, &self.parts.learned))?;
        Ok(())
    }

    /// Whether pictures are painted after this step.
    fn is_looked_at(&self, step: u64) -> bool {
        let watch = &self.arguments.watch;
        let steps = match (watch.validation_steps, watch.validation_epochs) {
            (None, None) => Some(VALIDATION_STEPS),
            (steps, _) => steps,
        };
        let epochs = watch
            .validation_epochs
            .map(|epochs| epochs.saturating_mul(self.parts.data.pace(self.arguments).steps_per_epoch()));
        let is_turn = |steps: Option<u64>| steps.is_some_and(|steps| step.is_multiple_of(steps));
        self.arguments.is_looked_at() && (is_turn(steps) || is_turn(epochs))
    }

    /// Paints as the model is now, with its average where there is one; nothing where an interrupt comes.
    fn validate(&mut self, validation: &mut Validation, log: &mut Report) -> Result<()> {
        if !self.arguments.is_looked_at() {
            return Ok(());
        }
        let Parts { trainer, taught, learned, .. } = &mut self.parts;
        let step = trainer.steps_done();
        // The pictures are of what has been learned, without dropout.
        learned.loras.iter().for_each(TrainedLora::end_step);
        let _shown = self.progress.activity("painting to see how the model changes");
        if let Some(ema) = &mut trainer.ema {
            ema.store(&trainer.groups)?;
            ema.copy_to(&trainer.groups)?;
        }
        let row = validation.paint(self.arguments, taught, step);
        if let Some(ema) = &mut trainer.ema {
            ema.restore(&trainer.groups)?;
        }
        match row? {
            Some(row) => log.validation(step, &row),
            None => Ok(()),
        }
    }
}

fn show(bar: &Shown, report: &StepReport, total: u64) {
    bar.set_message(format!(
        "training: loss {:.4}, learning rate {:.1e}",
        report.loss, report.learning_rates[0]
    ));
    bar.set_done(report.step as usize, total as usize);
}
