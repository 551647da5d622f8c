//! AdamW whose moments are kept in 8 bits, as bitsandbytes' `AdamW8bit`.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};

use super::adamw::{AdamRule, AdamWConfig, Moments};
use super::dynamic_map::{BLOCK, DynamicMap};
use super::saved_state::{SavedState, count, load_each};
use super::{Optimizer, Turn, for_each_turn};
use crate::error::Result;
use crate::gradients::Gradients;
use crate::parameters::ParameterGroup;
use crate::values::{PIECE, change, change_parameter, read};

/// Parameters of fewer values keep their moments in float32, as bitsandbytes' `min_8bit_size`.
pub const MIN_8BIT_SIZE: usize = 4096;

/// AdamW with moments quantised in blocks of 256 by the dynamic map: 2 bytes for a value instead of 8.
pub struct AdamW8bit {
    config: AdamWConfig,
    signed: DynamicMap,
    unsigned: DynamicMap,
    moments: BTreeMap<String, AnyMoments>,
}

/// The state of one parameter.
enum AnyMoments {
    Full(Moments),
    Quantised(QuantisedMoments),
}

struct QuantisedMoments {
    step: u64,
    exp_avg: Quantised,
    exp_avg_sq: Quantised,
}

/// Codes of the parameter's shape and one scale for each block.
struct Quantised {
    codes: Tensor,
    scales: Tensor,
}

impl AdamW8bit {
    /// # Errors
    /// If a setting is out of range.
    pub fn new(config: AdamWConfig) -> Result<Self> {
        config.check()?;
        let (signed, unsigned) = (DynamicMap::signed(), DynamicMap::unsigned());
        Ok(Self { config, signed, unsigned, moments: BTreeMap::new() })
    }
}

impl Optimizer for AdamW8bit {
    fn step(&mut self, groups: &[ParameterGroup], gradients: &Gradients, factor: f64) -> Result<()> {
        for_each_turn(groups, gradients, factor, |turn| {
            let name = &turn.parameter.name;
            if !self.moments.contains_key(name) {
                self.moments.insert(name.clone(), AnyMoments::zeros(turn.parameter.var.dims())?);
            }
            match self.moments.get_mut(name) {
                Some(AnyMoments::Full(moments)) => moments.step(&turn, &self.config),
                Some(AnyMoments::Quantised(moments)) => {
                    moments.step(&turn, &self.config, &self.signed, &self.unsigned)
                }
                None => Ok(()),
            }
        })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            match moments {
                AnyMoments::Full(moments) => moments.save(name, &mut state)?,
                AnyMoments::Quantised(moments) => moments.save(name, &mut state)?,
            }
        }
        Ok(state)
    }

    fn load_state(&mut self, groups: &[ParameterGroup], state: HashMap<String, Tensor>) -> Result<()> {
        self.moments = load_each(groups, state, AnyMoments::load)?;
        Ok(())
    }
}

impl AnyMoments {
    fn zeros(shape: &[usize]) -> Result<Self> {
        Ok(if is_quantised(shape) {
            let zeros = || Quantised::zeros(shape);
            Self::Quantised(QuantisedMoments { step: 0, exp_avg: zeros()?, exp_avg_sq: zeros()? })
        } else {
            Self::Full(Moments::zeros(shape)?)
        })
    }

    fn load(name: &str, shape: &[usize], saved: &mut SavedState) -> Result<Self> {
        Ok(if is_quantised(shape) {
            Self::Quantised(QuantisedMoments {
                step: saved.take_count(&format!("{name}.step"))?,
                exp_avg: Quantised::load(&format!("{name}.exp_avg"), shape, saved)?,
                exp_avg_sq: Quantised::load(&format!("{name}.exp_avg_sq"), shape, saved)?,
            })
        } else {
            Self::Full(Moments::load(name, shape, saved)?)
        })
    }
}

fn is_quantised(shape: &[usize]) -> bool {
    shape.iter().product::<usize>() >= MIN_8BIT_SIZE
}

impl QuantisedMoments {
    fn save(&self, name: &str, state: &mut BTreeMap<String, Tensor>) -> Result<()> {
        state.insert(format!("{name}.step"), count(self.step)?);
        for (moment, quantised) in [("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)] {
            state.insert(format!("{name}.{moment}"), quantised.codes.clone());
            state.insert(format!("{name}.{moment}.absmax"), quantised.scales.clone());
        }
        Ok(())
    }

    fn step(
        &mut self,
        turn: &Turn<'_>,
        config: &AdamWConfig,
        signed: &DynamicMap,
        unsigned: &DynamicMap,
    ) -> Result<()> {
        self.step += 1;
        let rule = AdamRule::new(config, turn, self.step);
        read(&turn.gradient, |gradient| {
            self.exp_avg.change(|means| {
                self.exp_avg_sq.change(|squares| {
                    let parts = gradient.chunks(PIECE).zip(means.into_iter().zip(squares)).collect();
                    change_parameter(&turn.parameter.var, parts, |values, (gradient, (means, squares))| {
                        step_piece(&rule, values, gradient, means.with(signed), squares.with(unsigned));
                    })
                })
            })
        })
    }
}

/// Block by block: moments to float32, a step of Adam, moments back to 8 bits.
fn step_piece(
    rule: &AdamRule,
    values: &mut [f32],
    gradient: &[f32],
    mut means: Blocks<'_>,
    mut squares: Blocks<'_>,
) {
    let blocks = values.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
    for (index, (values, gradient)) in blocks.enumerate() {
        let (mut mean, mut square) = ([0.0; BLOCK], [0.0; BLOCK]);
        means.read(index, &mut mean);
        squares.read(index, &mut square);
        rule.apply(values, gradient, &mut mean, &mut square);
        means.write(index, &mean[..values.len()]);
        squares.write(index, &square[..values.len()]);
    }
}

/// The codes and scales of a piece.
struct Piece<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
}

impl<'a> Piece<'a> {
    fn with(self, map: &'a DynamicMap) -> Blocks<'a> {
        Blocks { codes: self.codes, scales: self.scales, map }
    }
}

/// The codes and scales of a piece, and what codes stand for.
struct Blocks<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    map: &'a DynamicMap,
}

impl Blocks<'_> {
    fn read(&self, index: usize, values: &mut [f32; BLOCK]) {
        self.map.dequantise(&self.codes[index * BLOCK..], self.scales[index], values);
    }

    fn write(&mut self, index: usize, values: &[f32]) {
        let start = index * BLOCK;
        self.scales[index] = self.map.quantise(values, &mut self.codes[start..start + values.len()]);
    }
}

impl Quantised {
    fn zeros(shape: &[usize]) -> Result<Self> {
        Ok(Self {
            codes: Tensor::zeros(shape, DType::U8, &Device::Cpu)?,
            scales: Tensor::zeros(blocks(shape), DType::F32, &Device::Cpu)?,
        })
    }

    fn load(name: &str, shape: &[usize], saved: &mut SavedState) -> Result<Self> {
        Ok(Self {
            codes: saved.take(name, shape, DType::U8)?,
            scales: saved.take(&format!("{name}.absmax"), &[blocks(shape)], DType::F32)?,
        })
    }

    /// Lets `f` change it in pieces that go with those of the parameter.
    fn change(&self, f: impl FnOnce(Vec<Piece<'_>>) -> Result<()>) -> Result<()> {
        change(&self.codes, |codes: &mut [u8]| {
            change(&self.scales, |scales: &mut [f32]| {
                let pieces = codes.chunks_mut(PIECE).zip(scales.chunks_mut(PIECE / BLOCK));
                f(pieces.map(|(codes, scales)| Piece { codes, scales }).collect())
            })
        })
    }
}

fn blocks(shape: &[usize]) -> usize {
    shape.iter().product::<usize>().div_ceil(BLOCK)
}
