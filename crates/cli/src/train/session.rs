//! A run from its first step, or a checkpoint, to its last.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_diffusers_loaders::Repository;
use candle_diffusers_training::recipes::{CustomDiffusion, TrainedToken};
use candle_diffusers_training::{Checkpoint, Checkpoints, StepReport, TrainedLora, Trainer};

use super::data::Data;
use super::encode_ahead::encode_ahead;
use super::processes::Started;
use super::report::Report;
use super::taught::Taught;
use super::validation::Validation;
use super::{TrainArguments, result};
use crate::progress::{Progress, Shown};
use crate::terminal;

/// Whether an interrupt has asked the run to stop.
static STOP: AtomicBool = AtomicBool::new(false);

/// How often the validation prompt is painted where nothing is said.
const VALIDATION_STEPS: u64 = 100;

/// What a run makes, where that is not the models' own weights.
#[derive(Default)]
pub(super) struct Learned {
    pub(super) loras: Vec<TrainedLora>,
    pub(super) token: Option<TrainedToken>,
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
}

pub(super) struct Session<'a> {
    pub(super) arguments: &'a TrainArguments,
    progress: &'a Progress,
    started: &'a Started,
    checkpoints: Checkpoints,
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
        if !started.is_first() {
            // The average changes no step, and the first writes it.
            parts.trainer.ema = None;
        }
        Ok(Self { arguments, progress, started, checkpoints, parts })
    }

    /// Goes through the run, and writes what it has made.
    pub(super) fn run(&mut self, repository: Option<&Repository>) -> Result<()> {
        self.resume()?;
        self.started.check_same_beginning(&self.parts.trainer, &self.parts.data)?;
        if self.started.is_first() {
            self.write_settings()?;
        }
        self.train()?;
        if self.started.is_first() {
            result::write(self, repository)?;
        }
        Ok(())
    }

    /// What a checkpoint must have been made with: all that changes what is learned.
    fn settings(&self) -> Result<BTreeMap<String, String>> {
        let table = toml::Table::try_from(self.arguments)?;
        let mut settings: BTreeMap<String, String> =
            table.into_iter().map(|(name, value)| (name, value.to_string())).collect();
        settings.insert("recipe".to_string(), format!("{:?}", self.arguments.recipe));
        // Of all processes, as a step depends on nothing else of them: a run may go on with another number of them.
        let batch = self.arguments.steps.train_batch_size * self.started.processes.size();
        settings.insert("train_batch_size".to_string(), batch.to_string());
        // A run may be made longer where its learning rate does not depend on how long it is.
        if self.arguments.steps.lr_scheduler.starts_with("constant") {
            settings.remove("max_train_steps");
            settings.remove("num_train_epochs");
        }
        Ok(settings)
    }

    /// Goes on from the checkpoint that was named, if there is one.
    fn resume(&mut self) -> Result<()> {
        let Some(name) = &self.arguments.watch.resume_from_checkpoint else { return Ok(()) };
        let Some(folder) = self.checkpoints.find(name)? else {
            terminal::note("there is no checkpoint yet; beginning anew");
            return Ok(());
        };
        let shown = folder.display().to_string();
        let checkpoint = Checkpoint::read(&folder)?;
        self.parts.trainer.resume(&shown, checkpoint, &self.settings()?)?;
        terminal::note(&format!("going on from {shown}"));
        Ok(())
    }

    /// Writes the settings that the run ended up with, as --config reads them.
    fn write_settings(&self) -> Result<()> {
        let path = self.parts.folder.join("settings.toml");
        let text = toml::to_string(self.arguments)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Takes the steps that are left.
    fn train(&mut self) -> Result<()> {
        // Where no handler can be set, an interrupt ends the run, which goes on from its last checkpoint.
        ctrlc::set_handler(|| STOP.store(true, Ordering::SeqCst)).ok();
        let accumulated = self.arguments.steps.gradient_accumulation_steps as u64;
        let mut reader = self.parts.data.reader(self.parts.trainer.steps_done() * accumulated)?;
        let begun = self.parts.trainer.steps_done();
        let log = || Report::open(self.arguments, &self.parts.folder, begun);
        let mut log = self.started.is_first().then(log).transpose()?;
        let mut validation = Validation::open(&self.parts.folder, begun);
        let mut notes = self.started.notes(self.progress);
        encode_ahead(self.arguments, self.progress, &self.parts)?;
        let bar = self.progress.steps("training", self.parts.max_steps as usize);
        bar.set_done(self.parts.trainer.steps_done() as usize, self.parts.max_steps as usize);
        let started = Instant::now();
        while self.parts.trainer.steps_done() < self.parts.max_steps {
            // Anew after each look, for which the models are needed: it knows the captions' embeddings only.
            let taken = self.parts.trainer.steps_done() * accumulated;
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
                let report = self.parts.trainer.step(|generator| match reader.next() {
                    Ok(examples) => teacher(&examples, generator),
                    Err(error) => {
                        failure = Some(error);
                        Err(candle_diffusers_training::Error::ReadingEnded)
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
                let is_last = report.step == self.parts.max_steps;
                let stop = self.started.any(STOP.load(Ordering::SeqCst))?;
                let is_time = is_last || stop || report.step % self.arguments.watch.checkpointing_steps == 0;
                if is_time && self.started.is_first() {
                    self.write_checkpoint()?;
                }
                if stop && !is_last {
                    break Some(report.step);
                }
                if is_last || self.is_looked_at(report.step) {
                    break None;
                }
            };
            drop(teacher);
            if let Some(step) = stopped {
                bail!("interrupted after step {step}; --resume-from-checkpoint latest goes on");
            }
            if let Some(log) = &mut log {
                self.validate(&mut validation, log)?;
            }
        }
        let (share, seconds) = (reader.waiting() * 100.0, started.elapsed().as_secs_f64());
        self.progress.suspend(|| {
            terminal::note(&format!("trained for {seconds:.0} s, of which {share:.1}% waiting for pictures"));
        });
        Ok(())
    }

    fn with_last_checkpoint(&self, error: candle_diffusers_training::Error) -> anyhow::Error {
        let last = self.checkpoints.steps().ok().and_then(|steps| steps.last().copied());
        let is_loss = matches!(error, candle_diffusers_training::Error::LossNotFinite { .. });
        match last {
            Some(step) if is_loss => {
                let folder = self.checkpoints.path(step);
                anyhow::anyhow!("{error} (the last good one is {})", folder.display())
            }
            _ => error.into(),
        }
    }

    fn write_checkpoint(&self) -> Result<()> {
        let step = self.parts.trainer.steps_done();
        let taken = step * self.arguments.steps.gradient_accumulation_steps as u64;
        let checkpoint = self.parts.trainer.checkpoint(self.parts.data.position(taken), self.settings()?)?;
        self.checkpoints
            .write(step, &checkpoint, |folder| result::write_learned(folder, &self.parts.learned))?;
        Ok(())
    }

    /// Whether the validation prompt is painted after this step.
    fn is_looked_at(&self, step: u64) -> bool {
        let watch = &self.arguments.watch;
        let steps = match (watch.validation_steps, watch.validation_epochs) {
            (None, None) => Some(VALIDATION_STEPS),
            (steps, _) => steps,
        };
        let epochs =
            watch.validation_epochs.map(|epochs| epochs * self.parts.data.steps_per_epoch(self.arguments));
        let is_turn = |steps: Option<u64>| steps.is_some_and(|steps| step.is_multiple_of(steps));
        watch.validation_prompt.is_some() && (is_turn(steps) || is_turn(epochs))
    }

    /// Paints the validation prompt as the model is now.
    fn validate(&mut self, validation: &mut Validation, log: &mut Report) -> Result<()> {
        let Some(prompt) = &self.arguments.watch.validation_prompt else { return Ok(()) };
        let step = self.parts.trainer.steps_done();
        let _shown = self.progress.activity(format!("painting {prompt:?}"));
        let row = validation.paint(self.arguments, prompt, &mut self.parts.taught, step)?;
        log.validation(step, &row)
    }
}

fn show(bar: &Shown, report: &StepReport, total: u64) {
    bar.set_message(format!(
        "training: loss {:.4}, learning rate {:.1e}",
        report.loss, report.learning_rates[0]
    ));
    bar.set_done(report.step as usize, total as usize);
}
