//! The sizes that pictures are cut to, where they may keep about their shape.

use anyhow::{Context, Result};
use candle_diffusers_training::dataset::{BucketOptions, Buckets};

use super::TrainArguments;

/// What was asked for, if anything was.
pub(super) fn read(arguments: &TrainArguments, resolution: u32) -> Result<Option<Buckets>> {
    let pictures = &arguments.pictures;
    if let Some(sizes) = &pictures.aspect_ratio_buckets {
        let sizes = sizes.split(';').map(size).collect::<Option<Vec<_>>>();
        let sizes = sizes.with_context(|| {
            let found = pictures.aspect_ratio_buckets.as_deref().unwrap_or_default();
            format!(
                "--aspect-ratio-buckets is {found:?}; expected heights and widths, as \"512,512;448,640\""
            )
        })?;
        return Ok(Some(Buckets::Sizes(sizes)));
    }
    // At 512 pixels those of kohya's scripts.
    let step = (resolution / 8).min(64) / 8 * 8;
    let options = BucketOptions {
        min_size: pictures.min_bucket_reso.unwrap_or(resolution / 2 / step.max(8) * step.max(8)),
        max_size: pictures
            .max_bucket_reso
            .unwrap_or(resolution.saturating_mul(2) / step.max(8) * step.max(8)),
        step: pictures.bucket_reso_steps.unwrap_or(step.max(8)),
    };
    Ok(pictures.use_aspect_ratio_buckets.then_some(Buckets::OfArea(options)))
}

/// Width and height, of which the height comes first.
fn size(text: &str) -> Option<[u32; 2]> {
    let (height, width) = text.split_once(',')?;
    Some([width.trim().parse().ok()?, height.trim().parse().ok()?])
}
