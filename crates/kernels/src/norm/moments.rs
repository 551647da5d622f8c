use crate::cpu::{Float, Instructions, LANES, Work, chunk_by_chunk};

/// So many numbers are read twice, the second time from the first cache.
pub(super) const PIECE: usize = 4096;
/// Sums side by side, so that one addition need not wait for the one before.
const SUMS: usize = 4;

/// How many numbers there are, their mean, and the sum of the squares of their differences from it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    count: f64,
    pub(super) mean: f64,
    squares: f64,
}

impl Moments {
    /// Those of both together (Chan, Golub and LeVeque, 1979).
    #[inline(always)]
    pub(super) fn merge(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        let count = self.count + other.count;
        let difference = other.mean - self.mean;
        let share = other.count / count;
        Self {
            count,
            mean: self.mean + difference * share,
            squares: self.squares + other.squares + difference * difference * self.count * share,
        }
    }

    /// Those of the same numbers, each with `number` added.
    pub(super) fn shifted(self, number: f32) -> Self {
        Self { mean: self.mean + f64::from(number), ..self }
    }

    /// `1 / sqrt(variance + eps)`, with the variance of the whole population.
    #[inline(always)]
    pub(super) fn inverse_deviation(self, eps: f64) -> f64 {
        1.0 / (self.squares / self.count + eps).sqrt()
    }
}

/// The [`Moments`] of numbers that lie beside each other.
///
/// Each piece is summed in float32 twice: for its mean, and for differences from that. What those differences sum to corrects the mean's
/// rounding, so that a large mean takes nothing from the variance's digits.
pub(super) struct MomentsOf<'a, T>(pub(super) &'a [T]);

impl<T: Float> Work for MomentsOf<'_, T> {
    type Output = Moments;

    #[inline(always)]
    fn run(self, instructions: impl Instructions) -> Moments {
        let mut moments = Moments::default();
        for piece in self.0.chunks(PIECE) {
            let count = piece.len() as f64;
            let [sum, _] = sums(piece, 0.0, instructions);
            let center = (f64::from(sum) / count) as f32;
            let [sum, squares] = sums(piece, center, instructions);
            let (sum, squares) = (f64::from(sum), f64::from(squares));
            let mean = f64::from(center) + sum / count;
            moments = moments.merge(Moments { count, mean, squares: (squares - sum * sum / count).max(0.0) });
        }
        moments
    }
}

/// The sums of the differences from `center`, and of their squares, in an order that depends on the number of values alone.
#[inline(always)]
fn sums<T: Float>(values: &[T], center: f32, instructions: impl Instructions) -> [f32; 2] {
    let mut sums = [[0f32; LANES]; SUMS];
    let mut squares = [[0f32; LANES]; SUMS];
    let (blocks, rest) = values.as_chunks::<{ SUMS * LANES }>();
    for block in blocks {
        chunk_by_chunk();
        let (chunks, _) = block.as_chunks::<LANES>();
        for index in 0..SUMS {
            let chunk = T::load(&chunks[index], instructions);
            for lane in 0..LANES {
                let difference = chunk[lane] - center;
                sums[index][lane] += difference;
                squares[index][lane] += difference * difference;
            }
        }
    }
    let (chunks, rest) = rest.as_chunks::<LANES>();
    for chunk in chunks {
        let chunk = T::load(chunk, instructions);
        for lane in 0..LANES {
            let difference = chunk[lane] - center;
            sums[0][lane] += difference;
            squares[0][lane] += difference * difference;
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        let difference = value.to_float() - center;
        sums[1][lane] += difference;
        squares[1][lane] += difference * difference;
    }
    [total(sums), total(squares)]
}

#[inline(always)]
fn total([first, second, third, fourth]: [[f32; LANES]; SUMS]) -> f32 {
    let mut sums = first;
    for lane in 0..LANES {
        sums[lane] = (sums[lane] + second[lane]) + (third[lane] + fourth[lane]);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}
