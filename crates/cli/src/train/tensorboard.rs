//! Event files that TensorBoard opens, by the records and messages of tfrecord.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tfrecord::RecordWriter;
use tfrecord::protobuf::event::What;
use tfrecord::protobuf::session_log::SessionStatus;
use tfrecord::protobuf::summary::{Image, Value, value};
use tfrecord::protobuf::{Event, SessionLog, Summary};

/// tensorflow's number for a picture's channels.
const RGB: i32 = 3;

/// A file that scalars and pictures are added to.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    records: RecordWriter<Event, BufWriter<File>>,
}

impl EventFile {
    /// A new file in `folder`. What earlier files there have from `step` on is of a run that went another way: TensorBoard leaves it out.
    pub(super) fn create(folder: &Path, step: u64) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("writing {}", folder.display()))?;
        let name = format!("events.out.tfevents.{:.0}.{}.diffuse", seconds() * 1e6, process::id());
        let path = folder.join(name);
        let records = RecordWriter::create(&path).with_context(|| format!("writing {}", path.display()))?;
        let mut events = Self { path, records };
        events.add(0, What::FileVersion("brain.Event:2".to_string()))?;
        let start = SessionLog { status: SessionStatus::Start.into(), ..Default::default() };
        events.add(step, What::SessionLog(start))?;
        Ok(events)
    }

    /// Adds numbers by their names.
    pub(super) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let value = |(tag, number): &(&str, f64)| named(tag, value::Value::SimpleValue(*number as f32));
        self.add(step, What::Summary(Summary { value: scalars.iter().map(value).collect() }))
    }

    /// Adds a picture, as the bytes of a PNG.
    pub(super) fn picture(
        &mut self,
        step: u64,
        tag: &str,
        width: u32,
        height: u32,
        png: Vec<u8>,
    ) -> Result<()> {
        let (width, height) = (width as i32, height as i32);
        let image = Image { height, width, colorspace: RGB, encoded_image_string: png };
        self.add(step, What::Summary(Summary { value: vec![named(tag, value::Value::Image(image))] }))
    }

    /// Writes a record at once, so that TensorBoard sees it and a run that is killed has it.
    fn add(&mut self, step: u64, what: What) -> Result<()> {
        let event =
            Event { wall_time: seconds(), step: step as i64, source_metadata: None, what: Some(what) };
        let written = self.records.send(event).and_then(|()| self.records.flush());
        written.with_context(|| format!("writing {}", self.path.display()))
    }
}

fn named(tag: &str, value: value::Value) -> Value {
    Value { tag: tag.to_string(), value: Some(value), ..Default::default() }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use tfrecord::EventIter;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(&folder.path().join("logs"), 7).unwrap();
        events.scalars(8, &[("loss", 0.5), ("lr", 1e-4)]).unwrap();
        events.picture(8, "validation", 4, 2, vec![1, 2, 3]).unwrap();
        let name = events.path.file_name().unwrap().to_str().unwrap();
        assert!(name.contains("tfevents"), "TensorBoard looks for that: {name}");
        // While the file is still open; with the checksums.
        let records: Vec<(i64, What)> = EventIter::open(&events.path, Default::default())
            .unwrap()
            .map(|event| event.map(|event| (event.step, event.what.unwrap())).unwrap())
            .collect();
        let start = SessionLog { status: SessionStatus::Start.into(), ..Default::default() };
        let image = Image { height: 2, width: 4, colorspace: RGB, encoded_image_string: vec![1, 2, 3] };
        let summary = |value| What::Summary(Summary { value });
        assert_eq!(
            records,
            [
                (0, What::FileVersion("brain.Event:2".to_string())),
                (7, What::SessionLog(start)),
                (
                    8,
                    summary(vec![
                        named("loss", value::Value::SimpleValue(0.5)),
                        named("lr", value::Value::SimpleValue(1e-4))
                    ])
                ),
                (8, summary(vec![named("validation", value::Value::Image(image))])),
            ]
        );
    }
}
