//! How large pictures are shown: Custom Diffusion shows all of each, also smaller or larger than it is trained at, as `CustomDiffusionDataset` of diffusers'
//! `examples/custom_diffusion/train_custom_diffusion.py` does.

use candle_diffusers_schedulers::TorchGenerator;

use super::transform::{below, uniform};
use crate::error::Result;

/// How a picture fills what it is cut to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// It keeps its shape and covers all; what is over is cut off.
    #[default]
    Cover,
    /// All of it is seen, squeezed to the target's shape (the script's `noaug`).
    Whole,
    /// The same at a random size: 66 times in 100 from a third of the target's to all of it, at a random place of a canvas that is grey else; the other times 1.2 to 1.4
    /// times as large, of which a random part is seen. Captions begin with words for what is small or large.
    RandomSize,
}

/// Where on what is trained on a whole picture is, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// From the left.
    pub left: u32,
    /// From the top.
    pub top: u32,
    /// How wide it is.
    pub width: u32,
    /// How high it is.
    pub height: u32,
}

/// How often a picture is made smaller or left as it is, and not larger.
const SMALLER: f64 = 0.66;
/// Pictures below this share of the target's size are said to be small.
const SMALL: f64 = 0.6;
/// How captions of small pictures begin.
const SMALL_WORDS: [&str; 2] = ["a far away ", "very small "];
/// How captions of pictures begin that are larger than the target.
const LARGE_WORDS: [&str; 2] = ["zoomed in ", "close up "];

impl Fit {
    /// The width and height of a whole picture that is to be shown on `target`: both at most the target's, or both at least. Of a square as in the script; for
    /// other targets the width is drawn so, and the height follows.
    pub(super) fn size(self, target: [u32; 2], generator: &mut TorchGenerator) -> Result<[u32; 2]> {
        let [width, height] = target;
        if self != Self::RandomSize {
            return Ok(target);
        }
        let (from, to) = if f64::from(uniform(generator)?) < SMALLER {
            (width / 3, width + 1)
        } else {
            let times = |factor: f64| (factor * f64::from(width)) as u32;
            (times(1.2), times(1.4))
        };
        let drawn = from + below(to.saturating_sub(from).max(1), generator)?;
        let follows = u64::from(drawn) * u64::from(height) / u64::from(width.max(1));
        Ok([drawn.max(1), (follows as u32).max(1)])
    }

    /// The words of which one begins the caption of a picture of this width on a target of that one; none where nothing is said of its size.
    pub(super) fn words(self, width: u32, target: u32) -> &'static [&'static str] {
        match self {
            Self::RandomSize if f64::from(width) < SMALL * f64::from(target) => &SMALL_WORDS,
            Self::RandomSize if width > target => &LARGE_WORDS,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_script() {
        let (mut generator, count) = (TorchGenerator::new(0), 4000);
        let drawn: Vec<[u32; 2]> =
            (0..count).map(|_| Fit::RandomSize.size([512; 2], &mut generator).unwrap()).collect();
        assert!(drawn.iter().all(|[width, height]| width == height));
        let share = |is_so: &dyn Fn(u32) -> bool| {
            drawn.iter().filter(|[width, _]| is_so(*width)).count() as f64 / f64::from(count)
        };
        // numpy's randint(512 // 3, 513) and randint(int(1.2 * 512), int(1.4 * 512)), which leave out their ends.
        assert_eq!(share(&|width| (170..=512).contains(&width) || (614..716).contains(&width)), 1.0);
        assert!((share(&|width| width > 512) - 0.34).abs() < 0.03);
        // 138 of 343 sizes are below 307.2.
        let small = share(&|width| !Fit::RandomSize.words(width, 512).is_empty() && width < 512);
        assert!((small - 0.66 * 138.0 / 343.0).abs() < 0.03, "{small}");
        assert_eq!(Fit::RandomSize.words(307, 512), SMALL_WORDS);
        assert!(Fit::RandomSize.words(308, 512).is_empty() && Fit::RandomSize.words(512, 512).is_empty());
        assert_eq!(Fit::RandomSize.words(614, 512), LARGE_WORDS);
        assert_eq!(Fit::Whole.size([512; 2], &mut generator).unwrap(), [512; 2]);
        assert!(Fit::Whole.words(512, 512).is_empty() && Fit::Cover.words(100, 512).is_empty());
    }
}
