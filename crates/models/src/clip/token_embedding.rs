use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::model::input_error;
use crate::error::Result;
use crate::layers::Embedding;

/// The table of token embeddings, and rows that were added to it later. The table itself is never touched, so that taking the rows
/// away leaves exactly what was loaded.
#[derive(Clone, Debug)]
pub(super) struct TokenEmbedding {
    table: Embedding,
    added: Option<AddedRows>,
}

#[derive(Clone, Debug)]
struct AddedRows {
    /// The id of the first row.
    first: usize,
    /// Each `(added, hidden_size)`, as it was handed in: where it is a variable's, gradients reach it, and what becomes of it is seen.
    pieces: Vec<Tensor>,
}

impl TokenEmbedding {
    pub(super) fn new(count: usize, width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { table: Embedding::new(count, width, vb)?, added: None })
    }

    /// How many ids there are.
    pub(super) fn count(&self) -> usize {
        match &self.added {
            Some(added) => added.first + added.count(),
            None => self.table.count(),
        }
    }

    pub(super) fn dtype(&self) -> DType {
        self.table.weight().dtype()
    }

    pub(super) fn width(&self) -> usize {
        self.table.features()
    }

    /// The rows of `ids`, each of which is less than [`count`](Self::count): `(ids.len(), hidden_size)`.
    pub(super) fn forward(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        let rows_of = |ids: &[u32]| self.table.forward(&Tensor::new(ids, device)?);
        let Some(added) = &self.added else { return rows_of(ids) };
        let is_added = |id: u32| id as usize >= added.first;
        let from_table: Vec<u32> = ids.iter().map(|id| if is_added(*id) { 0 } else { *id }).collect();
        let mut rows = vec![rows_of(&from_table)?];
        for piece in &added.pieces {
            rows.push(piece.to_dtype(self.dtype())?);
        }
        let rows = Tensor::cat(&rows, 0)?;
        let position = |(position, id): (u32, &u32)| {
            if is_added(*id) { ids.len() as u32 + (*id - added.first as u32) } else { position }
        };
        let positions: Vec<u32> = (0..).zip(ids).map(position).collect();
        Ok(rows.index_select(&Tensor::new(positions, device)?, 0)?)
    }

    /// As [`ClipTextModel::add_token_embeddings`](super::ClipTextModel::add_token_embeddings).
    pub(super) fn add(&mut self, first_id: u32, vectors: &Tensor) -> Result<()> {
        let (count, width) = vectors.dims2()?;
        if count == 0 || width != self.width() {
            let problem =
                format!("are {:?}, expected at least one of width {}", vectors.dims(), self.width());
            return Err(input_error("vectors", problem));
        }
        let first_id = first_id as usize;
        let next = self.count();
        let fits = if self.added.is_some() { first_id == next } else { first_id <= next };
        if !fits {
            let problem = format!(
                "is {first_id}, but the table has {next} rows; the tokenizer is of another model or has other tokens"
            );
            return Err(input_error("first_id", problem));
        }
        let weight = self.table.weight();
        let vectors = vectors.to_device(weight.device())?;
        let added = self.added.get_or_insert_with(|| AddedRows { first: first_id, pieces: Vec::new() });
        added.pieces.push(vectors);
        Ok(())
    }

    /// As [`ClipTextModel::remove_token_embeddings`](super::ClipTextModel::remove_token_embeddings).
    pub(super) fn remove(&mut self, ids: &[u32]) -> Result<()> {
        let Some(added) = &self.added else {
            return if ids.is_empty() { Ok(()) } else { Err(not_added(ids[0])) };
        };
        let is_there = |id: &u32| (added.first..added.first + added.count()).contains(&(*id as usize));
        if let Some(id) = ids.iter().find(|id| !is_there(id)) {
            return Err(not_added(*id));
        }
        let (first, mut id) = (added.first, added.first as u32);
        let mut pieces = Vec::with_capacity(added.pieces.len());
        for piece in &added.pieces {
            let count = piece.dims()[0] as u32;
            let kept: Vec<u32> = (0..count).filter(|row| !ids.contains(&(id + row))).collect();
            id += count;
            if kept.len() == count as usize {
                pieces.push(piece.clone());
            } else if !kept.is_empty() {
                pieces.push(piece.index_select(&Tensor::new(kept, piece.device())?, 0)?);
            }
        }
        self.added = (!pieces.is_empty()).then_some(AddedRows { first, pieces });
        Ok(())
    }
}

impl AddedRows {
    fn count(&self) -> usize {
        self.pieces.iter().map(|piece| piece.dims()[0]).sum()
    }
}

fn not_added(id: u32) -> crate::Error {
    input_error("ids", format!("contain {id}, which was not added"))
}
