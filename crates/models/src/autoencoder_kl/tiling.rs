use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// How pictures and latents are cut into overlapping tiles that are encoded or decoded one by one and then blended, so that memory
/// does not grow with the picture. The result differs slightly from that in one piece, as no tile sees the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiling {
    /// Side of a tile, pixels. Only pictures with a longer side are cut.
    pub tile_sample_min_size: usize,
    /// Side of a tile, latents. Only latents with a longer side are cut.
    pub tile_latent_min_size: usize,
    /// Which part of a tile lies on its neighbour, from 0 to below 1; 0.25 in diffusers.
    pub tile_overlap_factor: f64,
}

impl Tiling {
    /// # Errors
    /// When there would be no tiles, or no end of them.
    pub(super) fn check(&self) -> Result<()> {
        let error = |input, problem| Err(Error::Input { model: "AutoencoderKL tiling", input, problem });
        if !(0.0..1.0).contains(&self.tile_overlap_factor) {
            let problem = format!("is {}, expected 0 or more and less than 1", self.tile_overlap_factor);
            return error("tile_overlap_factor", problem);
        }
        for (input, size) in [
            ("tile_sample_min_size", self.tile_sample_min_size),
            ("tile_latent_min_size", self.tile_latent_min_size),
        ] {
            if self.stride(size) == 0 {
                let overlap = self.tile_overlap_factor;
                let problem =
                    format!("is {size}, which leaves nothing of a tile beside its overlap of {overlap}");
                return error(input, problem);
            }
        }
        Ok(())
    }

    /// Cuts `x` `(batch, channels, height, width)` into tiles with sides of at most `tile_in`, `run`s each, and joins the results,
    /// whose sides are at most `tile_out`.
    pub(super) fn run(
        &self,
        x: &Tensor,
        tile_in: usize,
        tile_out: usize,
        run: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let stride = self.stride(tile_in);
        let blend_extent = (tile_out as f64 * self.tile_overlap_factor) as usize;
        let kept = tile_out - blend_extent;
        let mut joined_rows = Vec::with_capacity(height.div_ceil(stride));
        let mut row_above: Vec<Tensor> = Vec::new();
        for top in (0..height).step_by(stride) {
            let strip = x.narrow(2, top, tile_in.min(height - top))?;
            let mut row: Vec<Tensor> = Vec::with_capacity(width.div_ceil(stride));
            for left in (0..width).step_by(stride) {
                let mut tile = run(&strip.narrow(3, left, tile_in.min(width - left))?.contiguous()?)?;
                // Neighbours are blended themselves by now: diffusers blends in place.
                if let Some(above) = row_above.get(row.len()) {
                    tile = blend(above, &tile, blend_extent, 2)?;
                }
                if let Some(left) = row.last() {
                    tile = blend(left, &tile, blend_extent, 3)?;
                }
                row.push(tile);
            }
            let pieces = row.iter().map(|tile| crop(tile, kept)).collect::<Result<Vec<_>>>()?;
            joined_rows.push(Tensor::cat(&pieces, 3)?);
            row_above = row;
        }
        Ok(Tensor::cat(&joined_rows, 2)?)
    }

    /// From one tile's start to the next one's.
    fn stride(&self, tile: usize) -> usize {
        (tile as f64 * (1.0 - self.tile_overlap_factor)) as usize
    }
}

/// `second` with its first `extent` rows (dimension 2) or columns (3) fading in from the last ones of `first`.
fn blend(first: &Tensor, second: &Tensor, extent: usize, dimension: usize) -> Result<Tensor> {
    let (before, length) = (first.dim(dimension)?, second.dim(dimension)?);
    let extent = extent.min(before).min(length);
    if extent == 0 {
        return Ok(second.clone());
    }
    let mut shape = [1; 4];
    shape[dimension] = extent;
    let weights = |weight: fn(f64) -> f64| -> Result<Tensor> {
        let weights: Vec<f32> =
            (0..extent).map(|index| weight(index as f64 / extent as f64) as f32).collect();
        Ok(Tensor::from_vec(weights, &shape, second.device())?)
    };
    let fading_out = first.narrow(dimension, before - extent, extent)?.to_dtype(DType::F32)?;
    let fading_in = second.narrow(dimension, 0, extent)?.to_dtype(DType::F32)?;
    let mixed = (fading_out.broadcast_mul(&weights(|share| 1.0 - share)?)?
        + fading_in.broadcast_mul(&weights(|share| share)?)?)?;
    let rest = second.narrow(dimension, extent, length - extent)?;
    Ok(Tensor::cat(&[mixed.to_dtype(second.dtype())?, rest], dimension)?)
}

/// The first `side` rows and columns, or all where there are fewer.
fn crop(tile: &Tensor, side: usize) -> Result<Tensor> {
    let (_, _, height, width) = tile.dims4()?;
    Ok(tile.narrow(2, 0, side.min(height))?.narrow(3, 0, side.min(width))?)
}
