//! Pictures as CLIP sees them: transformers' `CLIPImageProcessor`, with Pillow's resizing.

use candle_core::{Device, Tensor};
use candle_diffusers_loaders::Repository;
use image::RgbImage;
use serde_json::{Map, Value};

use super::{Filter, resize_with};
use crate::error::{Error, Result};

/// What is read of a config, or what is wrong with it.
type Read<T> = std::result::Result<T, String>;

/// No side is larger in a config: CLIPs see pictures of some hundred pixels.
const MAX_SIDE: u64 = 8192;

/// Resizes, crops and normalises pictures as a `preprocessor_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipImageProcessor {
    /// `size` and `resample`; `None` where `do_resize` is false.
    pub resize: Option<(TargetSize, Filter)>,
    /// Height and width of what is cut from the middle, with black around what is smaller; `None` where `do_center_crop` is false.
    pub crop: Option<(usize, usize)>,
    /// By how much the values from 0 to 255 are multiplied; `None` where `do_rescale` is false.
    pub rescale_factor: Option<f64>,
    /// Means and standard deviations of red, green and blue; `None` where `do_normalize` is false.
    pub normalize: Option<([f32; 3], [f32; 3])>,
}

/// To what size pictures are brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSize {
    /// The shorter side gets so many pixels, the other in proportion.
    ShortestEdge(usize),
    /// Height and width, whatever the proportion was.
    Exact(usize, usize),
}

impl Default for ClipImageProcessor {
    /// OpenAI CLIP's: 224 pixels, bicubic.
    fn default() -> Self {
        Self {
            resize: Some((TargetSize::ShortestEdge(224), Filter::Bicubic)),
            crop: Some((224, 224)),
            rescale_factor: Some(1.0 / 255.0),
            normalize: Some(([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.261_302_6, 0.275_777_1])),
        }
    }
}

impl ClipImageProcessor {
    /// Reads the `preprocessor_config.json` in `folder` (`feature_extractor`) of `repository`.
    ///
    /// # Errors
    /// When there is none, or a field of it cannot be used.
    pub fn load(repository: &Repository, folder: &str) -> Result<Self> {
        let path = format!("{folder}/preprocessor_config.json");
        let config: Value = repository.read_json(&path)?;
        Self::from_json(&config).map_err(|problem| Error::Folder { file: repository.display(&path), problem })
    }

    /// Reads the content of a `preprocessor_config.json`. Fields that are missing are as in the default; what says nothing of pictures is
    /// passed over.
    ///
    /// # Errors
    /// The field, what was found and what was expected.
    pub fn from_json(config: &Value) -> std::result::Result<Self, String> {
        let fields = config.as_object().ok_or("is not a JSON object")?;
        let default = Self::default();
        let is_done = |field| match fields.get(field) {
            None | Some(Value::Null) => Ok(true),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(wrong(fields, field, "true or false")),
        };
        let resize =
            is_done("do_resize")?.then(|| -> Read<_> { Ok((target_size(fields)?, filter(fields)?)) });
        let crop = is_done("do_center_crop")?.then(|| crop_size(fields));
        let rescale_factor = is_done("do_rescale")?.then(|| match fields.get("rescale_factor") {
            None | Some(Value::Null) => Ok(1.0 / 255.0),
            Some(value) => value.as_f64().ok_or_else(|| wrong(fields, "rescale_factor", "a number")),
        });
        let (mean, std) = default.normalize.unwrap_or_default();
        let normalize = is_done("do_normalize")?.then(|| -> Read<_> {
            let std = colours(fields, "image_std", std)?;
            if std.contains(&0.0) {
                return Err(wrong(fields, "image_std", "three numbers that are not 0"));
            }
            Ok((colours(fields, "image_mean", mean)?, std))
        });
        Ok(Self {
            resize: resize.transpose()?,
            crop: crop.transpose()?,
            rescale_factor: rescale_factor.transpose()?,
            normalize: normalize.transpose()?,
        })
    }

    /// `(pictures, 3, height, width)` of float32, on the CPU.
    ///
    /// # Errors
    /// When there are no pictures, one has no pixels, or they come out in different sizes.
    pub fn preprocess(&self, pictures: &[RgbImage]) -> Result<Tensor> {
        if pictures.is_empty() {
            return crate::error::argument("pictures", "are missing");
        }
        let tensors = pictures.iter().map(|picture| self.preprocess_one(picture));
        Ok(Tensor::cat(&tensors.collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn preprocess_one(&self, picture: &RgbImage) -> Result<Tensor> {
        let resized = match self.resize {
            Some((size, filter)) => {
                let (height, width) = size.of(picture);
                resize_with(filter, picture, width, height)?
            }
            None => picture.clone(),
        };
        let (old_height, old_width) = (resized.height() as usize, resized.width() as usize);
        let (height, width) = self.crop.unwrap_or((old_height, old_width));
        // Rounded down also where they are below 0: what is too small gets more black above and at the left.
        let top = (old_height as i64 - height as i64).div_euclid(2);
        let left = (old_width as i64 - width as i64).div_euclid(2);
        let pixel = |y: usize, x: usize, channel: usize| {
            let inside = |place: i64, side: u32| u32::try_from(place).ok().filter(|place| *place < side);
            let place =
                inside(x as i64 + left, resized.width()).zip(inside(y as i64 + top, resized.height()));
            place.map_or(0, |(x, y)| resized.get_pixel(x, y)[channel])
        };
        let mut values = Vec::with_capacity(3 * height * width);
        for channel in 0..3 {
            let value_of = self.values(channel);
            for y in 0..height {
                values.extend((0..width).map(|x| value_of[usize::from(pixel(y, x, channel))]));
            }
        }
        Ok(Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu)?)
    }

    /// What becomes of each of the 256 values.
    fn values(&self, channel: usize) -> Vec<f32> {
        let value = |byte: u8| {
            let scaled = match self.rescale_factor {
                Some(factor) => (f64::from(byte) * factor) as f32,
                None => f32::from(byte),
            };
            match self.normalize {
                Some((mean, std)) => (scaled - mean[channel]) / std[channel],
                None => scaled,
            }
        };
        (0..=u8::MAX).map(value).collect()
    }
}

impl TargetSize {
    /// Height and width.
    fn of(self, picture: &RgbImage) -> (u32, u32) {
        let (width, height) = picture.dimensions();
        match self {
            Self::Exact(height, width) => (height as u32, width as u32),
            Self::ShortestEdge(shorter) => {
                // Rounded down, from a division in double precision as Python does it.
                let long = |long: u32, short: u32| {
                    ((shorter as u64 * u64::from(long)) as f64 / f64::from(short)) as u32
                };
                match width <= height {
                    true => (long(height, width.max(1)), shorter as u32),
                    false => (shorter as u32, long(width, height.max(1))),
                }
            }
        }
    }
}

/// `size`: a number, as old files have it, or an object.
fn target_size(fields: &Map<String, Value>) -> Read<TargetSize> {
    let size = match fields.get("size") {
        None | Some(Value::Null) => return Ok(TargetSize::ShortestEdge(224)),
        Some(size) => size,
    };
    let of = |name: &str| size.get(name).and_then(side);
    let shortest = side(size).or(of("shortest_edge"));
    let exact = || Some(TargetSize::Exact(of("height")?, of("width")?));
    shortest.map(TargetSize::ShortestEdge).or_else(exact).ok_or_else(|| {
        wrong(fields, "size", "pixels of the shortest_edge, or height and width, from 1 to 8192")
    })
}

/// `crop_size`: a number, as old files have it, or an object.
fn crop_size(fields: &Map<String, Value>) -> Read<(usize, usize)> {
    let size = match fields.get("crop_size") {
        None | Some(Value::Null) => return Ok((224, 224)),
        Some(size) => size,
    };
    let of = |name: &str| size.get(name).and_then(side);
    let square = side(size).map(|side| (side, side));
    square
        .or_else(|| of("height").zip(of("width")))
        .ok_or_else(|| wrong(fields, "crop_size", "height and width in pixels, from 1 to 8192"))
}

fn side(value: &Value) -> Option<usize> {
    value.as_u64().filter(|side| (1..=MAX_SIDE).contains(side)).map(|side| side as usize)
}

/// `resample`, by Pillow's numbers.
fn filter(fields: &Map<String, Value>) -> Read<Filter> {
    match fields.get("resample") {
        None | Some(Value::Null) => Ok(Filter::Bicubic),
        Some(value) => match value.as_u64() {
            Some(1) => Ok(Filter::Lanczos),
            Some(2) => Ok(Filter::Bilinear),
            Some(3) => Ok(Filter::Bicubic),
            _ => Err(wrong(fields, "resample", "1 (Lanczos), 2 (bilinear) or 3 (bicubic)")),
        },
    }
}

fn colours(fields: &Map<String, Value>, field: &str, default: [f32; 3]) -> Read<[f32; 3]> {
    let values = match fields.get(field) {
        None | Some(Value::Null) => return Ok(default),
        Some(value) => value.as_array(),
    };
    let numbers: Option<Vec<f32>> = values
        .and_then(|values| values.iter().map(|value| value.as_f64().map(|number| number as f32)).collect());
    numbers
        .and_then(|numbers| <[f32; 3]>::try_from(numbers).ok())
        .filter(|numbers| numbers.iter().all(|number| number.is_finite()))
        .ok_or_else(|| wrong(fields, field, "three numbers, for red, green and blue"))
}

fn wrong(fields: &Map<String, Value>, field: &str, expected: &str) -> String {
    let found: String =
        fields.get(field).map(Value::to_string).unwrap_or_default().chars().take(80).collect();
    format!("field `{field}` is {found}, expected {expected}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_config_of_stable_diffusion_1_is_the_default() {
        let config = json!({
            "crop_size": 224, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true, "do_resize": true,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224
        });
        assert_eq!(ClipImageProcessor::from_json(&config), Ok(ClipImageProcessor::default()));
        assert_eq!(ClipImageProcessor::from_json(&json!({})), Ok(ClipImageProcessor::default()));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (config, expected) in [
            (json!({"size": {"longest_edge": 3}}), "field `size` is {\"longest_edge\":3}, expected pixels"),
            (json!({"size": 0}), "field `size` is 0, expected pixels"),
            (json!({"crop_size": 9000}), "field `crop_size` is 9000, expected height and width"),
            (json!({"resample": 0}), "field `resample` is 0, expected 1 (Lanczos)"),
            (json!({"image_mean": [0.5]}), "field `image_mean` is [0.5], expected three numbers"),
            (json!({"image_std": [1, 0, 1]}), "expected three numbers that are not 0"),
            (json!({"do_resize": "yes"}), "field `do_resize` is \"yes\", expected true or false"),
            (json!({"rescale_factor": []}), "field `rescale_factor` is [], expected a number"),
            (json!([]), "is not a JSON object"),
        ] {
            let problem = ClipImageProcessor::from_json(&config).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
        assert!(ClipImageProcessor::default().preprocess(&[]).is_err());
        assert!(ClipImageProcessor::default().preprocess(&[RgbImage::new(0, 4)]).is_err());
    }
}
