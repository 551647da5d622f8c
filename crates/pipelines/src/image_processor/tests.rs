use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder, Rgb};

use super::*;

/// A tag "Orientation" alone, as cameras write it.
fn exif(orientation: u8) -> Vec<u8> {
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    exif
}

#[test]
fn a_photograph_is_turned_as_its_camera_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photo.jpg");
    // White at the left, black at the right.
    let pixels: Vec<u8> = (0..16 * 48).flat_map(|i| [if i % 48 < 24 { 255 } else { 0 }; 3]).collect();
    for (orientation, size, white, black) in [
        (1, (48, 16), (4, 8), (43, 8)),
        (3, (48, 16), (43, 8), (4, 8)),
        (6, (16, 48), (8, 4), (8, 43)),
        (8, (16, 48), (8, 43), (8, 4)),
    ] {
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 100);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&pixels, 48, 16, ExtendedColorType::Rgb8).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let picture = load_picture(&path).unwrap();
        assert_eq!(picture.dimensions(), size, "{orientation}");
        let grey = |(x, y): (u32, u32)| picture.get_pixel(x, y).0[0];
        assert!(grey(white) > 250 && grey(black) < 5, "{orientation}: {} and {}", grey(white), grey(black));
    }
}

#[test]
fn pictures_become_tensors_and_pictures_again() {
    let picture = |seed: u32| RgbImage::from_fn(5, 3, |x, y| Rgb([(x * 50) as u8, (y * 80 + seed) as u8, 7]));
    let pictures = [picture(0), picture(9)];
    let tensor = from_pictures(&pictures).unwrap();
    assert_eq!(tensor.dims(), [2, 3, 3, 5]);
    assert_eq!(to_pictures(&tensor).unwrap(), pictures);
    assert_eq!(to_pictures(&denormalize(&normalize(&tensor).unwrap()).unwrap()).unwrap(), pictures);
    let problem = from_pictures(&[picture(0), RgbImage::new(5, 4)]).unwrap_err().to_string();
    assert_eq!(problem, "pictures: are 5x3 and 5x4, expected one size");
    assert_eq!(from_pictures(&[]).unwrap_err().to_string(), "pictures: are missing");
}
