//! The lengths of a word's vectors.

use candle_core::{D, DType, Var};

use crate::error::Result;

/// Below this, torch's `normalize` divides by this.
const LEAST: f64 = 1e-12;

/// Pulls the rows of a parameter towards a length, as `lora_diffusion/cli_lora_pti.py` of cloneofsimo's lora does by `clip_ti_decay` after each step of a word: a row r
/// becomes r / |r| (|r| + l (length - |r|)), where l is 100 times the learning rate, and 1 at most.
pub(crate) fn pull_rows(parameter: &Var, length: f64, learning_rate: f64) -> Result<()> {
    let share = (100.0 * learning_rate).min(1.0);
    let rows = parameter.as_detached_tensor().to_dtype(DType::F32)?;
    let before = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    let after = (&before + (before.affine(-1.0, length)? * share)?)?;
    let pulled = rows.broadcast_div(&before.maximum(LEAST)?)?.broadcast_mul(&after)?;
    Ok(parameter.set(&pulled.to_dtype(parameter.dtype())?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn lengths_are_those_of_lora_pti() {
        let pulled = |learning_rate: f64| {
            let rows = Tensor::new(&[[0.3_f32, 0.4], [0.0, 0.2], [0.0, 0.0]], &Device::Cpu).unwrap();
            let parameter = Var::from_tensor(&rows).unwrap();
            pull_rows(&parameter, 0.4, learning_rate).unwrap();
            parameter.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        // Of 0.5 and 0.2: half the way to 0.4 at a learning rate of 0.005, all of it from 0.01 on.
        for (learning_rate, expected) in [
            (0.0, [0.3, 0.4, 0.0, 0.2, 0.0, 0.0]),
            (0.005, [0.27, 0.36, 0.0, 0.3, 0.0, 0.0]),
            (0.01, [0.24, 0.32, 0.0, 0.4, 0.0, 0.0]),
            (7.0, [0.24, 0.32, 0.0, 0.4, 0.0, 0.0]),
        ] {
            let found = pulled(learning_rate);
            let is_near = |(found, expected): (&f32, f32)| (found - expected).abs() < 1e-6;
            assert!(found.iter().zip(expected).all(is_near), "{learning_rate}: {found:?}");
        }
    }
}
