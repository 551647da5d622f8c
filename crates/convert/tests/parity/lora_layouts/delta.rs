//! The change of a weight by its definition, in double precision.

use candle_diffusers_convert::{AdaptedLayer, Dtype, LokrFactor, LoraWeights, Source, TensorRef};
use half::{bf16, f16};

/// A matrix or what is one when all axes but the first are taken together.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn read(tensor: &TensorRef, source: &dyn Source) -> Self {
        let bytes = source.bytes(&tensor.name).unwrap();
        let values: Vec<f64> = match tensor.dtype {
            Dtype::F32 => bytes
                .chunks_exact(4)
                .map(|word| f32::from_le_bytes(word.try_into().unwrap()).into())
                .collect(),
            Dtype::F16 => bytes
                .chunks_exact(2)
                .map(|word| f16::from_le_bytes(word.try_into().unwrap()).into())
                .collect(),
            Dtype::BF16 => bytes
                .chunks_exact(2)
                .map(|word| bf16::from_le_bytes(word.try_into().unwrap()).into())
                .collect(),
            other => unreachable!("{other}"),
        };
        let rows = tensor.shape[0];
        assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
        Self { rows, columns: values.len() / rows, values }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.columns + column]
    }

    fn times(&self, other: &Self) -> Self {
        assert_eq!(self.columns, other.rows);
        let entry = |index: usize| {
            let (row, column) = (index / other.columns, index % other.columns);
            (0..self.columns).map(|k| self.at(row, k) * other.at(k, column)).sum()
        };
        let values = (0..self.rows * other.columns).map(entry).collect();
        Self { rows: self.rows, columns: other.columns, values }
    }
}

/// `einsum("i j k l, j r, i p -> p r k l", t, b, a)`.
fn tucker(t: &TensorRef, b: &TensorRef, a: &TensorRef, source: &dyn Source) -> Matrix {
    let kernel = t.shape[2] * t.shape[3];
    let (ranks, (t, b, a)) = ((t.shape[0], t.shape[1]), (read(t, source), read(b, source), read(a, source)));
    let mut values = Vec::new();
    for p in 0..a.columns {
        for r in 0..b.columns {
            for k in 0..kernel {
                let terms = (0..ranks.0).flat_map(|i| (0..ranks.1).map(move |j| (i, j)));
                values.push(terms.map(|(i, j)| t.at(i, j * kernel + k) * b.at(j, r) * a.at(i, p)).sum());
            }
        }
    }
    Matrix { rows: a.columns, columns: b.columns * kernel, values }
}

fn read(tensor: &TensorRef, source: &dyn Source) -> Matrix {
    Matrix::read(tensor, source)
}

fn factor(factor: &LokrFactor, source: &dyn Source) -> Matrix {
    match factor {
        LokrFactor::Whole(tensor) => read(tensor, source),
        LokrFactor::Product { a, b, t: None } => read(a, source).times(&read(b, source)),
        LokrFactor::Product { a, b, t: Some(t) } => tucker(t, b, a, source),
    }
}

fn delta(weights: &LoraWeights, source: &dyn Source) -> Matrix {
    match weights {
        LoraWeights::Lora { down, up, mid: None } => read(up, source).times(&read(down, source)),
        LoraWeights::Lora { down, up, mid: Some(mid) } => {
            let (up, down, core) = (read(up, source), read(down, source), read(mid, source));
            let kernel = mid.shape[2] * mid.shape[3];
            let inner = up.times(&core);
            let entry = |index: usize| {
                let (row, column) = (index / (down.columns * kernel), index % (down.columns * kernel));
                let term = |q| inner.at(row, q * kernel + column % kernel) * down.at(q, column / kernel);
                (0..down.rows).map(term).sum()
            };
            let columns = down.columns * kernel;
            Matrix { rows: up.rows, columns, values: (0..up.rows * columns).map(entry).collect() }
        }
        LoraWeights::Loha { w1_a, w1_b, w2_a, w2_b, t1_t2 } => {
            let (mut first, second) = match t1_t2 {
                None => (
                    read(w1_a, source).times(&read(w1_b, source)),
                    read(w2_a, source).times(&read(w2_b, source)),
                ),
                Some((t1, t2)) => (tucker(t1, w1_b, w1_a, source), tucker(t2, w2_b, w2_a, source)),
            };
            first.values.iter_mut().zip(second.values).for_each(|(a, b)| *a *= b);
            first
        }
        LoraWeights::Lokr { w1, w2 } => {
            let (w1, w2) = (factor(w1, source), factor(w2, source));
            let mut values = Vec::new();
            for row in 0..w1.rows * w2.rows {
                for column in 0..w1.columns * w2.columns {
                    let left = w1.at(row / w2.rows, column / w2.columns);
                    values.push(left * w2.at(row % w2.rows, column % w2.columns));
                }
            }
            Matrix { rows: w1.rows * w2.rows, columns: w1.columns * w2.columns, values }
        }
        other => unreachable!("{other:?}"),
    }
}

/// The scaled change, all axes but the first taken together, times the vector 1, 1/2, 1/3 ...
pub(crate) fn times_vector(layer: &AdaptedLayer, source: &dyn Source) -> Vec<f64> {
    let delta = delta(&layer.weights, source);
    let row = |row: usize| {
        let terms = (0..delta.columns).map(|column| delta.at(row, column) / (column + 1) as f64);
        layer.scaling() * terms.sum::<f64>()
    };
    (0..delta.rows).map(row).collect()
}
