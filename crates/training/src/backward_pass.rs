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
    sender: Option<Sender<Arrival>>,
    /// For as long as the loss is computed and differentiated.
    _hooks: Vec<GradientHook>,
}

/// None before the pass, as whoever computes the loss may differentiate something else for it, and once it is over: the graph of a loss may live longer.
type Outlet = Mutex<Option<Sender<Arrival>>>;

impl BackwardPass {
    /// To be made before the loss is computed. Gives where gradients arrive, each as soon as it is complete; those that candle's own operations have a part in
    /// come at the end, by [`run`](Self::run).
    pub(crate) fn prepare(groups: &[ParameterGroup]) -> Result<Prepared> {
        let (sender, arrivals) = channel();
        let outlet = Arc::new(Outlet::default());
        let hooks = parameters(groups).enumerate().map(|(number, parameter)| {
            let outlet = outlet.clone();
            GradientHook::new(&parameter.var, move |gradient| Ok(hand_out(&outlet, number, gradient)))
        });
        let hooks = hooks.collect::<candle_core::Result<_>>()?;
        Ok((Self { outlet, sender: Some(sender), _hooks: hooks }, arrivals))
    }

    /// The gradients of `loss` that have not arrived before.
    pub(crate) fn run(mut self, loss: Tensor, groups: &[ParameterGroup]) -> Result<Gradients> {
        *lock(&self.outlet) = self.sender.take();
        Gradients::of(&loss, groups)
    }
}

/// All gradients of `loss`, where nobody waits for them.
pub(crate) fn whole_pass(
    (pass, arrivals): Prepared,
    loss: Tensor,
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use candle_diffusers_kernels::linear;

    use super::*;
    use crate::parameters::Parameter;

    #[test]
    fn what_is_differentiated_on_the_way_to_the_loss_is_not_part_of_it() {
        let var = Var::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
        let parameters = vec![Parameter { name: "weight".to_string(), var: var.clone() }];
        let groups = [ParameterGroup { parameters, learning_rate: 0.1, weight_decay: 0.0 }];
        let sum = |factor: f64| {
            let x = (Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap() * factor).unwrap();
            linear(&x, &var, None).unwrap().sum_all().unwrap()
        };
        let numbers = |gradient: &Tensor| gradient.to_vec2::<f32>().unwrap();
        let pass = BackwardPass::prepare(&groups).unwrap();
        let other = sum(5.0).backward().unwrap();
        assert_eq!(numbers(other.get(&var).unwrap()), [[5.0; 2]]);
        let gradients = whole_pass(pass, sum(3.0), &groups).unwrap();
        assert_eq!(numbers(gradients.get(0).unwrap()), [[3.0; 2]]);
    }
}
