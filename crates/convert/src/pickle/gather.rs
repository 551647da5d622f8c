//! The values of a tensor in row-major order, also where they lie in another.

use super::value::PickledTensor;

/// Copies the bytes `start..start + out.len()` of the tensor's values, taken row-major, to `out`. `file` is the whole file.
///
/// `None` when the range is not within the tensor, or the tensor not within the file.
pub(super) fn copy(file: &[u8], tensor: &PickledTensor, start: usize, out: &mut [u8]) -> Option<()> {
    let end = start.checked_add(out.len()).filter(|&end| end <= tensor.bytes())?;
    let span = file.get(tensor.span.clone())?;
    if tensor.contiguous {
        out.copy_from_slice(span.get(start..end)?);
        return Some(());
    }
    if out.is_empty() {
        return Some(());
    }
    let item = tensor.element_bytes();
    let mut place = Place::at(tensor, start / item);
    let mut skip = start % item;
    let mut out = out;
    while !out.is_empty() {
        let element = span.get(place.element * item + skip..(place.element + 1) * item)?;
        let count = element.len().min(out.len());
        let (head, tail) = out.split_at_mut(count);
        head.copy_from_slice(&element[..count]);
        out = tail;
        skip = 0;
        place.advance(tensor);
    }
    Some(())
}

/// A place in a tensor: its index along each axis, and which element of the span that is.
struct Place {
    index: Vec<usize>,
    element: usize,
}

impl Place {
    /// The place of the element that comes after `count` others; the tensor is not empty.
    fn at(tensor: &PickledTensor, count: usize) -> Self {
        let mut index = vec![0; tensor.shape.len()];
        let mut rest = count;
        let mut element = 0;
        for (axis, &length) in tensor.shape.iter().enumerate().rev() {
            index[axis] = rest % length;
            rest /= length;
            element += index[axis] * tensor.strides[axis];
        }
        Self { index, element }
    }

    fn advance(&mut self, tensor: &PickledTensor) {
        for axis in (0..self.index.len()).rev() {
            self.index[axis] += 1;
            self.element += tensor.strides[axis];
            if self.index[axis] < tensor.shape[axis] {
                return;
            }
            self.element -= self.index[axis] * tensor.strides[axis];
            self.index[axis] = 0;
        }
    }
}
