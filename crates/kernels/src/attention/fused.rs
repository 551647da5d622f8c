use std::cell::Cell;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, WithDType};
use half::f16;
use rayon::prelude::*;

use super::arithmetic::Kernel;
use super::step::{LEAST, State, Step, shares};
use super::tokens::{Mask, Tokens, to_bf16};
use crate::cpu::room;

/// How many keys a step takes, an even number: their scores, and the keys and values themselves, stay in the first caches.
pub(super) const KEYS: usize = 128;
/// How many steps with the same keys a task takes at most, and how many numbers of queries and results it holds at most: keys and values
/// come from a farther cache once for so many queries.
const STEPS: usize = 4;
const MAX_HELD: usize = 1 << 16;
/// So many tasks for each thread, so that none waits long for the others.
const TASKS_PER_THREAD: usize = 4;
/// Below so many multiplications the threads are not worth waking.
const MIN_PARALLEL: usize = 1 << 17;

/// Whether these kernels compute what the tensors ask for: on the CPU, in floats of at most 32 bits, without a gradient for the mask.
pub(super) fn computes(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> bool {
    let is_float = |tensor: &&Tensor| matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16);
    let fits = |tensor: &Tensor| matches!(tensor.device(), Device::Cpu);
    let factors = [query, key, value];
    factors.iter().all(is_float)
        && factors.into_iter().chain(mask).all(fits)
        && !mask.is_some_and(Tensor::track_op)
}

/// [`attention`](super::attention()) on tensors whose shapes fit, with a mask of all four dimensions in float32. With it come the logarithms of
/// the sums of the exponentials of each query's scores, `(batch, heads, queries)`.
pub(super) fn fused(
    kernel: Kernel,
    [query, key, value]: [&Tensor; 3],
    heads: usize,
    scale: f64,
    mask: Option<&Tensor>,
) -> Result<(Tensor, Vec<f32>)> {
    let (batch, query_tokens, width) = query.dims3()?;
    let key_tokens = key.dim(1)?;
    let [query, key, value] = [side_by_side(query)?, side_by_side(key)?, side_by_side(value)?];
    let (query_storage, query_layout) = query.storage_and_layout();
    let (key_storage, key_layout) = key.storage_and_layout();
    let (value_storage, value_layout) = value.storage_and_layout();
    let mask = mask.map(Tensor::storage_and_layout);
    let attention = Attention {
        kernel,
        heads,
        dim: width / heads,
        query_tokens,
        key_tokens,
        query: Tokens::new(on_cpu(&query_storage)?, query_layout, heads)?,
        key: Tokens::new(on_cpu(&key_storage)?, key_layout, heads)?,
        value: Tokens::new(on_cpu(&value_storage)?, value_layout, heads)?,
        mask: match &mask {
            Some((storage, layout)) => Some(Mask::new(on_cpu(storage)?, layout)?),
            None => None,
        },
        scale: scale as f32,
    };
    let shape = (batch, query_tokens, width);
    let mut log_sums = vec![f32::INFINITY; batch * heads * query_tokens];
    let output = match value.dtype() {
        DType::F16 => {
            Tensor::from_vec(attention.compute(batch, f16::from_f32, &mut log_sums)?, shape, &Device::Cpu)?
        }
        DType::BF16 => {
            Tensor::from_vec(attention.compute(batch, to_bf16, &mut log_sums)?, shape, &Device::Cpu)?
        }
        _ => Tensor::from_vec(attention.compute(batch, |n| n, &mut log_sums)?, shape, &Device::Cpu)?,
    };
    Ok((output, log_sums))
}

/// The same tensor, copied only if features do not lie side by side.
pub(super) fn side_by_side(tensor: &Tensor) -> Result<Tensor> {
    if tensor.stride().last() == Some(&1) { Ok(tensor.clone()) } else { tensor.force_contiguous() }
}

pub(super) fn on_cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => candle_core::bail!("attention: expected tensors on the CPU"),
    }
}

struct Attention<'a> {
    kernel: Kernel,
    heads: usize,
    dim: usize,
    query_tokens: usize,
    key_tokens: usize,
    query: Tokens<'a>,
    key: Tokens<'a>,
    value: Tokens<'a>,
    mask: Option<Mask<'a>>,
    scale: f32,
}

/// Keys and values of a head, in blocks of [`KEYS`], each as a [`Step`] takes it.
struct Packed {
    keys: Lines,
    values: Lines,
}

/// Numbers that begin with a cache line.
struct Lines {
    room: Vec<f32>,
    places: Range<usize>,
}

impl Lines {
    fn zeros(length: usize) -> Self {
        let room = vec![0f32; length + LINE];
        let start = first_line(&room);
        Self { room, places: start..start + length }
    }

    fn numbers(&self) -> &[f32] {
        &self.room[self.places.clone()]
    }

    fn numbers_mut(&mut self) -> &mut [f32] {
        &mut self.room[self.places.clone()]
    }
}

/// Where the first cache line begins in a vector, which has one more than it needs.
pub(super) fn first_line(room: &[f32]) -> usize {
    room.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE)
}

/// Where results go; each task writes those of its own queries and head.
struct Output<T>(*mut T);

// SAFETY: only a place to write to. Those who write must see to it that no two write to one place; `compute` says how.
unsafe impl<T: Send> Sync for Output<T> {}

impl Attention<'_> {
    /// `(batch, queries, heads * dim)`. A result's bits depend on its own head, keys and values alone: a query is a lane of its own, and its
    /// keys always come in the same blocks.
    /// `log_sums` has a number for each query of each head of each item.
    fn compute<T: WithDType>(
        &self,
        batch: usize,
        convert: impl Fn(f32) -> T + Sync,
        log_sums: &mut [f32],
    ) -> Result<Vec<T>> {
        let Self { heads, dim, query_tokens, key_tokens, .. } = *self;
        let width = heads * dim;
        let length = batch * query_tokens * width;
        let mut output = room::<T>(length)?;
        if length == 0 {
            return Ok(output);
        }
        assert_eq!(log_sums.len(), batch * heads * query_tokens);
        let places = Output(output.as_mut_ptr());
        let log_sums = Output(log_sums.as_mut_ptr());
        let attend = |[item, head]: [usize; 2], packed: &Packed, queries: Range<usize>| {
            let (places, log_sums) = (&places, &log_sums);
            self.attend([item, head], packed, queries, |query, results, log_sum| {
                // SAFETY: that of this head of one of the queries of this item, which no other task has; within the length asserted above.
                unsafe { log_sums.0.add((item * heads + head) * query_tokens + query).write(log_sum) }
                let start = (item * query_tokens + query) * width + head * dim;
                for (feature, result) in results.iter().enumerate() {
                    // SAFETY: the features of this head of one of the queries of this item, which no other task has; within `length`.
                    unsafe { places.0.add(start + feature).write(convert(*result)) }
                }
            });
        };
        if length.saturating_mul(key_tokens) < MIN_PARALLEL {
            for head in 0..batch * heads {
                let head = [head / heads, head % heads];
                attend(head, &self.pack(head), 0..query_tokens);
            }
        } else {
            let steps = query_tokens.div_ceil(self.kernel.queries);
            let wanted = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(batch * heads);
            let held = MAX_HELD / (2 * dim * self.kernel.queries);
            let group = (steps / wanted).min(held).clamp(1, STEPS) * self.kernel.queries;
            (0..batch * heads).into_par_iter().with_max_len(1).for_each(|head| {
                let head = [head / heads, head % heads];
                let packed = self.pack(head);
                (0..query_tokens.div_ceil(group)).into_par_iter().with_max_len(1).for_each(|index| {
                    attend(head, &packed, index * group..query_tokens.min((index + 1) * group));
                });
            });
        }
        // SAFETY: the tasks above have written all queries of all heads.
        unsafe { output.set_len(length) };
        Ok(output)
    }

    /// How many units a query or a key has, with those that a [`Step`] wants besides.
    fn depth(&self) -> usize {
        self.units(self.dim)
    }

    /// How many units so many numbers have that are summed over, with those that a [`Step`] wants besides.
    fn units(&self, numbers: usize) -> usize {
        numbers.div_ceil(self.kernel.unit).next_multiple_of(self.kernel.depth)
    }

    /// How many features a result has, with those that a [`Step`] wants besides.
    fn features(&self) -> usize {
        self.dim.next_multiple_of(self.kernel.rows)
    }

    fn pack(&self, head: [usize; 2]) -> Packed {
        let (depth, features) = (self.depth(), self.features());
        let key_length = self.key_tokens.next_multiple_of(self.kernel.rows) * depth;
        let value_length = self.units(self.key_tokens) * features;
        let mut packed = Packed { keys: Lines::zeros(key_length), values: Lines::zeros(value_length) };
        let keys = packed.keys.numbers_mut().par_chunks_mut(KEYS * depth);
        let values = packed.values.numbers_mut().par_chunks_mut(self.units(KEYS) * features);
        keys.zip(values).enumerate().for_each(|(block, (keys, values))| {
            let tokens = block * KEYS..self.key_tokens.min((block + 1) * KEYS);
            if self.kernel.rows > 1 {
                self.pack_rows(head, tokens, keys, values);
            } else {
                self.pack_block(head, tokens, keys, values);
            }
        });
        packed
    }

    /// For products whose left factors lie in rows.
    fn pack_rows(&self, head: [usize; 2], tokens: Range<usize>, keys: &mut [f32], values: &mut [f32]) {
        for (token, row) in tokens.clone().zip(keys.chunks_exact_mut(self.depth())) {
            self.read_units(&self.key, head, token, row);
        }
        let units = self.units(tokens.len());
        let mut rows = vec![0f32; units * self.dim];
        self.read_values(head, tokens, &mut rows);
        transpose(&rows, self.dim, &mut values[..self.dim * units]);
    }

    /// For products whose left factors lie in panels.
    fn pack_block(&self, head: [usize; 2], tokens: Range<usize>, keys: &mut [f32], values: &mut [f32]) {
        let depth = self.depth();
        let mut rows = vec![0f32; self.kernel.panel * depth];
        for panel in shares(tokens.len(), self.kernel.panel) {
            let rows = &mut rows[..panel.len() * depth];
            for (token, row) in panel.clone().zip(rows.chunks_exact_mut(depth)) {
                self.read_units(&self.key, head, tokens.start + token, row);
            }
            transpose(rows, depth, &mut keys[panel.start * depth..panel.end * depth]);
        }
        self.read_values(head, tokens, values);
    }

    /// `(units of tokens, dim)`
    fn read_values(&self, [item, head]: [usize; 2], tokens: Range<usize>, rows: &mut [f32]) {
        for (token, row) in tokens.clone().step_by(self.kernel.unit).zip(rows.chunks_exact_mut(self.dim)) {
            match self.kernel.unit {
                1 => self.value.read(item, token, head, row),
                _ => self.value.read_neighbours(item, token, token + 1 < tokens.end, head, row),
            }
        }
    }

    fn read_units(&self, tokens: &Tokens<'_>, [item, head]: [usize; 2], token: usize, row: &mut [f32]) {
        let (row, rest) = row.split_at_mut(self.dim.div_ceil(self.kernel.unit));
        rest.fill(0.0);
        match self.kernel.unit {
            1 => tokens.read(item, token, head, row),
            _ => tokens.read_pairs(item, token, head, row),
        }
    }

    /// Calls `write` with each of these queries, its results, and the logarithm of its sum.
    fn attend(
        &self,
        head: [usize; 2],
        packed: &Packed,
        queries: Range<usize>,
        write: impl Fn(usize, &[f32], f32),
    ) {
        thread_local! {
            // Made once and not with each task. Taken while in use.
            static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
        }
        let (lanes, depth, dim) = (self.kernel.queries, self.depth(), self.features());
        let (keys, values) = (packed.keys.numbers(), packed.values.numbers());
        let (held_query, held) = (depth * lanes, (depth + dim + 2) * lanes);
        let group = queries.len().div_ceil(lanes).min(STEPS);
        let length = group * held + 2 * KEYS * lanes + lanes * depth.max(dim);
        let _configured = self.kernel.configured();
        let mut scratch = SCRATCH.take();
        scratch.resize(scratch.len().max(length + LINE), 0.0);
        let start = first_line(&scratch);
        let (held_numbers, rest) = scratch[start..start + length].split_at_mut(group * held);
        let (scores, rest) = rest.split_at_mut(KEYS * lanes);
        let (mask_tile, rows) = rest.split_at_mut(KEYS * lanes);

        for first in queries.clone().step_by(group * lanes) {
            let starts = (first..queries.end).step_by(lanes);
            for (start, held) in starts.clone().zip(held_numbers.chunks_exact_mut(held)) {
                held[held_query..].fill(0.0);
                held[held_query..held_query + lanes].fill(LEAST);
                let rows = &mut rows[..held_query];
                let present = lanes.min(queries.end - start);
                rows[present * depth..].fill(0.0);
                for (token, row) in (start..start + present).zip(rows.chunks_exact_mut(depth)) {
                    self.read_units(&self.query, head, token, row);
                }
                transpose(rows, depth, &mut held[..held_query]);
            }
            for block in (0..self.key_tokens).step_by(KEYS) {
                let tokens = block..self.key_tokens.min(block + KEYS);
                for (start, held) in starts.clone().zip(held_numbers.chunks_exact_mut(held)) {
                    let mask = self.mask.as_ref().map(|mask| {
                        let queries = start..queries.end.min(start + lanes);
                        mask.read(head, queries, tokens.clone(), lanes, mask_tile);
                        &*mask_tile
                    });
                    let (query, state) = held.split_at_mut(held_query);
                    let (greatest, state) = state.split_at_mut(lanes);
                    let (sum, output) = state.split_at_mut(lanes);
                    self.kernel.step(Step {
                        depth,
                        dim,
                        keys: tokens.len(),
                        query,
                        key: &keys[tokens.start * depth..],
                        value: &values[tokens.start / self.kernel.unit * dim..],
                        mask,
                        scale: self.scale,
                        scores,
                        state: State { greatest, sum, output },
                    });
                }
            }
            for (start, held) in starts.zip(held_numbers.chunks_exact_mut(held)) {
                let (greatest, rest) = held[held_query..].split_at_mut(lanes);
                let (factors, output) = rest.split_at_mut(lanes);
                // With a mask the scores have been scaled.
                let unit = if self.mask.is_some() { 1.0 } else { self.scale };
                for (greatest, sum) in greatest.iter_mut().zip(&*factors) {
                    // Infinity makes the weights of what was masked whole zero again.
                    *greatest = if *sum == 0.0 { f32::INFINITY } else { *greatest * unit + sum.ln() };
                }
                for sum in factors.iter_mut() {
                    // Where all keys are masked, the reference library's answer is 0 too.
                    *sum = if *sum == 0.0 { 0.0 } else { 1.0 / *sum };
                }
                for row in output.chunks_exact_mut(lanes) {
                    row.iter_mut().zip(&*factors).for_each(|(result, factor)| *result *= factor);
                }
                transpose(output, lanes, rows);
                let results = rows.chunks_exact(dim).zip(&*greatest);
                for (query, (row, log_sum)) in (start..queries.end.min(start + lanes)).zip(results) {
                    write(query, &row[..self.dim], *log_sum);
                }
            }
        }
        SCRATCH.set(scratch);
    }
}

/// Writes rows of `columns` numbers as columns. Four at a time, for that makes vectors of them.
pub(super) fn transpose(from: &[f32], columns: usize, to: &mut [f32]) {
    let rows = from.len() / columns;
    for (index, four) in from.chunks(4 * columns).enumerate() {
        let row = 4 * index;
        if row + 4 <= rows {
            let (a, rest) = four.split_at(columns);
            let (b, rest) = rest.split_at(columns);
            let (c, d) = rest.split_at(columns);
            let numbers = a.iter().zip(b).zip(c.iter().zip(d));
            for (to, ((a, b), (c, d))) in to.chunks_exact_mut(rows).zip(numbers) {
                to[row..row + 4].copy_from_slice(&[*a, *b, *c, *d]);
            }
        } else {
            for (row, numbers) in (row..).zip(four.chunks_exact(columns)) {
                to.chunks_exact_mut(rows).zip(numbers).for_each(|(to, number)| to[row] = *number);
            }
        }
    }
}

/// The float32 of a cache line, at which vectors are to begin.
pub(super) const LINE: usize = 16;
