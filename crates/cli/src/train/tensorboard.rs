//! Event files that TensorBoard opens: TFRecords of protobuf messages (tensorflow's `core/util/event.proto` and `core/framework/summary.proto`, of which this has what
//! it writes).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use crc::{CRC_32_ISCSI, Crc};
use prost::Message;

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A file that scalars and pictures are added to.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `folder`. What earlier files there have from `step` on is of a run that went another way: TensorBoard leaves it out.
    pub(super) fn create(folder: &Path, step: u64) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("writing {}", folder.display()))?;
        let name = format!("events.out.tfevents.{:.0}.{}.diffuse", seconds() * 1e6, process::id());
        let path = folder.join(name);
        let file = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
        let mut events = Self { path, file };
        events.add(0, Event { file_version: Some("brain.Event:2".to_string()), ..Default::default() })?;
        let session_log = Some(SessionLog { status: SESSION_START });
        events.add(step, Event { session_log, ..Default::default() })?;
        Ok(events)
    }

    /// Adds numbers by their names.
    pub(super) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let value = |(tag, number): &(&str, f64)| Value {
            tag: tag.to_string(),
            simple_value: Some(*number as f32),
            image: None,
        };
        let value = scalars.iter().map(value).collect();
        self.add(step, Event { summary: Some(Summary { value }), ..Default::default() })
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
        let image = Some(Image { height, width, colorspace: RGB, encoded_image_string: png });
        let value = vec![Value { tag: tag.to_string(), simple_value: None, image }];
        self.add(step, Event { summary: Some(Summary { value }), ..Default::default() })
    }

    /// Writes a record at once, so that TensorBoard sees it and a run that is killed has it.
    fn add(&mut self, step: u64, event: Event) -> Result<()> {
        let event = Event { wall_time: seconds(), step: step as i64, ..event }.encode_to_vec();
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file.write_all(&record).with_context(|| format!("writing {}", self.path.display()))
    }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The checksum of a TFRecord: CRC-32C, turned and shifted.
fn masked_crc(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

const SESSION_START: i32 = 1;
const RGB: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of a file, whose lengths and checksums must be right.
    fn records(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let (length_crc, rest) = rest.split_at(4);
            let (event, rest) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (event_crc, rest) = rest.split_at(4);
            assert_eq!(length_crc, masked_crc(length).to_le_bytes());
            assert_eq!(event_crc, masked_crc(event).to_le_bytes());
            events.push(Event::decode(event).unwrap());
            bytes = rest;
        }
        events
    }

    #[test]
    fn checksums_are_those_of_tensorflow() {
        // CRC-32C of nine digits is 0xe3069283 (RFC 3720); masked as tensorflow's crc32c::Mask.
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(&folder.path().join("logs"), 7).unwrap();
        events.scalars(8, &[("loss", 0.5), ("lr", 1e-4)]).unwrap();
        events.picture(8, "validation", 4, 2, vec![1, 2, 3]).unwrap();
        let name = events.path.file_name().unwrap().to_str().unwrap();
        assert!(name.contains("tfevents"), "TensorBoard looks for that: {name}");
        let records = records(&fs::read(&events.path).unwrap());
        let [version, start, scalars, picture] = &records[..] else { panic!("{records:?}") };
        assert_eq!(version.file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!((start.step, start.session_log.as_ref().unwrap().status), (7, 1));
        let values = &scalars.summary.as_ref().unwrap().value;
        assert_eq!((scalars.step, values[0].tag.as_str(), values[0].simple_value), (8, "loss", Some(0.5)));
        assert_eq!(values[1].simple_value, Some(1e-4));
        let image = picture.summary.as_ref().unwrap().value[0].image.as_ref().unwrap();
        assert_eq!((image.width, image.height, &image.encoded_image_string[..]), (4, 2, &[1, 2, 3][..]));
    }
}
