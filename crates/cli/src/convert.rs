use anyhow::Result;
use candle_diffusers_convert::{ConvertOptions, SchedulerChoice, WriteOptions, convert};

use crate::arguments::ConvertArguments;
use crate::progress::Progress;
use crate::{scheduler_names, terminal};

/// `diffuse convert`.
pub(crate) fn run(arguments: &ConvertArguments, progress: &Progress) -> Result<()> {
    let scheduler = arguments
        .scheduler
        .as_deref()
        .and_then(scheduler_names::resolve)
        .map(|(class_name, settings)| SchedulerChoice { class_name: class_name.to_string(), settings });
    let options = ConvertOptions {
        read: arguments.single_file.read_options(),
        scheduler,
        write: write_options(arguments),
        lora_format: arguments.lora_format.map(Into::into),
        embedding_format: arguments.embedding_format.map(Into::into),
        ..Default::default()
    };
    let shown = progress.bytes("converting");
    let report = convert(&arguments.source, &arguments.destination, &options, &|written| {
        shown.set_bytes(written.done, written.total);
    })?;
    drop(shown);
    for line in report.lines() {
        terminal::note(&line);
    }
    terminal::note(&format!("wrote {}", arguments.destination.display()));
    Ok(())
}

fn write_options(arguments: &ConvertArguments) -> WriteOptions {
    WriteOptions {
        dtype: arguments.dtype.dtype(),
        variant: arguments.variant.clone(),
        max_shard_size: Some(arguments.max_shard_size),
        overwrite: arguments.overwrite,
        sync: arguments.sync,
    }
}
