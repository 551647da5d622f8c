//! Gradients of variables, handed out while the backward pass still runs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, TensorId, Var};

use super::{ARRIVED, Arrived, nothing, take};

/// Takes a variable's gradient where it is complete, in the middle of a backward pass; candle hands out all of them at its end. As torch's
/// `Tensor.register_post_accumulate_grad_hook`.
///
/// It is for what its thread computes from the variable between this and the end of the hook's life, and it sees the gradients of this crate's operations on the CPU. What
/// candle's own operations make of the variable has its gradient in candle's store as ever: a taker adds that, where there is any. Of several hooks on one variable the newest
/// counts.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use candle_core::{Device, Tensor, Var};
/// use candle_diffusers_kernels::{GradientHook, linear};
///
/// # fn main() -> candle_core::Result<()> {
/// let weight = Var::randn(0f32, 1.0, (2, 3), &Device::Cpu)?;
/// let taken = Arc::new(Mutex::new(Vec::new()));
/// let of_hook = taken.clone();
/// let _hook = GradientHook::new(&weight, move |gradient| {
///     of_hook.lock().unwrap().push(gradient);
///     Ok(None)
/// })?;
/// let x = Tensor::ones((1, 3), candle_core::DType::F32, &Device::Cpu)?;
/// let store = linear(&x, &weight, None)?.sum_all()?.backward()?;
/// assert!(store.get(&weight).is_none());
/// assert_eq!(taken.lock().unwrap()[0].to_vec2::<f32>()?, [[1.0; 3]; 2]);
/// # Ok(())
/// # }
/// ```
#[must_use = "a hook is gone when it is dropped"]
pub struct GradientHook {
    variable: TensorId,
    /// None on devices where this crate's operations are candle's.
    node: Option<TensorId>,
    /// It stays with its thread.
    thread: PhantomData<*const ()>,
}

thread_local! {
    /// What stands for variables in the graph.
    static HOOKED: RefCell<HashMap<TensorId, Tensor>> = RefCell::default();
}

/// What stands for a variable that has a hook on this thread.
pub(super) fn node_of(variable: TensorId) -> Option<Tensor> {
    HOOKED.with_borrow(|hooked| hooked.get(&variable).cloned())
}

impl fmt::Debug for GradientHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GradientHook").finish_non_exhaustive()
    }
}

impl GradientHook {
    /// Has `take` called with the gradient of `variable`, in its shape and dtype, on the thread of the backward pass: once in each pass that comes to the variable, and once in
    /// each part of a model that is computed again within it. What it gives back goes on to candle's store; with an error the pass fails. The numbers may be those of
    /// another gradient too: they are not to be changed in place.
    ///
    /// # Errors
    /// When there is no memory for a number.
    pub fn new(
        variable: &Var,
        take: impl Fn(Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
    ) -> Result<Self> {
        let id = variable.id();
        if !matches!(variable.device(), Device::Cpu) {
            return Ok(Self { variable: id, node: None, thread: PhantomData });
        }
        // All gradients of the variable arrive at the node before it is looked at.
        let node = variable.apply_op1(Hook { take })?;
        let hook = Self { variable: id, node: Some(node.id()), thread: PhantomData };
        let older = HOOKED.with_borrow_mut(|hooked| hooked.insert(id, node));
        // Not while the table is borrowed: what a hook holds may be another one.
        drop(older);
        Ok(hook)
    }
}

impl Drop for GradientHook {
    fn drop(&mut self) {
        let own = HOOKED.try_with(|hooked| {
            let mut hooked = hooked.borrow_mut();
            let is_own = hooked.get(&self.variable).map(Tensor::id) == self.node;
            if is_own { hooked.remove(&self.variable) } else { None }
        });
        // Not while the table is borrowed; an error says that the thread has ended.
        drop(own);
    }
}

/// The way from a variable's node to the variable.
struct Hook<F> {
    take: F,
}

impl<F: Fn(Tensor) -> Result<Option<Tensor>> + Send + Sync> CustomOp1 for Hook<F> {
    fn name(&self) -> &'static str {
        "gradient-hook"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        nothing()
    }

    fn bwd(&self, _: &Tensor, node: &Tensor, counted: &Tensor) -> Result<Option<Tensor>> {
        match take(node, counted)? {
            Arrived::Sum { gradient, .. } => (self.take)(gradient).inspect_err(|_| {
                ARRIVED.take();
            }),
            Arrived::Rest(_) => candle_core::bail!("gradient-hook: the graph is not as it was recorded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::{lock, nested_backward};
    use super::*;
    use crate::{add, linear};

    fn var(numbers: &[f32]) -> Var {
        Var::from_tensor(&Tensor::new(numbers, &Device::Cpu).unwrap().reshape((1, ())).unwrap()).unwrap()
    }

    type Taken = Arc<Mutex<Vec<Vec<f32>>>>;

    /// A hook that notes what it takes, and passes it on or not.
    fn noting(variable: &Var, passes_on: bool) -> (GradientHook, Taken) {
        let taken = Taken::default();
        let notes = taken.clone();
        let hook = GradientHook::new(variable, move |gradient| {
            lock(&notes).push(gradient.flatten_all()?.to_vec1()?);
            Ok(passes_on.then_some(gradient))
        });
        (hook.unwrap(), taken)
    }

    #[test]
    fn a_hook_gets_the_sum_of_all_uses_once() {
        let x = var(&[1.0, -2.0]);
        let (hook, taken) = noting(&x, false);
        let loss = add(&add(&x, &x).unwrap(), &x).unwrap().sum_all().unwrap();
        for pass in 1..3 {
            let store = loss.backward().unwrap();
            assert!(store.get(&x).is_none());
            assert_eq!(*lock(&taken), vec![vec![3.0, 3.0]; pass]);
        }
        drop(hook);
        let loss = add(&x, &x).unwrap().sum_all().unwrap();
        let store = loss.backward().unwrap();
        assert_eq!(store.get(&x).unwrap().to_vec2::<f32>().unwrap(), [[2.0, 2.0]]);
        assert_eq!(lock(&taken).len(), 2, "a hook that is gone takes nothing");
    }

    #[test]
    fn what_is_passed_on_and_what_candle_computes_is_in_the_store() {
        for (passes_on, in_store) in [(false, [2.0, -4.0]), (true, [4.0, -2.0])] {
            let x = var(&[1.0, -2.0]);
            let (_hook, taken) = noting(&x, passes_on);
            let loss = (add(&x, &x).unwrap() + x.sqr().unwrap()).unwrap().sum_all().unwrap();
            let store = loss.backward().unwrap();
            assert_eq!(*lock(&taken), [[2.0, 2.0]]);
            assert_eq!(store.get(&x).unwrap().to_vec2::<f32>().unwrap(), [in_store]);
        }
    }

    #[test]
    fn the_newest_hook_counts_and_an_older_one_does_not_take_it_away() {
        let x = var(&[1.0]);
        let (old, by_old) = noting(&x, false);
        let (_new, by_new) = noting(&x, false);
        drop(old);
        add(&x, &x).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!((lock(&by_old).len(), lock(&by_new).len()), (0, 1));
    }

    #[test]
    fn later_layers_are_handed_out_before_earlier_ones_are_computed() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let layers: Vec<Var> =
            (0..3).map(|_| Var::ones((4, 4), candle_core::DType::F32, &Device::Cpu).unwrap()).collect();
        let hook = |(number, layer): (usize, &Var)| {
            let order = order.clone();
            GradientHook::new(layer, move |_| {
                lock(&order).push(number);
                Ok(None)
            })
        };
        let _hooks: Vec<_> = layers.iter().enumerate().map(hook).collect::<Result<_>>().unwrap();
        let mut x = Tensor::ones((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        for layer in &layers {
            x = linear(&x, layer, None).unwrap();
        }
        x.sum_all().unwrap().backward().unwrap();
        assert_eq!(*lock(&order), [2, 1, 0]);
    }

    #[test]
    fn a_hook_that_fails_fails_the_pass_and_not_the_next() {
        let (x, y) = (var(&[1.0]), var(&[2.0]));
        let failing = GradientHook::new(&x, |_| candle_core::bail!("full")).unwrap();
        let sum = add(&x, &y).unwrap().sum_all().unwrap();
        assert!(sum.backward().unwrap_err().to_string().contains("full"));
        drop(failing);
        let store = add(&x, &y).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(store.get(&y).unwrap().to_vec2::<f32>().unwrap(), [[1.0]]);
    }

    #[test]
    fn a_hook_is_of_its_thread() {
        let x = var(&[1.0]);
        let (_hook, taken) = noting(&x, false);
        let of_thread = std::thread::spawn(move || {
            let store = add(&x, &x).unwrap().sum_all().unwrap().backward().unwrap();
            store.get(&x).unwrap().to_vec2::<f32>().unwrap()
        });
        assert_eq!(of_thread.join().unwrap(), [[2.0]]);
        assert!(lock(&taken).is_empty());
    }

    #[test]
    fn a_hook_may_hold_another() {
        let (x, y) = (var(&[1.0]), var(&[2.0]));
        let holding = |x: &Var, y: &Var| {
            let inner = Mutex::new(add(y, y).unwrap());
            GradientHook::new(x, move |_| Ok(Some(lock(&inner).detach())))
        };
        let first = holding(&x, &y).unwrap();
        let second = holding(&x, &y).unwrap();
        drop(first);
        drop(second);
    }

    /// `x + w`, of which nothing is kept for the gradients.
    struct Recomputed(Var);

    impl CustomOp1 for Recomputed {
        fn name(&self) -> &'static str {
            "recomputed"
        }

        fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
            Ok((x.clone(), layout.shape().clone()))
        }

        fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
            let x = Var::from_tensor(&x.detach())?;
            let mut store = nested_backward(&add(&x, &self.0)?.sum_all()?)?;
            Ok(store.remove(&x))
        }
    }

    #[test]
    fn what_is_computed_again_within_a_pass_has_its_own_gradients() {
        let (x, w) = (var(&[1.0]), var(&[2.0]));
        let (_hook, taken) = noting(&w, false);
        for pass in 1..3 {
            let before = add(&x, &w).unwrap();
            let within = before.apply_op1(Recomputed(w.clone())).unwrap();
            let after = add(&within, &w).unwrap();
            let store = after.sum_all().unwrap().backward().unwrap();
            assert_eq!(store.get(&x).unwrap().to_vec2::<f32>().unwrap(), [[1.0]]);
            // The part within, then the two outside.
            assert_eq!(*lock(&taken), vec![[vec![1.0], vec![2.0]]; pass].concat());
        }
    }
}
