use crate::cpu::{Chunk, Pointwise};

/// `activation((x - center) * scale + shift)`: what a norm does with the numbers of one channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalize<F> {
    pub(super) center: f32,
    pub(super) scale: f32,
    pub(super) shift: f32,
    pub(super) activation: F,
}

impl<F: Pointwise<1>> Pointwise<1> for Normalize<F> {
    #[inline(always)]
    fn apply(self, [mut x]: [Chunk; 1]) -> Chunk {
        for lane in &mut x {
            *lane = (*lane - self.center) * self.scale + self.shift;
        }
        self.activation.apply([x])
    }
}
