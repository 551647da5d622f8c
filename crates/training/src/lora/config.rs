//! What PEFT's `LoraConfig` says.

use std::fmt;

use regex::Regex;

use crate::error::{Error, Result};

/// The layers that diffusers' scripts give a LoRA in UNets: the projections of every attention.
pub const UNET_TARGETS: [&str; 4] = ["to_k", "to_q", "to_v", "to_out.0"];
/// The same in CLIP's text encoders.
pub const TEXT_ENCODER_TARGETS: [&str; 4] = ["q_proj", "k_proj", "v_proj", "out_proj"];

/// What PEFT's `LoraConfig` says; [`new`](Self::new) is what diffusers' scripts use.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// How many numbers stand between the two variables of a layer.
    pub rank: usize,
    /// The change is multiplied by this over the rank.
    pub alpha: f64,
    /// The share of the input's numbers that is left out in each step.
    pub dropout: f64,
    /// Which layers get a LoRA.
    pub target_modules: TargetModules,
    /// What the first variable begins as; the second begins as zeros.
    pub init: LoraInit,
    /// Multiply by alpha over the rank's square root instead (rsLoRA, <https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
    /// Train the lengths of the weight's rows too, and by the LoRA only their directions (DoRA, <https://arxiv.org/abs/2402.09353>).
    pub use_dora: bool,
}

/// PEFT's `target_modules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Layers whose names end with one of these, after a dot or whole.
    Ends(Vec<String>),
    /// Layers whose whole names match this regular expression.
    Pattern(String),
}

impl LoraConfig {
    /// Alpha equal to the rank, no dropout, normally distributed beginnings.
    pub fn new(rank: usize, target_modules: &[&str]) -> Self {
        let ends = target_modules.iter().map(|name| name.to_string()).collect();
        let (alpha, init) = (rank as f64, LoraInit::Gaussian);
        let target_modules = TargetModules::Ends(ends);
        Self { rank, alpha, dropout: 0.0, target_modules, init, use_rslora: false, use_dora: false }
    }

    /// What the change is multiplied by.
    pub fn scaling(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    pub(super) fn check(&self) -> Result<()> {
        let field = |field, found: String, expected: &str| {
            Err(Error::Field { field, found, expected: expected.to_string() })
        };
        if self.rank == 0 {
            return field("rank", "0".to_string(), "1 or more");
        }
        if !self.alpha.is_finite() {
            return field("lora_alpha", self.alpha.to_string(), "a finite number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return field("lora_dropout", self.dropout.to_string(), "0 or more and less than 1");
        }
        Ok(())
    }
}

/// [`TargetModules`], read.
pub(super) enum Chooser {
    Ends(Vec<String>),
    Pattern(Regex),
}

impl TargetModules {
    /// # Errors
    /// When the pattern is no regular expression.
    pub(super) fn chooser(&self) -> Result<Chooser> {
        match self {
            Self::Ends(ends) => Ok(Chooser::Ends(ends.clone())),
            Self::Pattern(pattern) => match Regex::new(&format!("^(?:{pattern})$")) {
                Ok(whole) => Ok(Chooser::Pattern(whole)),
                Err(error) => Err(Error::Field {
                    field: "target_modules",
                    found: format!("{pattern:?}"),
                    expected: format!("a regular expression ({})", last_line(&error.to_string())),
                }),
            },
        }
    }
}

impl Chooser {
    /// Whether a layer of this name gets a LoRA.
    pub(super) fn chooses(&self, name: &str) -> bool {
        let is_end =
            |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        match self {
            Self::Ends(ends) => ends.iter().any(|end| is_end(end)),
            Self::Pattern(whole) => whole.is_match(name),
        }
    }
}

/// What is wrong with an expression, without the picture of it above.
fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string()
}

impl fmt::Display for TargetModules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ends(ends) => write!(f, "{ends:?}"),
            Self::Pattern(pattern) => write!(f, "{pattern:?}"),
        }
    }
}

/// PEFT's `init_lora_weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraInit {
    /// `gaussian`: normally distributed, with a deviation of 1 over the rank.
    Gaussian,
    /// `true`: evenly distributed up to 1 over the root of the inputs, as torch's linear layers begin (He et al., 2015).
    Kaiming,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(targets: &TargetModules) -> Vec<&'static str> {
        let names = ["a.to_q", "a.to_k", "b.attn2.to_q", "into_q", "to_q"];
        let chooser = targets.chooser().unwrap();
        names.into_iter().filter(|name| chooser.chooses(name)).collect()
    }

    #[test]
    fn layers_are_chosen_as_peft_chooses_them() {
        let ends = |ends: &[&str]| TargetModules::Ends(ends.iter().map(|end| end.to_string()).collect());
        assert_eq!(chosen(&ends(&["to_q"])), ["a.to_q", "b.attn2.to_q", "to_q"]);
        assert_eq!(chosen(&ends(&["attn2.to_q", "to_k"])), ["a.to_k", "b.attn2.to_q"]);
        // A text must match the whole name, as by re.fullmatch.
        let pattern = |text: &str| TargetModules::Pattern(text.to_string());
        assert_eq!(chosen(&pattern("to_q")), ["to_q"]);
        assert_eq!(chosen(&pattern(r".*attn\d\.to_[qk]|a.*")), ["a.to_q", "a.to_k", "b.attn2.to_q"]);
        let error = pattern("to_(").chooser().err().unwrap().to_string();
        assert!(
            error.starts_with("target_modules is \"to_(\"; expected a regular expression (unclosed"),
            "{error}"
        );
    }
}
