use std::borrow::Cow;

use safetensors::Dtype;

use crate::layout::{Named, Relation};
use crate::model::{Component, Layout, Model, Placed};
use crate::{Error, Result, Source};

/// Every tensor of a model in one of the layouts, and how its bytes come from the source's: nothing is read yet.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The layout of the names.
    pub layout: Layout,
    /// For each component of the model its tensors.
    pub components: Vec<PlannedComponent>,
}

/// The tensors of one component.
#[derive(Debug, Clone)]
pub struct PlannedComponent {
    /// Its folder in diffusers' layout.
    pub folder: &'static str,
    /// Its tensors, by their full names in the layout.
    pub tensors: Vec<PlannedTensor>,
}

/// One tensor to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name in the layout of the plan.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// The element type in the source.
    pub dtype: Dtype,
    /// Where its values are.
    pub values: Values,
}

/// Where the values of a tensor are in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values {
    /// A whole tensor, in the same order.
    Whole(String),
    /// One of several equal parts of a tensor along its first axis.
    Part {
        /// The tensor.
        tensor: String,
        /// Which part, from 0.
        index: usize,
        /// How many parts there are.
        of: usize,
    },
    /// Several tensors, one after the other along the first axis.
    Joined(Vec<String>),
    /// A matrix, to be transposed. The numbers are the rows and columns that it has in the source.
    Transposed(String, [usize; 2]),
}

impl Plan {
    /// The tensors of `model` in `layout`.
    pub fn new(model: &Model, layout: Layout) -> Self {
        let plan = |component: &Component| PlannedComponent {
            folder: component.place.folder,
            tensors: component
                .tensors
                .iter()
                .flat_map(|placed| plan_tensors(model.layout, layout, component.place.prefix, placed))
                .collect(),
        };
        Self { layout, components: model.components.iter().map(plan).collect() }
    }

    /// All tensors with their component's folder.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &PlannedTensor)> {
        self.components
            .iter()
            .flat_map(|component| component.tensors.iter().map(|tensor| (component.folder, tensor)))
    }
}

fn plan_tensors(from: Layout, to: Layout, prefix: &str, placed: &Placed) -> Vec<PlannedTensor> {
    let Placed { row, sources, dtype } = placed;
    let tensor = |named: &Named, values: Values| PlannedTensor {
        name: if to == Layout::Original { format!("{prefix}{}", named.name) } else { named.name.clone() },
        shape: named.shape.clone(),
        dtype: *dtype,
        values,
    };
    let first = || sources.first().cloned().unwrap_or_default();
    let transposed = |named: &Named| {
        let rows_and_columns = [named.shape.first(), named.shape.get(1)].map(|n| n.copied().unwrap_or(1));
        Values::Transposed(first(), rows_and_columns)
    };
    match (from, to) {
        (Layout::Original, Layout::Original) => vec![tensor(&row.original, Values::Whole(first()))],
        (Layout::Diffusers, Layout::Diffusers) => {
            let whole = |(named, source): (&Named, &String)| tensor(named, Values::Whole(source.clone()));
            row.diffusers.iter().zip(sources).map(whole).collect()
        }
        (Layout::Original, Layout::Diffusers) => {
            let values = |index| match row.relation {
                Relation::Same => Values::Whole(first()),
                Relation::Transposed => transposed(&row.original),
                Relation::Fused => Values::Part { tensor: first(), index, of: row.diffusers.len() },
            };
            row.diffusers.iter().enumerate().map(|(index, named)| tensor(named, values(index))).collect()
        }
        (Layout::Diffusers, Layout::Original) => {
            let values = match row.relation {
                Relation::Same => Values::Whole(first()),
                Relation::Transposed => {
                    row.diffusers.first().map_or_else(|| Values::Whole(first()), transposed)
                }
                Relation::Fused => Values::Joined(sources.clone()),
            };
            vec![tensor(&row.original, values)]
        }
    }
}

impl Values {
    /// The source's tensors that they come from.
    pub fn tensors(&self) -> &[String] {
        match self {
            Self::Whole(tensor) | Self::Part { tensor, .. } | Self::Transposed(tensor, _) => {
                std::slice::from_ref(tensor)
            }
            Self::Joined(tensors) => tensors,
        }
    }
}

impl PlannedTensor {
    /// How many numbers it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product, length| product.saturating_mul(*length))
    }

    /// The values of the tensor, in the element type of the source: borrowed where they lie in one piece there.
    ///
    /// # Errors
    /// When the source does not give the bytes that it promised.
    pub fn read<'s>(&self, source: &'s dyn Source) -> Result<Cow<'s, [u8]>> {
        match &self.values {
            Values::Whole(tensor) => source.bytes(tensor),
            Values::Part { tensor, index, of } => part(source.bytes(tensor)?, *index, *of)
                .ok_or_else(|| Error::not_readable(source.name(), tensor)),
            Values::Joined(tensors) => {
                let mut joined = Vec::new();
                for tensor in tensors {
                    joined.extend_from_slice(&source.bytes(tensor)?);
                }
                Ok(Cow::Owned(joined))
            }
            Values::Transposed(tensor, shape) => {
                let width = self.dtype.bitsize() / 8;
                transpose(&source.bytes(tensor)?, *shape, width)
                    .map(Cow::Owned)
                    .ok_or_else(|| Error::not_readable(source.name(), tensor))
            }
        }
    }
}

fn part(bytes: Cow<'_, [u8]>, index: usize, of: usize) -> Option<Cow<'_, [u8]>> {
    let length = bytes.len().checked_div(of)?;
    let range = index.checked_mul(length)?..index.checked_add(1)?.checked_mul(length)?;
    match bytes {
        Cow::Borrowed(bytes) => bytes.get(range).map(Cow::Borrowed),
        Cow::Owned(bytes) => bytes.get(range).map(|bytes| Cow::Owned(bytes.to_vec())),
    }
}

/// The matrix of `rows` x `columns` elements of `width` bytes, transposed.
fn transpose(bytes: &[u8], [rows, columns]: [usize; 2], width: usize) -> Option<Vec<u8>> {
    if width == 0 || rows.checked_mul(columns)?.checked_mul(width)? != bytes.len() {
        return None;
    }
    let mut transposed = vec![0; bytes.len()];
    // In squares, so that neither side runs through all of memory for each row.
    const SIDE: usize = 64;
    for row_start in (0..rows).step_by(SIDE) {
        for column_start in (0..columns).step_by(SIDE) {
            for row in row_start..rows.min(row_start + SIDE) {
                for column in column_start..columns.min(column_start + SIDE) {
                    let from = (row * columns + column) * width;
                    let to = (column * rows + row) * width;
                    transposed[to..to + width].copy_from_slice(&bytes[from..from + width]);
                }
            }
        }
    }
    Some(transposed)
}
