//! How a run goes, for those who look at it later: log.jsonl, and TensorBoard's files.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use candle_diffusers_training::StepReport;
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};

use super::tensorboard::EventFile;
use super::{ReportTo, TrainArguments};

/// Where steps are written down.
pub(super) struct Report {
    log: File,
    events: Option<EventFile>,
}

impl Report {
    /// Begins after `step`, behind what was written of the steps until then.
    pub(super) fn open(arguments: &TrainArguments, folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("log.jsonl");
        let name = || format!("writing {}", path.display());
        let kept = if step == 0 { String::new() } else { until(&path, step).with_context(name)? };
        let mut log = File::create(&path).with_context(name)?;
        log.write_all(kept.as_bytes()).with_context(name)?;
        let events = match arguments.watch.report_to {
            ReportTo::None | ReportTo::Service => None,
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

/// The lines of a log until a step: a run that was killed has gone on after its last checkpoint, and may have written half a line.
fn until(path: &Path, step: u64) -> io::Result<String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let is_kept = |line: &&str| {
        let line: Option<Value> = serde_json::from_str(line).ok();
        line.and_then(|line| line["step"].as_u64()).is_some_and(|written| written <= step)
    };
    Ok(text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect())
}
