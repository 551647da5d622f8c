//! Gradient checkpointing (Chen et al., 2016, <https://arxiv.org/abs/1604.06174>): of a model's blocks only the inputs are kept for the gradients, and what a block
//! computes on its way is computed again when its gradients are wanted. Less memory, for about one more forward of time.
//!
//! Ask for it with [`UNetConditions::gradient_checkpointing`](crate::UNetConditions), of text encoders with
//! [`ClipTextModel::set_gradient_checkpointing`](crate::ClipTextModel::set_gradient_checkpointing), and take the gradients by [`backward`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, Layout, MetalStorage, Shape, Storage};
use candle_core::{Tensor, TensorId, Var};
use candle_diffusers_kernels::nested_backward;

use crate::error::Result;
use crate::transformer_2d::Context;

thread_local! {
    /// The gradients of variables inside blocks, while `backward` runs: an operation can hand on its arguments' gradients only.
    static INSIDE: RefCell<Option<HashMap<TensorId, Tensor>>> = const { RefCell::new(None) };
    static RECOMPUTING: Cell<bool> = const { Cell::new(false) };
}

/// The gradients of `loss`, as [`Tensor::backward`] gives them, and those of variables inside checkpointed blocks.
///
/// # Errors
/// Those of [`Tensor::backward`], and when a block cannot be computed again.
pub fn backward(loss: &Tensor) -> candle_core::Result<GradStore> {
    let outer = INSIDE.replace(Some(HashMap::new()));
    let gradients = loss.backward();
    let inside = INSIDE.replace(outer).unwrap_or_default();
    let mut gradients = gradients?;
    for (id, gradient) in inside {
        let sum = match gradients.get_id(id) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        gradients.insert_id(id, sum);
    }
    Ok(gradients)
}

/// Whether a block is computed again for its gradients, on this thread: what is random in it has to come out as it did the first time.
pub fn is_recomputing() -> bool {
    RECOMPUTING.get()
}

/// What a block computes of `(x, temb)` and the context.
pub(crate) type Compute<T> = fn(&T, &Tensor, &Tensor, Context) -> Result<Tensor>;

/// `compute` of the block, of which only the inputs are kept where the context says so.
pub(crate) fn checkpoint<T>(
    block: &T,
    x: &Tensor,
    temb: &Tensor,
    context: Context,
    compute: Compute<T>,
) -> Result<Tensor>
where
    T: Clone + Send + Sync + 'static,
{
    if !context.gradient_checkpointing {
        return compute(block, x, temb, context);
    }
    let text = context.encoder_hidden_states;
    // A clone of a block shares its tensors and adapters; it goes on with what they are now.
    let block = Block { block: block.clone(), mask: context.mask.cloned(), compute };
    let output = block.compute(&x.detach(), &temb.detach(), &text.detach())?;
    let anything_trains = [x, temb, text, &output].iter().any(|tensor| tensor.track_op());
    let output = output.detach();
    let output = match output.is_contiguous() && output.layout().start_offset() == 0 {
        true => output,
        false => output.force_contiguous()?,
    };
    if !anything_trains {
        return Ok(output);
    }
    // Where none of the inputs depends on a variable, but something inside of the block does, there must be one for the gradients to come this way.
    let temb = match [x, temb, text].iter().any(|tensor| tensor.track_op()) {
        true => temb.clone(),
        false => Var::from_tensor(temb)?.into_inner(),
    };
    Ok(x.apply_op3(&temb, text, Checkpoint { block, output: Mutex::new(Some(output)) })?)
}

/// A block as it was when it was computed, and what else it needs.
struct Block<T> {
    block: T,
    mask: Option<Tensor>,
    compute: Compute<T>,
}

impl<T> Block<T> {
    fn compute(&self, x: &Tensor, temb: &Tensor, text: &Tensor) -> Result<Tensor> {
        let context = Context {
            encoder_hidden_states: text,
            mask: self.mask.as_ref(),
            // What is kept there would be of the other computation.
            cache: None,
            gradient_checkpointing: false,
        };
        (self.compute)(&self.block, x, temb, context)
    }

    /// The gradients of the inputs that depend on a variable; those of variables inside of the block go to `INSIDE`.
    fn gradients(&self, inputs: [&Tensor; 3], gradient: &Tensor) -> candle_core::Result<[Option<Tensor>; 3]> {
        let mut fresh = inputs.map(Tensor::detach);
        for (fresh, input) in fresh.iter_mut().zip(inputs) {
            if input.track_op() {
                *fresh = Var::from_tensor(fresh)?.into_inner();
            }
        }
        let [x, temb, text] = &fresh;
        RECOMPUTING.set(true);
        let output = self.compute(x, temb, text);
        RECOMPUTING.set(false);
        let output = output.map_err(candle_core::Error::wrap)?;
        let mut gradients = nested_backward(&output.apply_op1(HasGradient(gradient.clone()))?)?;
        drop(output);
        let of_inputs = [gradients.remove(x), gradients.remove(temb), gradients.remove(text)];
        INSIDE.with_borrow_mut(|inside| {
            let Some(inside) = inside else {
                candle_core::bail!(
                    "gradients of a model with gradient checkpointing are to be taken by gradient_checkpointing::backward, not by Tensor::backward"
                );
            };
            let ids: Vec<TensorId> = gradients.get_ids().copied().collect();
            for id in ids {
                let Some(gradient) = gradients.get_id(id) else { continue };
                let sum = match inside.remove(&id) {
                    Some(other) => (other + gradient)?,
                    None => gradient.clone(),
                };
                inside.insert(id, sum);
            }
            Ok(())
        })?;
        Ok(of_inputs)
    }
}

/// `block` of `(x, temb, text)`, as an operation that keeps nothing else.
struct Checkpoint<T> {
    block: Block<T>,
    /// What it has computed, until the operation's own tensor holds it.
    output: Mutex<Option<Tensor>>,
}

impl<T> Checkpoint<T> {
    fn output<S: BackendStorage>(
        &self,
        of_device: impl Fn(&Storage) -> Option<&S>,
    ) -> candle_core::Result<(S, Shape)> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(output) = output else { candle_core::bail!("the operation is computed a second time") };
        let (storage, layout) = output.storage_and_layout();
        let Some(storage) = of_device(&storage) else {
            candle_core::bail!("the block's result is on another device than its input")
        };
        Ok((storage.try_clone(layout)?, layout.shape().clone()))
    }
}

impl<T: Send + Sync> CustomOp3 for Checkpoint<T> {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.output(|storage| match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        })
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.output(|storage| match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        })
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        self.output(|storage| match storage {
            Storage::Metal(storage) => Some(storage),
            _ => None,
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        temb: &Tensor,
        text: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, temb, text] = self.block.gradients([x, temb, text], gradient)?;
        Ok((x, temb, text))
    }
}

/// Something that depends on a tensor, whose gradient by it is this.
struct HasGradient(Tensor);

impl CustomOp1 for HasGradient {
    fn name(&self) -> &'static str {
        "has-gradient"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((storage.try_clone(layout)?, layout.shape().clone()))
    }

    fn metal_fwd(
        &self,
        storage: &MetalStorage,
        layout: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        Ok((storage.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
