use image::{Rgb, RgbImage};
use imageproc::edges;

use super::grey;
use crate::error::{Result, argument};

/// The edges of a picture, white on black, by Canny's method: what ControlNets for edges were trained with.
///
/// Edges are found where brightness, blurred a little, changes by `high` or more, and followed from there while it changes by `low` or more: by
/// Sobel's measure, in which the sharpest step from black to white is about 1000. 50 and 100 show most of a photograph's edges.
///
/// # Errors
/// When not 0 < `low` <= `high`, or the picture has no pixels.
pub fn canny(picture: &RgbImage, low: f32, high: f32) -> Result<RgbImage> {
    if !(low > 0.0 && low <= high && high.is_finite()) {
        let problem = format!("are {low} and {high}, expected more than 0, then as much or more");
        return argument("low, high", problem);
    }
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 {
        return argument("picture", "is 0 pixels wide or high");
    }
    let found = edges::canny(&grey(picture), low, high);
    Ok(RgbImage::from_fn(width, height, |x, y| Rgb([found.get_pixel(x, y).0[0]; 3])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_where_colours_meet() {
        let red = |x, y| (10..30).contains(&x) && (8..24).contains(&y);
        let picture =
            RgbImage::from_fn(40, 32, |x, y| if red(x, y) { Rgb([255, 0, 0]) } else { Rgb([0, 0, 90]) });
        let found = canny(&picture, 50.0, 100.0).unwrap();
        assert_eq!(found.dimensions(), picture.dimensions());
        let white = |x: u32, y: u32| found.get_pixel(x, y).0 == [255; 3];
        assert!(found.pixels().all(|pixel| pixel.0 == [0; 3] || pixel.0 == [255; 3]));
        for y in 10..22 {
            assert!((8..12).any(|x| white(x, y)) && (28..32).any(|x| white(x, y)), "row {y}");
            assert!(!(13..27).any(|x| white(x, y)) && !(0..8).any(|x| white(x, y)), "row {y}");
        }
        let fainter = canny(&picture, 50.0, 1000.0).unwrap();
        assert!(fainter.pixels().all(|pixel| pixel.0 == [0; 3]));
    }

    #[test]
    fn no_size_and_no_threshold_breaks_it() {
        let noise = |x: u32, y: u32| Rgb([(x * 97 + y * 31) as u8, (x * 13) as u8, (y * 57) as u8]);
        for (width, height) in [(1, 1), (1, 9), (2, 2), (3, 1), (3, 3), (4, 70)] {
            let picture = RgbImage::from_fn(width, height, noise);
            for (low, high) in [(f32::MIN_POSITIVE, f32::MIN_POSITIVE), (1.0, f32::MAX), (5.0, 50.0)] {
                assert_eq!(canny(&picture, low, high).unwrap().dimensions(), (width, height));
            }
        }
        let picture = RgbImage::new(4, 4);
        for (low, high) in
            [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (f32::NAN, 1.0), (1.0, f32::NAN), (1.0, f32::INFINITY)]
        {
            let problem = canny(&picture, low, high).unwrap_err().to_string();
            assert!(problem.starts_with("low, high: are"), "{problem}");
        }
        assert!(canny(&RgbImage::new(0, 4), 1.0, 2.0).is_err());
    }
}
