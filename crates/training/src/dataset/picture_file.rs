//! Picture files: which there are, how large they are, and whether they are whole.

use std::path::Path;

use candle_diffusers_pipelines::load_picture;
use image::metadata::Orientation;
use image::{ImageDecoder, ImageReader, RgbImage};

use crate::error::{Error, Result};

/// Whether the name is that of a PNG, JPEG or WebP file.
pub(super) fn has_picture_name(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg" | "webp"))
}

/// Width and height of the picture, turned as its EXIF orientation says, without reading it whole.
pub(super) fn picture_size(path: &Path) -> Result<[u32; 2]> {
    let read = || -> image::ImageResult<[u32; 2]> {
        let mut decoder = ImageReader::open(path)?.with_guessed_format()?.into_decoder()?;
        let (width, height) = decoder.dimensions();
        Ok(match decoder.orientation()? {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => [height, width],
            _ => [width, height],
        })
    };
    read().map_err(|error| {
        let problem = match error {
            image::ImageError::IoError(error) => format!("cannot be read: {error}"),
            error => format!("is no PNG, JPEG or WebP picture that can be read: {error}"),
        };
        broken(path, problem)
    })
}

/// The picture, turned as its EXIF orientation says, in red, green and blue.
pub(super) fn read_picture(path: &Path) -> Result<RgbImage> {
    let picture = load_picture(path)?;
    if is_cut_off_jpeg(path)? {
        return Err(broken(path, "is a JPEG picture whose end is missing".to_string()));
    }
    Ok(picture)
}

/// Decoders fill up what is missing with grey, which nobody wants to train on.
fn is_cut_off_jpeg(path: &Path) -> Result<bool> {
    let bytes = std::fs::read(path).map_err(|error| broken(path, format!("cannot be read: {error}")))?;
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return Ok(false);
    }
    // The last start of a scan, which cannot be within one, and an end of the picture after it.
    let scan = bytes.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap_or(0);
    Ok(!bytes[scan..].windows(2).any(|pair| pair == [0xff, 0xd9]))
}

fn broken(path: &Path, problem: String) -> Error {
    Error::Picture { file: path.display().to_string(), problem }
}
