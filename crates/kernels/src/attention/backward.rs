//! The gradients of attention. Scores are computed again in blocks and never stored.

use std::cell::Cell;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use half::f16;
use rayon::prelude::*;

use super::arithmetic::Kernel;
use super::backward_step::{BackwardStep, Queries, Sums};
use super::fused::{KEYS, LINE, first_line, on_cpu, side_by_side, transpose};
use super::step::shares;
use super::tokens::{Mask, Tokens, to_bf16};
use crate::cpu::TASK;

/// A task takes so many keys, or so many queries where there are fewer keys. The sums of tasks are added in their order, so that results
/// do not depend on the number of threads.
const PART: usize = 1024;

/// What the forward had and computed.
pub(super) struct Backward<'a> {
    pub(super) kernel: Kernel,
    pub(super) heads: usize,
    pub(super) scale: f64,
    pub(super) query: &'a Tensor,
    pub(super) key: &'a Tensor,
    pub(super) value: &'a Tensor,
    /// All four dimensions, float32.
    pub(super) mask: Option<&'a Tensor>,
    pub(super) output: &'a Tensor,
    /// `(batch, heads, queries)`.
    pub(super) log_sums: &'a [f32],
    /// Whose gradients are wanted: query, key, value.
    pub(super) wanted: [bool; 3],
}

impl Backward<'_> {
    /// The gradients of query, key and value for that of the output.
    pub(super) fn gradients(&self, gradient: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (batch, query_tokens, width) = self.query.dims3()?;
        let key_tokens = self.key.dim(1)?;
        let tensors = [self.query, self.key, self.value, self.output, gradient];
        let [query, key, value, output, gradient] = tensors.map(side_by_side);
        let [query, key, value, output, gradient] = [query?, key?, value?, output?, gradient?];
        let (query_storage, query_layout) = query.storage_and_layout();
        let (key_storage, key_layout) = key.storage_and_layout();
        let (value_storage, value_layout) = value.storage_and_layout();
        let (output_storage, output_layout) = output.storage_and_layout();
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let mask = self.mask.map(Tensor::storage_and_layout);
        let heads = self.heads;
        let kernel = self.kernel;
        let dim = width / heads;
        let lanes = kernel.queries / 2;
        let work = HeadWork {
            kernel,
            dim,
            padded: dim.next_multiple_of(lanes),
            query_tokens,
            key_tokens,
            query: Tokens::new(on_cpu(&query_storage)?, query_layout, heads)?,
            key: Tokens::new(on_cpu(&key_storage)?, key_layout, heads)?,
            value: Tokens::new(on_cpu(&value_storage)?, value_layout, heads)?,
            output: Tokens::new(on_cpu(&output_storage)?, output_layout, heads)?,
            gradient: Tokens::new(on_cpu(&gradient_storage)?, gradient_layout, heads)?,
            mask: match &mask {
                Some((storage, layout)) => Some(Mask::new(on_cpu(storage)?, layout)?),
                None => None,
            },
            scale: self.scale as f32,
            wanted: self.wanted,
        };
        let found: Vec<[Vec<f32>; 3]> = (0..batch * heads)
            .into_par_iter()
            .with_max_len(1)
            .map(|head| {
                let log_sums = &self.log_sums[head * query_tokens..][..query_tokens];
                work.gradients([head / heads, head % heads], log_sums)
            })
            .collect();
        let mut gradients = [None, None, None];
        let inputs = [(&query, query_tokens), (&key, key_tokens), (&value, key_tokens)];
        for (index, (input, tokens)) in inputs.into_iter().enumerate() {
            if self.wanted[index] {
                let of_heads: Vec<&[f32]> = found.iter().map(|found| found[index].as_slice()).collect();
                let shape = (batch, tokens, width);
                gradients[index] = Some(match input.dtype() {
                    DType::F16 => {
                        Tensor::from_vec(join(&of_heads, heads, dim, f16::from_f32), shape, &Device::Cpu)?
                    }
                    DType::BF16 => {
                        Tensor::from_vec(join(&of_heads, heads, dim, to_bf16), shape, &Device::Cpu)?
                    }
                    _ => Tensor::from_vec(join(&of_heads, heads, dim, |n| n), shape, &Device::Cpu)?,
                });
            }
        }
        Ok(gradients)
    }
}

/// `(tokens, dim)` of each head of each item as `(items, tokens, heads * dim)`.
fn join<T: Copy + Default + Send>(
    of_heads: &[&[f32]],
    heads: usize,
    dim: usize,
    convert: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let length: usize = of_heads.iter().map(|head| head.len()).sum();
    let mut joined = vec![T::default(); length];
    let (Some(first), width) = (of_heads.first(), heads * dim) else { return joined };
    if length > 0 {
        let tokens = first.len() / dim;
        let rows = joined.par_chunks_exact_mut(width).with_min_len(TASK.div_ceil(width)).enumerate();
        rows.for_each(|(row, joined)| {
            let (item, token) = (row / tokens, row % tokens);
            for (head, joined) in joined.chunks_exact_mut(dim).enumerate() {
                let numbers = &of_heads[item * heads + head][token * dim..][..dim];
                joined.iter_mut().zip(numbers).for_each(|(to, number)| *to = convert(*number));
            }
        });
    }
    joined
}

/// The computation for one head at a time.
struct HeadWork<'a> {
    kernel: Kernel,
    dim: usize,
    padded: usize,
    query_tokens: usize,
    key_tokens: usize,
    query: Tokens<'a>,
    key: Tokens<'a>,
    value: Tokens<'a>,
    output: Tokens<'a>,
    gradient: Tokens<'a>,
    mask: Option<Mask<'a>>,
    scale: f32,
    wanted: [bool; 3],
}

/// A head's numbers as the steps take them.
struct Packed {
    /// Groups of as many queries as a step has: see [`Queries`].
    query: Vec<f32>,
    gradient: Vec<f32>,
    query_rows: Vec<f32>,
    gradient_rows: Vec<f32>,
    log_sums: Vec<f32>,
    products: Vec<f32>,
    /// Blocks of [`KEYS`]: see [`BackwardStep`].
    key: Vec<f32>,
    value: Vec<f32>,
    key_rows: Vec<f32>,
}

/// The sums of a task.
#[derive(Default)]
struct Part {
    /// For groups of queries, `(dim, queries)`.
    query: Vec<f32>,
    /// `(keys, padded)`.
    key: Vec<f32>,
    value: Vec<f32>,
}

impl HeadWork<'_> {
    fn depth(&self) -> usize {
        self.dim.div_ceil(self.kernel.unit)
    }

    fn groups(&self) -> usize {
        self.query_tokens.div_ceil(self.kernel.queries)
    }

    /// `(tokens, dim)` each; empty where it is not wanted.
    fn gradients(&self, head: [usize; 2], log_sums: &[f32]) -> [Vec<f32>; 3] {
        let Self { dim, padded, query_tokens, key_tokens, .. } = *self;
        if query_tokens * dim == 0 || key_tokens == 0 {
            return [query_tokens, key_tokens, key_tokens].map(|tokens| vec![0f32; tokens * dim]);
        }
        let packed = self.pack(head, log_sums);
        let lanes = self.kernel.queries;
        // Either keys or queries are shared out, so that one kind of sums is whole.
        let key_parts = (key_tokens / PART).max(1);
        let query_parts = if key_parts > 1 { 1 } else { (query_tokens / PART).max(1) };
        let part_range = |count: usize, unit: usize, parts: usize, part: usize| {
            let units = count.div_ceil(unit);
            units * part / parts * unit..count.min(units * (part + 1) / parts * unit)
        };
        let parts: Vec<Part> = (0..key_parts * query_parts)
            .into_par_iter()
            .with_max_len(1)
            .map(|part| {
                let keys = part_range(key_tokens, KEYS, key_parts, part % key_parts);
                let groups = part_range(self.groups(), 1, query_parts, part / key_parts);
                self.part(head, &packed, keys, groups)
            })
            .collect();
        let mut found = [Vec::new(), Vec::new(), Vec::new()];
        if self.wanted[0] {
            let mut query = vec![0f32; query_tokens * dim];
            let groups = query.par_chunks_mut(lanes * dim).enumerate();
            groups.for_each(|(group, rows)| {
                let mut sums = vec![0f32; lanes * dim];
                for (index, part) in parts.iter().enumerate() {
                    let groups = part_range(self.groups(), 1, query_parts, index / key_parts);
                    if groups.contains(&group) {
                        let start = (group - groups.start) * lanes * dim;
                        let numbers = &part.query[start..][..lanes * dim];
                        sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
                    }
                }
                for (lane, row) in rows.chunks_exact_mut(dim).enumerate() {
                    for (feature, number) in row.iter_mut().enumerate() {
                        *number = sums[feature * lanes + lane] * self.scale;
                    }
                }
            });
            found[0] = query;
        }
        let of_keys = |sums_of: fn(&Part) -> &Vec<f32>, scale: f32| {
            let mut rows = vec![0f32; key_tokens * dim];
            for (part, sums) in parts.iter().enumerate() {
                let keys = part_range(key_tokens, KEYS, key_parts, part % key_parts);
                let rows = rows[keys.start * dim..keys.end * dim].par_chunks_exact_mut(dim);
                let sums = sums_of(sums).par_chunks_exact(padded);
                rows.zip(sums).with_min_len(TASK.div_ceil(dim)).for_each(|(row, sums)| {
                    row.iter_mut().zip(sums).for_each(|(number, sum)| *number += sum * scale);
                });
            }
            rows
        };
        if self.wanted[1] {
            found[1] = of_keys(|part| &part.key, self.scale);
        }
        if self.wanted[2] {
            found[2] = of_keys(|part| &part.value, 1.0);
        }
        found
    }

    /// The sums over some keys and some groups of queries.
    fn part(&self, head: [usize; 2], packed: &Packed, keys: Range<usize>, groups: Range<usize>) -> Part {
        thread_local! {
            // Made once and not with each task. Taken while in use.
            static ROOM: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
        }
        let Self { dim, padded, .. } = *self;
        let (depth, lanes, unit) = (self.depth(), self.kernel.queries, self.kernel.unit);
        let sums = |is_wanted: bool, length: usize| vec![0f32; if is_wanted { length } else { 0 }];
        let mut part = Part {
            query: sums(self.wanted[0], groups.len() * lanes * dim),
            key: sums(self.wanted[1], keys.len() * padded),
            value: sums(self.wanted[2], keys.len() * padded),
        };
        let length = 4 * KEYS * lanes;
        let mut room = ROOM.take();
        room.resize(room.len().max(length + LINE), 0.0);
        let start = first_line(&room);
        let (tiles, mask_tile) = room[start..start + length].split_at_mut(3 * KEYS * lanes);
        for block in (keys.start..keys.end).step_by(KEYS) {
            let block = block..keys.end.min(block + KEYS);
            for group in groups.clone() {
                let mask = self.mask.as_ref().map(|mask| {
                    let queries = group * lanes..self.query_tokens.min((group + 1) * lanes);
                    mask.read(head, queries, block.clone(), lanes, mask_tile);
                    &*mask_tile
                });
                let of_group = |length: usize| group * length..(group + 1) * length;
                let rows = lanes / unit * padded;
                let Part { query, key, value } = &mut part;
                let own = (block.start - keys.start) * padded..(block.end - keys.start) * padded;
                self.kernel.backward_step(BackwardStep {
                    depth,
                    dim,
                    padded,
                    keys: block.len(),
                    queries: Queries {
                        query: &packed.query[of_group(depth * lanes)],
                        gradient: &packed.gradient[of_group(depth * lanes)],
                        query_rows: &packed.query_rows[of_group(rows)],
                        gradient_rows: &packed.gradient_rows[of_group(rows)],
                        log_sums: &packed.log_sums[of_group(lanes)],
                        products: &packed.products[of_group(lanes)],
                    },
                    key: &packed.key[block.start * depth..],
                    value: &packed.value[block.start * depth..],
                    key_rows: &packed.key_rows[block.start / unit * dim..],
                    mask,
                    scale: self.scale,
                    room: tiles,
                    sums: Sums {
                        query: self.wanted[0]
                            .then(|| &mut query[(group - groups.start) * lanes * dim..][..lanes * dim]),
                        key: self.wanted[1].then(|| &mut key[own.clone()]),
                        value: self.wanted[2].then(|| &mut value[own]),
                    },
                });
            }
        }
        ROOM.set(room);
        part
    }

    fn pack(&self, head: [usize; 2], log_sums: &[f32]) -> Packed {
        let Self { dim, padded, query_tokens, key_tokens, .. } = *self;
        let (depth, lanes, unit, groups) =
            (self.depth(), self.kernel.queries, self.kernel.unit, self.groups());
        let mut packed = Packed {
            query: vec![0f32; groups * depth * lanes],
            gradient: vec![0f32; groups * depth * lanes],
            query_rows: vec![0f32; groups * lanes / unit * padded],
            gradient_rows: vec![0f32; groups * lanes / unit * padded],
            // What is beyond the queries has no weight.
            log_sums: vec![f32::INFINITY; groups * lanes],
            products: vec![0f32; groups * lanes],
            key: vec![0f32; key_tokens * depth],
            value: vec![0f32; key_tokens * depth],
            key_rows: vec![0f32; key_tokens.div_ceil(unit) * dim],
        };
        packed.log_sums[..query_tokens].copy_from_slice(log_sums);
        for (tokens, columns, rows) in [
            (&self.query, &mut packed.query, &mut packed.query_rows),
            (&self.gradient, &mut packed.gradient, &mut packed.gradient_rows),
        ] {
            let groups = columns
                .par_chunks_exact_mut(depth * lanes)
                .zip(rows.par_chunks_exact_mut(lanes / unit * padded));
            groups.enumerate().for_each(|(group, (columns, rows))| {
                let present = group * lanes..query_tokens.min((group + 1) * lanes);
                let mut room = vec![0f32; lanes * depth];
                for (token, row) in present.clone().zip(room.chunks_exact_mut(depth)) {
                    self.read_units(tokens, head, token, row);
                }
                transpose(&room, depth, columns);
                self.read_rows(tokens, head, present, padded, rows);
            });
        }
        let products = packed.products[..query_tokens].par_iter_mut().with_min_len(TASK.div_ceil(dim));
        products.enumerate().for_each(|(token, product)| {
            let mut rows = [vec![0f32; dim], vec![0f32; dim]];
            self.output.read(head[0], token, head[1], &mut rows[0]);
            self.gradient.read(head[0], token, head[1], &mut rows[1]);
            *product = rows[0].iter().zip(&rows[1]).map(|(output, gradient)| output * gradient).sum();
        });
        let blocks = packed.key.par_chunks_mut(KEYS * depth).zip(packed.value.par_chunks_mut(KEYS * depth));
        let blocks = blocks.zip(packed.key_rows.par_chunks_mut(KEYS / unit * dim));
        blocks.enumerate().for_each(|(block, ((key, value), key_rows))| {
            let tokens = block * KEYS..key_tokens.min((block + 1) * KEYS);
            self.pack_panels(&self.key, head, tokens.clone(), key);
            self.pack_panels(&self.value, head, tokens.clone(), value);
            self.read_rows(&self.key, head, tokens, dim, key_rows);
        });
        packed
    }

    fn pack_panels(&self, from: &Tokens<'_>, head: [usize; 2], tokens: Range<usize>, panels: &mut [f32]) {
        let depth = self.depth();
        let mut room = vec![0f32; self.kernel.panel * depth];
        for panel in shares(tokens.len(), self.kernel.panel) {
            let rows = &mut room[..panel.len() * depth];
            for (token, row) in panel.clone().zip(rows.chunks_exact_mut(depth)) {
                self.read_units(from, head, tokens.start + token, row);
            }
            transpose(rows, depth, &mut panels[panel.start * depth..panel.end * depth]);
        }
    }

    /// Units of features.
    fn read_units(&self, from: &Tokens<'_>, [item, head]: [usize; 2], token: usize, row: &mut [f32]) {
        match self.kernel.unit {
            1 => from.read(item, token, head, row),
            _ => from.read_pairs(item, token, head, row),
        }
    }

    /// Units of tokens, in rows of `width`.
    fn read_rows(
        &self,
        from: &Tokens<'_>,
        [item, head]: [usize; 2],
        tokens: Range<usize>,
        width: usize,
        rows: &mut [f32],
    ) {
        for (token, row) in tokens.clone().step_by(self.kernel.unit).zip(rows.chunks_exact_mut(width)) {
            let row = &mut row[..self.dim];
            match self.kernel.unit {
                1 => from.read(item, token, head, row),
                _ => from.read_neighbours(item, token, token + 1 < tokens.end, head, row),
            }
        }
    }
}
