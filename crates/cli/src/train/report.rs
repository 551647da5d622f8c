//! How a run goes, for those who look at it later: log.jsonl, and TensorBoard's files.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use candle_diffusers_training::{ParameterGroup, StepReport};
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};

use super::tensorboard::EventFile;
use super::{ReportTo, TrainArguments};

/// Where steps are written down.
pub(super) struct Report {
    log: File,
    events: Option<EventFile>,
    /// What is trained: a name for each group of parameters.
    groups: Vec<String>,
}

impl Report {
    /// Begins after `step`, behind what was written of the steps until then.
    pub(super) fn open(
        arguments: &TrainArguments,
        folder: &Path,
        step: u64,
        groups: &[ParameterGroup],
    ) -> Result<Self> {
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
        Ok(Self { log, events, groups: groups.iter().map(group_name).collect() })
    }

    pub(super) fn step(&mut self, report: &StepReport, time: Duration) -> Result<()> {
        let (rate, seconds) = (report.learning_rates[0], time.as_secs_f64());
        let mut line = json!({
            "step": report.step, "loss": report.loss, "learning_rate": rate, "grad_norm": report.grad_norm,
            "seconds": seconds,
        });
        let rates = || self.groups.iter().zip(&report.learning_rates);
        if self.groups.len() > 1 {
            line["learning_rates"] = rates().map(|(group, rate)| (group.as_str(), *rate)).collect();
        }
        // Loss and learning rate are called as in diffusers' scripts; the rate is that of the first group.
        let others: Vec<(String, f64)> =
            rates().skip(1).map(|(group, rate)| (format!("lr_{group}"), *rate)).collect();
        writeln!(self.log, "{line}").context("writing log.jsonl")?;
        let Some(events) = &mut self.events else { return Ok(()) };
        let mut scalars = vec![("loss", report.loss), ("lr", rate), ("seconds_per_step", seconds)];
        scalars.extend(report.grad_norm.map(|norm| ("grad_norm", f64::from(norm))));
        scalars.extend(others.iter().map(|(tag, rate)| (tag.as_str(), *rate)));
        events.scalars(report.step, &scalars)
    }

    pub(super) fn validation(&mut self, step: u64, picture: &RgbImage) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let mut png = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png).context("writing a picture for TensorBoard")?;
        events.picture(step, "validation", picture.width(), picture.height(), png.into_inner())
    }
}

/// What the parameters of a group are of, as their names begin: unet, text_encoder, text_encoder_2; or a new word.
fn group_name(group: &ParameterGroup) -> String {
    let name = group.parameters.first().map_or("", |parameter| parameter.name.as_str());
    let (component, parameter) = name.split_once('.').unwrap_or((name, ""));
    if parameter.starts_with("token_embedding.") { "word" } else { component }.to_string()
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
