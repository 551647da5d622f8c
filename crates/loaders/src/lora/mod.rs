//! LoRA and its relatives on the models of a pipeline: loaded under a name, set with a weight each, fused, and taken off without a trace.
//!
//! A [`LoraAdapters`] keeps what is loaded and what the models were before. The models know nothing of it: it finds their layers through
//! [`Layers`](candle_diffusers_models::layers::Layers) and changes them from outside.
//!
//! # What is computed
//!
//! A layer's weight `W` becomes `W + sum of strength * scaling * delta` over the active adapters, where `scaling` is alpha / rank (with
//! rsLoRA the square root of the rank; one where the file has no alpha) and `delta` the product or the difference that the file holds
//! ([`LoraWeights`](candle_diffusers_convert::LoraWeights)). This is what diffusers and PEFT compute.
//!
//! **DoRA** follows PEFT, for files of all layouts: each output channel of the sum `W + strength * scaling * delta` is multiplied by what
//! brings it to the length that the file says. So strength works within the norm. (Web UIs interpolate between `W` and the result
//! instead. At strength 1 that is the same; at strength 0 theirs is `W`, and PEFT's is `W` brought to the file's lengths.) With several
//! adapters on a layer the factors are those of its own weight, `W`, and multiply all that the adapters before have made of it,
//! in the order in which they are set. Where LyCORIS has the lengths of input channels, the factors are for those.
//!
//! **Not fused**, a plain LoRA is a branch beside the layer, `up(down(x))` added to its output; several on one layer are joined to one
//! branch of their ranks' sum. Whatever is no low-rank product (LoHa, LoKr, DoRA, full differences) replaces the weight, whose original
//! is kept, and so does all else on a layer that has a DoRA. **Fused**, all do. Deltas are summed in float32 and rounded once to the model's dtype.

mod adapters;
mod change;
mod error;
mod low_rank;
mod matching;
mod products;
mod structure;

pub use adapters::{AdapterInfo, LoraAdapters};
pub use error::AdapterError;
pub use matching::{LoraModels, UnmatchedKeys};
pub use structure::unet_structure;
