//! Text as the UNet sees it.

use candle_core::{DType, Tensor};

use crate::error::{Result, argument};

/// Text as the UNet sees it.
#[derive(Clone, Debug)]
pub struct PromptEmbeds {
    /// `(batch, tokens, hidden_size)`.
    pub prompt: Tensor,
    /// The same for the negative prompts, which guidance needs.
    pub negative: Option<Tensor>,
    /// Each text as one vector beside those of its tokens, for models that take it (Stable Diffusion XL).
    pub pooled: Option<PooledPromptEmbeds>,
}

/// Each text as one vector.
#[derive(Clone, Debug)]
pub struct PooledPromptEmbeds {
    /// `(batch, projection_dim)`.
    pub prompt: Tensor,
    /// The same for the negative prompts, which guidance needs.
    pub negative: Option<Tensor>,
}

impl PromptEmbeds {
    /// The same in another dtype.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let cast = |tensor: &Tensor| tensor.to_dtype(dtype);
        let pooled = |pooled: &PooledPromptEmbeds| -> Result<PooledPromptEmbeds> {
            let negative = pooled.negative.as_ref().map(cast).transpose()?;
            Ok(PooledPromptEmbeds { prompt: cast(&pooled.prompt)?, negative })
        };
        Ok(Self {
            prompt: cast(&self.prompt)?,
            negative: self.negative.as_ref().map(cast).transpose()?,
            pooled: self.pooled.as_ref().map(pooled).transpose()?,
        })
    }

    /// `(2 * batch, tokens, hidden_size)`: the negative prompts, then the prompts.
    ///
    /// # Errors
    /// When there are no negative prompts, or their shape is another.
    pub fn negative_then_prompt(&self) -> Result<Tensor> {
        negative_then_prompt("negative_prompt_embeds", self.negative.as_ref(), &self.prompt)
    }

    /// What the UNet sees with each step: with `classifier_free` guidance [`negative_then_prompt`](Self::negative_then_prompt), else the prompts.
    ///
    /// # Errors
    /// Those of [`negative_then_prompt`](Self::negative_then_prompt).
    pub fn text(&self, classifier_free: bool) -> Result<Tensor> {
        if classifier_free { self.negative_then_prompt() } else { Ok(self.prompt.clone()) }
    }

    /// Of the pooled embeddings what [`text`](Self::text) is of the others.
    ///
    /// # Errors
    /// When there are none of the negative prompts, or their shape is another.
    pub fn pooled_text(&self, classifier_free: bool) -> Result<Option<Tensor>> {
        let text = |pooled: &PooledPromptEmbeds| {
            if !classifier_free {
                return Ok(pooled.prompt.clone());
            }
            negative_then_prompt("negative_pooled_prompt_embeds", pooled.negative.as_ref(), &pooled.prompt)
        };
        self.pooled.as_ref().map(text).transpose()
    }

    /// Whether both are the very same tensors.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let ids = |embeds: &Self| {
            let id = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::id);
            let pooled = embeds.pooled.as_ref().map(|pooled| (pooled.prompt.id(), id(&pooled.negative)));
            (embeds.prompt.id(), id(&embeds.negative), pooled)
        };
        ids(self) == ids(other)
    }

    /// The prompts of all, one after the other; negative prompts and pooled embeddings where all have them.
    ///
    /// # Errors
    /// When there are none, or their shapes do not fit.
    pub fn cat(all: &[&Self]) -> Result<Self> {
        let join = |tensors: Option<Vec<&Tensor>>| -> Result<Option<Tensor>> {
            Ok(tensors.map(|tensors| Tensor::cat(&tensors, 0)).transpose()?)
        };
        let pooled: Option<Vec<_>> = all.iter().map(|embeds| embeds.pooled.as_ref()).collect();
        let pooled = match pooled.filter(|pooled| !pooled.is_empty()) {
            Some(pooled) => {
                let prompts: Vec<&Tensor> = pooled.iter().map(|pooled| &pooled.prompt).collect();
                let negative = join(pooled.iter().map(|pooled| pooled.negative.as_ref()).collect())?;
                Some(PooledPromptEmbeds { prompt: Tensor::cat(&prompts, 0)?, negative })
            }
            None => None,
        };
        let prompts: Vec<&Tensor> = all.iter().map(|embeds| &embeds.prompt).collect();
        let negative = join(all.iter().map(|embeds| embeds.negative.as_ref()).collect())?;
        Ok(Self { prompt: Tensor::cat(&prompts, 0)?, negative, pooled })
    }

    /// Each prompt `count` times in a row, for as many pictures of it.
    ///
    /// # Errors
    /// Those of the device.
    pub fn repeat_each(&self, count: usize) -> Result<Self> {
        let repeat = |embeds: &Tensor| -> Result<Tensor> {
            let mut shape = embeds.dims().to_vec();
            shape.insert(1, count);
            Ok(embeds.unsqueeze(1)?.expand(shape)?.contiguous()?.flatten(0, 1)?)
        };
        let repeat_some = |embeds: &Option<Tensor>| embeds.as_ref().map(repeat).transpose();
        let pooled = match &self.pooled {
            Some(PooledPromptEmbeds { prompt, negative }) => {
                Some(PooledPromptEmbeds { prompt: repeat(prompt)?, negative: repeat_some(negative)? })
            }
            None => None,
        };
        Ok(Self { prompt: repeat(&self.prompt)?, negative: repeat_some(&self.negative)?, pooled })
    }
}

fn negative_then_prompt(name: &'static str, negative: Option<&Tensor>, prompt: &Tensor) -> Result<Tensor> {
    let Some(negative) = negative else {
        return argument(name, "are missing, but guidance needs them");
    };
    if negative.dims() != prompt.dims() {
        let problem = format!("are {:?}, but those of the prompts are {:?}", negative.dims(), prompt.dims());
        return argument(name, problem);
    }
    Ok(Tensor::cat(&[negative, prompt], 0)?)
}
