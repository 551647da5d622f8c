//! The backward pass of a batch, which hands out gradients while it runs.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;
use candle_diffusers_kernels::GradientHook;

use crate::error::Result;
use crate::gradients::Gradients;
use crate::parameters::{ParameterGroup, parameters};

/// A parameter's number and a part of its gradient, in the parameter's dtype.
pub(crate) type Arrival = (usize, Tensor);

/// A backward pass that is to come, and where its gradients arrive.
pub(crate) type Prepared = (BackwardPass, Receiver<Arrival>);

/// A backward pass that is to come. Whatever becomes of it, its arrivals end with it.
pub(crate) struct BackwardPass {
    outlet: Arc<Outlet>,
    /// For as long as the loss is computed and differentiated.
    _hooks: Vec<GradientHook>,
}

/// None once the pass is over: the graph of a loss may live longer.
type Outlet = Mutex<Option<Sender<Arrival>>>;

impl BackwardPass {
    /// To be made before the loss is computed. Gives where gradients arrive, each as soon as it is complete; those that candle's own operations have a part in
    /// come at the end, by [`run`](Self::run).
    pub(crate) fn prepare(groups: &[ParameterGroup]) -> Result<Prepared> {
        let (sender, arrivals) = channel();
        let outlet = Arc::new(Mutex::new(Some(sender)));
        let hooks = parameters(groups).enumerate().map(|(number, parameter)| {
            let outlet = outlet.clone();
            GradientHook::new(&parameter.var, move |gradient| Ok(hand_out(&outlet, number, gradient)))
        });
        let hooks = hooks.collect::<candle_core::Result<_>>()?;
        Ok((Self { outlet, _hooks: hooks }, arrivals))
    }

    /// The gradients of `loss` that have not arrived before.
    pub(crate) fn run(self, loss: &Tensor, groups: &[ParameterGroup]) -> Result<Gradients> {
        Gradients::of(loss, groups)
    }
}

/// All gradients of `loss`, where nobody waits for them.
pub(crate) fn whole_pass(
    (pass, arrivals): Prepared,
    loss: &Tensor,
    groups: &[ParameterGroup],
) -> Result<Gradients> {
    let mut gradients = pass.run(loss, groups)?;
    arrivals.into_iter().try_for_each(|(number, gradient)| gradients.add_one(number, gradient))?;
    Ok(gradients)
}

impl Drop for BackwardPass {
    fn drop(&mut self) {
        lock(&self.outlet).take();
    }
}

/// Gives the gradient back where nobody takes it.
fn hand_out(outlet: &Outlet, number: usize, gradient: Tensor) -> Option<Tensor> {
    match lock(outlet).as_ref().map(|sender| sender.send((number, gradient.clone()))) {
        Some(Ok(())) => None,
        _ => Some(gradient),
    }
}

fn lock(outlet: &Outlet) -> MutexGuard<'_, Option<Sender<Arrival>>> {
    outlet.lock().unwrap_or_else(PoisonError::into_inner)
}
