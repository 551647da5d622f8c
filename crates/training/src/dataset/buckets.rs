//! Aspect-ratio buckets: sizes of about one area for pictures of different shapes, after kohya's sd-scripts.

use crate::error::{Error, Result};

/// Which sizes pictures are cut to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Buckets {
    /// Sizes of about the resolution's area, as kohya's scripts make them.
    OfArea(BucketOptions),
    /// These widths and heights (diffusers' `aspect_ratio_buckets`).
    Sizes(Vec<[u32; 2]>),
}

impl Buckets {
    /// Checks them, and makes those that are made.
    ///
    /// # Errors
    /// Those of [`bucket_sizes`], and where a side is no multiple of 8 or there are no sizes.
    pub(super) fn sizes(&self, resolution: u32) -> Result<Vec<[u32; 2]>> {
        let sizes = match self {
            Self::OfArea(options) => return bucket_sizes(resolution, options),
            Self::Sizes(sizes) => sizes,
        };
        let is_wrong = |&&[width, height]: &&[u32; 2]| {
            width == 0 || height == 0 || !width.is_multiple_of(8) || !height.is_multiple_of(8)
        };
        let found = match (sizes.is_empty(), sizes.iter().find(is_wrong)) {
            (true, _) => "empty".to_string(),
            (false, Some([width, height])) => format!("{width}x{height} (width and height)"),
            (false, None) => return Ok(sizes.clone()),
        };
        let expected = "sizes whose sides are multiples of 8".to_string();
        Err(Error::Field { field: "aspect_ratio_buckets", found, expected })
    }

    /// The size for a picture of `size`, of those that [`sizes`](Self::sizes) gave.
    pub(super) fn choose(&self, sizes: &[[u32; 2]], size: [u32; 2]) -> [u32; 2] {
        match self {
            Self::OfArea(_) => nearest(sizes, size),
            Self::Sizes(_) => nearest_listed(sizes, size),
        }
    }
}

/// Which sizes there are; the default is that of kohya's scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketOptions {
    /// The shortest side (`min_bucket_reso`).
    pub min_size: u32,
    /// The longest side (`max_bucket_reso`).
    pub max_size: u32,
    /// Sides are multiples of this (`bucket_reso_steps`).
    pub step: u32,
}

impl Default for BucketOptions {
    fn default() -> Self {
        Self { min_size: 256, max_size: 1024, step: 64 }
    }
}

/// The widths and heights, ascending: for each width the largest height with which the area is at most that of the resolution's square, and both
/// turned round (`make_bucket_resolutions`).
///
/// # Errors
/// If the step is no multiple of 8, or the sizes leave nothing between them.
pub fn bucket_sizes(resolution: u32, options: &BucketOptions) -> Result<Vec<[u32; 2]>> {
    let BucketOptions { min_size, max_size, step } = *options;
    let wrong = |field, found: u32, expected: &str| {
        Err(Error::Field { field, found: found.to_string(), expected: expected.to_string() })
    };
    if step == 0 || !step.is_multiple_of(8) {
        return wrong("bucket_reso_steps", step, "a multiple of 8");
    }
    if min_size == 0 || !min_size.is_multiple_of(step) || min_size > resolution {
        return wrong("min_bucket_reso", min_size, "a multiple of bucket_reso_steps, at most the resolution");
    }
    if max_size < resolution || !max_size.is_multiple_of(step) {
        return wrong(
            "max_bucket_reso",
            max_size,
            "a multiple of bucket_reso_steps, at least the resolution",
        );
    }
    let area = u64::from(resolution) * u64::from(resolution);
    let square = resolution / step * step;
    let mut sizes = vec![[square, square]];
    for width in (min_size..=max_size).step_by(step as usize) {
        let height = (area / u64::from(width)).min(u64::from(max_size)) as u32 / step * step;
        if height >= min_size {
            sizes.extend([[width, height], [height, width]]);
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    Ok(sizes)
}

/// The size whose shape is nearest to that of a picture of `size`, as diffusers' `find_nearest_bucket` has it: the last of several.
fn nearest_listed(sizes: &[[u32; 2]], [width, height]: [u32; 2]) -> [u32; 2] {
    let distance = |[bucket_width, bucket_height]: [u32; 2]| {
        (i64::from(height) * i64::from(bucket_width) - i64::from(width) * i64::from(bucket_height)).abs()
    };
    let nearest = sizes.iter().rev().min_by_key(|&&size| distance(size));
    nearest.copied().unwrap_or([width, height])
}

/// The size whose shape is nearest to that of a picture of `size`.
fn nearest(sizes: &[[u32; 2]], size: [u32; 2]) -> [u32; 2] {
    if sizes.contains(&size) {
        return size;
    }
    let ratio = |[width, height]: [u32; 2]| f64::from(width) / f64::from(height.max(1));
    let distance = |candidate: &&[u32; 2]| (ratio(**candidate) - ratio(size)).abs();
    let nearest = sizes.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    nearest.copied().unwrap_or(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_kohyas() {
        // What make_bucket_resolutions((512, 512)) of kohya's sd-scripts returns.
        let wide =
            [[576, 448], [640, 384], [704, 320], [768, 320], [832, 256], [896, 256], [960, 256], [1024, 256]];
        let mut expected: Vec<[u32; 2]> = wide.iter().flat_map(|&[a, b]| [[a, b], [b, a]]).collect();
        expected.push([512, 512]);
        expected.sort_unstable();
        assert_eq!(bucket_sizes(512, &BucketOptions::default()).unwrap(), expected);
    }

    #[test]
    fn pictures_keep_about_their_shape() {
        let sizes = bucket_sizes(512, &BucketOptions::default()).unwrap();
        for (size, expected) in [
            ([1000, 1000], [512, 512]),
            ([4000, 3000], [576, 448]),
            ([3000, 4000], [448, 576]),
            ([100, 1], [1024, 256]),
            ([704, 320], [704, 320]),
        ] {
            assert_eq!(nearest(&sizes, size), expected, "{size:?}");
        }
    }

    #[test]
    fn listed_sizes_are_chosen_as_diffusers_does() {
        // What find_nearest_bucket of diffusers' training_utils returns for these heights and widths.
        let sizes = [[512, 512], [768, 384], [384, 768], [640, 448]];
        for (size, expected) in [
            ([1000, 1000], [512, 512]),
            ([2000, 1000], [768, 384]),
            ([1000, 2100], [384, 768]),
            ([1300, 1000], [640, 448]),
            ([1, 1], [512, 512]),
        ] {
            assert_eq!(nearest_listed(&sizes, size), expected, "{size:?}");
        }
        for wrong in [vec![], vec![[512, 510]], vec![[512, 512], [0, 8]]] {
            let error = Buckets::Sizes(wrong).sizes(512).unwrap_err().to_string();
            assert!(error.starts_with("aspect_ratio_buckets is"), "{error}");
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let options = BucketOptions::default();
        for wrong in [
            BucketOptions { step: 0, ..options },
            BucketOptions { step: 12, ..options },
            BucketOptions { min_size: 0, ..options },
            BucketOptions { min_size: 640, ..options },
            BucketOptions { max_size: 448, ..options },
            BucketOptions { max_size: 1000, ..options },
        ] {
            assert!(bucket_sizes(512, &wrong).is_err(), "{wrong:?}");
        }
    }
}
