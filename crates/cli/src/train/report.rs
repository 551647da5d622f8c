//! How a run goes, for those who look at it later: log.jsonl, and TensorBoard's files.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use candle_diffusers_training::StepReport;
use image::{ImageFormat, RgbImage};
use serde_json::json;

use super::tensorboard::EventFile;
use super::{ReportTo, TrainArguments};

/// Where steps are written down.
pub(super) struct Report {
    log: File,
    events: Option<EventFile>,
}

impl Report {
    /// Begins after `step`: at the first anew, later behind what is there.
    pub(super) fn open(arguments: &TrainArguments, folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("log.jsonl");
        let is_new = step == 0;
        let mut options = OpenOptions::new();
        options.create(true).append(!is_new).truncate(is_new).write(true);
        let log = options.open(&path).with_context(|| format!("writing {}", path.display()))?;
        let events = match arguments.watch.report_to {
            ReportTo::None => None,
            ReportTo::Tensorboard => {
                Some(EventFile::create(&folder.join(&arguments.watch.logging_dir), step + 1)?)
            }
        };
        Ok(Self { log, events })
    }

    pub(super) fn step(&mut self, report: &StepReport, time: Duration) -> Result<()> {
        let (rate, seconds) = (report.learning_rates[0], time.as_secs_f64());
        let line = json!({
            "step": report.step, "loss": report.loss, "learning_rate": rate, "grad_norm": report.grad_norm,
            "seconds": seconds,
        });
        writeln!(self.log, "{line}").context("writing log.jsonl")?;
        let Some(events) = &mut self.events else { return Ok(()) };
        // Loss and learning rate are called as in diffusers' scripts.
        let mut scalars = vec![("loss", report.loss), ("lr", rate), ("seconds_per_step", seconds)];
        scalars.extend(report.grad_norm.map(|norm| ("grad_norm", f64::from(norm))));
        events.scalars(report.step, &scalars)
    }

    pub(super) fn validation(&mut self, step: u64, picture: &RgbImage) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let mut png = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png).context("writing a picture for TensorBoard")?;
        events.picture(step, "validation", picture.width(), picture.height(), png.into_inner())
    }
}
