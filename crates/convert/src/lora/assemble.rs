//! The tensors of one layer as what they mean together, with every shape checked.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::part::Part;
use super::{AdaptedLayer, LokrFactor, LoraError, LoraWeights, TensorRef};

type Result<T> = std::result::Result<T, LoraError>;

/// The tensors of a layer by their parts.
#[derive(Debug, Default)]
pub(super) struct Parts {
    tensors: BTreeMap<Part, TensorRef>,
}

impl Parts {
    /// Adds a tensor; gives it back with the one that is that part already, if there is one.
    pub(super) fn add(&mut self, part: Part, tensor: TensorRef) -> std::result::Result<(), (String, String)> {
        match self.tensors.get(&part) {
            Some(first) => Err((first.name.clone(), tensor.name)),
            None => {
                self.tensors.insert(part, tensor);
                Ok(())
            }
        }
    }

    /// The tensor that holds the layer's alpha.
    pub(super) fn alpha(&self) -> Option<&TensorRef> {
        self.tensors.get(&Part::Alpha)
    }

    /// The changes that the tensors are: a difference beside another change is a change of its own. Tensors that belong to none are
    /// left in `self`.
    ///
    /// `layer` is the layer without its weights.
    ///
    /// # Errors
    /// When a tensor lacks one that belongs to it, or its shape is impossible.
    pub(super) fn assemble(&mut self, file: &str, layer: &AdaptedLayer) -> Result<Vec<AdaptedLayer>> {
        let mut changes = Vec::new();
        for take in [Self::take_lora, Self::take_loha, Self::take_lokr] {
            changes.extend(take(self, file)?);
        }
        let mut layers: Vec<AdaptedLayer> =
            changes.into_iter().map(|weights| AdaptedLayer { weights, ..layer.clone() }).collect();
        if let Some(adapted) = layers.first_mut() {
            adapted.dora_scale = self.take_dora(file)?;
            self.tensors.remove(&Part::Alpha);
        }
        let (weight, bias) = (self.tensors.remove(&Part::Diff), self.tensors.remove(&Part::DiffBias));
        if weight.is_some() || bias.is_some() {
            for tensor in [&weight, &bias].into_iter().flatten() {
                check_float(file, tensor)?;
                check_not_empty(file, tensor)?;
            }
            // Some tools write an alpha beside a difference, which it does not scale.
            self.tensors.remove(&Part::Alpha);
            let weights = LoraWeights::Full { weight, bias };
            layers.push(AdaptedLayer { weights, alpha: None, dora_scale: None, ..layer.clone() });
        }
        Ok(layers)
    }

    /// The names of the tensors that belonged to no change.
    pub(super) fn left(self) -> impl Iterator<Item = String> {
        self.tensors.into_values().map(|tensor| tensor.name)
    }

    /// Both or none of two tensors that belong together.
    fn pair(&mut self, file: &str, first: Part, second: Part) -> Result<Option<(TensorRef, TensorRef)>> {
        match (self.tensors.remove(&first), self.tensors.remove(&second)) {
            (None, None) => Ok(None),
            (Some(one), Some(other)) => {
                for tensor in [&one, &other] {
                    check_float(file, tensor)?;
                    check_not_empty(file, tensor)?;
                }
                Ok(Some((one, other)))
            }
            (Some(one), None) => Err(half(file, &one, first, second)),
            (None, Some(other)) => Err(half(file, &other, second, first)),
        }
    }

    fn take(&mut self, file: &str, part: Part) -> Result<Option<TensorRef>> {
        let Some(tensor) = self.tensors.remove(&part) else { return Ok(None) };
        check_float(file, &tensor)?;
        check_not_empty(file, &tensor)?;
        Ok(Some(tensor))
    }

    fn take_lora(&mut self, file: &str) -> Result<Option<LoraWeights>> {
        let Some((down, up)) = self.pair(file, Part::Down, Part::Up)? else {
            return match self.tensors.remove(&Part::Mid) {
                Some(mid) => Err(half(file, &mid, Part::Mid, Part::Down)),
                None => Ok(None),
            };
        };
        let mid = self.take(file, Part::Mid)?;
        check_axes(file, &down, &[2, 4])?;
        if up.shape.len() != down.shape.len() || up.shape[2..].iter().any(|length| *length != 1) {
            let expected = match down.shape.len() {
                2 => "(out, rank)",
                _ => "(out, rank, 1, 1)",
            };
            return Err(LoraError::shape(file, &up, format!("{expected} beside {}", shown(&down))));
        }
        match &mid {
            None => check_ranks(file, &down, 0, &up, 1)?,
            Some(mid) => {
                check_axes(file, mid, &[4])?;
                check_axes(file, &down, &[4])?;
                check_ranks(file, &down, 0, mid, 1)?;
                check_ranks(file, mid, 0, &up, 1)?;
                if down.shape[2..] != [1, 1] {
                    return Err(LoraError::shape(
                        file,
                        &down,
                        format!("(rank, in, 1, 1) beside {}", shown(mid)),
                    ));
                }
            }
        }
        Ok(Some(LoraWeights::Lora { down, up, mid }))
    }

    fn take_loha(&mut self, file: &str) -> Result<Option<LoraWeights>> {
        let first = self.pair(file, Part::HadaW1A, Part::HadaW1B)?;
        let second = self.pair(file, Part::HadaW2A, Part::HadaW2B)?;
        let t1_t2 = self.pair(file, Part::HadaT1, Part::HadaT2)?;
        let ((w1_a, w1_b), (w2_a, w2_b)) = match (first, second) {
            (Some(first), Some(second)) => (first, second),
            (Some((w1_a, _)), None) => return Err(half(file, &w1_a, Part::HadaW1A, Part::HadaW2A)),
            (None, Some((w2_a, _))) => return Err(half(file, &w2_a, Part::HadaW2A, Part::HadaW1A)),
            (None, None) => {
                return match t1_t2 {
                    Some((t1, _)) => Err(half(file, &t1, Part::HadaT1, Part::HadaW1A)),
                    None => Ok(None),
                };
            }
        };
        for tensor in [&w1_a, &w1_b, &w2_a, &w2_b] {
            check_axes(file, tensor, &[2])?;
        }
        let t1 = t1_t2.as_ref().map(|(t1, _)| t1);
        let t2 = t1_t2.as_ref().map(|(_, t2)| t2);
        // With `t` the rank is the first axis of `a`, and its axes are (b's rank, a's rank, height, width) as LyCORIS sums them.
        let rank_axis = usize::from(t1.is_none());
        for (a, b, t) in [(&w1_a, &w1_b, t1), (&w2_a, &w2_b, t2)] {
            check_product(file, a, b, t)?;
        }
        let out = 1 - rank_axis;
        check_same(file, (&w1_a, out), (&w2_a, out))?;
        check_same(file, (&w1_b, 1), (&w2_b, 1))?;
        if let (Some(t1), Some(t2)) = (t1, t2)
            && t1.shape[2..] != t2.shape[2..]
        {
            return Err(LoraError::shape(file, t2, format!("the kernel of {}", shown(t1))));
        }
        Ok(Some(LoraWeights::Loha { w1_a, w1_b, w2_a, w2_b, t1_t2 }))
    }

    fn take_lokr(&mut self, file: &str) -> Result<Option<LoraWeights>> {
        use Part::{LokrT2, LokrW1, LokrW1A, LokrW1B, LokrW2, LokrW2A, LokrW2B};
        let w1 = self.take_factor(file, LokrW1, (LokrW1A, LokrW1B), None)?;
        let w2 = self.take_factor(file, LokrW2, (LokrW2A, LokrW2B), Some(LokrT2))?;
        match (w1, w2) {
            (None, None) => Ok(None),
            (Some(w1), Some(w2)) => {
                if let LokrFactor::Whole(w1) = &w1 {
                    check_axes(file, w1, &[2])?;
                }
                Ok(Some(LoraWeights::Lokr { w1, w2 }))
            }
            (Some(w1), None) => Err(half(file, first_tensor(&w1), LokrW1, LokrW2)),
            (None, Some(w2)) => Err(half(file, first_tensor(&w2), LokrW2, LokrW1)),
        }
    }

    fn take_factor(
        &mut self,
        file: &str,
        whole: Part,
        (a, b): (Part, Part),
        t: Option<Part>,
    ) -> Result<Option<LokrFactor>> {
        let product = self.pair(file, a, b)?;
        let t_part = t;
        let t = match t {
            Some(t) => self.take(file, t)?,
            None => None,
        };
        match (self.take(file, whole)?, product) {
            (Some(whole), None) if t.is_none() => {
                check_axes(file, &whole, &[2, 4])?;
                Ok(Some(LokrFactor::Whole(whole)))
            }
            (Some(whole), Some((a, _))) => Err(LoraError::Twice {
                file: file.to_string(),
                first: whole.name,
                layer: Part::split(&a.name).map_or(String::new(), |(layer, _)| layer.to_string()),
                second: a.name,
            }),
            (None, Some((a, b))) => {
                check_axes(file, &a, &[2])?;
                check_axes(file, &b, if t.is_none() { &[2, 4] } else { &[2] })?;
                check_product(file, &a, &b, t.as_ref())?;
                Ok(Some(LokrFactor::Product { a, b, t }))
            }
            (_, None) => match (t, t_part) {
                (Some(t), Some(part)) => Err(half(file, &t, part, a)),
                _ => Ok(None),
            },
        }
    }

    /// DoRA's lengths, in the form that [`AdaptedLayer::dora_scale`] documents.
    fn take_dora(&mut self, file: &str) -> Result<Option<TensorRef>> {
        let scale = self.take(file, Part::DoraScale)?;
        let magnitude = self.take(file, Part::DoraMagnitude)?;
        let expected = "one length for each channel: all axes but one must have the length 1";
        let is_vector = |tensor: &TensorRef| tensor.shape.iter().filter(|length| **length != 1).count() <= 1;
        match (scale, magnitude) {
            (Some(scale), Some(magnitude)) => Err(LoraError::Twice {
                file: file.to_string(),
                layer: Part::split(&scale.name).map_or(String::new(), |(layer, _)| layer.to_string()),
                first: scale.name,
                second: magnitude.name,
            }),
            (Some(tensor), None) | (None, Some(tensor)) if !is_vector(&tensor) => {
                Err(LoraError::shape(file, &tensor, expected))
            }
            (scale @ Some(_), None) => Ok(scale),
            (None, magnitude) => Ok(magnitude.map(|mut magnitude| {
                // PEFT has the output channels of a convolution second; always those, never the input's.
                magnitude.shape = vec![magnitude.shape.iter().product()];
                magnitude
            })),
        }
    }
}

fn first_tensor(factor: &LokrFactor) -> &TensorRef {
    match factor {
        LokrFactor::Whole(tensor) | LokrFactor::Product { a: tensor, .. } => tensor,
    }
}

fn half(file: &str, tensor: &TensorRef, part: Part, missing: Part) -> LoraError {
    LoraError::HalfPair {
        file: file.to_string(),
        missing: part.sibling(&tensor.name, missing),
        tensor: tensor.name.clone(),
    }
}

fn shown(tensor: &TensorRef) -> String {
    format!("{} of {:?}", tensor.name, tensor.shape)
}

fn check_float(file: &str, tensor: &TensorRef) -> Result<()> {
    match tensor.dtype {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2 => Ok(()),
        dtype => Err(LoraError::Dtype { file: file.to_string(), tensor: tensor.name.clone(), dtype }),
    }
}

fn check_not_empty(file: &str, tensor: &TensorRef) -> Result<()> {
    if tensor.shape.is_empty() || tensor.shape.contains(&0) {
        return Err(LoraError::shape(file, tensor, "axes of at least one element each"));
    }
    Ok(())
}

fn check_axes(file: &str, tensor: &TensorRef, allowed: &[usize]) -> Result<()> {
    if allowed.contains(&tensor.shape.len()) {
        return Ok(());
    }
    let allowed: Vec<String> = allowed.iter().map(usize::to_string).collect();
    Err(LoraError::shape(file, tensor, format!("{} axes", allowed.join(" or "))))
}

/// The product of `a` and `b`, with the core `t` where there is one.
fn check_product(file: &str, a: &TensorRef, b: &TensorRef, t: Option<&TensorRef>) -> Result<()> {
    let Some(t) = t else { return check_ranks(file, b, 0, a, 1) };
    check_axes(file, t, &[4])?;
    // einsum("i j k l, j r, i p -> p r k l", t, b, a)
    check_ranks(file, t, 0, a, 0)?;
    check_ranks(file, t, 1, b, 0)
}

fn check_ranks(
    file: &str,
    first: &TensorRef,
    first_axis: usize,
    second: &TensorRef,
    second_axis: usize,
) -> Result<()> {
    let rank = |tensor: &TensorRef, axis: usize| tensor.shape.get(axis).copied().unwrap_or_default();
    let (first_rank, second_rank) = (rank(first, first_axis), rank(second, second_axis));
    if first_rank == second_rank {
        return Ok(());
    }
    Err(LoraError::Ranks {
        file: file.to_string(),
        first: first.name.clone(),
        first_shape: first.shape.clone(),
        second: second.name.clone(),
        second_shape: second.shape.clone(),
    })
}

/// Fails unless two axes that are multiplied element by element have the same length.
fn check_same(file: &str, (first, i): (&TensorRef, usize), (second, j): (&TensorRef, usize)) -> Result<()> {
    if first.shape.get(i) == second.shape.get(j) {
        return Ok(());
    }
    Err(LoraError::shape(file, second, format!("as many channels as {}", shown(first))))
}
