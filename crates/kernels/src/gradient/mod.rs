//! How this crate's operations are recorded in candle's graph, so that what they compute can be differentiated.
//!
//! candle's graph refers to an operation's inputs, so that every intermediate result stays in memory until the loss is dropped, and it adds
//! up gradients on one core, each to zeros first. So a recorded result is two tensors: one with the numbers, and a *node*, a single number
//! that stands for it in the graph. Operations refer to the nodes of their inputs and keep the numbers that their backward needs, which
//! are often none. Through candle's backward, which decides the order, go counts of gradients; the gradients themselves wait for their node in
//! a table of the thread that runs it.

mod hook;

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Device, InplaceOp1, Layout, Result, Shape, Tensor, TensorId,
};

use crate::elementwise::{add_in_place, add_numbers};

pub use hook::GradientHook;

/// One for each input of an operation, in its shape and dtype; none for those that do not [`track`](tracks).
pub(crate) type Gradients = Vec<Option<Tensor>>;

/// Whether the backward of an operation is to give a gradient for this input.
pub(crate) fn tracks(input: Option<&Tensor>) -> bool {
    input.is_some_and(Tensor::track_op)
}

/// What an operation computed from `inputs` on the CPU, so that it can be differentiated where one of them is a variable or depends on one.
///
/// `value` is a new tensor of which nobody else has numbers. `backward` gives the [`Gradients`] for that of the value; what it needs for that
/// it keeps detached.
///
/// # Errors
/// When the value is a view.
pub(crate) fn record(
    name: &'static str,
    value: Tensor,
    inputs: &[Option<&Tensor>],
    backward: impl Fn(&Tensor) -> Result<Gradients> + Send + Sync + 'static,
) -> Result<Tensor> {
    let tracked: Vec<&Tensor> = inputs.iter().flatten().copied().filter(|input| input.track_op()).collect();
    let Some((last, others)) = tracked.split_last() else { return Ok(value) };
    let shapes: Vec<_> = inputs.iter().map(|input| input.map(|input| input.shape().clone())).collect();
    let backward: Backward = Box::new(move |gradient| {
        let gradients = backward(&gradient.contiguous()?)?;
        for (gradient, shape) in gradients.iter().zip(&shapes) {
            if let (Some(gradient), Some(shape)) = (gradient, shape)
                && gradient.shape() != shape
            {
                candle_core::bail!("{name}: a gradient of {:?} for an input of {shape:?}", gradient.shape());
            }
        }
        Ok(gradients.into_iter().flatten().collect())
    });
    // The first link is the node; each of the others takes the gradients that are left.
    let mut links = std::iter::once(Some(backward)).chain(std::iter::repeat_with(|| None));
    let mut backwards: Vec<_> = (0..tracked.len()).map(|_| links.next().flatten()).collect();
    let mut link = |input: &Tensor| {
        let (to, is_node) = edge(input);
        (to, Link { name, is_node, backward: backwards.pop().flatten() })
    };
    let (to, operation) = link(last);
    let mut node = to.apply_op1(operation)?;
    for input in others.iter().rev() {
        let (to, operation) = link(input);
        node = to.apply_op2(&node, operation)?;
    }
    with_numbers(value, node)
}

/// [`record`] for a `backward` that is given the output too, which is then kept.
pub(crate) fn record_with_output(
    name: &'static str,
    value: Tensor,
    inputs: &[Option<&Tensor>],
    backward: impl Fn(&Tensor, &Tensor) -> Result<Gradients> + Send + Sync + 'static,
) -> Result<Tensor> {
    let output = Arc::new(OnceLock::new());
    let of_backward = Arc::clone(&output);
    let recorded = record(name, value, inputs, move |gradient| match of_backward.get() {
        Some(output) => backward(gradient, output),
        None => candle_core::bail!("{name}: the output is missing"),
    })?;
    // Without its place in the graph, in which the backward is. Nobody else has set it.
    output.set(recorded.detach()).ok();
    Ok(recorded)
}

/// [`Tensor::backward`] in the middle of another one, as where a part of a model is computed again for its gradients: what has arrived in the one does not count in the other.
///
/// # Errors
/// Those of [`Tensor::backward`].
pub fn nested_backward(loss: &Tensor) -> Result<GradStore> {
    let outer = ARRIVED.take();
    let gradients = loss.backward()?;
    // After an error the outer one fails too, and is to leave nothing behind.
    ARRIVED.set(outer);
    Ok(gradients)
}

/// What stands for a tensor in the graph, and whether it is one of our nodes.
fn edge(tensor: &Tensor) -> (Tensor, bool) {
    let node = lock(&NODES).get(&tensor.id()).cloned();
    match node.or_else(|| hook::node_of(tensor.id())) {
        Some(node) => (node, true),
        None => (tensor.clone(), false),
    }
}

type Backward = Box<dyn Fn(&Tensor) -> Result<Vec<Tensor>> + Send + Sync>;

/// The nodes of the tensors that [`with_numbers`] made, as long as these live.
static NODES: LazyLock<Mutex<HashMap<TensorId, Tensor>>> = LazyLock::new(Mutex::default);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing fails while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What arrived for a node.
enum Arrived {
    /// The sum of so many gradients. The first is not this table's own: another node may have got the same.
    Sum { gradient: Tensor, count: usize },
    /// What another link left.
    Rest(Vec<Tensor>),
}

thread_local! {
    static ARRIVED: RefCell<HashMap<TensorId, Arrived>> = RefCell::default();
}

/// Adds a gradient for a node; gives what candle is to count.
fn arrive(node: &Tensor, gradient: Tensor) -> Result<Tensor> {
    ARRIVED.with_borrow_mut(|arrived| {
        match arrived.entry(node.id()) {
            Entry::Vacant(entry) => {
                entry.insert(Arrived::Sum { gradient, count: 1 });
            }
            Entry::Occupied(mut entry) => {
                let Arrived::Sum { gradient: sum, count } = entry.get_mut() else {
                    candle_core::bail!("a gradient for what is no node");
                };
                match *count {
                    1 => *sum = add_numbers(sum, &gradient)?,
                    // A part of a joined tensor's gradient does not lie in one piece.
                    _ => add_in_place(sum, &gradient.contiguous()?)?,
                }
                *count += 1;
            }
        }
        Ok(())
    })?;
    Tensor::ones((), candle_core::DType::F32, &Device::Cpu)
}

/// What arrived for a node of which candle has counted so many.
fn take(node: &Tensor, counted: &Tensor) -> Result<Arrived> {
    match ARRIVED.with_borrow_mut(|arrived| arrived.remove(&node.id())) {
        Some(Arrived::Sum { gradient, count }) if counted.to_scalar::<f32>()? == count as f32 => {
            Ok(Arrived::Sum { gradient, count })
        }
        Some(Arrived::Rest(gradients)) => Ok(Arrived::Rest(gradients)),
        _ => {
            // A backward that failed on its way leaves gradients behind.
            ARRIVED.take();
            candle_core::bail!("gradients of an earlier backward, which failed, were in the way; try again")
        }
    }
}

/// An edge from a node to the node, variable or other tensor that one of its operation's inputs is; for several inputs there is a chain.
struct Link {
    name: &'static str,
    /// Whether it leads to one of our nodes.
    is_node: bool,
    /// The first link of a chain has it.
    backward: Option<Backward>,
}

impl Link {
    /// The gradients of this link's input and of those that follow.
    fn gradients(&self, node: &Tensor, counted: &Tensor) -> Result<Vec<Tensor>> {
        match (take(node, counted)?, &self.backward) {
            (Arrived::Rest(gradients), None) => Ok(gradients),
            (Arrived::Sum { gradient, .. }, Some(backward)) => backward(&gradient).inspect_err(|_| {
                ARRIVED.take();
            }),
            _ => candle_core::bail!("{}: the graph is not as it was recorded", self.name),
        }
    }

    /// Hands a gradient on; gives what candle is to add up.
    fn deliver(&self, to: &Tensor, gradient: Option<Tensor>) -> Result<Option<Tensor>> {
        let Some(gradient) = gradient else {
            candle_core::bail!("{}: its backward gives too few gradients", self.name)
        };
        if self.is_node { arrive(to, gradient).map(Some) } else { Ok(Some(gradient)) }
    }
}

fn nothing() -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
}

impl CustomOp1 for Link {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        nothing()
    }

    fn bwd(&self, to: &Tensor, node: &Tensor, counted: &Tensor) -> Result<Option<Tensor>> {
        self.deliver(to, self.gradients(node, counted)?.into_iter().next())
    }
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        nothing()
    }

    fn bwd(
        &self,
        to: &Tensor,
        next: &Tensor,
        node: &Tensor,
        counted: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients(node, counted)?.into_iter();
        let own = self.deliver(to, gradients.next())?;
        ARRIVED.with_borrow_mut(|arrived| arrived.insert(next.id(), Arrived::Rest(gradients.collect())));
        Ok((own, Some(counted.clone())))
    }
}

/// The numbers of a new tensor, as a tensor whose gradient is the node's.
fn with_numbers(value: Tensor, node: Tensor) -> Result<Tensor> {
    let is_whole = |storage: &CpuStorage, layout: &Layout| {
        layout.is_contiguous() && layout.start_offset() == 0 && length(storage) == layout.shape().elem_count()
    };
    let taken = Taken { storage: Mutex::new(None), is_whole };
    // What is empty may be a view.
    let value = if value.elem_count() == 0 { value.zeros_like()? } else { value };
    value.inplace_op1(&taken)?;
    let id = Arc::new(OnceLock::new());
    let numbers = Numbers { storage: taken.storage, shape: value.shape().clone(), id: id.clone() };
    let tensor = node.apply_op1(numbers)?;
    lock(&NODES).insert(tensor.id(), node);
    // Nobody else has set it.
    id.set(tensor.id()).ok();
    Ok(tensor)
}

fn length(storage: &CpuStorage) -> usize {
    match storage {
        CpuStorage::F32(numbers) => numbers.len(),
        CpuStorage::F16(numbers) => numbers.len(),
        CpuStorage::BF16(numbers) => numbers.len(),
        _ => usize::MAX,
    }
}

/// Takes the numbers out of a tensor.
struct Taken {
    storage: Mutex<Option<CpuStorage>>,
    is_whole: fn(&CpuStorage, &Layout) -> bool,
}

impl InplaceOp1 for Taken {
    fn name(&self) -> &'static str {
        "take-numbers"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        if !(self.is_whole)(storage, layout) {
            candle_core::bail!("{:?} is a view of other numbers", layout.shape());
        }
        let nothing = match storage {
            CpuStorage::F16(_) => CpuStorage::F16(Vec::new()),
            CpuStorage::BF16(_) => CpuStorage::BF16(Vec::new()),
            _ => CpuStorage::F32(Vec::new()),
        };
        *lock(&self.storage) = Some(std::mem::replace(storage, nothing));
        Ok(())
    }
}

/// Gives a node numbers.
struct Numbers {
    /// Until they are a tensor's.
    storage: Mutex<Option<CpuStorage>>,
    shape: Shape,
    /// That of the tensor.
    id: Arc<OnceLock<TensorId>>,
}

impl CustomOp1 for Numbers {
    fn name(&self) -> &'static str {
        "numbers"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match lock(&self.storage).take() {
            Some(storage) => Ok((storage, self.shape.clone())),
            None => candle_core::bail!("numbers are given once"),
        }
    }

    fn bwd(&self, node: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        if gradient.track_op() {
            candle_core::bail!("second derivatives of this crate's operations are not computed");
        }
        arrive(node, gradient.contiguous()?).map(Some)
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        let node = self.id.get().and_then(|id| lock(&NODES).remove(id));
        // Not under the lock: with it more of the graph may go, which is here again.
        drop(node);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::*;

    fn doubled(x: &Tensor) -> Result<Tensor> {
        let value = (x.detach() * 2.0)?;
        record("doubled", value, &[Some(x)], |gradient| Ok(vec![Some((gradient * 2.0)?)]))
    }

    /// `a * b + c`, keeping what it needs.
    fn fused(a: &Tensor, b: &Tensor, c: &Tensor) -> Result<Tensor> {
        let [x, y, z] = [a.detach(), b.detach(), c.detach()];
        let value = ((&x * &y)? + z)?;
        let wanted = [a, b, c].map(|input| input.track_op());
        record("fused", value, &[Some(a), Some(b), Some(c)], move |gradient| {
            let given = [(gradient * &y)?, (gradient * &x)?, gradient.clone()];
            Ok(given.into_iter().zip(wanted).map(|(given, wanted)| wanted.then_some(given)).collect())
        })
    }

    fn var(numbers: &[f32]) -> Var {
        Var::new(numbers, &Device::Cpu).unwrap()
    }

    fn gradient(loss: &Tensor, of: &Var) -> Vec<f32> {
        let gradients = loss.backward().unwrap();
        gradients.get(of).unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn results_that_are_used_several_times_get_the_sum() {
        let x = var(&[1.0, -2.0]);
        let twice = doubled(&x).unwrap();
        // By our operations, by candle's, and by both at once.
        let product = fused(&twice, &twice, &twice).unwrap();
        let loss = (product + twice.sqr().unwrap()).unwrap();
        // 4x^2 + 2x + 4x^2
        assert_eq!(loss.to_vec1::<f32>().unwrap(), [10.0, 28.0]);
        assert_eq!(gradient(&loss, &x), [18.0, -30.0]);
        // Once more on the same graph.
        assert_eq!(gradient(&loss, &x), [18.0, -30.0]);
    }

    #[test]
    fn what_is_not_tracked_gets_nothing() {
        let (a, c) = (var(&[3.0]), Tensor::new(&[5f32], &Device::Cpu).unwrap());
        let frozen = Tensor::new(&[7f32], &Device::Cpu).unwrap();
        let loss = fused(&frozen, &doubled(&a).unwrap(), &c).unwrap();
        let gradients = loss.backward().unwrap();
        assert_eq!(gradients.get_ids().count(), 1);
        assert_eq!(gradients.get(&a).unwrap().to_vec1::<f32>().unwrap(), [14.0]);
        assert!(!fused(&frozen, &c, &c).unwrap().track_op());
    }

    #[test]
    fn numbers_that_no_backward_needs_are_freed() {
        let x = var(&[1.0; 4]);
        let nodes = || lock(&NODES).len();
        let before = nodes();
        let mut last = doubled(&x).unwrap();
        for _ in 0..10 {
            last = doubled(&last).unwrap();
        }
        // Other tests may run meanwhile; the ten before the last are gone.
        assert!(nodes() < before + 10);
        assert_eq!(gradient(&last, &x), [2048.0; 4]);
    }

    #[test]
    fn a_failed_backward_does_not_spoil_the_next() {
        let x = var(&[1.0]);
        let twice = doubled(&x).unwrap();
        let value = Tensor::new(&[0f32], &Device::Cpu).unwrap();
        let failing =
            record("failing", value, &[Some(&twice)], |_| candle_core::bail!("no gradient")).unwrap();
        let both = fused(&failing, &twice, &twice).unwrap();
        assert!(both.backward().is_err());
        assert_eq!(gradient(&twice, &x), [2.0]);
    }
}
