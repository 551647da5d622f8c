//! How a factor is laid out for the microkernels.

/// Of the depth (the dimension that is summed over), how much a panel has: so that one panel of each factor fits into the first
/// cache.
pub(super) const DEPTH: usize = 256;

/// Numbers that begin at a cache line, so that no vector of a panel lies across two.
#[derive(Clone, Debug, Default)]
pub(super) struct AlignedBuffer {
    lines: Vec<CacheLine>,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct CacheLine([f32; 16]);

impl AlignedBuffer {
    /// At least `length` zeros.
    pub(super) fn zeros(length: usize) -> Self {
        Self { lines: vec![CacheLine([0.0; 16]); length.div_ceil(16)] }
    }

    /// Makes room for at least `length` numbers; what it holds is anything.
    pub(super) fn reserve(&mut self, length: usize) {
        if self.lines.len() < length.div_ceil(16) {
            *self = Self::zeros(length);
        }
    }

    pub(super) fn values(&self) -> &[f32] {
        // SAFETY: a CacheLine is 16 floats without padding, so that n of them in a row are 16 n floats.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 16) }
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `values`; any 16 floats are a CacheLine.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 16) }
    }
}

/// Writes the transpose of up to `width` rows, which may be shorter than the panel is deep: number `k` of `row` comes to
/// `k * width + row`. Missing rows are zeros.
pub(super) fn transpose_rows<'a>(
    mut rows: impl Iterator<Item = &'a [f32]>,
    width: usize,
    depth: usize,
    panel: &mut [f32],
) {
    let mut row = 0;
    while row < width {
        let four = [rows.next(), rows.next(), rows.next(), rows.next()];
        match four {
            [Some(a), Some(b), Some(c), Some(d)] if row + 4 <= width => {
                let (a, b, c, d) = (&a[..depth], &b[..depth], &c[..depth], &d[..depth]);
                for (k, panel) in panel.chunks_exact_mut(width).take(depth).enumerate() {
                    panel[row..row + 4].copy_from_slice(&[a[k], b[k], c[k], d[k]]);
                }
            }
            rows => {
                for (row, values) in (row..width.min(row + 4)).zip(rows) {
                    for (k, panel) in panel.chunks_exact_mut(width).take(depth).enumerate() {
                        panel[row] = values.map_or(0.0, |values| values[k]);
                    }
                }
            }
        }
        row += 4;
    }
}
