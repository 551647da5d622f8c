//! A generator's state as the bytes of `torch.Generator.get_state`, to go on from where a run stopped.
//!
//! The layout is that of `CPUGeneratorImplState` and `CPUGeneratorImplStateLegacy` in torch's `ATen/CPUGeneratorImpl.cpp`, little-endian.

use super::TorchGenerator;
use super::mt19937::{Mt19937, STATE_WORDS};
use crate::error::{Error, Result};

const LENGTH: usize = 5056;
const SEED: usize = 0;
/// Words left before the next are made, plus one.
const LEFT: usize = 8;
const SEEDED: usize = 12;
const NEXT: usize = 16;
/// Words of 32 bits in 64 each.
const STATE: usize = 24;
const NORMAL: usize = 5024;
const NORMAL_IS_VALID: usize = 5040;

impl TorchGenerator {
    /// Its state, as `generator.get_state().numpy().tobytes()` in torch.
    pub fn state(&self) -> Vec<u8> {
        let (words, drawn) = self.engine.parts();
        let left = if drawn == STATE_WORDS { 1 } else { STATE_WORDS - drawn + 1 };
        let mut bytes = vec![0; LENGTH];
        let mut put =
            |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(SEED, &self.seed.to_le_bytes());
        put(LEFT, &(left as u32).to_le_bytes());
        put(SEEDED, &1u32.to_le_bytes());
        put(NEXT, &(drawn as u64).to_le_bytes());
        for (index, word) in words.iter().enumerate() {
            put(STATE + 8 * index, &u64::from(*word).to_le_bytes());
        }
        if let Some(normal) = self.cached_normal {
            put(NORMAL, &normal.to_le_bytes());
            put(NORMAL_IS_VALID, &1u32.to_le_bytes());
        }
        bytes
    }

    /// The generator that goes on from `state`, which [`state`](Self::state) or torch's `get_state` gave.
    ///
    /// # Errors
    /// If these are not the bytes of such a state.
    pub fn from_state(state: &[u8]) -> Result<Self> {
        let wrong = |found: String| Error::Argument {
            argument: "generator state",
            found,
            expected: format!("{LENGTH} bytes as torch.Generator.get_state gives them"),
        };
        if state.len() != LENGTH {
            return Err(wrong(format!("{} bytes", state.len())));
        }
        let number = |offset: usize, length: usize| {
            let bytes = state[offset..offset + length].iter().rev();
            bytes.fold(0u64, |number, &byte| number << 8 | u64::from(byte))
        };
        let words = std::array::from_fn(|index| number(STATE + 8 * index, 8) as u32);
        // A generator that was only seeded stands before its first words and has none left.
        let drawn =
            if number(LEFT, 4) == 1 { STATE_WORDS } else { number(NEXT, 8).min(u64::MAX >> 1) as usize };
        let engine = Mt19937::from_parts(words, drawn).ok_or_else(|| wrong(format!("at word {drawn}")))?;
        if number(SEEDED, 4) != 1 {
            return Err(wrong("not seeded".to_string()));
        }
        let cached_normal = (number(NORMAL_IS_VALID, 4) != 0).then(|| f64::from_bits(number(NORMAL, 8)));
        Ok(Self { engine, seed: number(SEED, 8), cached_normal })
    }
}
