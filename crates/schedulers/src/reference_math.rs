//! Arithmetic of torch and numpy whose last bits decide timesteps, done as they do it.

/// `torch.linspace(start, end, count, dtype=torch.float32)`: from both ends to the middle, with fused multiply-adds.
pub(crate) fn torch_linspace_f32(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    if count < 2 {
        return vec![start; count];
    }
    let step = (end - start) / (count - 1) as f32;
    let value = |index: usize| {
        if index < count / 2 {
            step.mul_add(index as f32, start)
        } else {
            (-step).mul_add((count - index - 1) as f32, end)
        }
    };
    (0..count).map(value).collect()
}

/// `np.linspace(start, end, count)`: the last value is exactly `end`.
pub(crate) fn numpy_linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    if count < 2 {
        return vec![start; count];
    }
    let step = (end - start) / (count - 1) as f64;
    let value = |index: usize| if index + 1 == count { end } else { index as f64 * step + start };
    (0..count).map(value).collect()
}
